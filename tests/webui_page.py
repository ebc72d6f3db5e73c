"""The sidebar in a real gradio, in a process of its own: python tests/webui_page.py MODELS PORT (or - for no server)

The path decides which gradio and fastapi. The host around them is the stand-in of fake_webui.py, with a small UNet to
find concepts on. Prints what `ui()` made and what the routes answer as JSON, then
serves the page until it is ended.
"""
import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import torch
from fake_webui import REPO, Webui, sd_model
from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.testclient import TestClient

with contextlib.redirect_stdout(sys.stderr):  # ldm says there that it has no xformers
    from webui_model import UNET, random_unet

LOGIN = "someone:secret"
PICTURE = ("<p>a cat<br>\nSteps: 12, SAEmnesia sae: animals.safetensors [0123456789], SAEmnesia fired: "
           "&quot;cat -&gt; dog: in 11 of 12 steps, rocket: in none&quot;, Version: v1</p>")
if hasattr(gr, "component_meta"):
    gr.component_meta.create_or_modify_pyi = lambda *args: None  # else gradio 4 writes a .pyi beside this file


def described(component: Any) -> list:
    """What the hosts' /script-info shows of it."""
    choices = [c[0] if isinstance(c, tuple) else c for c in getattr(component, "choices", None) or []]
    return [type(component).__name__, component.label, component.value, choices]


def answers(client: TestClient, *paths: str, **options: Any) -> list:
    return [[answer.status_code, answer.json()] for answer in (client.get(path, **options) for path in paths)]


def routes(host: Webui, api_auth: str | None, **options: Any) -> list:
    """What an API user is told; `demo` is None with --nowebui."""
    host.shared.cmd_opts = SimpleNamespace(api_auth=api_auth)
    app = FastAPI()
    host.fire("app_started", None, app)
    client = TestClient(app)
    found = [client.post("/saemnesia/find", json=wish, **options) for wish in ({"words": "a:b"}, {"word": "cat"})]
    return [*answers(client, "/saemnesia/saes", "/saemnesia/concepts?sae=animals.safetensors",
                     "/saemnesia/concepts?sae=../x", **options), *([a.status_code, a.json()] for a in found),
            *answers(client, "/saemnesia/concepts?sae=damaged.safetensors", **options)]


def send(button: gr.Button, fields: list, names: list, others: list) -> None:
    """As the hosts do: a field goes along when what fills it is among `names`, to the field that the same fills."""
    button.click(lambda *values: values, inputs=[part for part, name in fields if name in names],
                 outputs=[part for part, name in others if name in names])


def main(models: Path, port: str) -> None:
    torch.manual_seed(0)
    host = Webui(models, sd_model(random_unet(UNET | {"model_channels": 32, "channel_mult": [1, 2], "num_heads": 2})))
    with host.installed():
        tabs, sent, interfaces = [], [], []
        for tab in ("txt2img", "txt2img", "img2img"):  # the hosts call it more than once
            host.script.elem_id = lambda item, tab=tab: f"script_{tab}_saemnesia_{item}"
            with gr.Blocks() as interface:
                tabs.append(host.script.ui(tab == "img2img"))
            interfaces.append(interface)
            sent.append((host.script.infotext_fields, host.script.paste_field_names))
        put_together(host, interfaces, tabs, sent, port)


def put_together(host: Webui, interfaces: list, tabs: list, sent: list, port: str) -> None:
    with gr.Blocks() as page:
        for interface in interfaces:  # as the hosts put their tabs together
            interface.render()
        fields = [[type(part).__name__, read({})] for part, read in host.script.infotext_fields]
        paste, result = gr.Button("Paste"), gr.Textbox(label="Result")
        send(gr.Button("Send to img2img"), *sent[0], sent[-1][0])
        paste.click(lambda: ("Dog:0.5, noto style", "steer"), outputs=[tabs[0][2], tabs[0][3]])
        gr.Button("Generate").click(lambda *args: str(dict(zip(host.module.settings.DEFAULTS, args, strict=True))),
                                    inputs=tabs[0], outputs=[result])
        shown = gr.HTML("", elem_id="html_info_txt2img")  # the text of the picture that a host's tab shows
        gr.Button("Show a picture").click(lambda: PICTURE, outputs=[shown])
        said = {"gradio": gr.__version__, "tabs": [[described(part) for part in tab] for tab in tabs],
                "infotext": fields, "open": routes(host, None),
                "closed": routes(host, LOGIN), "login": routes(host, LOGIN, auth=tuple(LOGIN.split(":"))),
                "wrong": routes(host, LOGIN, auth=("someone", "else")), "errors": [repr(e) for e in host.errors]}
        print(json.dumps(said), flush=True)
    if port != "-":
        serve(page, int(port))


def serve(page: gr.Blocks, port: int) -> None:
    import uvicorn
    app = FastAPI()
    for name in ("javascript/saemnesia.mjs", "web/js/concept_text.js", "web/js/concept_figures.js",
                 "web/js/concept_fired.js", "web/js/words.js", "style.css"):
        kind = "text/css" if name.endswith("css") else "text/javascript"
        app.add_api_route(f"/{name}", lambda name=name, kind=kind: FileResponse(REPO / name, media_type=kind))
    uvicorn.run(gr.mount_gradio_app(app, page.queue(), "/page"), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Write locales/en/nodeDefs.json, what the nodes say in the page, anew from the nodes; the other languages follow it.

    .host/venv/bin/python -m tools.words

ComfyUI shows locales/<language>/nodeDefs.json in place of it; tests/host/test_languages.py says what a language lacks.
"""
from pathlib import Path
from typing import Any

from sae_models.storage import write_json
from tools.comfy_host import ComfyHost

LOCALES = Path(__file__).resolve().parents[1] / "locales"


def node_words(about: dict[str, Any]) -> dict[str, Any]:
    """The words of one node, of its entry in /object_info, in the layout of nodeDefs.json."""
    inputs = {name: {"name": name, "tooltip": options[0]["tooltip"]} if "tooltip" in (options[0] if options else {})
              else {"name": name}
              for group in ("required", "optional") for name, (_, *options) in about["input"].get(group, {}).items()}
    outputs = {str(i): {"name": name, "tooltip": tip} for i, (name, tip) in
               enumerate(zip(about["output_name"], about.get("output_tooltips") or [], strict=True))}
    return {"display_name": about["display_name"], "description": about["description"], "inputs": inputs,
            "outputs": outputs}


def of_host(host: ComfyHost) -> dict[str, Any]:
    """{node id: its words} of the extension's nodes."""
    return {name: node_words(about) for name, about in sorted(host.get_json("/object_info").items())
            if about["category"] == "SAEmnesia"}


if __name__ == "__main__":
    with ComfyHost() as running:
        write_json(LOCALES / "en" / "nodeDefs.json", of_host(running))

"""*Download...* on *Load SAE*, as a person uses it in the page of a real ComfyUI; the hub is one of the test's own."""
import json
import os
from collections.abc import Iterator

import pytest
import torch
import widget_helpers as canvas
from hub_server import HubServer
from layouts import BLOCK, configuration, publish, random_sae
from playwright.sync_api import Page, expect
from safetensors.torch import save
from widget_helpers import LOADER

from tools.comfy_host import COMFY, NEWEST_FRONTEND, ComfyHost

FRONTENDS = {"pinned": (), "newest": ("--front-end-root", str(NEWEST_FRONTEND))}
FILE = f"SAEmnesia/unet.{BLOCK}/sae.safetensors"
D_IN, D_SAE = 256, 12_000


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    weights = {"encoder.weight": torch.zeros(D_SAE, D_IN), "encoder.bias": torch.zeros(D_SAE),
               "W_dec": torch.zeros(D_SAE, D_IN), "b_dec": torch.zeros(D_IN)}
    config = configuration("sparsify") | {"d_in": D_IN}
    with HubServer({"leno3003/SAEmnesia": {"cfg.json": json.dumps(config).encode(),
                                           "sae.safetensors": save(weights)}}) as server:
        yield server


@pytest.fixture(scope="module", params=FRONTENDS)
def comfy(request, hub, tmp_path_factory) -> Iterator[ComfyHost]:
    """A ComfyUI with no SAE, whose hub is ours."""
    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "comfyui-saemnesia").symlink_to((COMFY / "custom_nodes" / "comfyui-saemnesia").resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HF_ENDPOINT", hub.url)
        with ComfyHost("--base-directory", str(base), *FRONTENDS[request.param]) as running:
            running.saes = base / "models" / "sae"
            yield running


@pytest.fixture(params=["canvas", "nodes2"])
def page(request, browser, comfy, hub) -> Iterator[Page]:
    opened = canvas.open_page(browser, comfy, request.param == "nodes2")
    opened.nodes2 = request.param == "nodes2"
    hub.requests.clear()
    yield opened
    opened.context.close()
    hub.status, hub.seconds = 0, 0
    for path in [path for path in comfy.saes.rglob("*") if path.is_file()]:  # the host trips over folders that go
        path.unlink()


def dialog(page: Page):
    return page.get_by_role("dialog", name="Download an SAE")


def button(page: Page, name: str):
    return dialog(page).locator("li").filter(has_text=name).get_by_role("button")


def test_an_sae_is_chosen_downloaded_stopped_gone_on_with_and_used(page, hub):
    loader = canvas.add(page, LOADER, 60)
    opener = page.get_by_role("button", name="Download...")
    assert canvas.is_inside_its_node(opener, page, loader)
    opener.click()
    expect(button(page, "SAEmnesia objects")).to_have_text("Download about 210 MB")
    expect(dialog(page).locator("li").first).to_contain_text("leno3003/SAEmnesia, licence not said.")
    assert hub.requests == []
    hub.seconds = 0.02
    button(page, "SAEmnesia objects").click()
    expect(dialog(page).get_by_role("status")).to_have_text("SAEmnesia objects: 10 of 25 MB", timeout=30_000)
    dialog(page).get_by_role("button", name="Stop").click()
    expect(dialog(page).get_by_role("alert")).to_have_text(
        "stopped: asked for again, the download goes on where it was", timeout=30_000)
    hub.seconds = 0
    button(page, "SAEmnesia objects").click()
    expect(dialog(page).get_by_role("status")).to_have_text("SAEmnesia objects is there, and chosen.", timeout=30_000)
    assert hub.starts("sae.safetensors")[0] == 0 and hub.starts("sae.safetensors")[-1] > 0
    expect(button(page, "SAEmnesia objects")).to_have_text("Choose")
    dialog(page).get_by_role("button", name="Close").click()
    expect(canvas.about(page)).to_have_text(f"SD 1.x, at one place: {BLOCK}, with {D_SAE} neurons without names")
    assert canvas.offered(page, loader, page.nodes2) == [FILE]
    assert page.evaluate("id => app.graph.getNodeById(id).widgets[0].value", loader) == FILE


def test_a_refusal_is_said_in_the_dialog_and_nothing_is_chosen(page, comfy, hub):
    hub.status = 403
    canvas.add(page, LOADER, 60)
    page.get_by_role("button", name="Download...").click()
    button(page, "SAEmnesia objects").click()
    expect(dialog(page).get_by_role("alert")).to_contain_text("leno3003/SAEmnesia is gated, private or gone")
    page.keyboard.press("Escape")
    expect(dialog(page)).to_be_hidden()
    expect(canvas.about(page)).to_contain_text("there is no file in models/sae yet")


def test_a_pickle_in_the_folder_is_named_with_what_to_do(page, comfy):
    source = publish(comfy.saes / f"unet.{BLOCK}_k4" / "final", "sdxl-unbox", random_sae())
    name = str(source.relative_to(comfy.saes))
    loader = canvas.add(page, LOADER, 60)
    page.evaluate("() => app.refreshComboInNodes()")
    page.wait_for_function("""([id, name]) => app.graph.getNodeById(id).widgets[0].options.values.includes(name)""",
                           arg=[loader, name])
    canvas.set_widget(page, loader, "sae_name", name)
    expect(canvas.about(page)).to_contain_text("state_dict.pth is a pickle, which can run code when it is opened")
    expect(canvas.about(page)).to_contain_text(f'convert.py" "{source}"')

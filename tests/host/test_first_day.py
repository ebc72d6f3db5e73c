"""A ComfyUI into which nothing but this repository was put."""
from urllib.parse import quote

import pytest
import widget_helpers as canvas
from playwright.sync_api import expect
from small_model import write_sae
from widget_helpers import ERASE, LOADER

from tools.comfy_host import COMFY, NEWEST_FRONTEND, ComfyHost, HostError

FRONTENDS = {"pinned": (), "newest": ("--front-end-root", str(NEWEST_FRONTEND))}
WAYS = ("use SAEmnesia Erase Words, which needs none", "press Download..., or copy a file there",
        "make one with SAEmnesia Find Concept or Train")
NONE = "(no file in models/sae yet)"


@pytest.fixture(scope="module", params=FRONTENDS)
def empty(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "comfyui-saemnesia").symlink_to((COMFY / "custom_nodes" / "comfyui-saemnesia").resolve())
    with ComfyHost("--base-directory", str(base), *FRONTENDS[request.param]) as running:
        running.models = base / "models"
        yield running


@pytest.fixture(params=["canvas", "nodes2"])
def page(request, browser, empty):
    page = canvas.open_page(browser, empty, request.param == "nodes2")
    yield page
    page.context.close()
    for path in (empty.models / "sae").glob("*.safetensors"):
        path.unlink()


def test_where_there_is_no_file_the_list_says_so_and_what_to_do(empty):
    about = empty.get_json("/object_info/SAEmnesiaLoadSAE")["SAEmnesiaLoadSAE"]["input"]["required"]["sae_name"]
    assert about[1]["options"] == [NONE]
    for way in WAYS:
        with pytest.raises(HostError, match=way):
            empty.get(f"/saemnesia/concepts?sae={quote(NONE)}")


def test_node_picker_and_error_say_what_to_do(page):
    loader, eraser = canvas.add(page, LOADER, 60), canvas.add(page, ERASE, 460)
    export = canvas.add(page, "SAEmnesiaExportConcept", 900, concepts="cat")
    canvas.link(page, loader, eraser)
    canvas.link(page, loader, export)
    for way in WAYS:
        expect(canvas.about(page)).to_contain_text(way)
        expect(page.locator(".saemnesia-picker [role=alert]")).to_contain_text(way)
        with pytest.raises(AssertionError, match=way):
            canvas.queue_and_wait(page)
    assert canvas.is_inside_its_node(canvas.about(page), page, loader)


def test_the_first_file_is_chosen_where_nothing_could_be_before(empty, page):
    first, second = canvas.add(page, LOADER, 60), canvas.add(page, LOADER, 60, 400)
    export = canvas.add(page, "SAEmnesiaExportConcept", 460, name="made", concepts="cat")
    eraser = canvas.add(page, ERASE, 900)
    canvas.link(page, first, export)
    canvas.link(page, second, eraser)
    write_sae(empty.models / "sae" / "copied.safetensors")
    canvas.set_widget(page, first, "sae_name", "copied.safetensors")
    canvas.queue_and_wait(page)
    expect(canvas.about(page).nth(1)).to_have_text("SD 1.x, up_blocks.0.attentions.1, 1 concept")
    canvas.wait_for_list(page)
    canvas.tick(page, "cat")
    assert canvas.prompt_of(page, ERASE)["concepts"] == "cat"

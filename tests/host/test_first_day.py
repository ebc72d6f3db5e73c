"""A ComfyUI into which nothing but this repository was put."""
import shutil
import time
from urllib.parse import quote

import pytest
import widget_helpers as canvas
from playwright.sync_api import expect
from small_model import write_checkpoint, write_sae
from widget_helpers import ERASE, LOADER

from tools.comfy_host import COMFY, NEWEST_FRONTEND, ComfyHost, HostError

FRONTENDS = {"pinned": (), "newest": ("--front-end-root", str(NEWEST_FRONTEND))}
WAYS = ("use SAEmnesia Erase Words, which needs none", "press Download..., or copy a file there",
        "make one with SAEmnesia Find Concept or Train")
NONE = "(no file in models/sae yet)"
CHECKPOINT = "my paintings v3.safetensors"
SMALLER = (("SAEmnesiaEraseWords", "pictures", 8), ("SAEmnesiaEraseWords", "side", 64), ("KSampler", "steps", 2),
           ("EmptyLatentImage", "width", 64), ("EmptyLatentImage", "height", 64))
"""Of the template's values, for the time it takes."""


@pytest.fixture(scope="module", params=FRONTENDS)
def empty(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "comfyui-saemnesia").symlink_to((COMFY / "custom_nodes" / "comfyui-saemnesia").resolve())
    with ComfyHost("--base-directory", str(base), *FRONTENDS[request.param]) as running:
        running.models = base / "models"
        yield running


@pytest.fixture(params=["canvas", "nodes2"])
def nodes2(request) -> bool:
    return request.param == "nodes2"


@pytest.fixture
def page(browser, empty, nodes2):
    page = canvas.open_page(browser, empty, nodes2)
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
    expect(canvas.about(page).nth(1)).to_have_text("SD 1.x, at one place: up_blocks.0.attentions.1, with 1 concept")
    canvas.wait_for_list(page)
    canvas.tick(page, "cat")
    assert canvas.prompt_of(page, ERASE)["concepts"] == "cat"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the first page has found, for the others, which would paint the same again."""
    return tmp_path_factory.mktemp("found")


def test_a_template_a_checkpoint_a_word_and_run(empty, page, nodes2, found, tmp_path):
    """From nothing to a first erased picture in four actions and one word, as people click and type."""
    if not (path := empty.models / "checkpoints" / CHECKPOINT).exists():
        write_checkpoint(path)
    known, saes = any(found.iterdir()), empty.models / "sae"
    shutil.copytree(found, saes, dirs_exist_ok=True)
    page.reload()
    page.wait_for_function(canvas.READY, timeout=120_000)
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("Erase-words").first.click()
    page.wait_for_function("() => app.graph.nodes.some((node) => node.type === 'SAEmnesiaEraseWords')")
    loader = page.evaluate("() => Number(app.graph.nodes.find((n) => n.type === 'CheckpointLoaderSimple').id)")
    canvas.choose(page, loader, "ckpt_name", CHECKPOINT, nodes2)
    next(box for box in canvas.text_box(page).all() if box.input_value() == "cat").fill("rose")
    for kind, name, value in SMALLER:
        for node in page.evaluate("(kind) => app.graph.nodes.filter((n) => n.type === kind).map((n) => n.id)", kind):
            canvas.set_widget(page, node, name, value)
    canvas.keep_what_is_said(page)
    page.get_by_role("button", name="Run", exact=True).first.click()
    expect(page.locator(".saemnesia-report")).to_contain_text("rose: ", timeout=300_000)
    if not known:
        expect(page.locator(".saemnesia-report")).to_contain_text("found in")
        assert any("rose (object): painting to learn from, step" in text for text in canvas.said(page))
    assert [path.name[:15] for path in saes.glob("*.safetensors")] == [CHECKPOINT[:15]]
    end = time.monotonic() + 60
    while empty.get_json("/queue")["queue_running"] and time.monotonic() < end:
        page.wait_for_timeout(200)
    run = list(empty.get_json("/history").values())[-1]
    pictures = {image["filename"][:6] for output in run["outputs"].values() for image in output.get("images", [])}
    assert run["status"]["status_str"] == "success" and pictures == {"before", "after_"}
    page.screenshot(path=tmp_path / "first day.png")
    shutil.copytree(saes, found, dirs_exist_ok=True)

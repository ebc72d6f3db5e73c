"""The example workflows, run as they load: in the page of a real ComfyUI, on the small model of this repository."""
import json
import shutil
from pathlib import Path

import pytest
import widget_helpers as canvas
from playwright.sync_api import expect

from tools.comfy_host import COMFY, ComfyHost

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
WRITTEN = {"erase": (), "find": ("found",), "train": ("my concepts",), "words": ("minicanvas *",)}


@pytest.fixture(scope="module")
def comfy():
    with ComfyHost() as running:
        yield running


@pytest.fixture(params=WRITTEN)
def example(request):
    """Its name; what it writes is taken away before and after."""
    def remove() -> None:
        for name in WRITTEN[request.param]:
            for path in (COMFY / "models" / "sae").glob(f"{name}.*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    remove()
    yield request.param
    remove()


def test_an_example_keeps_its_values_and_runs(browser, comfy, example):
    page = canvas.open_page(browser, comfy, nodes2=False)
    workflow = json.loads((EXAMPLES / f"{example}.json").read_text("utf-8"))
    canvas.load(page, workflow)
    kept = {node["id"]: node.get("widgets_values") for node in canvas.saved(page)["nodes"]}
    for node in workflow["nodes"]:
        assert (kept[node["id"]] or []) == node.get("widgets_values", []), node["type"]
    assert len(set(canvas.queue_and_wait(page))) >= 2
    if example in ("find", "words"):
        expect(page.locator(".saemnesia-report")).to_contain_text("cat: ")
    for name in WRITTEN[example]:
        assert list((COMFY / "models" / "sae").glob(f"{name}.safetensors"))
    page.context.close()


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.json")} == set(WRITTEN)

"""The example workflows, run as they load: in the page of a real ComfyUI, on the small model of this repository."""
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import widget_helpers as canvas
from playwright.sync_api import TimeoutError, expect

from tools.comfy_host import COMFY, NEWEST_FRONTEND, PYTHON, ComfyHost, free_port
from tools.on_minicanvas import OWN_CHECKPOINT, on_minicanvas

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "example_workflows"
LESS = {"Find-a-concept": {"contrast": "dog = a dog\nrose = a rose", "neurons": 1, "pictures": 8, "steps": 6},
        "Train-an-SAE": {"concepts": "cat = a cat\ndog = a dog\nnoto style", "pictures": 9, "training_steps": 20,
                         "steps": 6}}
"""What is asked for here of the nodes that learn, for the time it takes; people get what the files say."""
LEARNING = {"Find-a-concept": "SAEmnesiaFindConcept", "Train-an-SAE": "SAEmnesiaTrain"}
WRITTEN = {"Compare": (), "Tick-concepts": (), "Find-a-concept": ("found",), "Map-and-inpaint": (),
           "Train-an-SAE": ("my concepts",), **dict.fromkeys(OWN_CHECKPOINT, ())}


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
    page = canvas.open_page(browser, comfy, nodes2=example in OWN_CHECKPOINT)
    workflow = json.loads((EXAMPLES / f"{example}.json").read_text("utf-8"))
    workflow = on_minicanvas(workflow) if example in OWN_CHECKPOINT else workflow
    canvas.load(page, workflow)
    kept = {node["id"]: node.get("widgets_values") for node in canvas.saved(page)["nodes"]}
    for node in workflow["nodes"]:
        assert (kept[node["id"]] or []) == node.get("widgets_values", []), node["type"]
    for name, value in LESS.get(example, {}).items():
        (node,) = [node["id"] for node in workflow["nodes"] if node["type"] == LEARNING[example]]
        canvas.set_widget(page, node, name, value)
    if example in OWN_CHECKPOINT:  # run by test_first_day, the other one is it with another word
        return page.context.close()
    assert len(set(canvas.queue_and_wait(page))) >= 2
    if example in ("Find-a-concept", "Map-and-inpaint"):
        expect(page.locator(".saemnesia-report")).to_contain_text("cat: ")
    for name in WRITTEN[example]:
        assert list((COMFY / "models" / "sae").glob(f"{name}.safetensors"))
    page.context.close()


def search_nodes(page):
    """Click twice on the canvas, as people add a node; again where the page was too slow to see one double click."""
    for _ in range(6):
        page.mouse.dblclick(900, 600)
        try:
            page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'", timeout=5000)
            return
        except TimeoutError:
            continue
    raise AssertionError("two clicks on the canvas opened no search")


def blueprint(browser, comfy, nodes2):
    """A page with the blueprint, added as people add a node, and a loader's id."""
    page = canvas.open_page(browser, comfy, nodes2)
    loader = canvas.add(page, "CheckpointLoaderSimple", 60, 60)
    search_nodes(page)
    page.keyboard.type("paint without")
    expect(page.get_by_text("SAEmnesia paint without").first).to_be_visible()
    page.keyboard.press("Enter")
    page.wait_for_function("() => app.graph.nodes.some((node) => node.subgraph)")
    return page, loader


@pytest.mark.parametrize("nodes2", [False, True], ids=["canvas", "nodes2"])
def test_the_blueprint_has_a_box_for_each_text(browser, nodes2):
    with ComfyHost("--front-end-root", str(NEWEST_FRONTEND)) as running:
        page, _ = blueprint(browser, running, nodes2)
        expect(page.locator("textarea").locator("visible=true")).to_have_count(3)  # words, prompt, negative
        page.context.close()


@pytest.mark.parametrize("nodes2", [False, True], ids=["canvas", "nodes2"])
def test_the_blueprint_is_one_node_with_what_an_artist_sets(browser, comfy, nodes2):
    page, loader = blueprint(browser, comfy, nodes2)
    page.evaluate("""(loader) => {
        const node = app.graph.nodes.find((candidate) => candidate.subgraph)
        for (const [output, name] of ["model", "clip", "vae"].entries())
            app.graph.getNodeById(loader).connect(output, node, node.inputs.findIndex((input) => input.name === name))
        const values = { words: "cat", prompt: "a cat", cfg: 2.5, steps: 12, width: 96, height: 96 }
        for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value
        const save = LiteGraph.createNode("SaveImage")
        app.graph.add(save)
        node.connect(0, save, 0)
    }""", loader)
    erase, sampler = (canvas.prompt_of(page, kind) for kind in ("SAEmnesiaEraseWords", "KSampler"))
    assert (erase["words"], erase["model"], erase["clip"]) == ("cat", [str(loader), 0], [str(loader), 1])
    assert (sampler["steps"], sampler["cfg"]) == (12, erase["cfg"])
    page.context.close()


@pytest.mark.parametrize(("front_end", "nodes2"), [((), False), (("--front-end-root", str(NEWEST_FRONTEND)), True)],
                         ids=["pinned-canvas", "newest-nodes2"])
def test_the_nodes_of_an_example_do_not_touch(browser, front_end, nodes2):
    with ComfyHost(*front_end) as running:
        page = canvas.open_page(browser, running, nodes2)
        for path in sorted(EXAMPLES.glob("*.json")):
            canvas.load(page, json.loads(path.read_text("utf-8")))
            page.wait_for_timeout(1500)
            boxes = canvas.boxes(page)
            assert len(boxes) > 5
            for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
                gap = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
                assert gap >= 10, (path.stem, one, other)
        page.context.close()


@pytest.mark.parametrize("front_end", [(), ("--front-end-root", str(NEWEST_FRONTEND))], ids=["pinned", "newest"])
def test_make_demo_ui_opens_the_workflow_and_writes_nothing_of_the_users(browser, tmp_path, front_end):
    mine = tmp_path / "default" / "workflows" / "Tick-concepts.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine", "utf-8")
    port = str(free_port())
    command = [str(PYTHON), "-m", "tools.demo_ui", port, "--user-directory", str(tmp_path), *front_end,
               "--database-url", f"sqlite:///{tmp_path}/comfyui.db"]
    opens = f"printf %s \"$1\" > '{tmp_path}/opened'"  # a browser that only notes what it was asked for
    (tmp_path / "browser").write_text(f"#!/bin/sh\n{opens}\n", "utf-8")
    (tmp_path / "browser").chmod(0o755)
    running = subprocess.Popen(command, cwd=REPO, env=os.environ | {"BROWSER": f"{tmp_path}/browser %s"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "opened").exists() and time.monotonic() < end:
            time.sleep(0.2)
        page = browser.new_context().new_page()
        page.goto((tmp_path / "opened").read_text("utf-8"))
        page.wait_for_function("() => window.app?.graph?.nodes.some((node) => node.type === 'SAEmnesiaErase')",
                               timeout=60_000)
        page.context.close()
        assert mine.read_text("utf-8") == "mine"
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(30)


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.json")} == set(WRITTEN)

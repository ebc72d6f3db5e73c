"""*SAEmnesia Compare*: what it paints, through the HTTP API, and what the page shows of it, in both renderers."""
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch
import widget_helpers as canvas
from canvas_graphs import erase, graph, latents, then
from host_graphs import node
from PIL import Image
from playwright.sync_api import Page, expect
from safetensors.torch import load

from tools.comfy_host import NEWEST_FRONTEND, ComfyHost, HostError, Outcome

EXAMPLE = Path(__file__).resolve().parents[2] / "example_workflows" / "Compare.json"
FRONTENDS = {"pinned": (), "newest": ("--front-end-root", str(NEWEST_FRONTEND))}
MINICANVAS = "minicanvas.safetensors"
PROMPT = "a cat, noto style, on a blue ground"
STEPS, BATCH = 4, 2
COMPARE = "SAEmnesiaCompare"


def minicanvas(**options: object) -> dict:
    made = graph(PROMPT, **{"steps": STEPS, "cfg": 2.5, **options})
    made["checkpoint"]["inputs"]["ckpt_name"] = MINICANVAS
    return made


def comparing(made: dict, across: str, concepts: str = "cat", **options: object) -> dict:
    """*Compare* in place of the KSampler of `made`, and the differences saved."""
    sampler = made["sampler"]["inputs"]
    made = {name: made[name] for name in made if name not in ("sampler", "save")}
    return made | {
        "sae": node("SAEmnesiaLoadSAE", sae_name=MINICANVAS, hookpoint=""),
        "compare": node(COMPARE, **sampler | {"vae": ["checkpoint", 2], "sae": ["sae", 0], "across": across,
                                              "actuator": "ablate", "strengths": "", "concepts": concepts} | options),
        "show": node("SaveImage", images=["compare", 2], filename_prefix="difference")}


def exact(host: ComfyHost, made: dict, pictures: list, count: int, batch: int) -> tuple[Outcome, list[torch.Tensor]]:
    """What `count` parts of some pictures are as latents, which are equal only for pictures that are."""
    made = dict(made)
    for i in range(count):
        made[f"part {i}"] = node("ImageFromBatch", image=pictures, batch_index=i * batch, length=batch)
        made[f"laid out {i}"] = node("RepeatImageBatch", image=[f"part {i}", 0], amount=1)  # alike in memory
        made[f"encoded {i}"] = node("VAEEncode", pixels=[f"laid out {i}", 0], vae=["checkpoint", 2])
        made[f"kept {i}"] = node("SaveLatent", samples=[f"encoded {i}", 0], filename_prefix="part")
    outcome = host.run(made)
    files = [outcome.history["outputs"][f"kept {i}"]["latents"][0] for i in range(count)]
    return outcome, [load(host.get("/view?" + urlencode(one)))["latent_tensor"] for one in files]


def painted(host: ComfyHost, made: dict, batch: int = 1) -> torch.Tensor:
    """What KSampler paints."""
    made["decode"] = node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2])
    return exact(host, made, ["decode", 0], 1, batch)[1][0]


def brightest(picture: Image.Image) -> int:
    return max(high for _, high in picture.getextrema())


def test_before_is_what_ksampler_paints_and_each_version_what_erase_paints(host):
    made = comparing(minicanvas(batch=BATCH), "strengths", strengths="0, 0.5")
    outcome, (before, zero, half) = exact(host, made, ["compare", 1], 3, BATCH)
    assert torch.equal(before, painted(host, minicanvas(batch=BATCH), BATCH))
    assert not torch.equal(before[0], before[1])
    assert torch.equal(zero, before) and not torch.equal(half, before)
    assert torch.equal(half, painted(host, erase(minicanvas(batch=BATCH), "cat:0.5", sae=MINICANVAS), BATCH))
    shown = [Image.open(io.BytesIO(png)) for png in outcome.images]
    assert [brightest(one) > 100 for one in shown] == [False, False, True, True] and brightest(shown[0]) == 0


def test_the_pictures_files_say_every_version_that_was_painted(host):
    made = comparing(minicanvas(), "actuators", "cat:0.5")
    outcome = host.run(made)
    entries = json.loads(Image.open(io.BytesIO(outcome.images[0])).text["saemnesia"])
    assert [(one["node"], one["sampler"]) for one in entries] == [("compare", "compare")] * 5
    assert [one["actuator"] for one in entries] == ["amount", "ablate", "steer", "replace", "thorough"]
    assert entries[0]["concepts"] == "cat:0.5" and f"of {STEPS} steps" in entries[0]["fired"]


def test_what_earlier_nodes_erase_stays_erased_in_all(host):
    earlier = erase(minicanvas(), "cat", sae=MINICANVAS)
    _, (before, style, rose) = exact(host, comparing(earlier, "concepts", "noto style, rose:0"), ["compare", 1], 3, 1)
    assert torch.equal(before, painted(host, earlier)) and torch.equal(rose, before)
    assert not torch.equal(style, before)


@pytest.mark.parametrize(("across", "concepts", "strengths", "sentence"), [
    ("strengths", "cat", "0.5, -2", "'cat:-2' cannot be painted: .*strength"),
    ("concepts", "cat, catt", "", "'catt' cannot be painted: .* has no concept 'catt'; nearest: cat"),
    ("actuators", "cat -> rose", "", "'steer: cat -> rose' cannot be painted: .*ablate"),
])
def test_what_cannot_be_erased_is_said_before_anything_is_painted(host, across, concepts, strengths, sentence):
    made = comparing(minicanvas(), across, concepts, strengths=strengths)
    told = len(host.log)
    with pytest.raises(HostError, match=sentence):
        host.run(made)
    assert "it/s]" not in host.log[told:]


def test_nothing_stays_after_an_interrupt_or_an_error(host):
    plain = latents(host, minicanvas())
    told = len(host.log)
    prompt_id = host.submit(comparing(minicanvas(steps=40), "actuators"))
    end = time.monotonic() + 60
    while "SAEmnesia: ablate cat at" not in host.log[told:] and time.monotonic() < end:
        time.sleep(0.1)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=60)
    with pytest.raises(HostError, match="failed on purpose"):
        host.run(comparing(then(minicanvas(), "fail", "TestMeddle", how="fail"), "before and after"))
    assert torch.equal(latents(host, minicanvas()), plain)


# --- in the page ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FRONTENDS)
def comfy(request) -> Iterator[ComfyHost]:
    with ComfyHost(*FRONTENDS[request.param]) as running:
        yield running


@pytest.fixture(params=["canvas", "nodes2"])
def page(request, browser, comfy) -> Iterator[Page]:
    """The first *Compare* of the example workflow, of two latents, in which nothing is chosen yet."""
    opened = canvas.open_page(browser, comfy, request.param == "nodes2")
    opened.set_viewport_size({"width": 1400, "height": 1500})
    workflow = json.loads(EXAMPLE.read_text("utf-8"))
    workflow["nodes"] = [one for one in workflow["nodes"] if one["id"] <= 6]
    workflow["links"] = [link for link in workflow["links"] if link[3] <= 6]
    for one in workflow["nodes"]:
        one["outputs"] = [out | {"links": [link[0] for link in workflow["links"] if link[1:3] == [one["id"], i]]}
                          for i, out in enumerate(one["outputs"])]
    workflow["nodes"][4]["widgets_values"][2] = BATCH
    values = workflow["nodes"][5]["widgets_values"]
    values[2], values[5], values[-1] = "1", STEPS, ""
    canvas.load(opened, workflow)
    canvas.wait_for_list(opened)
    yield opened
    opened.context.close()


WATCH = """async () => {
    window.bar = []
    const { api } = await import("/scripts/api.js")
    api.addEventListener("progress", ({ detail }) => bar.push([detail.value, detail.max]))
}"""


def wait_until_shown(page: Page, *names: str) -> None:
    """Until these pictures, and no others, are to be seen and loaded."""
    page.wait_for_function("""names => JSON.stringify([...document.querySelectorAll(".saemnesia-stage img")]
        .filter((image) => image.checkVisibility() && image.naturalWidth).map((image) => image.alt))
        === JSON.stringify(names)""", arg=names)


def test_a_slider_between_before_and_after_their_difference_and_a_sheet(page):
    kept = canvas.values_of(canvas.saved(page), COMPARE)
    canvas.tick(page, "cat")
    page.evaluate(WATCH)
    canvas.queue_and_wait(page)
    assert page.evaluate("() => bar") == [[done, 2 * STEPS] for done in range(1, 2 * STEPS + 1)]
    slider, tools = page.get_by_role("slider", name="How much of the picture"), page.locator(".saemnesia-tools")
    expect(tools.get_by_role("status")).to_contain_text("of the picture has changed.")
    wait_until_shown(page, "After", "Before")
    box = slider.bounding_box()
    assert box["width"] > 150
    where = page.evaluate("() => app.graph.nodes.map((node) => [...node.pos])")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert abs(float(slider.input_value()) - 80) < 3
    assert page.evaluate("() => app.graph.nodes.map((node) => [...node.pos])") == where
    page.keyboard.press("Home")
    clip = page.locator(".saemnesia-before").evaluate("(image) => getComputedStyle(image).clipPath")
    assert slider.input_value() == "0" and clip == "inset(0px 100% 0px 0px)"
    tools.get_by_role("button", name="Difference").click()
    wait_until_shown(page, "Difference")
    assert not slider.is_visible()
    first = page.locator(".saemnesia-difference").get_attribute("src")
    tools.get_by_role("button", name="1 / 2").click()
    assert page.locator(".saemnesia-difference").get_attribute("src") != first
    tools.get_by_role("button", name="Enlarge").click()
    assert page.locator("dialog .saemnesia-difference").bounding_box()["width"] > 1000
    page.keyboard.press("Escape")
    expect(page.locator("dialog .saemnesia-stage")).to_have_count(0)
    canvas.set_widget(page, 6, "across", "strengths")
    canvas.queue_and_wait(page)
    page.wait_for_function("() => document.querySelector('.saemnesia-sheet').naturalWidth > 200")
    wait_until_shown(page, "Sheet")
    expect(canvas.row(page, "cat").locator(".saemnesia-fired")).to_have_text(f"in {STEPS} of {STEPS} steps")
    assert not slider.is_visible()
    changed = {0: "strengths", len(kept) - 1: "cat"}
    assert canvas.values_of(canvas.saved(page), COMPARE) == [changed.get(i, value) for i, value in enumerate(kept)]

"""What became of each concept in a run: beside it in the page, in both renderers, and in the pictures' files."""
import json
from collections.abc import Iterator

import pytest
import widget_helpers as canvas
from canvas_graphs import erase, graph, with_picture, written
from host_graphs import node
from playwright.sync_api import Page, expect
from small_model import NAME

from sae_models.hashing import short_hash
from tools.comfy_host import COMFY

CAT = "a cat, noto style"


def chained(seed: int = 1, **options) -> dict:
    """Two nodes that erase, one behind the other, and a second pass over what they paint."""
    made = erase(graph(CAT, seed=seed), "cat, dog:0", name="one", **options)
    made = erase(made, "rocket, noto style -> cat", name="two")
    second = {"latent_image": ["sampler", 0], "denoise": 0.5}
    made["second"] = node("KSampler", **(made["sampler"]["inputs"] | second))
    made["save"]["inputs"]["samples"] = ["second", 0]
    return made


def numbered(made: dict) -> dict:
    """The same with numbers for names, which the page wants."""
    ids = {name: str(number) for number, name in enumerate(made, 1)}
    return {ids[name]: part | {"inputs": {key: [ids[value[0]], value[1]] if isinstance(value, list) else value
                                          for key, value in part["inputs"].items()}}
            for name, part in made.items()}


@pytest.fixture(params=["canvas", "nodes2"])
def page(request, browser, host) -> Iterator[Page]:
    opened = canvas.open_page(browser, host, request.param == "nodes2")
    opened.seed = sum(request.param.encode())  # the host keeps what it painted for the other page
    yield opened
    opened.context.close()


def load(page: Page, made: dict) -> None:
    page.evaluate("async (made) => { await app.loadApiJson(made, 'made') }", numbered(made))
    canvas.show_origin(page)
    expect(page.locator(".saemnesia-list")).to_have_count(2)
    page.evaluate("""() => {
        for (const { widgets } of app.graph.nodes) for (const widget of widgets ?? []) {
            if (widget.name === "control_after_generate") widget.value = "fixed"
        }
        const erasing = app.graph.nodes.filter((node) => node.type === "SAEmnesiaErase")
        erasing.forEach((node, i) => { node.pos = [60 + 500 * i, 60] })
        app.canvas.setDirty(true, true)
    }""")


def mark(page: Page, name: str, which: int):
    """What is said in a concept's row of one of the lists."""
    return page.locator(".saemnesia-picker").nth(which).locator(".saemnesia-row").filter(
        has=page.locator(".saemnesia-name").get_by_text(name, exact=True)).locator(".saemnesia-fired")


def test_each_node_says_of_its_own_concepts_in_how_many_steps_they_were(page):
    load(page, chained(page.seed))
    before = canvas.saved(page)
    canvas.queue_and_wait(page)
    expect(mark(page, "cat", 0)).to_have_text("in 8 of 8 steps")
    expect(mark(page, "dog", 0)).to_have_text("strength 0")
    expect(mark(page, "rocket", 1)).to_have_text("never fired")
    expect(mark(page, "noto style", 1)).to_have_attribute("title", "noto style -> cat: in 8 of 8 steps")
    expect(page.locator(".saemnesia-last-run")).to_have_text([
        "dog was not erased: its strength is 0.",
        "rocket never fired: the prompt does not say it, or says it in a way that the SAE does not know."])
    expect(page.locator(".saemnesia-row .saemnesia-idle")).to_have_count(2)
    expect(mark(page, "noto style", 0)).to_have_count(0)
    kept = [[part["widgets_values"] for part in saved["nodes"]] for saved in (before, canvas.saved(page))]
    assert kept[0] == kept[1] and "8 steps" not in json.dumps(canvas.saved(page))
    canvas.queue_and_wait(page)  # all of it is in the cache
    expect(mark(page, "cat", 0)).to_have_text("in 8 of 8 steps")
    noto = page.locator(".saemnesia-name").get_by_text("noto style", exact=True)
    page.locator(".saemnesia-picker").first.locator(".saemnesia-row").filter(has=noto).get_by_role(
        "checkbox").press("Space")
    page.keyboard.press("Control+z")  # all nodes are made anew
    expect(page.locator(".saemnesia-picker").first.locator("input:checked")).to_have_count(2)
    expect(mark(page, "cat", 0)).to_have_text("in 8 of 8 steps")
    expect(page.locator(".saemnesia-last-run").first).to_contain_text("dog was not erased")


def test_the_next_run_begins_anew_and_a_window_without_a_step_is_the_reason(page):
    load(page, chained(page.seed, start=0.5))
    canvas.queue_and_wait(page)
    expect(mark(page, "cat", 0)).to_have_text("in 6 of 8 steps")
    node = page.evaluate("() => Number(app.graph.nodes.find(({ type }) => type === 'SAEmnesiaErase').id)")
    for name, value in {"start": 0.98, "end": 0.99}.items():
        canvas.set_widget(page, node, name, value)
    canvas.queue_and_wait(page)
    expect(mark(page, "cat", 0)).to_have_text("left out by start and end")
    expect(page.locator(".saemnesia-last-run").first).to_contain_text(
        "cat was not erased: none of the steps lies between start and end.")


def test_erase_words_says_it_below_its_report(page):
    words = canvas.add(page, "SAEmnesiaEraseWords", 60)
    event = {"node": str(words), "run": "x", "concepts": [
        {"name": "cat", "label": "cat", "count": 20, "steps": 20, "why": ""},
        {"name": "rose", "label": "rose", "count": 0, "steps": 20, "why": "silent"}]}
    page.evaluate("event => window.app.api.dispatchCustomEvent('saemnesia.fired', event)", event)
    lines = page.locator(".saemnesia-report .saemnesia-last-run > div")
    expect(lines).to_have_text(["cat: in 20 of 20 steps", "rose never fired: the prompt does not say it, or says it "
                                "in a way that the SAE does not know."])
    expect(lines.nth(1)).to_have_class("saemnesia-idle")
    assert canvas.is_inside_its_node(lines.nth(1), page, words)


def test_erase_words_says_so_as_long_as_its_model_goes_nowhere(page):
    words, sampler = canvas.add(page, "SAEmnesiaEraseWords", 60), canvas.add(page, "KSampler", 700)
    loose = page.locator(".saemnesia-loose").first
    expect(loose).to_have_text("Nothing is erased yet: link MODEL to KSampler.")
    assert canvas.is_inside_its_node(loose, page, words)
    for slot, other in ((0, sampler), (1, canvas.add(page, "SAEmnesiaErase", 700))):
        page.evaluate("([a, slot, b]) => window.app.graph.getNodeById(a).connect(slot, "
                      "window.app.graph.getNodeById(b), slot ? 'sae' : 'model')", [words, slot, other])
        expect(loose).to_have_text("")
        kept = page.evaluate("JSON.stringify(window.app.graph.serialize())")
        page.evaluate("text => window.app.loadGraphData(JSON.parse(text))", kept)
        expect(page.locator(".saemnesia-loose").first).to_have_text("")
        page.evaluate("([a, slot]) => window.app.graph.getNodeById(a).disconnectOutput(slot)", [words, slot])
        expect(page.locator(".saemnesia-loose").first).to_have_text("Nothing is erased yet: link MODEL to KSampler.")


def test_a_picture_says_what_was_erased_also_where_the_nodes_are_in_the_cache(host):
    wanted = {"sae": NAME, "hash": short_hash(COMFY / "models" / "sae" / NAME), "concepts": "cat:0.8, rocket:1.0",
              "actuator": "ablate", "start": 0.0, "end": 1.0, "apply_to": "both",
              "fired": "cat: in 4 of 4 steps, rocket: in none", "node": "erase", "sampler": "sampler"}
    for seed in (11, 12):
        [png] = host.run(with_picture(erase(graph(CAT, seed=seed), "cat:0.8, rocket, dog:0"))).images
        assert written(png) == [wanted]


def test_a_picture_that_is_only_saved_again_says_it_too_and_one_of_another_graph_does_not(host):
    made = with_picture(erase(graph(CAT, seed=14, cfg=4), "cat"))  # a whole number, as the page sends it
    [first] = host.run(made).images
    made["save"]["inputs"]["filename_prefix"] = "again"
    [again] = host.run(made).images
    assert written(again) == written(first) and written(first)
    made["sampler"]["inputs"]["model"] = ["checkpoint", 0]
    [plain] = host.run(made).images
    assert written(plain) is None


def test_a_picture_says_nothing_where_nothing_was_erased(host):
    for made in (graph(CAT, seed=13), erase(graph(CAT, seed=13), "cat:0"),
                 erase(graph(CAT, seed=13), "cat", start=0.98, end=0.99)):
        [png] = host.run(with_picture(made)).images
        assert written(png) is None


def test_several_nodes_and_samplers_each_have_their_entry(host):
    [png] = host.run(with_picture(chained())).images
    found = {(entry["node"], entry["sampler"]): entry["concepts"] for entry in written(png)}
    two = "rocket:1.0, noto style:1.0 -> cat"
    assert found == {("one", "sampler"): "cat:1.0", ("one", "second"): "cat:1.0",
                     ("two", "sampler"): two, ("two", "second"): two}

"""The concept picker as a person uses it: in a browser, in both renderers of the pinned and of the newest front end."""
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import widget_helpers as canvas
from PIL import Image
from playwright.sync_api import Error, Page, expect
from safetensors.torch import save_file
from small_model import UNET_CONFIG
from widget_helpers import ERASE, LOADER, PICKER, Shown

from benchmarks.minicanvas import models
from benchmarks.minicanvas.icons import OBJECTS as JUDGED
from benchmarks.minicanvas.judge import load_judge
from sae_models import Concept, Header, Sae, SaeConfig, Statistics, write
from tools.comfy_host import COMFY, NEWEST_FRONTEND, ComfyHost

REPO = Path(__file__).resolve().parents[2]
CASES = json.loads((REPO / "tests" / "choices.json").read_text("utf-8"))
FRONTENDS = {"pinned": (), "newest": ("--front-end-root", str(NEWEST_FRONTEND))}
OBJECTS = ("cat", "dog", "bear", "horse", "frog", "fish", "turtle", "whale", "rose", "cactus", "pizza", "rocket")
STYLES = ("noto style", "twemoji style")
LONG = "the small porcelain teapot with blue flowers on my grandmother's table"
MEASURED = {"cat": {"removed": 0.943, "touched": 0.0012}, "dog": {"removed": 0.38, "touched": 0.01},
            "bear": {"removed": 0.91, "touched": 0.12}, "frog": {"removed": -0.12, "touched": 0.3},
            LONG: {"removed": 0.994, "touched": 0.002}, "pizza": None}


def make_sae(path: Path, concepts: tuple[Concept, ...]) -> None:
    config, rows = SaeConfig(8, 32, 4), len(concepts)
    statistics = Statistics((0.1, 1.0), torch.zeros(rows, 2), torch.ones(rows, 2))
    write(path, Sae(config), Header(config, "up_blocks.1.attentions.1", "sd15", False, concepts, {}), statistics)


@pytest.fixture(scope="session")
def sae_folder(tmp_path_factory) -> Path:
    """animals: objects, styles and one more; castles: two others; measured: with figures; nameless; broken."""
    folder = tmp_path_factory.mktemp("models") / "sae"
    folder.mkdir()
    named = [*((name, "object") for name in OBJECTS), *((name, "style") for name in STYLES), ("sadness", "")]
    make_sae(folder / "animals.safetensors",
             tuple(Concept(name, (i,), kind, f"a small {name}") for i, (name, kind) in enumerate(named)))
    make_sae(folder / "castles.safetensors", (Concept("castle", (1,), "object"), Concept("ghost", (2,), "object")))
    make_sae(folder / "measured.safetensors",
             tuple(Concept(name, (i,), "object", measured=shares) for i, (name, shares) in enumerate(MEASURED.items())))
    make_sae(folder / "nameless.safetensors", ())
    make_sae(folder / "kinds.safetensors", (Concept("night", (0,), "mood"), Concept("cat", (1,), "object"),
                                            Concept("sadness", (2,))))
    (folder / "broken.safetensors").write_bytes(b"not a safetensors file")
    return folder


def write_sd2(path: Path) -> None:
    """A file that the host takes for a checkpoint of SD 2.x, by its names and shapes."""
    with torch.device("meta"):
        unet = models.UNetModel(**{**UNET_CONFIG, "context_dim": 1024, "use_linear_in_transformer": True},
                                device="meta", operations=models.comfy.ops.disable_weight_init)
    path.parent.mkdir(exist_ok=True)
    save_file({f"model.diffusion_model.{name}": torch.zeros(value.shape, dtype=torch.float8_e4m3fn)
               for name, value in unet.state_dict().items()}, path)


@pytest.fixture(scope="module", params=FRONTENDS)
def comfy(request, sae_folder) -> Iterator[ComfyHost]:
    paths = sae_folder.parent / "paths.yaml"
    paths.write_text(f"tests:\n  base_path: {sae_folder.parent}\n  sae: sae\n  checkpoints: checkpoints\n", "utf-8")
    write_sd2(sae_folder.parent / "checkpoints" / "second.safetensors")
    with ComfyHost(*FRONTENDS[request.param], "--extra-model-paths-config", str(paths)) as running:
        yield running


@pytest.fixture(scope="module", params=["canvas", "nodes2"])
def nodes2(request) -> bool:
    return request.param == "nodes2"


@pytest.fixture(scope="module")
def opened(browser, comfy, nodes2) -> Iterator[Page]:
    page = canvas.open_page(browser, comfy, nodes2)
    yield page
    page.context.close()


@pytest.fixture
def page(opened) -> Iterator[Page]:
    """An empty canvas; fails the test that lets an error escape into the page."""
    errors: list[Error] = []

    def note(error: Error) -> None:
        errors.append(error)

    opened.on("pageerror", note)
    canvas.load(opened, canvas.EMPTY)
    yield opened
    opened.remove_listener("pageerror", note)
    assert [error.stack for error in errors] == []


def test_ticks_and_strengths_are_written_into_the_text(page):
    canvas.linked_picker(page, "animals.safetensors")
    expect(page.locator(".saemnesia-count")).to_have_text("0 chosen")
    canvas.tick(page, "cat")
    expect(canvas.text_box(page)).to_have_value("cat")
    canvas.strength(page, "cat").fill("0,8")
    expect(canvas.text_box(page)).to_have_value("cat:0.8")
    canvas.tick(page, "noto style")
    expect(canvas.text_box(page)).to_have_value("cat:0.8, noto style")
    expect(page.locator(".saemnesia-count")).to_have_text("2 chosen")
    canvas.strength(page, "cat").fill("")
    canvas.tick(page, "noto style")
    expect(canvas.text_box(page)).to_have_value("cat")
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(canvas.text_box(page)).to_have_value("")
    assert canvas.ticked(page) == []


def test_a_row_that_is_swapped_shows_what_comes_in_its_place_and_ticks_leave_it(page):
    _, node = canvas.linked_picker(page, "animals.safetensors", text="cat -> dog, rose -> noto style")
    arrow = canvas.row(page, "cat").locator(".saemnesia-into")
    expect(arrow).to_have_text("\u2192 dog")
    canvas.tick(page, "bear")
    canvas.strength(page, "cat").fill("0.5")
    expect(canvas.text_box(page)).to_have_value("cat:0.5 -> dog, rose -> noto style, bear")
    canvas.tick(page, "bear")
    canvas.tick(page, "cat")
    expect(arrow).to_have_text("")
    canvas.tick(page, "cat")
    expect(canvas.text_box(page)).to_have_value("rose -> noto style, cat -> dog")
    assert canvas.ticked(page) == ["cat", "rose"]
    canvas.set_widget(page, node, "actuator", "steer")
    expect(canvas.row(page, "cat")).to_contain_text("a swap needs amount or ablate")
    canvas.set_widget(page, node, "actuator", "ablate")
    canvas.text_box(page).fill("cat -> dgo")
    expect(canvas.row(page, "cat")).to_contain_text("no dgo; nearest: dog")
    page.get_by_role("button", name="Clear", exact=True).click()
    canvas.tick(page, "cat")
    expect(canvas.text_box(page)).to_have_value("cat")


def test_the_list_is_grouped_and_needs_no_mouse(page):
    canvas.linked_picker(page, "animals.safetensors")
    groups = {heading: [one.name for one in group] for heading, group in canvas.shown(page).items()}
    assert groups == {"Objects": list(OBJECTS), "Styles": list(STYLES), "Other concepts": ["sadness"]}
    page.get_by_label("Search concepts").focus()
    for key in ("ArrowDown", "ArrowDown", "Space", "Tab"):
        page.keyboard.press(key)
    page.keyboard.type("0.25")
    expect(canvas.text_box(page)).to_have_value("dog:0.25")


def test_typing_moves_the_ticks_and_keeps_what_the_sae_does_not_know(page):
    canvas.linked_picker(page, "animals.safetensors")
    canvas.text_box(page).fill("Dog:0.5, unicorn:0.3, #7")
    unknown = [Shown("unicorn", True, "0.3")]
    expect(canvas.strength(page, "dog")).to_have_value("0.5")
    assert canvas.shown(page)["Not in this SAE"] == unknown
    assert canvas.shown(page)["Latents by number"] == [Shown("#7", True, "")]
    canvas.tick(page, "cat")
    expect(canvas.text_box(page)).to_have_value("Dog:0.5, unicorn:0.3, #7, cat")
    assert canvas.shown(page)["Not in this SAE"] == unknown
    canvas.tick(page, "unicorn")
    expect(canvas.text_box(page)).to_have_value("Dog:0.5, #7, cat")
    assert "Not in this SAE" not in canvas.shown(page)


def test_what_the_node_would_refuse_is_marked(page):
    _, node = canvas.linked_picker(page, "animals.safetensors", text="cat:7, dog:much, bear, bear, rose:-1")
    for actuator, rose in {"amount": "false", "ablate": "true"}.items():
        canvas.set_widget(page, node, "actuator", actuator)
        for name, invalid in {"cat": "true", "dog": "true", "bear": "false", "rose": rose}.items():
            expect(canvas.strength(page, name)).to_have_attribute("aria-invalid", invalid)
    expect(canvas.row(page, "bear")).to_contain_text("listed twice")
    canvas.set_widget(page, node, "actuator", "steer")
    for name, invalid in {"cat": "false", "dog": "true", "rose": "false"}.items():
        expect(canvas.strength(page, name)).to_have_attribute("aria-invalid", invalid)
    expect(canvas.strength(page, "bear")).to_have_attribute("placeholder", "-1")


def test_what_was_measured_of_a_concept_is_shown_in_its_row(page):
    canvas.linked_picker(page, "measured.safetensors", text=f"cat, {LONG}")
    wanted = {"cat": ("94 %", ""), "dog": ("38 %", "weak"), "bear": ("91 %", "touches others"),
              "frog": ("\u221212 %", "weak, touches others"), LONG: ("99 %", "")}
    assert {name: canvas.measured(page, name) for name in wanted} == wanted
    expect(canvas.figures(page, "cat")).to_have_attribute("title", re.compile(
        r"94\s% of it removed, others touched 0\.1\s%\.\nMeasured .* can remove more than these figures see\."))
    expect(canvas.figures(page, "frog")).to_have_attribute("title", re.compile(
        r"others touched 30\s%\.\nWeak: it may still show\.\nTouches others: "))
    assert len(set(canvas.figure_ends(page, *wanted))) == 1
    expect(page.get_by_role("group", name="Objects").get_by_text("removed", exact=True)).to_be_visible()


def test_what_was_not_measured_has_no_figures(page):
    loader, _ = canvas.linked_picker(page, "measured.safetensors", text="#7")
    for name in ("pizza", "#7"):
        expect(canvas.row(page, name)).to_be_visible()
        expect(canvas.figures(page, name)).to_have_count(0)
    expect(page.locator(".saemnesia-measure").locator("visible=true")).to_have_count(1)
    canvas.set_widget(page, loader, "sae_name", "castles.safetensors")
    expect(canvas.row(page, "ghost")).to_be_visible()
    expect(page.locator(".saemnesia-figures")).to_have_count(0)
    expect(page.locator(".saemnesia-measure").locator("visible=true")).to_have_count(0)


def test_in_a_narrow_node_a_long_name_gives_way_and_the_figure_does_not(page):
    _, node = canvas.linked_picker(page, "measured.safetensors", PICKER, text=f"dog, {LONG}")
    canvas.drag_corner(page, node, -175, 60)
    page.wait_for_function("() => document.querySelector('.saemnesia-list').clientWidth < 250")
    expect(canvas.figures(page, "dog").locator(".saemnesia-warning")).to_be_hidden()
    for name in ("cat", "dog", LONG):
        assert canvas.fits(canvas.row(page, name), ".saemnesia-removed")
    assert not canvas.fits(canvas.row(page, LONG), ".saemnesia-name")
    for name in ("cat", "dog"):
        assert canvas.fits(canvas.row(page, name), ".saemnesia-name")


def test_what_is_not_found_is_said_with_what_is_like_it(page):
    canvas.linked_picker(page, "animals.safetensors", text="rosee")
    expect(canvas.row(page, "rosee")).to_contain_text("nearest: rose")
    for search, said in {"ctat": "Nothing is called 'ctat'; nearest: cat, cactus.",
                         "wxyz": "Nothing is called 'wxyz'."}.items():
        page.get_by_label("Search concepts").fill(search)
        expect(page.locator(".saemnesia-nothing")).to_have_text(said)
    page.get_by_label("Search concepts").fill("cat")
    expect(page.locator(".saemnesia-nothing")).to_be_hidden()


def test_what_is_chosen_comes_first_but_not_from_under_the_hand(page):
    canvas.linked_picker(page, "animals.safetensors", text="twemoji style, whale, unicorn")
    headings = canvas.shown(page)
    assert list(headings)[:2] == ["Not in this SAE", "Chosen"]
    assert [one.name for one in headings["Chosen"]] == ["whale", "twemoji style"]
    canvas.tick(page, "cat")
    assert canvas.shown(page)["Objects"][0] == Shown("cat", True, "")
    page.mouse.move(1200, 800)
    canvas.text_box(page).focus()
    expect(page.get_by_role("group", name="Chosen").locator(".saemnesia-name")).to_have_text(
        ["cat", "whale", "twemoji style"])
    canvas.text_box(page).fill("dog")
    assert [one.name for one in canvas.shown(page)["Chosen"]] == ["dog"]
    assert [one.name for one in canvas.shown(page)["Objects"]][:2] == ["cat", "bear"]


def test_arrows_and_the_wheel_turn_a_strength_and_nothing_else(page):
    _, node = canvas.linked_picker(page, "animals.safetensors", text="cat")
    canvas.set_widget(page, node, "actuator", "ablate")
    view = page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]")
    canvas.strength(page, "cat").click()
    for key, text in {"ArrowDown": "cat:0.9", "ArrowUp": "cat:1"}.items():
        page.keyboard.press(key)
        expect(canvas.text_box(page)).to_have_value(text)
    page.keyboard.press("ArrowUp")
    page.mouse.wheel(0, 100)
    expect(canvas.text_box(page)).to_have_value("cat:0.9")
    page.mouse.wheel(0, -100)
    expect(canvas.text_box(page)).to_have_value("cat:1")
    canvas.set_widget(page, node, "actuator", "steer")
    canvas.strength(page, "cat").fill("")
    page.keyboard.press("ArrowDown")
    expect(canvas.text_box(page)).to_have_value("cat:-1.1")
    assert page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]") == view


def test_an_amount_has_a_slider_beside_its_number(page):
    _, node = canvas.linked_picker(page, "measured.safetensors", text="cat")
    slider = canvas.row(page, "cat").locator(".saemnesia-slider")
    expect(slider).to_be_visible()
    canvas.set_widget(page, node, "actuator", "ablate")
    expect(slider).to_be_hidden()
    canvas.set_widget(page, node, "actuator", "amount")
    assert (slider.input_value(), slider.get_attribute("min"), slider.get_attribute("max")) == ("1", "-1", "2")
    assert len(set(canvas.figure_ends(page, "cat", "dog"))) == 1
    place, box = page.evaluate(canvas.BOX, node), slider.bounding_box()
    page.mouse.move(box["x"] + 0.64 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    expect(canvas.text_box(page)).to_have_value("cat:0.5")
    expect(canvas.strength(page, "cat")).to_have_value("0.5")
    assert page.evaluate(canvas.BOX, node) == place
    canvas.text_box(page).fill("cat:-0.25, dog:-1.5, bear:1.5")
    expect(slider).to_have_value("-0.25")
    for name, invalid in {"cat": "false", "dog": "true", "bear": "false"}.items():
        expect(canvas.strength(page, name)).to_have_attribute("aria-invalid", invalid)


def test_a_long_name_is_seen_whole_on_several_lines(page):
    canvas.linked_picker(page, "measured.safetensors", text=LONG)
    name = canvas.row(page, LONG).locator(".saemnesia-name")
    assert name.evaluate("(name) => name.scrollHeight <= name.clientHeight && name.clientHeight > 20")
    assert canvas.row(page, LONG).get_by_text(LONG).get_attribute("title") is None
    assert canvas.row(page, LONG).locator("label").get_attribute("title") == LONG


def test_a_kind_of_ones_own_has_its_own_heading(page):
    canvas.linked_picker(page, "kinds.safetensors")
    groups = {heading: [one.name for one in group] for heading, group in canvas.shown(page).items()}
    assert groups == {"Objects": ["cat"], "Mood": ["night"], "Other concepts": ["sadness"]}


@pytest.mark.parametrize("mode", [2, 4], ids=["muted", "bypassed"])
def test_what_is_muted_or_bypassed_looks_it(page, mode):
    loader, node = canvas.linked_picker(page, "animals.safetensors")
    assert canvas.opacity(page.locator(".saemnesia-list")) == canvas.opacity(canvas.about(page)) == 1
    page.evaluate("""([ids, mode]) => {
        for (const id of ids) app.graph.getNodeById(id).mode = mode
        app.canvas.setDirty(true, true)
    }""", [[loader, node], mode])
    page.wait_for_timeout(300)
    for part in (page.locator(".saemnesia-list"), canvas.text_box(page), canvas.about(page)):
        assert 0.3 <= canvas.opacity(part) <= 0.6


def test_the_slots_of_saes_have_a_dot(page, nodes2):
    loader, node = canvas.linked_picker(page, "animals.safetensors")
    if not nodes2:
        return  # the canvas gives every type one
    for one, side in ((loader, "output"), (node, "input")):
        dots = page.locator(f'.lg-node[data-node-id="{one}"] .lg-slot--{side}').filter(has_text=re.compile("sae", re.I))
        assert "rgb(143, 206, 143)" in dots.first.evaluate("""(slot) => [...slot.querySelectorAll("*")]
            .flatMap((part) => [getComputedStyle(part).backgroundColor, getComputedStyle(part).fill])""")


def test_the_node_is_found_by_what_people_call_erasing(comfy, page):
    if "--front-end-root" not in comfy.args:
        return  # the pinned front end knows no other names
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    for said in ("remove", "unlearn", "forget", "negative prompt"):
        page.get_by_placeholder("Add a node").fill(said)
        expect(page.get_by_text("SAEmnesia Erase Words").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_placeholder("Add a node")).to_be_hidden()


@pytest.mark.parametrize("kind", ["EraseWords", "Erase", "LoadSAE", "ConceptPicker", "FindConcept", "ExportConcept",
                                  "Train"])
def test_every_output_says_what_it_is_for(comfy, kind):
    about = comfy.get_json(f"/object_info/SAEmnesia{kind}")[f"SAEmnesia{kind}"]
    assert all(about["output_tooltips"]) and len(about["output_tooltips"]) == len(about["output"])


def test_search_narrows_the_list_and_keys_stay_in_it(page):
    canvas.linked_picker(page, "animals.safetensors", text="cat")
    page.get_by_label("Search concepts").fill("STYLE")
    assert {one.name for group in canvas.shown(page).values() for one in group} == set(STYLES)
    page.get_by_label("Search concepts").fill("")
    canvas.row(page, "cat").get_by_role("checkbox").focus()
    page.keyboard.press("Delete")
    page.keyboard.press("Backspace")
    assert {node["type"] for node in canvas.saved(page)["nodes"]} == {ERASE, LOADER}


@pytest.mark.parametrize(("kind", "others"), [(ERASE, {"actuator": "steer", "start": 0.25, "end": 0.75}), (PICKER, {})])
def test_saved_and_loaded_in_a_fresh_page(browser, comfy, nodes2, page, kind, others):
    _, node = canvas.linked_picker(page, "animals.safetensors", kind)
    for name, value in others.items():
        canvas.set_widget(page, node, name, value)
    canvas.tick(page, "cat")
    canvas.strength(page, "cat").fill("-0.8")
    workflow, inputs = canvas.saved(page), canvas.prompt_of(page, kind)
    declared = {**others, "concepts": "cat:-0.8", **({"apply_to": "conditional only"} if kind == ERASE else {})}
    assert {name: value for name, value in inputs.items() if name != "sae"} == declared
    assert sorted(map(str, canvas.values_of(workflow, kind))) == sorted(map(str, declared.values()))

    fresh = canvas.open_page(browser, comfy, nodes2)
    canvas.load(fresh, workflow)
    canvas.wait_for_list(fresh)
    expect(canvas.text_box(fresh)).to_have_value("cat:-0.8")
    assert canvas.ticked(fresh) == ["cat:-0.8"]
    assert canvas.values_of(canvas.saved(fresh), kind) == canvas.values_of(workflow, kind)
    assert canvas.prompt_of(fresh, kind) == inputs
    fresh.context.close()


def test_without_the_javascript_nothing_is_lost(browser, comfy, nodes2, page):
    canvas.linked_picker(page, "animals.safetensors", text="cat:0.8, dog")
    workflow, inputs = canvas.saved(page), canvas.prompt_of(page, ERASE)
    plain = canvas.open_page(browser, comfy, nodes2, without="**/extensions/comfyui-saemnesia/**")
    canvas.load(plain, workflow)
    expect(canvas.text_box(plain)).to_have_value("cat:0.8, dog")
    assert plain.locator(".saemnesia-picker").count() == 0
    assert canvas.values_of(canvas.saved(plain), ERASE) == canvas.values_of(workflow, ERASE)
    assert canvas.prompt_of(plain, ERASE) == inputs
    plain.context.close()


def test_a_tick_can_be_undone(page):
    canvas.linked_picker(page, "animals.safetensors", text="dog")
    page.mouse.click(1000, 900)
    canvas.tick(page, "cat")
    expect(canvas.text_box(page)).to_have_value("dog, cat")
    page.keyboard.press("Control+z")
    expect(canvas.text_box(page)).to_have_value("dog")
    expect(canvas.row(page, "cat").get_by_role("checkbox")).not_to_be_checked()
    page.mouse.move(1100, 800)  # a list is not arranged anew under the mouse


def test_another_sae_gives_another_list_and_a_broken_one_its_sentence(page):
    loader, node = canvas.linked_picker(page, "animals.safetensors", text="castle:0.5")
    assert [one.name for one in canvas.shown(page)["Not in this SAE"]] == ["castle"]
    canvas.set_widget(page, loader, "sae_name", "castles.safetensors")
    expect(canvas.row(page, "ghost")).to_be_visible()
    assert canvas.shown(page) == {"Chosen": [Shown("castle", True, "0.5")], "Objects": [Shown("ghost", False, "")]}
    for sae, sentence in {"broken.safetensors": "broken.safetensors cannot be read as safetensors",
                          "gone.safetensors": "there is no SAE 'gone.safetensors'",
                          "nameless.safetensors": "nameless.safetensors has no concept names"}.items():
        canvas.set_widget(page, loader, "sae_name", sae)
        expect(page.locator(".saemnesia-message")).to_contain_text(sentence)
        expect(page.locator(".saemnesia-list")).to_be_hidden()
    page.evaluate("id => { const node = app.graph.getNodeById(id); "
                  "node.disconnectInput(node.inputs.findIndex((input) => input.name === 'sae')) }", node)
    expect(page.locator(".saemnesia-message")).to_contain_text("Link an SAE")
    expect(canvas.text_box(page)).to_have_value("castle:0.5")


def test_the_sae_is_found_through_a_reroute(page):
    loader, reroute = canvas.add(page, LOADER, 60, sae_name="castles.safetensors"), canvas.add(page, "Reroute", 60, 400)
    node = canvas.add(page, ERASE)
    canvas.link(page, reroute, node)
    canvas.link(page, loader, reroute, name="")
    canvas.wait_for_list(page)
    assert [one.name for one in canvas.shown(page)["Objects"]] == ["castle", "ghost"]


@pytest.mark.parametrize("wrapped", ["picker", "loader"])
def test_the_sae_is_found_across_a_subgraph(page, wrapped):
    loader, node = canvas.linked_picker(page, "animals.safetensors")
    inner = node if wrapped == "picker" else loader
    page.evaluate("""id => {
        const { subgraph, node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))
        window.made = { subgraph, node }
    }""", inner)
    if wrapped == "picker":
        page.evaluate("() => app.canvas.openSubgraph(made.subgraph, made.node)")
        canvas.show_origin(page)
    canvas.wait_for_list(page)
    canvas.tick(page, "cat")
    expect(canvas.text_box(page)).to_have_value("cat")
    assert canvas.ticked(page) == ["cat"]


def test_the_sae_may_be_chosen_on_the_subgraph_around_its_loader(page):
    loader, _ = canvas.linked_picker(page, "animals.safetensors")
    page.evaluate("""id => {
        const { subgraph, node } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))
        const [inner] = subgraph.nodes
        const input = inner.inputs.find(({ name }) => name === "sae_name")
        subgraph.addInput("which", "COMBO").connect(input, inner)
        const widget = node.widgets.find(({ name }) => name === "which")
        widget.value = "castles.safetensors"
        widget.callback?.(widget.value)
    }""", loader)
    page.mouse.click(1100, 900)
    expect(canvas.row(page, "ghost")).to_be_visible()


def test_load_sae_says_in_a_line_what_the_file_is_for(page):
    loader, _ = canvas.linked_picker(page, "animals.safetensors")
    expect(canvas.about(page)).to_have_text("SD 1.x, at one place: up_blocks.1.attentions.1, with 15 concepts")
    for sae, line in {"nameless": "SD 1.x, at one place: up_blocks.1.attentions.1, with 32 neurons without names",
                      "broken": "broken.safetensors cannot be read as safetensors",
                      "gone": "there is no SAE 'gone.safetensors' in models/sae: put the file there"}.items():
        canvas.set_widget(page, loader, "sae_name", f"{sae}.safetensors")
        expect(canvas.about(page)).to_contain_text(line)
        assert canvas.is_inside_its_node(canvas.about(page), page, loader)
    assert "about" not in json.dumps(canvas.saved(page)["nodes"])


def test_an_sae_of_another_base_is_said_before_anything_runs(page):
    _, node = canvas.linked_picker(page, "castles.safetensors")
    checkpoint = canvas.add(page, "CheckpointLoaderSimple", 60, 300, ckpt_name="second.safetensors")
    lora = canvas.add(page, "LoraLoaderModelOnly", 60, 500)
    canvas.link(page, lora, node, "model")
    canvas.link(page, checkpoint, lora, "model")
    page.mouse.click(1100, 900)
    alert = page.locator(".saemnesia-picker [role=alert]")
    expect(alert).to_have_text("castles.safetensors is for SD 1.x, and second.safetensors is SD 2.x: load a checkpoint "
                               "of SD 1.x, or a file for SD 2.x")
    canvas.tick(page, "ghost")
    canvas.set_widget(page, checkpoint, "ckpt_name", "minicanvas.safetensors")
    page.mouse.click(1200, 700)
    expect(alert).to_have_count(0)
    assert canvas.ticked(page) == ["ghost"]


def test_concepts_of_a_file_that_was_just_made_can_be_ticked_and_the_file_is_listed(page, nodes2):
    made = COMFY / "models" / "sae" / "just made.safetensors"
    made.unlink(missing_ok=True)
    loader = canvas.add(page, LOADER, 60, sae_name="animals.safetensors")
    export = canvas.add(page, "SAEmnesiaExportConcept", 60, 300, name="just made", concepts="cat, rose")
    node = canvas.add(page, ERASE, 560)
    canvas.link(page, loader, export)
    canvas.link(page, export, node)
    try:
        expect(page.locator(".saemnesia-message")).to_have_text(
            "Run SAEmnesia Export Concept once, and what it makes is listed here.")
        canvas.queue_and_wait(page)
        canvas.wait_for_list(page)
        assert [one.name for one in canvas.shown(page)["Objects"]] == ["cat", "rose"]
        canvas.tick(page, "rose")
        assert canvas.prompt_of(page, ERASE)["concepts"] == "rose"
        assert "just made.safetensors" in canvas.offered(page, loader, nodes2)
        assert "just made.safetensors" in canvas.offered(page, canvas.add(page, LOADER, 60, 640), nodes2)
        canvas.load(page, canvas.saved(page))
        canvas.wait_for_list(page)
        assert canvas.ticked(page) == ["rose"]
    finally:
        made.unlink(missing_ok=True)


def test_a_list_from_another_node_is_said_so(page):
    loader, chosen = canvas.linked_picker(page, "animals.safetensors", PICKER)
    eraser = canvas.add(page, ERASE, 900)
    canvas.link(page, loader, eraser)
    canvas.link(page, chosen, eraser, name="concepts")
    expect(page.get_by_text("What is linked to 'concepts' chooses them.")).to_be_visible()
    canvas.tick(page, "cat")
    assert canvas.prompt_of(page, PICKER)["concepts"] == "cat"
    assert canvas.prompt_of(page, ERASE)["concepts"] == [str(chosen), 0]


def test_the_list_scrolls_the_canvas_does_not_and_the_node_can_grow(page):
    _, node = canvas.linked_picker(page, "animals.safetensors")
    box = page.locator(".saemnesia-list")
    before = box.bounding_box()
    assert before["height"] >= 180
    view = page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]")
    canvas.row(page, "bear").hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function("() => document.querySelector('.saemnesia-list').scrollTop > 0")
    assert page.evaluate("() => [app.canvas.ds.scale, ...app.canvas.ds.offset]") == view
    page.mouse.down(button="middle")
    page.mouse.move(700, 480, steps=4)
    page.mouse.up(button="middle")
    page.wait_for_function("view => app.canvas.ds.offset[0] !== view[1] && app.canvas.ds.scale === view[0]", arg=view)
    canvas.show_origin(page)
    canvas.drag_corner(page, node, 40, 200)
    page.wait_for_function("height => document.querySelector('.saemnesia-list').clientHeight > height + 80",
                           arg=before["height"])


def test_python_reads_the_same_choices_as_the_page(page):
    """Python is held to the same cases in tests/core/test_concepts.py."""
    module = "/extensions/comfyui-saemnesia/js/concept_text.js"
    read = page.evaluate("""async ([module, texts]) => { const { key, parse } = await import(module)
        const twice = (items) => new Set(items.map(({ name }) => key(name))).size < items.length
        return texts.map((text) => JSON.parse(text)).map(parse).map((items) =>
            !items.length || twice(items) || items.some(({ refused }) => refused) ? null
            : items.map(({ name, strength, kind, into }) => [name, strength ? Number(strength) : null, kind,
              ...(into ? [[into.name, null, into.kind]] : [])])) }""",
                         [module, [json.dumps(case["text"]) for case in CASES]])
    assert read == [case.get("choices") for case in CASES]


def test_the_page_reads_a_long_text_in_proportion_to_its_length(page):
    module = "/extensions/comfyui-saemnesia/js/concept_text.js"
    seconds = page.evaluate("""async (module) => { const { parse } = await import(module)
        const began = performance.now(), space = " ".repeat(200_000)
        const texts = [`cat${space}(style)`, `cat:${space}1,2`, `${space}:1`, `(${space}`, `a;${space}b`]
        texts.map(parse)
        return (performance.now() - began) / 1000 }""", module)
    assert seconds < 2


def test_what_is_ticked_saved_and_loaded_disappears_from_the_picture(browser, comfy, nodes2, page, request):
    """The example workflow with another concept ticked, saved, loaded in a fresh page and run there."""
    if request.node.callspec.id in ("pinned-nodes2", "newest-canvas"):
        pytest.skip("both renderers and both front ends are seen in two of the four")
    canvas.load(page, json.loads((REPO / "example_workflows" / "Tick-concepts.json").read_text("utf-8")))
    canvas.wait_for_list(page)
    canvas.tick(page, "cat")
    canvas.tick(page, "rose")
    nothing_here = canvas.saved(page)
    canvas.tick(page, "rose")
    canvas.tick(page, "cat")
    with_cat = canvas.saved(page)
    fresh = canvas.open_page(browser, comfy, nodes2)
    seen = []
    for workflow in (nothing_here, with_cat):
        canvas.load(fresh, workflow)
        canvas.wait_for_list(fresh)
        seen.append([pixels(png) for png in canvas.queue_and_wait(fresh)])
    fresh.context.close()
    (before, no_rose), (again, no_cat) = seen
    assert torch.equal(before, again)
    objects = load_judge().verdict(torch.stack([before, no_rose, no_cat])).objects
    assert objects[:, JUDGED.index("cat")].tolist() == [True, True, False]


def pixels(png: bytes) -> torch.Tensor:
    """A picture [3, h, w] in 0..1."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1) / 255


def test_a_graph_runs_from_the_page(page):
    node = canvas.add(page, "EmptyImage", width=16, height=16, color=0x0080FF)
    canvas.link(page, node, canvas.add(page, "SaveImage"), name="images")
    (png,) = canvas.queue_and_wait(page, timeout=60)
    assert Image.open(io.BytesIO(png)).getpixel((0, 0)) == (0, 0x80, 0xFF)


def test_what_must_be_known_of_a_run_is_said_in_a_corner_of_the_page(page):
    said = "cat: not erased, because none of the 4 steps of this run lies between start 0.9 and end 0.91"
    page.evaluate("text => window.app.api.dispatchCustomEvent('saemnesia.warning', { text })", said)
    toast = page.get_by_role("alert").filter(has_text=said).filter(has=page.get_by_role("button"))
    expect(toast).to_be_visible()
    if shot := os.environ.get("TOAST_SCREENSHOT"):
        page.screenshot(path=shot)
    toast.get_by_role("button").first.click()
    expect(toast).to_have_count(0)

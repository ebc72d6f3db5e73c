"""The sidebar of A1111 and Forge in the two versions of gradio they pin, in a browser; and what API users are told."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from small_model import write_sae

from sae_models import Concept, Header, Sae, SaeConfig, Statistics, write
from tools.comfy_host import free_port

import torch  # isort: skip

REPO = Path(__file__).resolve().parents[2]
VERSIONS = {"gradio-3": "3.41.2", "gradio-4": "4.40.0"}
TABS = 3
SHIM = """() => {
  window.gradioApp = () => document
  window.onAfterUiUpdate = (callback) =>
    new MutationObserver(() => callback()).observe(document.body, { childList: true, subtree: true })
}"""
"""What A1111's and Forge's own script.js offers to extensions."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_sae(folder / "sae" / "animals.safetensors", d_in=64)
    config = SaeConfig(8, 32, 4)
    concepts = (Concept("castle", (1,), "object", "old & <b>strong</b>", {"removed": 0.38, "touched": 0.12}),
                Concept("ghost", (2,)))
    write(folder / "sae" / "castles.safetensors", Sae(config), Header(config, "up_blocks.0.attentions.1", "", False,
          concepts), Statistics((1.0,), torch.zeros(2, 1), torch.ones(2, 1)))
    (folder / "sae" / "damaged.safetensors").write_bytes(b"no file")
    Image.new("RGB", (600, 300), "red").save(folder / "sae" / "castles.preview.png")
    (folder / "sae" / "animals.png").write_bytes(b"no picture")
    return folder


def started(folder: str, models: Path, port: int | str) -> subprocess.Popen:
    path = os.pathsep.join(str(p) for p in (REPO / ".host" / folder, REPO / "tests", REPO))
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "tests/webui_page.py", str(models), str(port)], cwd=REPO,
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path, "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"})


class Served:
    """The page's process; `said`: what it printed before it began to serve."""

    def __init__(self, folder: str, models: Path) -> None:
        self.port, self.models = free_port(), models
        self.process = started(folder, models, self.port)
        self.said = json.loads(self.process.stdout.readline())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(300):
            try:
                return opener.open(f"{self.url}/style.css", timeout=1).close()
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.1)
        raise AssertionError("the page does not answer")


@pytest.fixture(scope="module", params=VERSIONS)
def served(request, models) -> Iterator[Served]:
    running = Served(request.param, models)
    running.folder = request.param
    try:
        running.wait()
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def page(browser, served) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1100, "height": 1600})
    opened.route("**/*", lambda route: route.continue_() if served.url in route.request.url else route.abort())
    errors: list[Any] = []
    opened.goto(f"{served.url}/page/", wait_until="domcontentloaded")
    for number in range(TABS):
        opened.locator(".saemnesia-panel").nth(number).locator(".label-wrap").first.click(timeout=60_000)
        opened.locator(".saemnesia-panel").nth(number).locator(".label-wrap").nth(1).click()
    opened.on("pageerror", lambda error: errors.append(error.message))
    opened.evaluate(SHIM)
    opened.add_style_tag(url=f"{served.url}/style.css")
    opened.add_script_tag(url=f"{served.url}/javascript/saemnesia.mjs", type="module")
    expect(opened.locator(".saemnesia-count").first).to_have_text("0 chosen")
    yield opened
    opened.close()
    assert errors == []


def text(page: Page):
    return page.locator(".saemnesia-text textarea, .saemnesia-text input").first


def row(page: Page, name: str):
    return page.locator(".saemnesia-picker").first.locator(f'.saemnesia-row[data-name="{name}"]')


def generate(page: Page) -> str:
    page.get_by_role("button", name="Generate").click()
    result = page.get_by_label("Result")
    expect(result).not_to_have_value("")
    return result.input_value()


def test_the_version_is_the_one_the_host_pins(served):
    assert served.said["gradio"] == VERSIONS[served.folder] and served.said["errors"] == []


def test_every_call_of_ui_makes_the_same_arguments(served):
    first, *others = served.said["tabs"]
    assert all(tab == first for tab in others)
    values = [value for _, _, value, _ in first]
    assert values == [False, ["animals.safetensors"], "", "amount", 0.0, 1.0, "conditional only", True, "", False]
    assert first[1][3] == ["animals.safetensors", "castles.safetensors", "damaged.safetensors"]
    assert first[3][3] == ["amount", "ablate", "steer", "replace", "thorough"]
    assert [value for _, value in served.said["infotext"]] == [False, *[None] * 9]


@pytest.mark.parametrize("folder", VERSIONS)
def test_without_any_sae_there_is_a_sidebar_that_a_pasted_text_can_fill(folder, tmp_path):
    """The hosts give a pasted value the type of the component's first one."""
    said = json.loads(started(folder, tmp_path, "-").communicate()[0])
    assert [value for _, _, value, _ in said["tabs"][0]][:3] == [False, [], ""] and said["errors"] == []


def test_routes_list_saes_and_concepts(served):
    saes, concepts, outside, unread, misspelt, damaged = served.said["open"]
    assert saes == [200, {"saes": ["animals.safetensors", "castles.safetensors", "damaged.safetensors"]}]
    assert concepts[0] == 200 and concepts[1]["base"] == "sd15" and len(concepts[1]["hash"]) == 10
    assert (concepts[1]["places"], concepts[1]["hookpoint"]) == (1, "up_blocks.0.attentions.1")
    assert concepts[1]["concepts"][2] == {"name": "noto style", "kind": "style", "description": "", "measured": None}
    assert outside[0] == 400 and "there is no SAE '../x'" in outside[1]["detail"]
    assert unread[0] == 400 and "'b' in 'a:b' is not a strength" in unread[1]["detail"]
    assert misspelt[0] == 400 and "there is no setting 'word'; did you mean 'words'" in misspelt[1]["detail"]
    assert damaged[0] == 400 and "damaged.safetensors cannot be read" in damaged[1]["detail"]


def test_no_answer_to_an_api_user_says_where_files_are(served, models):
    assert not [answer for answer in served.said["open"] if str(models.parent) in json.dumps(answer)]


def test_routes_ask_for_the_hosts_api_login(served):
    assert [status for status, _ in served.said["closed"]] == [401] * 6
    assert [status for status, _ in served.said["wrong"]] == [401] * 6
    assert served.said["login"] == served.said["open"]


def test_ticks_and_strengths_are_written_into_the_text(page):
    row(page, "cat").get_by_role("checkbox").check()
    expect(text(page)).to_have_value("cat")
    row(page, "cat").get_by_label("Strength of cat").fill("0,8")
    row(page, "noto style").get_by_role("checkbox").check()
    expect(text(page)).to_have_value("cat:0.8, noto style")
    expect(page.locator(".saemnesia-count").first).to_have_text("2 chosen")
    assert "'concepts': 'cat:0.8, noto style'" in generate(page)
    row(page, "cat").get_by_role("checkbox").uncheck()
    expect(text(page)).to_have_value("noto style")
    page.locator(".saemnesia-clear").first.click()
    expect(text(page)).to_have_value("")
    expect(page.locator(".saemnesia-row input:checked")).to_have_count(0)


def test_a_row_that_is_swapped_shows_what_comes_in_its_place_and_ticks_leave_it(page):
    text(page).fill("cat -> dog")
    arrow, tick = row(page, "cat").locator(".saemnesia-into"), row(page, "cat").get_by_role("checkbox")
    expect(arrow).to_have_text("\u2192 dog")
    row(page, "rocket").get_by_role("checkbox").check()
    row(page, "cat").get_by_label("Strength of cat").fill("0.5")
    expect(text(page)).to_have_value("cat:0.5 -> dog, rocket")
    row(page, "rocket").get_by_role("checkbox").uncheck()
    tick.uncheck()
    expect(arrow).to_have_text("")
    tick.check()
    expect(text(page)).to_have_value("cat -> dog")
    assert "'concepts': 'cat -> dog'" in generate(page)
    text(page).fill("cat -> dgo")
    note = page.locator(".saemnesia-unknown").first
    expect(note).to_have_text("not in the list: dgo")
    panel(page, "actuator").get_by_label("steer").check()
    expect(note).to_have_text("not in the list: dgo; a swap needs amount or ablate")
    text(page).fill("cat")
    expect(note).to_have_text("")


def test_typed_and_pasted_text_sets_the_ticks(page):
    text(page).fill("rocket:0.3")
    expect(row(page, "rocket").get_by_role("checkbox")).to_be_checked()
    expect(row(page, "rocket").get_by_label("Strength of rocket")).to_have_value("0.3")
    page.get_by_role("button", name="Paste").click()
    expect(row(page, "dog").get_by_role("checkbox")).to_be_checked()
    expect(row(page, "rocket").get_by_role("checkbox")).not_to_be_checked()
    expect(row(page, "noto style").get_by_label("Strength of noto style")).to_have_attribute("placeholder", "-1")
    assert "'actuator': 'steer'" in generate(page)


def test_send_to_img2img_takes_the_sidebar_along(page):
    row(page, "cat").get_by_role("checkbox").check()
    page.locator("#script_txt2img_saemnesia_actuator").first.get_by_label("steer").check()
    page.locator("#script_txt2img_saemnesia_hires input").first.uncheck()
    tick_map(page)
    page.get_by_role("button", name="Send to img2img").click()
    sent = page.locator("#script_img2img_saemnesia_concepts").locator("textarea, input")
    expect(sent).to_have_value("cat")
    expect(page.locator("#script_img2img_saemnesia_list").get_by_label("cat", exact=True)).to_be_checked()
    expect(page.locator("#script_img2img_saemnesia_actuator").get_by_label("steer")).to_be_checked()
    expect(page.locator("#script_img2img_saemnesia_hires input")).not_to_be_checked()
    expect(page.locator("#script_img2img_saemnesia_map input")).to_be_checked()


def tick_map(page: Page) -> None:
    tick = page.locator("#script_txt2img_saemnesia_map input").first
    expect(tick).to_be_hidden()
    panel(page, "where").get_by_text("Show where the concepts are").click()
    tick.check()


def test_a_map_is_asked_for_by_its_own_tick_and_erases_nothing(page):
    tick_map(page)
    said = generate(page)
    assert "'map': True" in said and "'enabled': False" in said


def test_search_hides_other_rows_and_empty_groups(page):
    page.locator(".saemnesia-search").first.fill("STYLE")
    picker = page.locator(".saemnesia-picker").first
    expect(picker.locator(".saemnesia-row:visible")).to_have_count(2)
    expect(picker.get_by_text("Objects")).to_be_hidden()
    expect(picker.get_by_text("Styles")).to_be_visible()


def test_a_strength_out_of_range_is_marked(page):
    text(page).fill("cat:2.5")
    expect(row(page, "cat").get_by_label("Strength of cat")).to_have_attribute("aria-invalid", "true")
    text(page).fill("cat:0.5")
    expect(row(page, "cat").get_by_label("Strength of cat")).to_have_attribute("aria-invalid", "false")


def test_in_how_many_steps_each_was_there_is_said_beside_its_tick_for_the_picture_that_is_shown(page):
    text(page).fill("cat -> dog, rocket, dog")
    fired = page.locator(".saemnesia-picker").first.locator(".saemnesia-fired")
    expect(fired).to_have_count(0)
    page.get_by_role("button", name="Show a picture").click()
    expect(row(page, "cat").locator(".saemnesia-fired")).to_have_text("in 11 of 12 steps")
    expect(row(page, "rocket").locator(".saemnesia-idle")).to_have_text("never fired")
    expect(fired).to_have_count(2)
    row(page, "rocket").get_by_role("checkbox").uncheck()
    expect(fired).to_have_count(1)
    expect(page.locator(".saemnesia-picker").nth(2).locator(".saemnesia-fired")).to_have_count(0)
    assert "11 of 12" not in generate(page)


def test_an_amount_has_a_slider_beside_its_number(page):
    text(page).fill("cat")
    slider = row(page, "cat").locator(".saemnesia-slider")
    panel(page, "actuator").get_by_label("ablate").check()
    expect(slider).to_be_hidden()
    panel(page, "actuator").get_by_label("amount").check()
    expect(slider).to_be_visible()
    expect(slider).to_have_value("1")
    slider.fill("0.35")
    expect(text(page)).to_have_value("cat:0.35")
    text(page).fill("cat:-0.5")
    expect(slider).to_have_value("-0.5")
    for strength, invalid in {"2": "false", "2.1": "true", "-1.5": "true"}.items():
        text(page).fill(f"cat:{strength}")
        expect(row(page, "cat").get_by_label("Strength of cat")).to_have_attribute("aria-invalid", invalid)


def choose_sae(page: Page, *names: str) -> None:
    """In place of those that are chosen."""
    box, answered = page.locator("#script_txt2img_saemnesia_sae").first, page.locator(".saemnesia-picker.min")
    if box.locator(".token").count():
        box.locator(".remove-all").click()
        expect(box.locator(".token")).to_have_count(0)
        expect(answered).to_have_count(0)
    for count, name in enumerate(names, 1):
        box.locator("input").click()
        box.locator("input").fill(name)
        page.locator("ul.options li").filter(has_text=name).first.click()
        expect(box.locator(".token")).to_have_count(count)
        expect(answered).to_have_count(0)
    box.locator("input").blur()


def test_another_sae_brings_its_concepts_and_a_damaged_one_its_sentence(page):
    choose_sae(page, "castles.safetensors")
    expect(row(page, "castle")).to_be_visible()
    expect(row(page, "castle").locator("label")).to_have_attribute("title", "castle\nold & <b>strong</b>")
    expect(page.locator(".saemnesia-picker").first.get_by_text("Other concepts")).to_be_visible()
    choose_sae(page, "damaged.safetensors")
    expect(page.locator(".saemnesia-message").first).to_contain_text("damaged.safetensors cannot be read")


def test_the_picture_beside_a_file_is_shown_and_one_that_is_none_is_not(page):
    pictures = page.locator(".saemnesia-picker").first.locator("img.saemnesia-preview")
    expect(pictures).to_have_count(0)
    choose_sae(page, "castles.safetensors")
    expect(pictures).to_have_count(1)
    assert pictures.evaluate("one => [one.naturalWidth, one.naturalHeight, one.clientHeight > 50]") == [288, 144, True]


def test_what_was_measured_is_shown_beside_the_tick_and_not_written(page):
    expect(page.locator(".saemnesia-figures")).to_have_count(0)
    choose_sae(page, "castles.safetensors")
    figures = page.locator(".saemnesia-picker").first.locator(".saemnesia-figures")
    expect(figures).to_have_text("weak, touches others38\u00a0%")
    expect(figures.locator(".saemnesia-removed")).to_be_visible()
    expect(figures).to_have_attribute("title", re.compile(r"38\s% of it removed, others touched 12\s%\.\nWeak: "))
    expect(row(page, "ghost").locator(".saemnesia-figures")).to_have_count(0)
    expect(page.locator(".saemnesia-picker").first.locator(".saemnesia-kind")).to_have_text(
        ["Objects \u00b7 % removed", "Other concepts"])
    row(page, "castle").get_by_role("checkbox").check()
    expect(figures).to_have_count(1)
    expect(text(page)).to_have_value("castle")
    assert "'concepts': 'castle'" in generate(page)


def test_a_new_file_is_there_after_refresh(page, models):
    new, said = models / "sae" / "new.safetensors", page.locator(".saemnesia-message").first
    choose_sae(page)
    expect(said).to_have_text("Choose one of 3 files.")
    shutil.copyfile(models / "sae" / "animals.safetensors", new)
    try:
        page.locator("#script_txt2img_saemnesia_refresh").first.click()
        expect(said).to_have_text("Choose one of 4 files.")
        choose_sae(page, "new.safetensors")
        assert "'sae': ['new.safetensors']" in generate(page)
    finally:
        new.unlink()


def test_a_new_file_is_there_when_the_page_is_loaded_again(browser, models, served):
    new = models / "sae" / "newer.safetensors"
    shutil.copyfile(models / "sae" / "animals.safetensors", new)
    try:
        again = browser.new_page()
        again.goto(f"{served.url}/page/")
        again.locator(".saemnesia-panel").first.locator(".label-wrap").first.click(timeout=60_000)
        again.locator("#script_txt2img_saemnesia_sae input").first.click()
        expect(again.get_by_role("option", name="newer.safetensors").or_(
            again.locator("li", has_text="newer.safetensors")).first).to_be_visible()
        again.close()
    finally:
        new.unlink()


def panel(page: Page, name: str):
    return page.locator(f"#script_txt2img_saemnesia_{name}").first


def test_to_look_into_it_erases_nothing_and_a_tick_does(page):
    assert "'enabled': False" in generate(page)
    expect(page.locator(".saemnesia-on")).to_have_count(0)
    row(page, "cat").get_by_role("checkbox").check()
    expect(panel(page, "enabled").locator("input")).to_be_checked()
    expect(page.locator(".saemnesia-on")).to_have_count(1)
    page.get_by_label("Result").evaluate("part => { part.value = '' }")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("Result")).to_have_value(re.compile("'enabled': True.*'concepts': 'cat'"))


def test_typing_what_to_erase_switches_it_on_and_taking_a_tick_away_does_not(page):
    tick = panel(page, "enabled").locator("input")
    text(page).fill("cat, dog")
    expect(tick).to_be_checked()
    tick.uncheck()
    row(page, "cat").get_by_role("checkbox").uncheck()
    expect(text(page)).to_have_value("dog")
    expect(tick).not_to_be_checked()


def test_words_that_the_file_does_not_have_are_said_while_typing(page):
    unknown = page.locator(".saemnesia-unknown").first
    text(page).fill("cat, catt:0.5, Rocket, zebra")
    expect(unknown).to_have_text("not in the list: catt, zebra")
    text(page).fill("Cat, #12")
    expect(unknown).to_have_text("")


def test_what_a_file_is_for_and_whether_it_fits_is_said_before_generate(page):
    about = page.locator(".saemnesia-picker").first
    expect(about).to_contain_text("For SD 1.x, at up_blocks.0.attentions.1. It fits the loaded checkpoint.")
    choose_sae(page, "castles.safetensors")
    expect(about.locator(".saemnesia-error").first).to_contain_text("It does not fit the loaded checkpoint: castles")


def test_refresh_says_how_many_there_are_to_choose_from_and_takes_the_only_one(page, models):
    said = page.locator(".saemnesia-message").first
    choose_sae(page)
    expect(said).to_have_text("Choose one of 3 files.")
    others = [models / "sae" / name for name in ("castles.safetensors", "damaged.safetensors")]
    try:
        others[0].rename(others[0].with_suffix(".away"))
        panel(page, "refresh").click()
        expect(said).to_have_text("Choose one of 2 files.")
        others[1].rename(others[1].with_suffix(".away"))
        panel(page, "refresh").click()
        expect(row(page, "cat")).to_be_visible()
        assert "'sae': ['animals.safetensors']" in generate(page)
    finally:
        for path in others:
            if not path.exists():
                path.with_suffix(".away").rename(path)


def test_concepts_of_several_files_are_one_list(page):
    choose_sae(page, "animals.safetensors", "castles.safetensors")
    for name in ("castle", "cat"):
        row(page, name).get_by_role("checkbox").check()
    expect(page.locator(".saemnesia-picker").first).to_contain_text("castles.safetensors: For a base model")
    assert "'sae': ['animals.safetensors', 'castles.safetensors'], 'concepts': 'castle, cat'" in generate(page)


def find(page: Page, words: str, pictures: int = 8) -> None:
    for name, value in (("pictures", pictures), ("side", 64), ("cfg", 2)):
        panel(page, name).locator("input").fill(str(value))
    panel(page, "find").locator("textarea, input").fill(words)
    panel(page, "find_begin").click()


def status(page: Page):
    return panel(page, "find_status")


def test_a_word_is_found_and_ticked(page, models):
    row(page, "dog").get_by_role("checkbox").check()
    try:
        find(page, "zebra:0.5")
        expect(status(page)).to_contain_text(re.compile(r"step \d+ of 48, about .* left"), timeout=60_000)
        expect(status(page).locator("progress")).to_be_visible()
        expect(status(page)).to_contain_text(re.compile(r"zebra: .*% removed.*found in"), timeout=120_000)
        expect(row(page, "zebra").get_by_role("checkbox")).to_be_checked()
        expect(text(page)).to_have_value("dog, zebra:0.5")
        expect(panel(page, "enabled").locator("input")).to_be_checked()
        said = generate(page)
        assert "'enabled': True, 'sae': ['small v1 " in said and "'animals.safetensors']" in said
    finally:
        for path in (models / "sae").glob("small v1*"):
            path.unlink()


def test_a_search_can_be_stopped_and_leaves_no_file(page, models):
    find(page, "zebra", 400)
    expect(status(page)).to_contain_text(re.compile(r"step \d+ of"), timeout=60_000)
    panel(page, "find_stop").click()
    expect(status(page)).to_contain_text("stopped: nothing was written", timeout=60_000)
    assert not list((models / "sae").glob("small v1*")) and text(page).input_value() == ""


def test_a_word_that_cannot_be_read_is_a_sentence_beside_the_field(page):
    find(page, "zebra:much")
    expect(status(page).locator(".saemnesia-error")).to_contain_text("'much' in 'zebra:much' is not a strength")
    expect(panel(page, "enabled").locator("input")).not_to_be_checked()


def test_what_the_sidebar_answers_is_in_the_language_of_the_page(page, served):
    """The host puts the words of localizations/ into the page, and labels into its language by itself."""
    german = json.loads((REPO / "localizations" / "de_DE.json").read_text("utf-8"))
    page.evaluate("(words) => { window.localization = words }", german)
    page.add_script_tag(url=f"{served.url}/javascript/saemnesia.mjs?again", type="module")
    text(page).fill("catt")
    expect(page.locator(".saemnesia-unknown").first).to_have_text("nicht in der Liste: catt")
    find(page, "zebra:much")
    expect(status(page).locator(".saemnesia-error")).to_contain_text("'much' in 'zebra:much' ist keine Stärke: ")
    choose_sae(page, "damaged.safetensors")
    alert = page.locator(".saemnesia-picker .saemnesia-error").first
    expect(alert).to_contain_text("damaged.safetensors")
    expect(alert).not_to_contain_text("cannot be read")

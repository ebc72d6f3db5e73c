"""The sidebar: to look into it changes nothing, its tick erases.

The text `cat, noto style:0.8` is what counts. The list of ticks is drawn from the SAE's header as HTML, and
`javascript/saemnesia.mjs` keeps list and text in step; without it the text alone works.
"""
import json
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from sae_models import Concept, SaeError, parse
from sae_models.adapter import LoadedSae
from sae_models.concepts import format_choices

from . import files, host, infotext
from .find import Finder, Found, Progress, Wish
from .job import fits
from .settings import CHOICES, DEFAULTS

TITLE = "SAEmnesia: erase concepts"
REFRESH = "\u21bb"
HEADINGS = {"object": "Objects", "style": "Styles", "": "Other concepts"}
BASES = {"sd15": "SD 1.x", "sd20": "SD 2.x", "sdxl": "SDXL", "sdxlrefiner": "the SDXL refiner"}
CHANGED = "() => { document.dispatchEvent(new Event('saemnesia')) }"


class Panel(NamedTuple):
    """Components in the order of the settings, and how a pasted text fills them."""
    components: list[Any]
    infotext_fields: list[tuple[Any, Callable]]


def build(elem_id: Callable[[str], str], models: Path, finder: Finder) -> Panel:
    """Build the sidebar for one tab. It has no side effects: the hosts call it several times.

    elem_id: the host's name for an element of this tab.
    """
    names = files.names(models)
    first = names[0] if names else ""  # None would not be restored by a pasted text
    with gr.Accordion(TITLE, open=False, elem_id=elem_id("panel"), elem_classes=["saemnesia-panel"]):
        enabled = gr.Checkbox(DEFAULTS["enabled"], label="Erase what is ticked", elem_id=elem_id("enabled"),
                              elem_classes=["saemnesia-enabled"])
        with gr.Row(elem_classes=["saemnesia-row-of-buttons"]):
            words = gr.Textbox("", label="Find a concept", lines=1, elem_id=elem_id("find"), placeholder="cat",
                               info="a word this checkpoint shall learn to leave out; it paints some pictures, once")
            begin = gr.Button("Find", variant="primary", elem_id=elem_id("find_begin"), min_width=80)
            stop = gr.Button("Stop", elem_id=elem_id("find_stop"), min_width=80)
        status = gr.HTML("", elem_id=elem_id("find_status"), elem_classes=["saemnesia-status"])
        with gr.Row(elem_classes=["saemnesia-row-of-buttons"]):
            sae = gr.Dropdown(names, value=first, label="SAE", elem_id=elem_id("sae"), allow_custom_value=True,
                              info="the file of models/sae whose concepts are listed below")
            refresh = gr.Button(REFRESH, elem_id=elem_id("refresh"), elem_classes=["tool"])
        listed = gr.HTML(concept_list(models, first), elem_id=elem_id("list"), elem_classes=["saemnesia-picker"])
        concepts = gr.Textbox(DEFAULTS["concepts"], label="Concepts to erase", lines=1, elem_id=elem_id("concepts"),
                              placeholder="cat, dog:0.5", elem_classes=["saemnesia-text"],
                              info="a number after a colon is the strength; without one a concept is erased fully")
        with gr.Accordion("How it erases and finds", open=False, elem_id=elem_id("more")):
            actuator = gr.Radio(CHOICES["actuator"], value=DEFAULTS["actuator"], label="Actuator",
                                elem_id=elem_id("actuator"), elem_classes=["saemnesia-actuator"],
                                info="ablate: switch it off; steer: scale it, -1 erases; replace: paint over it")
            with gr.Row():
                start = gr.Slider(0, 1, DEFAULTS["start"], step=0.01, label="Start", elem_id=elem_id("start"))
                end = gr.Slider(0, 1, DEFAULTS["end"], step=0.01, label="End", elem_id=elem_id("end"))
            with gr.Row():
                apply_to = gr.Radio(CHOICES["apply_to"], value=DEFAULTS["apply_to"], label="Apply to",
                                    elem_id=elem_id("apply_to"))
                hires = gr.Checkbox(DEFAULTS["hires"], label="Erase in the hires pass too", elem_id=elem_id("hires"))
            hookpoint = gr.Textbox(DEFAULTS["hookpoint"], label="Hookpoint", elem_id=elem_id("hookpoint"),
                                   placeholder="empty: the SAE's file says it")
            wish = _wishes(elem_id)
    components = dict(zip(DEFAULTS, (enabled, sae, concepts, actuator, start, end, apply_to, hires, hookpoint),
                          strict=True))

    def relist(name: str | None) -> str:
        return concept_list(models, name)

    def reread(name: str | None) -> tuple[Any, str]:
        names = files.names(models)
        chosen = name if name in names else only_file(models)
        return gr.update(choices=names, value=chosen), relist(chosen)

    def find(text: str, told_from: str, pictures: float, side: float, cfg: float, chosen: str) -> Iterator[tuple]:
        yield from finding(finder, Wish(text, told_from, int(pictures), int(side), float(cfg)), chosen)
    for part in (sae, enabled):
        part.change(relist, inputs=[sae], outputs=[listed], show_progress=False)
    refresh.click(reread, inputs=[sae], outputs=[sae, listed], show_progress=False)
    outputs = [status, sae, listed, concepts, enabled]
    for event in (begin.click, words.submit):
        event(find, inputs=[words, *wish, concepts], outputs=outputs, show_progress=False)
    stop.click(host.stop, show_progress=False, queue=False)  # it must not wait behind what it stops
    for part in (concepts, actuator, enabled):
        _on_change_in_page(part, CHANGED)
    return Panel(list(components.values()),
                 [(part, infotext.reader(name, models)) for name, part in components.items()])


def _wishes(elem_id: Callable[[str], str]) -> list[Any]:
    """What can be said of a search, besides its words; in the order of `Wish`."""
    usual = Wish()
    told_from = gr.Textbox(usual.told_from, label="Find: also told from", lines=1, elem_id=elem_id("told_from"),
                           placeholder="fox, wolf", info="more things that look like it and must stay")
    with gr.Row():
        pictures = gr.Number(usual.pictures, label="Find: pictures", precision=0, elem_id=elem_id("pictures"))
        side = gr.Number(usual.side, label="Find: side in pixels, 0 for 512 or 768", precision=0,
                         elem_id=elem_id("side"))
        cfg = gr.Number(usual.cfg, label="Find: guidance, 1 for Turbo and LCM", elem_id=elem_id("cfg"))
    return [told_from, pictures, side, cfg]


def finding(finder: Finder, wish: Wish, chosen: str) -> Iterator[tuple]:
    """(status, file, list, text, tick) of the sidebar while words are found, and when they are."""
    same = gr.update()
    try:
        for now in finder.watched(wish):
            if isinstance(now, Progress):
                yield f'<div class="saemnesia-message">{_bar(now)}{escape(now.text)}</div>', same, same, same, same
            else:
                file = gr.update(choices=files.names(finder.models), value=now.file)
                yield _message("\n".join(now.said)), file, concept_list(finder.models, now.file), \
                    ticked(chosen, wish.words, now), True
    except SaeError as error:
        yield _message(str(error), "saemnesia-error"), same, same, same, same


def _bar(now: Progress) -> str:
    return f'<progress value="{now.share:.3f}"></progress>' if now.steps else ""


def ticked(text: str, words: str, found: Found) -> str:
    """The concepts of `text` that the found file has, and those just found."""
    try:
        before = parse(text)
    except SaeError:
        before = []
    known = {concept.name.casefold() for concept in found.sae.concepts} - {name.casefold() for name in found.names}
    return format_choices([*(choice for choice in before if choice.name.casefold() in known), *parse(words)])


def _on_change_in_page(component: Any, code: str) -> None:
    """Run JavaScript at a change: gradio 4 calls the argument `js`, gradio 3 `_js`."""
    try:
        component.change(None, js=code)
    except TypeError:
        component.change(None, _js=code)


def only_file(models: Path) -> str:
    """The file of models/sae, where there is exactly one."""
    names = files.names(models)
    return names[0] if len(names) == 1 else ""


def concept_list(models: Path, name: str | None) -> str:
    """HTML of an SAE's concepts, by kind, or the sentence why there is none."""
    if not name:
        count = len(files.names(models))
        return _message(f"Choose one of {count} files." if count else
                        f"Nothing is found yet: write a word above and press Find. Or put an SAE or concept file into "
                        f"{models / files.FOLDER} and press {REFRESH}.")
    try:
        sae = files.load(models, name)
    except SaeError as error:
        return _message(str(error), "saemnesia-error")
    about, concepts = _about(sae), sae.concepts
    if not concepts:
        return about + _message(f"{name} has no concept names: write a latent's number such as #12.")
    groups = (_group(title, [c for c in concepts if (c.kind if c.kind in HEADINGS else "") == kind])
              for kind, title in HEADINGS.items())
    return (f'{about}<div class="saemnesia-bar">'
            f'<input type="text" class="saemnesia-search" placeholder="Search concepts" '
            f'aria-label="Search concepts"><span class="saemnesia-count" role="status"></span>'
            f'<button type="button" class="saemnesia-clear">Clear</button></div>'
            f'<div class="saemnesia-list">{"".join(groups)}</div>'
            f'<div class="saemnesia-unknown saemnesia-error" role="status"></div>')


def _about(sae: LoadedSae) -> str:
    """What a file is for, and whether it fits the checkpoint that is loaded."""
    count = len(sae.headers)
    where = f"{count} places" if count > 1 else sae.headers[0].hookpoint or "a block that it does not say"
    said = f"For {BASES.get(sae.base, sae.base or 'a base model that it does not say')}, at {where}."
    model = host.loaded()
    try:
        return _message(f"{said} It fits the loaded checkpoint." if model is not None and fits(sae, model) else said)
    except SaeError as error:
        return _message(said) + _message(f"It does not fit the loaded checkpoint: {error}", "saemnesia-error")


def _message(text: str, kind: str = "") -> str:
    return f'<div class="{f"saemnesia-message {kind}".strip()}">{escape(text)}</div>'


def _group(title: str, concepts: list[Concept]) -> str:
    if not concepts:
        return ""
    figures = " \u00b7 % removed" if any(concept.measured for concept in concepts) else ""
    return (f'<div class="saemnesia-group" role="group" aria-label="{title}">'
            f'<div class="saemnesia-kind">{title}{figures}</div>{"".join(_row(concept) for concept in concepts)}</div>')


def _row(concept: Concept) -> str:
    name, about = escape(concept.name), escape("\n".join(filter(None, (concept.name, concept.description))))
    measured = f' data-measured="{escape(json.dumps(dict(concept.measured)))}"' if concept.measured else ""
    return (f'<div class="saemnesia-row" data-name="{name}"{measured}><label title="{about}"><input type="checkbox"> '
            f'{name}</label><input type="text" inputmode="decimal" class="saemnesia-strength" '
            f'aria-label="Strength of {name}" hidden></div>')

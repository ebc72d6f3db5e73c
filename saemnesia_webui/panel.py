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
from sae_models.adapter import BASES, LoadedSae
from sae_models.concepts import format_choices
from sae_models.made_on import made_of

from . import downloads, files, host, infotext, preview
from .downloads import message as _message
from .find import Finder, Found, Progress, Wish
from .job import fits, shared_out
from .model import checkpoint_of, original_weights
from .settings import CHOICES, DEFAULTS

TITLE = "SAEmnesia: erase concepts"
REFRESH = "\u21bb"
HEADINGS = {"object": "Objects", "style": "Styles", "": "Other concepts"}
CHANGED = "() => { document.dispatchEvent(new Event('saemnesia')) }"


class Panel(NamedTuple):
    """Components in the order of the settings, and how a pasted text fills them."""
    components: list[Any]
    infotext_fields: list[tuple[Any, Callable]]


class Search(NamedTuple):
    """The words to find, what begins and ends that, and what is said of it."""
    words: Any
    begin: Any
    stop: Any
    status: Any


def build(elem_id: Callable[[str], str], models: Path, finder: Finder) -> Panel:
    """Build the sidebar for one tab. It has no side effects: the hosts call it several times.

    elem_id: the host's name for an element of this tab.
    """
    names = files.names(models)
    first = names[:1]
    with gr.Accordion(TITLE, open=False, elem_id=elem_id("panel"), elem_classes=["saemnesia-panel"]):
        enabled = gr.Checkbox(DEFAULTS["enabled"], label="Erase what is ticked", elem_id=elem_id("enabled"),
                              elem_classes=["saemnesia-enabled"])
        search = _search(elem_id)
        with gr.Row(elem_classes=["saemnesia-row-of-buttons"]):
            sae = _several(names, value=first, label="SAE", elem_id=elem_id("sae"),
                           info="the files of models/sae whose concepts are listed below")
            refresh = gr.Button(REFRESH, elem_id=elem_id("refresh"), elem_classes=["tool"])
        sae.do_not_save_to_config = True  # the host would set what it was at the very first start again
        listed = gr.HTML(concept_list(models, first), elem_id=elem_id("list"), elem_classes=["saemnesia-picker"])
        concepts = gr.Textbox(DEFAULTS["concepts"], label="Concepts to erase", lines=1, elem_id=elem_id("concepts"),
                              placeholder="cat, dog:0.5", elem_classes=["saemnesia-text"],
                              info="a number after a colon is the strength; without one a concept is erased fully; "
                                   "cat -> dog puts a dog in its place")
        with gr.Accordion("How it erases and finds", open=False, elem_id=elem_id("more")):
            how, wish = _how(elem_id), _wishes(elem_id)
        with gr.Accordion("Show where the concepts are", open=False, elem_id=elem_id("where")):
            where = gr.Checkbox(DEFAULTS["map"], label="A heat map of each ticked concept beside the picture",
                                elem_id=elem_id("map"),
                                info="in the time of one step; to see where it is painted, untick the erasing; with "
                                     "none ticked it shows what is heard in the picture")
        published = downloads.build(elem_id)
    _wire_list(models, sae, listed, refresh, enabled)
    _wire_search(finder, search, [search.words, *wish, sae, concepts], [search.status, sae, listed, concepts, enabled])
    _wire_downloads(models, published, [published.status, sae, listed])
    for part in (concepts, how[0], enabled):
        _on_change_in_page(part, CHANGED)
    components = dict(zip(DEFAULTS, (enabled, sae, concepts, *how, where), strict=True))
    return Panel(list(components.values()),
                 [(part, infotext.reader(name, models)) for name, part in components.items()])


def _search(elem_id: Callable[[str], str]) -> Search:
    with gr.Row(elem_classes=["saemnesia-row-of-buttons"]):
        words = gr.Textbox("", label="Find a concept", lines=1, elem_id=elem_id("find"), placeholder="cat",
                           info="a word to leave out; it paints some pictures to find it, once")
        begin = gr.Button("Find", variant="primary", elem_id=elem_id("find_begin"), min_width=80)
        stop = gr.Button("Stop", elem_id=elem_id("find_stop"), min_width=80)
    status = gr.HTML("", elem_id=elem_id("find_status"), elem_classes=["saemnesia-status"])
    return Search(words, begin, stop, status)


def _how(elem_id: Callable[[str], str]) -> list[Any]:
    """How it erases: in the order of the settings, from the actuator on."""
    actuator = gr.Radio(CHOICES["actuator"], value=DEFAULTS["actuator"], label="Actuator",
                        elem_id=elem_id("actuator"), elem_classes=["saemnesia-actuator"],
                        info="amount: 0 nothing, 1 gone, about evenly between; ablate: in proportion to what it adds; "
                             "steer: scale it, -1 erases; replace: paint over it; thorough: all that the prompt "
                             "adds of it, where it still comes (above CFG 1)")
    with gr.Row():
        start = gr.Slider(0, 1, DEFAULTS["start"], step=0.01, label="Start", elem_id=elem_id("start"))
        end = gr.Slider(0, 1, DEFAULTS["end"], step=0.01, label="End", elem_id=elem_id("end"))
    with gr.Row():
        apply_to = gr.Radio(CHOICES["apply_to"], value=DEFAULTS["apply_to"], label="Apply to",
                            elem_id=elem_id("apply_to"))
        hires = gr.Checkbox(DEFAULTS["hires"], label="Erase in the hires pass too", elem_id=elem_id("hires"))
    hookpoint = gr.Textbox(DEFAULTS["hookpoint"], label="Hookpoint", elem_id=elem_id("hookpoint"),
                           placeholder="empty: the SAE's file says it")
    return [actuator, start, end, apply_to, hires, hookpoint]


def _wire_list(models: Path, sae: Any, listed: Any, refresh: Any, enabled: Any) -> None:
    """The list follows the chosen files, and the button reads which there are."""
    def relist(chosen: list[str] | None) -> str:
        return concept_list(models, chosen or [])

    def reread(chosen: list[str] | None) -> tuple[Any, str]:
        names = files.names(models)
        left = [name for name in chosen or [] if name in names] or (names if len(names) == 1 else [])
        return gr.update(choices=names, value=left), relist(left)
    for part in (sae, enabled):  # then again, because gradio 3 drops what is changed while it waits for an answer
        part.change(relist, inputs=[sae], outputs=[listed], show_progress=False).then(
            relist, inputs=[sae], outputs=[listed], show_progress=False)
    refresh.click(reread, inputs=[sae], outputs=[sae, listed], show_progress=False)

    def loaded(chosen: list[str] | None) -> tuple[Any, str]:
        """A page shows what there was when the host started; what somebody has chosen meanwhile stays."""
        return (gr.update(choices=files.names(models)), relist(chosen)) if chosen else reread(chosen)
    gr.context.Context.root_block.load(loaded, inputs=[sae], outputs=[sae, listed], show_progress=False)


def _wire_search(finder: Finder, search: Search, inputs: list[Any], outputs: list[Any]) -> None:
    def find(words: str, told_from: str, pictures: float | None, side: float | None, cfg: float | None,
             chosen: list[str] | None, text: str) -> Iterator[tuple]:
        yield from finding(finder, Wish.typed(words, told_from, pictures, side, cfg), chosen or [], text)
    for event in (search.begin.click, search.words.submit):
        event(find, inputs=inputs, outputs=outputs, show_progress=False)
    search.stop.click(host.stop, show_progress=False, queue=False)  # it must not wait behind what it stops


def _wire_downloads(models: Path, published: downloads.Section, outputs: list[Any]) -> None:
    def download(which: str | None) -> Iterator[tuple]:
        for now in downloads.downloading(models, which):
            if isinstance(now, str):
                yield now, gr.update(), gr.update()
            else:
                yield _message(f"{now.name} is there, and chosen."), \
                    gr.update(choices=files.names(models), value=[now.file]), concept_list(models, [now.file])
    published.begin.click(download, inputs=[published.which], outputs=outputs, show_progress=False)


def _several(names: list[str], **options: Any) -> Any:
    """A list to choose several from, and names that it does not hold: gradio 4 has to be told so, 3 must not."""
    try:
        return gr.Dropdown(names, multiselect=True, allow_custom_value=True, **options)
    except ValueError:
        return gr.Dropdown(names, multiselect=True, **options)


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


def finding(finder: Finder, wish: Wish, chosen: list[str], text: str) -> Iterator[tuple]:
    """(status, files, list, text, tick) of the sidebar while words are found, and when they are."""
    same, models = gr.update(), finder.models
    try:
        for now in finder.watched(wish):
            if isinstance(now, Progress):
                yield f'<div class="saemnesia-message">{_bar(now)}{escape(now.text)}</div>', same, same, same, same
            else:
                names, ticks = beside(models, chosen, text, now, wish.words)
                yield _message("\n".join(now.said)), gr.update(choices=files.names(models), value=names), \
                    concept_list(models, names), ticks, True
    except SaeError as error:
        yield _message(str(error), "saemnesia-error"), same, same, same, same


def beside(models: Path, chosen: list[str], text: str, found: Found, words: str) -> tuple[list[str], str]:
    """The files and the text with what was found: files of which something is ticked stay, and those ticks."""
    new = {name.casefold() for name in found.names}
    try:
        before = [choice for choice in parse(text) if choice.name.casefold() not in new]
        saes = [found.sae, *(files.load(models, name) for name in chosen if name != found.file)]
        asked = {sae.name for sae, _ in shared_out(saes, format_choices(before))} if before else set()
    except SaeError:
        return [found.file], words
    return [found.file, *(name for name in chosen if name in asked - {found.file})], \
        format_choices([*before, *parse(words)])


def _bar(now: Progress) -> str:
    return f'<progress value="{now.share:.3f}"></progress>' if now.steps else ""


def _on_change_in_page(component: Any, code: str) -> None:
    """Run JavaScript at a change: gradio 4 calls the argument `js`, gradio 3 `_js`."""
    try:
        component.change(None, js=code)
    except TypeError:
        component.change(None, _js=code)


def concept_list(models: Path, names: list[str]) -> str:
    """HTML of the concepts of some files, by kind, or the sentences why there are none."""
    if not names:
        count = len(files.names(models))
        return _message(f"Choose one of {count} files." if count else
                        f"Nothing is found yet: write a word above and press Find. Or download a published SAE "
                        f"below, or put a file into {models / files.FOLDER} and press {REFRESH}.")
    about, concepts = [], {}
    for name in names:
        try:
            sae = files.load(models, name)
        except SaeError as error:
            about.append(_message(str(error), "saemnesia-error"))
            continue
        about += [_about(sae, len(names) > 1), preview.as_html(sae.path)]
        concepts = {concept.name.casefold(): concept for concept in sae.concepts} | concepts
    return "".join(about) + (_ticks(list(concepts.values())) if concepts else "")


def _ticks(concepts: list[Concept]) -> str:
    groups = (_group(title, [c for c in concepts if (c.kind if c.kind in HEADINGS else "") == kind])
              for kind, title in HEADINGS.items())
    return (f'<div class="saemnesia-bar"><input type="text" class="saemnesia-search" placeholder="Search concepts" '
            f'aria-label="Search concepts"><span class="saemnesia-count" role="status"></span>'
            f'<button type="button" class="saemnesia-clear">Clear</button></div>'
            f'<div class="saemnesia-list">{"".join(groups)}</div>'
            f'<div class="saemnesia-unknown saemnesia-error" role="status"></div>')


def _about(sae: LoadedSae, named: bool) -> str:
    """What a file is for, and whether it fits the checkpoint that is loaded; named: say which file it is."""
    count = len(sae.headers)
    where = f"{count} places" if count > 1 else sae.headers[0].hookpoint or "a block that it does not say"
    said = f"For {BASES.get(sae.base, sae.base or 'a base model that it does not say')}, at {where}."
    said = f"{sae.name}: {said}" if named else said
    if not sae.concepts:
        said += " It has no concept names: write a latent's number such as #12."
    model = host.loaded()
    try:
        if model is None or not fits(sae, model):
            return _message(said)
        elsewhere = sae.elsewhere(checkpoint_of(model), made_of(original_weights(model)))
        return _message(f"{said} It fits the loaded checkpoint.") if not elsewhere else \
            _message(said) + _message(f"{elsewhere[0].upper()}{elsewhere[1:]}.", "saemnesia-warning")
    except SaeError as error:
        return _message(said) + _message(f"It does not fit the loaded checkpoint: {error}", "saemnesia-error")


def _group(title: str, concepts: list[Concept]) -> str:
    if not concepts:
        return ""
    figures = " \u00b7 % removed" if any(concept.measured for concept in concepts) else ""
    return (f'<div class="saemnesia-group" role="group" aria-label="{title}">'
            f'<div class="saemnesia-kind">{title}{figures}</div>{"".join(_row(concept) for concept in concepts)}</div>')


def _row(concept: Concept) -> str:
    name, about = escape(concept.name), escape("\n".join(filter(None, (concept.name, concept.description))))
    measured = f' data-measured="{escape(json.dumps(dict(concept.measured)))}"' if concept.measured else ""
    return (f'<div class="saemnesia-row" data-name="{name}"{measured}><label title="{about}">'
            f'<input type="checkbox" class="saemnesia-tick"> {name}<span class="saemnesia-into"></span></label>'
            f'<input type="range" step="0.05" class="saemnesia-slider" aria-hidden="true" tabindex="-1" hidden>'
            f'<input type="text" inputmode="decimal" class="saemnesia-strength" '
            f'aria-label="Strength of {name}" hidden></div>')

"""The sidebar: an accordion, closed while erasing is off.

The text `cat, noto style:0.8` is what counts. The list of ticks is drawn from the SAE's header as HTML, and
`javascript/saemnesia.mjs` keeps list and text in step; without it the text alone works.
"""
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from sae_models import Concept, SaeError

from . import files, infotext
from .settings import CHOICES, DEFAULTS

TITLE = "SAEmnesia: erase concepts"
REFRESH = "\u21bb"
HEADINGS = {"object": "Objects", "style": "Styles", "": "Other concepts"}
CHANGED = "() => { document.dispatchEvent(new Event('saemnesia')) }"


class Panel(NamedTuple):
    """Components in the order of the settings, and how a pasted text fills them."""
    components: list[Any]
    infotext_fields: list[tuple[Any, Callable]]


def build(accordion: Callable[..., Any], elem_id: Callable[[str], str], models: Path) -> Panel:
    """Build the sidebar for one tab. It has no side effects: the hosts call it several times.

    accordion: the host's InputAccordion; elem_id: its name for an element of this tab.
    """
    names = files.names(models)
    first = names[0] if names else ""  # None would not be restored by a pasted text
    with accordion(DEFAULTS["enabled"], label=TITLE, elem_id=elem_id("enabled")) as enabled:
        with gr.Row():
            sae = gr.Dropdown(names, value=first, label="SAE", elem_id=elem_id("sae"), allow_custom_value=True,
                              info="a file of models/sae, trained on this base model")
            refresh = gr.Button(REFRESH, elem_id=elem_id("refresh"), elem_classes=["tool"])
        listed = gr.HTML(concept_list(models, first), elem_id=elem_id("list"), elem_classes=["saemnesia-picker"])
        concepts = gr.Textbox(DEFAULTS["concepts"], label="Concepts to erase", lines=1, elem_id=elem_id("concepts"),
                              placeholder="cat, dog:0.5", elem_classes=["saemnesia-text"],
                              info="a number after a colon is the strength; without one a concept is erased fully")
        actuator = gr.Radio(CHOICES["actuator"], value=DEFAULTS["actuator"], label="Actuator",
                            elem_id=elem_id("actuator"), elem_classes=["saemnesia-actuator"],
                            info="ablate: switch the neuron off; steer: scale it, -1 erases; replace: paint over it")
        with gr.Row():
            start = gr.Slider(0, 1, DEFAULTS["start"], step=0.01, label="Start", elem_id=elem_id("start"))
            end = gr.Slider(0, 1, DEFAULTS["end"], step=0.01, label="End", elem_id=elem_id("end"))
        with gr.Row():
            apply_to = gr.Radio(CHOICES["apply_to"], value=DEFAULTS["apply_to"], label="Apply to",
                                elem_id=elem_id("apply_to"))
            hires = gr.Checkbox(DEFAULTS["hires"], label="Erase in the hires pass too", elem_id=elem_id("hires"))
        hookpoint = gr.Textbox(DEFAULTS["hookpoint"], label="Hookpoint", elem_id=elem_id("hookpoint"),
                               placeholder="empty: the SAE's file says it")
    components = dict(zip(DEFAULTS, (enabled, sae, concepts, actuator, start, end, apply_to, hires, hookpoint),
                          strict=True))

    def relist(name: str | None) -> str:
        return concept_list(models, name)

    def reread(name: str | None) -> tuple[Any, str]:
        chosen = name or only_file(models)
        return gr.update(choices=files.names(models), value=chosen), relist(chosen)
    for part in (sae, enabled):
        part.change(relist, inputs=[sae], outputs=[listed], show_progress=False)
    refresh.click(reread, inputs=[sae], outputs=[sae, listed], show_progress=False)
    for part in (concepts, actuator):
        _on_change_in_page(part, CHANGED)
    return Panel(list(components.values()),
                 [(part, infotext.reader(name, models)) for name, part in components.items()])


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
                        f"Put an SAE or concept file into {models / files.FOLDER} and press {REFRESH}.")
    try:
        concepts = files.load(models, name).concepts
    except SaeError as error:
        return _message(str(error))
    if not concepts:
        return _message(f"{name} has no concept names: write a latent's number such as #12.")
    groups = (_group(title, [c for c in concepts if (c.kind if c.kind in HEADINGS else "") == kind])
              for kind, title in HEADINGS.items())
    return (f'<div class="saemnesia-bar"><input type="text" class="saemnesia-search" placeholder="Search concepts" '
            f'aria-label="Search concepts"><span class="saemnesia-count" role="status"></span>'
            f'<button type="button" class="saemnesia-clear">Clear</button></div>'
            f'<div class="saemnesia-list">{"".join(groups)}</div>')


def _message(text: str) -> str:
    return f'<div class="saemnesia-message">{escape(text)}</div>'


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

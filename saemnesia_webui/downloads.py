"""*Download a published SAE* in the sidebar: a list with sizes, a button, and how far it is."""
import time
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from sae_models import SaeError
from sae_models.hub import Entry, catalogue, size_in_words
from sae_models.hub.running import Downloads, State

from . import files

LOOK_SECONDS = 0.5
DOWNLOADS = Downloads()


class Section(NamedTuple):
    """Its components; the sidebar wires them."""
    which: Any
    begin: Any
    stop: Any
    status: Any


def build(elem_id: Callable[[str], str]) -> Section:
    with gr.Accordion("Download a published SAE", open=False, elem_id=elem_id("downloads")):
        with gr.Row(elem_classes=["saemnesia-row-of-buttons"]):
            which = gr.Dropdown([label(entry) for entry in catalogue()], value=None, label="Published SAE",
                                elem_id=elem_id("published"), info="from Hugging Face into models/sae; nothing is "
                                "downloaded before you press Download")
            begin = gr.Button("Download", elem_id=elem_id("download_begin"), min_width=80)
            stop = gr.Button("Stop", elem_id=elem_id("download_stop"), min_width=80)
        status = gr.HTML("", elem_id=elem_id("download_status"), elem_classes=["saemnesia-status"])
    which.change(about, inputs=[which], outputs=[status], show_progress=False)
    stop.click(DOWNLOADS.stop, show_progress=False, queue=False)
    return Section(which, begin, stop, status)


def label(entry: Entry) -> str:
    return f"{entry.name} ({entry.size})"


def chosen(which: str | None) -> Entry:
    """Raises SaeError where none is."""
    for entry in catalogue():
        if label(entry) == which:
            return entry
    raise SaeError("choose an SAE of the list first")


def about(which: str | None) -> str:
    """What is known of the chosen one, as HTML."""
    if not which:
        return ""
    entry = chosen(which)
    lines = [f"{entry.size} from {entry.repository}, {entry.licence or 'licence not said'}. For {entry.model}, at "
             f"{', '.join(entry.blocks)}: {entry.knows}."]
    if entry.pickled:
        lines.append("It is a pickle: what to do with it is said in the list of concepts once it is there.")
    return message("\n".join(lines))


def downloading(models: Path, which: str | None) -> Iterator[str | State]:
    """HTML of how far it is; in the end the state, with the file that can be chosen, or HTML of why there is none."""
    try:
        DOWNLOADS.start(chosen(which), models / files.FOLDER)
    except SaeError as error:
        yield message(str(error), "saemnesia-error")
        return
    while DOWNLOADS.state.running:
        yield going_on(DOWNLOADS.state)
        time.sleep(LOOK_SECONDS)
    state = DOWNLOADS.state
    yield state if state.file else message(state.error, "saemnesia-error")


def going_on(state: State) -> str:
    if not state.total:
        return message(f"{state.name}: asking for it")
    text = f"{state.name}: {size_in_words(state.done)} of {size_in_words(state.total)}"
    return (f'<div class="saemnesia-message"><progress value="{state.done / state.total:.3f}"></progress>'
            f'{escape(text)}</div>')


def message(text: str, kind: str = "") -> str:
    return f'<div class="{f"saemnesia-message {kind}".strip()}">{escape(text)}</div>'

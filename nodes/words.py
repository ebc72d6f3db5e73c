"""*SAEmnesia Erase Words*: words in, a model that does not paint them out. What was not yet found on this checkpoint is
found first, and kept."""
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..sae_models.adapter import LoadedSae, build_edits
from ..sae_models.concepts import parse
from ..sae_models.erasure import Actuator
from ..sae_models.learning import words
from ..sae_models.learning.measuring import NEURONS, in_words
from ..sae_models.learning.prompts import parse_subjects
from . import files, find, patch, training
from .collect import fingerprint
from .painting import Painter, Painting

SIDES = {"sd15": 512}
SIDE = 768
"""Pixels of the pictures that are painted, unless they are given: enough to learn a word from."""
STEPS, AT_ONCE = 12, 4
MORE = 16
"""Pictures painted beside for each more word that is found in the same run."""
WEAK = 0.5


class EraseWords(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaEraseWords", display_name="SAEmnesia Erase Words", category="SAEmnesia",
            description="Write what shall not be painted, and paint. The first time it meets a word on a checkpoint it "
                        "paints some small pictures to find it, and keeps what it found in models/sae; from then on it "
                        "erases at once. Works at any guidance, also where a negative prompt does nothing.",
            is_output_node=True,  # so that the host shows again what it said when it is taken from the cache
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.Model.Input("model", tooltip="The model to paint with; only a copy of it is changed."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input("words", multiline=True, default="", tooltip=(
                    "What shall not be painted, for example: cat, text:0.8, van gogh style. A number after a colon is "
                    "the strength: 1 (or no number) erases fully, 0 changes nothing. End a style with the word "
                    "'style', or write it as: Van Gogh (style).")),
                io.String.Input("told_from", multiline=True, default="", tooltip=(
                    "More things that look like it and must stay, for example: fox, wolf. Common things are thought of "
                    "without it.")),
                io.Int.Input("pictures", default=32, min=8, max=1000, tooltip=(
                    "How many pictures are painted to find a word. More are surer.")),
                io.Int.Input("side", default=0, min=0, max=4096, step=8, tooltip=(
                    "Width and height of these pictures in pixels. 0: 512 for SD 1.x, 768 for others.")),
                io.Float.Input("cfg", default=7.0, min=1.0, max=30.0, step=0.1, tooltip=(
                    "Guidance of these pictures: what you paint with. 1 for Turbo, Lightning and LCM models.")),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="Paint with it: it does not paint the words."),
                files.SaeType.Output("found", display_name="SAE", tooltip=(
                    "The file with all that was found on this checkpoint, for SAEmnesia Erase and its list.")),
                io.String.Output("report", display_name="report", tooltip="What is also said on the node."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, words: str, told_from: str, pictures: int, side: int,
                cfg: float) -> io.NodeOutput:
        choices = parse(words)
        painting = Painting(*_size(model, side), STEPS, cfg, batch=AT_ONCE)
        out = files.new_path(_file_name(model, cls.hidden))
        seconds = _find_missing(model, clip, words, told_from, painting, pictures, out, cls.hidden)
        sae = files.load(out.name)
        report = "\n".join(_said(sae, choice.name, seconds) for choice in choices)
        patch.log.info("SAEmnesia: %s", report)
        erased = patch.erase(model, sae, build_edits(sae, words, Actuator.ABLATE))
        return io.NodeOutput(erased, sae, report, ui={"text": [report], "sae": [out.name]})


def _size(model: Any, side: int) -> tuple[int, int]:
    side = side or SIDES.get(type(model.model.model_config).__name__.lower(), SIDE)
    return side, side


def _file_name(model: Any, hidden: Any) -> str:
    """By the checkpoint's name where the graph tells it, and by the model's fingerprint always."""
    plain = re.sub(r"[^\w. -]", "-", files.checkpoint(hidden)) or "words"
    return f"{plain} {fingerprint(model)[:8]}"


def _find_missing(model: Any, clip: Any, text: str, told_from: str, painting: Painting, pictures: int, out: Path,
                  hidden: Any) -> dict[str, float]:
    """Find the words that the file does not have; {name in lower case: seconds} of those."""
    wanted = words.missing(text, LoadedSae.read(out.name, out).concepts if out.exists() else ())
    if not wanted:
        return {}
    began = time.monotonic()
    model = patch.without_edits(model)
    added = parse_subjects(told_from) if told_from.strip() else []
    others = [*added, *words.told_from([*wanted, *added], _vectors(Painter(model, clip, painting)))]
    what = training.search_for(wanted, others, words.templates([*wanted, *others]), painting,
                               pictures + MORE * (len(wanted) - 1))
    headers = files.made_on(find.places(model), hidden)
    find.found(find.studio(model, clip, what, hidden.unique_id), what, out, headers,
               lambda maps: find.own_tables(maps, what, NEURONS))
    return dict.fromkeys((subject.name.casefold() for subject in wanted), time.monotonic() - began)


def _vectors(painter: Painter) -> Callable[[Sequence[str]], torch.Tensor]:
    def vectors(texts: Sequence[str]) -> torch.Tensor:
        read = [painter.encoded([text]) for text in texts]
        return torch.cat([one.context.mean(1) if one.pooled is None else one.pooled for one in read])
    return vectors


def _said(sae: LoadedSae, name: str, seconds: Mapping[str, float]) -> str:
    """What erasing a word does, and whether it was found just now."""
    concept = sae.find(name)
    measured = concept.measured or {}
    when = f", found in {seconds[name.casefold()]:.0f} s" if name.casefold() in seconds else ""
    weak = "; this is little: say it in other words, or paint more pictures" if (
        measured.get("removed", 1.0) < WEAK) else ""
    return f"{concept.name}: {in_words(**measured)}{when}{weak}"


NODES = [EraseWords]

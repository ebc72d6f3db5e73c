"""*SAEmnesia Erase Words*: words in, a model that does not paint them out. What was not yet found on this checkpoint is
found first, and kept."""
import time
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..sae_models.adapter import build_edits, idle
from ..sae_models.concepts import mentioned, parse
from ..sae_models.learning import words as wanted
from ..sae_models.learning.painting import Painting
from ..sae_models.learning.search import found
from . import files, find, patch
from .family import family_of
from .painting import Painter, fingerprint


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
                    "the strength: 1 (or no number) erases fully, 0.5 about half, 0 changes nothing; up to 2 pushes "
                    "further away, down to -1 strengthens. End a style with the word "
                    "'style', or write it as: Van Gogh (style). An arrow puts something in its place: cat -> dog.")),
                io.String.Input("told_from", multiline=True, default="", tooltip=(
                    "More things that look like it and must stay, for example: fox, wolf. Common things are thought of "
                    "without it. A known word is found anew when something is added here.")),
                io.Int.Input("pictures", default=32, min=8, max=1000, tooltip=(
                    "How many pictures are painted to find a word. More are surer: a known word is then found "
                    "anew.")),
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
        choices = mentioned(parse(words))
        painting = wanted.painting(family_of(model.model.model_config), side, cfg)
        out = files.new_path(_file_name(model, cls.hidden))
        seconds = _find_missing(model, clip, words, told_from, painting, pictures, out, cls.hidden)
        sae = files.made(out)
        report = "\n".join(wanted.report(sae, choice.name, seconds) for choice in choices)
        patch.log.info("SAEmnesia: %s", report)
        edits = build_edits(sae, words, wanted.HOW, conditional_only=True)
        node = cls.hidden.unique_id
        erased = patch.erase(model, sae, edits, node=node, idle=idle(sae, words))
        return io.NodeOutput(erased, sae, report, ui={"text": [report], "sae": [out.name]})


def _file_name(model: Any, hidden: Any) -> str:
    """By the checkpoint's name where the graph tells it, and by the model's fingerprint always."""
    return wanted.file_name(files.checkpoint(hidden) or "words", fingerprint(model))


def _find_missing(model: Any, clip: Any, text: str, told_from: str, painting: Painting, pictures: int, out: Path,
                  hidden: Any) -> dict[str, float]:
    """Find the words that the file does not have, or has from less; {name in lower case: seconds} of those."""
    missing = wanted.missing(text, wanted.known(out), told_from, pictures)
    if not missing:
        return {}
    began = time.monotonic()
    model = patch.without_edits(model)
    what = wanted.search(missing, told_from, Painter(model, clip, painting), pictures)
    headers = files.made_on(find.places_of(model), model, hidden)
    found(find.studio(model, clip, what, hidden.unique_id), what, out, headers)
    return dict.fromkeys((subject.name.casefold() for subject in missing), time.monotonic() - began)


NODES = [EraseWords]

"""Before and after for Train's report: a concept as the model paints it, and from the same noise with it erased."""
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..sae_models.adapter import LoadedSae, build_edits
from ..sae_models.erasure import Actuator
from ..sae_models.learning.collect import HELD_OUT
from ..sae_models.learning.lesson import Lesson
from ..sae_models.learning.prompts import trial
from ..sae_models.preview import OURS, beside
from ..sae_models.storage import write_file
from . import patch
from .chart import SIDE
from .contact_sheet import as_picture
from .painting import Painter
from .progress import Preview

MOST = 12
"""Concepts that are shown."""
PREVIEWED = 2
"""In the picture of the file."""
Decode = Callable[[torch.Tensor], Image.Image]
Pair = tuple[str, Image.Image, Image.Image]


def decoder(model: Any, vae: Any) -> Decode:
    """Makes a picture of the latents of one: by the VAE, or without one roughly, as the host previews it."""
    def by_vae(latents: torch.Tensor) -> Image.Image:
        return as_picture(vae.decode(latents)[0])
    preview = Preview(model)
    return by_vae if vae is not None else lambda latents: preview(latents)[1]


def pairs(model: Any, clip: Any, what: Lesson, out: Path, decode: Decode,
          tick: Callable[[torch.Tensor | None], None]) -> list[Pair]:
    """(name, before, after) of the first concepts of a finished file. They are kept beside it, and painted once."""
    names, kept = [subject.name for subject in what.subjects[:MOST]], out.with_name(out.stem + ".pictures.png")
    sheet = _read(kept, len(names))
    if sheet is None:
        sae = LoadedSae.read(out.name, out)
        sheet = _sheet([_pair(model, clip, what, sae, i, decode, tick) for i in range(len(names))])
        write_file(kept, lambda part: sheet.save(part, "PNG"))
    return [(name, *(sheet.crop((x, SIDE * i, x + SIDE, SIDE * (i + 1))) for x in (0, SIDE)))
            for i, name in enumerate(names)]


def write_preview(out: Path, shown: Sequence[Pair]) -> None:
    """Put before and after of the first concepts beside the file, where ComfyUI's *Models* sidebar looks for its
    picture. One that is there stays."""
    if shown and beside(out) is None:
        sheet = _sheet([pair[1:] for pair in shown[:PREVIEWED]])
        write_file(out.with_name(out.stem + OURS), lambda part: sheet.save(part, "PNG"))


def steps(what: Lesson) -> int:
    """How many sampling steps `pairs` ticks."""
    return 2 * min(MOST, len(what.subjects)) * what.painting.steps


def _pair(model: Any, clip: Any, what: Lesson, sae: LoadedSae, number: int, decode: Decode,
          tick: Callable[[torch.Tensor | None], None]) -> tuple[Image.Image, Image.Image]:
    said, _ = trial(number, what.held_out, what.prompts)
    erased = patch.erase(model, sae, build_edits(sae, what.subjects[number].name, Actuator.ABLATE))
    seed = what.painting.seed * 1_000_003 + 2 * HELD_OUT + number

    def painted(by: Any) -> Image.Image:
        painter = Painter(by, clip, replace(what.painting, batch=1), tick)
        return decode(painter.paint([said[0][0]], torch.Generator().manual_seed(seed), ()))
    return painted(model), painted(erased)


def _sheet(rows: Sequence[tuple[Image.Image, Image.Image]]) -> Image.Image:
    """A row a concept, before and after."""
    sheet = Image.new("RGB", (2 * SIDE, SIDE * len(rows)), "white")
    for i, row in enumerate(rows):
        for x, picture in zip((0, SIDE), row, strict=True):
            sheet.paste(_square(picture), (x, SIDE * i))
    return sheet


def _square(picture: Image.Image) -> Image.Image:
    """As large as fits, in the middle of a white square."""
    scale = SIDE / max(picture.size)
    small = picture.convert("RGB").resize([max(1, round(scale * side)) for side in picture.size])
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square


def _read(path: Path, rows: int) -> Image.Image | None:
    """The sheet that is kept; None where there is none, or another."""
    try:
        with Image.open(path) as sheet:
            return sheet.convert("RGB") if sheet.size == (2 * SIDE, SIDE * rows) else None
    except OSError:
        return None

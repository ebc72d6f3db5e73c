"""Train an SAE on a model that is loaded in the host: what node and command share, from concept list to file."""
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ..sae_models import hookpoint
from ..sae_models.adapter import Block, LoadedSae
from ..sae_models.errors import SaeError
from ..sae_models.learning import effects, parallel
from ..sae_models.learning.collect import HELD_OUT, Collector
from ..sae_models.learning.job import Job, add_measured, unmeasured
from ..sae_models.learning.lesson import Lesson
from ..sae_models.learning.maps import MakeChunk, Maps
from ..sae_models.learning.origin import Origin, keeping
from ..sae_models.learning.prompts import trial
from ..sae_models.learning.report import Report
from ..sae_models.sae import SaeConfig
from ..sae_models.table import read_tables
from .family import family_of
from .painting import Painter, fingerprint, untouched

HELD_OUT_PICTURES, HELD_OUT_OF_SEVERAL = 64, 32
"""Pictures a trained SAE is judged on, of one place and of several, where each takes more memory."""
TOKENS, MAP = 128, 8 * 2**20
"""Of a map that are kept where several places are learned: more maps say more of a concept than more tokens of each.
And so few that the maps of all places, with and without a concept, take at most so many bytes: SDXL has 70 places."""
MEASURED_PICTURES = 4
"""Painted to measure a concept on."""
GIGABYTE = 10**9


def tokens_kept(widths: Sequence[int]) -> int | None:
    """How many tokens of a map are kept, of fp16 numbers with and without the concept; None for all of one place."""
    return max(1, min(TOKENS, MAP // (4 * sum(widths)))) if len(widths) > 1 else None


def origins(model: ModelPatcher, what: Lesson, hookpoints: Sequence[str]) -> list[Origin]:
    """What is painted with a loaded model to learn some places from, one origin a place."""
    several = len(hookpoints) > 1
    judged = min(what.pictures / 8, HELD_OUT_OF_SEVERAL if several else HELD_OUT_PICTURES)
    held_out = tuple(range(HELD_OUT, HELD_OUT + math.ceil(judged / what.painting.batch)))
    family, unet = family_of(model.model.model_config), model.model.diffusion_model
    widths = [hookpoint.width(hookpoint.find(unet, name)) for name in hookpoints]
    about = {"model": fingerprint(model), "pictures": what.pictures, "painting": asdict(what.painting),
             "prompts": sorted({prompt.text for prompt in what.prompts})[:20]}
    about |= {"tokens": tokens_kept(widths)} if several else {}
    return [Origin(what.subjects, width, name, family, False, what.chunks, held_out, about)
            for width, name in zip(widths, hookpoints, strict=True)]


def painting_of(model: ModelPatcher, clip: Any, what: Lesson, hookpoints: Sequence[str]) -> str:
    """A fingerprint of what is painted to learn some places from: another for another model, text encoder, prompt or
    setting of the pictures.

    Raises SaeError for a prompt that is too long.
    """
    heard = float(Painter(model, clip, what.painting).encoded([what.prompts[0].text]).context.cpu().double().sum())
    of = f"{fingerprint(model)} {heard} {what} {[*hookpoints]} {TOKENS} {MAP}"
    return hashlib.sha256(of.encode()).hexdigest()[:16]


def source(model: ModelPatcher, clip: Any, what: Lesson, made_of: Sequence[Origin], keep: Path | None,
           tick: Callable[[torch.Tensor | None], None]) -> MakeChunk:
    """Makes the chunks of some origins; `keep` is a folder to store them in for good, None to store nothing."""
    blocks = [Block(origin.hookpoint, origin.residual) for origin in made_of]
    painter = Painter(untouched(model), clip, what.painting, tick)
    tokens = tokens_kept([origin.d_in for origin in made_of])
    collector = Collector(painter, what.prompts, len(what.subjects), blocks, tokens)

    def chunk(number: int) -> dict[str, Maps]:
        with torch.inference_mode():
            return {block.hookpoint: maps for block, maps in collector.chunk(number).items()}
    return chunk if keep is None else keeping(keep, made_of, chunk)


def needed(config: SaeConfig) -> int:
    """Bytes of the SAE, its gradients and two moments."""
    return 2 * config.d_sae * config.d_in * 4 * 4


def making_room(make: MakeChunk, jobs: Sequence[Job], device: torch.device) -> MakeChunk:
    """`make`, with room on the card to learn before it and after it: what paints loads the model again."""
    size = sum(needed(job.config) for job in jobs) + GIGABYTE
    comfy.model_management.free_memory(size, device)

    def chunk(number: int) -> Mapping[str, Maps]:
        maps = make(number)
        comfy.model_management.free_memory(size, device)
        return maps
    return chunk


def measured(model: ModelPatcher, clip: Any, what: Lesson, out: Path, report: Report,
             tick: Callable[[torch.Tensor | None], None]) -> Report:
    """The report with how much erasing removes of each concept of a finished file, which is noted there too; what is
    known already is not measured again. What interrupts it (`tick`) leaves what was measured so far.

    Raises SaeError when the model predicts something that is no number.
    """
    painter = Painter(model, clip, replace(what.painting, batch=min(MEASURED_PICTURES, what.painting.batch)), tick)
    todo, step = unmeasured(out), max(1, parallel.world()[1])
    shares: dict[str, dict[str, float]] = {}
    try:
        for names in (todo[i:i + step] for i in range(0, len(todo), step)):
            found = parallel.spread(lambda i, names=names: _shares(painter, what, out, names[i]), range(len(names)),
                                    parallel.device())
            shares |= {names[i]: {key: float(value) for key, value in one.items()} for i, one in found.items()}
    finally:
        report = add_measured(out, shares) if shares else report
    return report


def _shares(painter: Painter, what: Lesson, out: Path, name: str) -> dict[str, torch.Tensor]:
    """{"removed", "touched"} of one concept of a file.

    Raises SaeError when the model predicts something that is no number.
    """
    sae = LoadedSae.read(out.name, out)
    parts = read_tables(out, sae.choose([name]))
    eraser = effects.ablating([Block.of(header) for header, _ in parts], [table for _, table in parts])
    number = [subject.name for subject in what.subjects].index(name)
    effect = effects.effects(painter, {1: eraser}, *trial(number, what.held_out, what.prompts), batch=effects.CHECK)[1]
    if not all(map(math.isfinite, effect.shares.values())):
        raise SaeError(f"'{name}' could not be measured: the model predicts values that are no numbers (NaN or "
                       f"infinite); {out.name} is complete and can be used")
    return {key: torch.tensor(share, dtype=torch.float64) for key, share in effect.shares.items()}

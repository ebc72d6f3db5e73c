"""Train an SAE on a model that is loaded in the host: what node and command share, from concept list to file."""
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..sae_models import hookpoint
from ..sae_models.adapter import Block, LoadedSae
from ..sae_models.concepts import Concept, refuse_twice
from ..sae_models.errors import SaeError
from ..sae_models.learning import parallel
from ..sae_models.learning.job import add_measured, unmeasured
from ..sae_models.learning.maps import MakeChunk, Maps
from ..sae_models.learning.origin import Origin, keeping
from ..sae_models.learning.prompts import (
    Prompt,
    Subject,
    default_templates,
    expand,
    hold_out,
    parse_subjects,
    trial,
)
from ..sae_models.learning.report import Report
from ..sae_models.table import read_tables
from . import measure
from .collect import HELD_OUT, Collector, fingerprint
from .painting import Painter, Painting
from .patch import check_base

HELD_OUT_PICTURES, HELD_OUT_OF_SEVERAL = 64, 32
"""Pictures a trained SAE is judged on, of one place and of several, where each takes more memory."""
HELD_OUT_SHARE = 5
"""One prompt in so many is kept to measure a concept on."""
TOKENS = 128
"""Of a map that are kept where several places are learned: more maps say more of a concept than more tokens of each."""
MEASURED_PICTURES = 4
"""Painted to measure a concept on."""


@dataclass(frozen=True)
class Lesson:
    """What an SAE shall learn, from how many pictures. held_out: prompts that are not painted to learn from."""
    subjects: Sequence[Subject]
    prompts: Sequence[Prompt]
    painting: Painting
    pictures: int
    held_out: Sequence[Prompt] = ()

    @property
    def chunks(self) -> int:
        return math.ceil(self.pictures / self.painting.batch)

    def holding_out(self) -> "Lesson":
        """The same with some of each concept's prompts held out."""
        learned, held_out = hold_out(self.prompts, HELD_OUT_SHARE)
        return replace(self, prompts=learned, held_out=held_out)


def places(model: ModelPatcher, text: str, start: LoadedSae | None = None) -> list[str]:
    """The hookpoints that a user wrote, separated by commas or lines. Where there are none: those of the SAE to go on
    from, or else all cross-attentions that hear the prompt.

    Raises SaeError for a place that the model lacks, that is listed twice, or that hears no prompt, and for an SAE of
    another base model.
    """
    unet = model.model.diffusion_model
    if not hookpoint.is_unet(unet):
        raise SaeError(f"this model is a {type(unet).__name__}, and only UNets can be learned: load a checkpoint of "
                       f"SD 1.x, 2.x or SDXL")
    wanted = [hookpoint.normalise(name) for line in text.splitlines() for name in line.split(",") if name.strip()]
    if start and not wanted:
        check_base(model, start)
        wanted = [header.hookpoint for header in start.at("").headers]
    attentions = hookpoint.cross_attentions(unet)
    names = _names(hookpoint.hookpoints(unet), attentions, wanted)
    refuse_twice(names, "block")
    hearing = [name for name, path in attentions.items() if hookpoint.hears(unet.get_submodule(path))]
    deaf = [name for name in names if name in attentions and name not in hearing]
    if deaf or not (names or hearing):
        raise SaeError(f"no words reach {', '.join(deaf) or 'this model'}: choose another block to learn")
    return names or hearing


def _names(blocks: Mapping[str, str], attentions: Mapping[str, str], wanted: Sequence[str]) -> list[str]:
    """The names that are meant by names or paths; blocks, attentions: {name: path} of what the model has."""
    names = {form: name for name, path in {**blocks, **attentions}.items() for form in (name, path)}
    for name in wanted:
        if name not in names:
            raise SaeError(f"this model has no block '{name}' to learn; it has {', '.join(blocks)}, and the "
                           f"cross-attentions in them, such as {next(iter(attentions), 'none')}: leave 'hookpoint' "
                           f"empty for all of those")
    return [names[name] for name in wanted]


def lesson(concepts: str, templates: str, painting: Painting, pictures: int) -> Lesson:
    """Read what a user wrote.

    Raises SaeError for a concept list, templates or a number of pictures nothing can be learned from.
    """
    subjects = parse_subjects(concepts)
    prompts = expand(templates if templates.strip() else default_templates(subjects), subjects)
    if pictures < painting.batch:
        raise SaeError(f"expected at least {painting.batch} pictures to learn from (one batch), got {pictures}")
    return Lesson(subjects, prompts, painting, pictures)


@dataclass(frozen=True)
class Search:
    """What to find: a lesson whose first subjects are the wanted ones."""
    wanted: Sequence[Subject]
    lesson: Lesson


def search(concepts: str, contrast: str, templates: str, known: Sequence[Concept], painting: Painting,
           pictures: int) -> Search:
    """What to paint to find concepts and tell them from others; half of the pictures show a wanted one.

    known: what they are told from where `contrast` is empty. Raises SaeError as `lesson` does, and when there is
    nothing to tell them from.
    """
    others = parse_subjects(contrast) if contrast.strip() else [
        Subject(c.name, c.kind or "object", c.description or c.name) for c in known]
    return search_for(parse_subjects(concepts), others, templates, painting, pictures)


def search_for(wanted: Sequence[Subject], others: Sequence[Subject], templates: str, painting: Painting,
               pictures: int) -> Search:
    """The same of subjects."""
    names = {subject.name.casefold() for subject in wanted}
    subjects = [*wanted, *(subject for subject in others if subject.name.casefold() not in names)]
    if len(subjects) == 1:
        raise SaeError("there is nothing to tell the concept from: write some into 'contrast', above all what is like "
                       "it, for example 'dog, bear' for a cat")
    prompts = expand(templates if templates.strip() else default_templates(subjects), subjects)
    what = Lesson(subjects, prompts, painting, pictures).holding_out()
    return Search(wanted, replace(what, prompts=_halved(what.prompts, len(wanted))))


def _halved(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The prompts, with those that say one of the first `count` subjects repeated until they are half of all."""
    own = [prompt for prompt in prompts if min(prompt.said) < count]
    others = [prompt for prompt in prompts if min(prompt.said) >= count]
    return [*others, *own * max(1, round(len(others) / len(own)))]


def origins(model: ModelPatcher, what: Lesson, hookpoints: Sequence[str]) -> list[Origin]:
    """What is painted with a loaded model to learn some places from, one origin a place."""
    several = len(hookpoints) > 1
    judged = min(what.pictures / 8, HELD_OUT_OF_SEVERAL if several else HELD_OUT_PICTURES)
    held_out = tuple(range(HELD_OUT, HELD_OUT + math.ceil(judged / what.painting.batch)))
    about = {"model": fingerprint(model), "pictures": what.pictures, "painting": asdict(what.painting),
             "prompts": sorted({prompt.text for prompt in what.prompts})[:20]} | ({"tokens": TOKENS} if several else {})
    family, unet = type(model.model.model_config).__name__.lower(), model.model.diffusion_model
    return [Origin(what.subjects, hookpoint.width(hookpoint.find(unet, name)), name, family, False, what.chunks,
                   held_out, about) for name in hookpoints]


def painting_of(model: ModelPatcher, clip: Any, what: Lesson, hookpoints: Sequence[str]) -> str:
    """A fingerprint of what is painted to learn some places from: another for another model, text encoder, prompt or
    setting of the pictures.

    Raises SaeError for a prompt that is too long.
    """
    heard = float(Painter(model, clip, what.painting).encoded([what.prompts[0].text]).context.double().sum())
    of = f"{fingerprint(model)} {heard} {what} {[*hookpoints]} {TOKENS}"
    return hashlib.sha256(of.encode()).hexdigest()[:16]


def source(model: ModelPatcher, clip: Any, what: Lesson, made_of: Sequence[Origin], keep: Path | None,
           tick: Callable[[torch.Tensor | None], None]) -> MakeChunk:
    """Makes the chunks of some origins; `keep` is a folder to store them in for good, None to store nothing."""
    blocks = [Block(origin.hookpoint, origin.residual) for origin in made_of]
    collector = Collector(Painter(model, clip, what.painting, tick), what.prompts, len(what.subjects), blocks,
                          TOKENS if len(blocks) > 1 else None)

    def chunk(number: int) -> dict[str, Maps]:
        with torch.inference_mode():
            return {block.hookpoint: maps for block, maps in collector.chunk(number).items()}
    return chunk if keep is None else keeping(keep, made_of, chunk)


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
    eraser = measure.ablating([Block.of(header) for header, _ in parts], [table for _, table in parts])
    number = [subject.name for subject in what.subjects].index(name)
    effect = measure.effects(painter, {0: eraser}, *trial(number, what.held_out, what.prompts))[0]
    if not all(map(math.isfinite, effect.shares.values())):
        raise SaeError(f"'{name}' could not be measured: the model predicts values that are no numbers (NaN or "
                       f"infinite); {out.name} is complete and can be used")
    return {key: torch.tensor(share, dtype=torch.float64) for key, share in effect.shares.items()}

"""Train an SAE on a model that is loaded in the host: what node and command share, from concept list to file."""
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..sae_models import hookpoint
from ..sae_models.adapter import Block
from ..sae_models.concepts import Concept
from ..sae_models.errors import SaeError
from ..sae_models.learning.job import Job
from ..sae_models.learning.maps import Maps, Shards
from ..sae_models.learning.origin import Origin
from ..sae_models.learning.prompts import Prompt, Subject, default_templates, expand, parse_subjects
from ..sae_models.learning.training import TrainSettings
from ..sae_models.sae import SaeConfig
from .collect import HELD_OUT, Collector, fingerprint
from .painting import Painter, Painting

HELD_OUT_PICTURES = 64
HELD_OUT_SHARE = 5
"""One prompt in so many is kept to measure a found concept on."""


@dataclass(frozen=True)
class Lesson:
    """What an SAE shall learn, from how many pictures."""
    subjects: Sequence[Subject]
    prompts: Sequence[Prompt]
    hookpoint: str
    painting: Painting
    pictures: int
    residual: bool = False

    @property
    def chunks(self) -> int:
        return math.ceil(self.pictures / self.painting.batch)


def lesson(concepts: str, templates: str, block: str, painting: Painting, pictures: int) -> Lesson:
    """Read what a user wrote.

    Raises SaeError for a concept list, templates or a number of pictures nothing can be learned from.
    """
    subjects = parse_subjects(concepts)
    prompts = expand(templates if templates.strip() else default_templates(subjects), subjects)
    if pictures < painting.batch:
        raise SaeError(f"expected at least {painting.batch} pictures to learn from (one batch), got {pictures}")
    return Lesson(subjects, prompts, hookpoint.normalise(block), painting, pictures)


@dataclass(frozen=True)
class Search:
    """What to find: a lesson whose first subjects are the wanted ones. held_out: prompts to measure on."""
    wanted: Sequence[Subject]
    lesson: Lesson
    held_out: Sequence[Prompt]


def search(concepts: str, contrast: str, templates: str, known: Sequence[Concept], painting: Painting,
           pictures: int) -> Search:
    """What to paint to find concepts and tell them from others; half of the pictures show a wanted one.

    known: what they are told from where `contrast` is empty. Raises SaeError as `lesson` does, and when there is
    nothing to tell them from.
    """
    wanted = parse_subjects(concepts)
    names = {subject.name.casefold() for subject in wanted}
    others = parse_subjects(contrast) if contrast.strip() else [
        Subject(c.name, c.kind or "object", c.description or c.name) for c in known]
    subjects = [*wanted, *(subject for subject in others if subject.name.casefold() not in names)]
    if len(subjects) == len(wanted):
        raise SaeError("there is nothing to tell the concept from: write some into 'contrast', above all what is like "
                       "it, for example 'dog, bear' for a cat")
    prompts = expand(templates if templates.strip() else default_templates(subjects), subjects)
    learned, held_out = _split(prompts, len(wanted))
    return Search(wanted, Lesson(subjects, _halved(learned, len(wanted)), "", painting, pictures), held_out)


def _split(prompts: Sequence[Prompt], count: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to learn from and others to measure on; the same for both where they are too few, or would lack one of
    the first `count` subjects."""
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    cut = len(prompts) // HELD_OUT_SHARE
    held_out, learned = ([prompts[i] for i in part] for part in (order[:cut], order[cut:]))
    whole = all(any(i in prompt.said for prompt in part) and any(i not in prompt.said for prompt in part)
                for part in (held_out, learned) for i in range(count))
    return (learned, held_out) if whole else (list(prompts), list(prompts))


def _halved(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The prompts, with those that say one of the first `count` subjects repeated until they are half of all."""
    own = [prompt for prompt in prompts if min(prompt.said) < count]
    others = [prompt for prompt in prompts if min(prompt.said) >= count]
    return [*others, *own * max(1, round(len(others) / len(own)))]


def width(model: ModelPatcher, block: str) -> int:
    return hookpoint.width(hookpoint.find(model.model.diffusion_model, block))


def job(model: ModelPatcher, what: Lesson, config: SaeConfig, settings: TrainSettings, memory: int) -> Job:
    """The job of teaching a loaded model's SAE."""
    family = type(model.model.model_config).__name__.lower()
    held_out = range(HELD_OUT, HELD_OUT + math.ceil(min(what.pictures / 8, HELD_OUT_PICTURES) / what.painting.batch))
    about = {"model": fingerprint(model), "pictures": what.pictures, "painting": asdict(what.painting),
             "prompts": sorted({prompt.text for prompt in what.prompts})[:20]}
    origin = Origin(what.subjects, config.d_in, what.hookpoint, family, what.residual, what.chunks, tuple(held_out),
                    about)
    return Job(origin, config, settings, memory)


def source(model: ModelPatcher, clip: Any, what: Lesson, work: Job, keep: Path | None,
           tick: Callable[[], None]) -> Callable[[int], Any]:
    """Makes the job's chunks; `keep` is a folder to store them in, None to store nothing."""
    block = Block(what.hookpoint, what.residual)
    collector = Collector(Painter(model, clip, what.painting, tick), what.prompts, len(what.subjects), [block])

    def chunk(number: int) -> Maps:
        return collector.chunk(number)[block]
    return chunk if keep is None else Shards(keep, chunk, work.origin.as_json()).make

"""Train an SAE on a model that is loaded in the host: what node and command share, from concept list to file."""
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comfy.model_patcher import ModelPatcher

from ..sae_models import hookpoint
from ..sae_models.errors import SaeError
from ..sae_models.job import Job
from ..sae_models.maps import Shards
from ..sae_models.prompts import Prompt, Subject, default_templates, expand, parse_subjects
from ..sae_models.sae import SaeConfig
from ..sae_models.training import TrainSettings
from .collect import HELD_OUT, Collector, Painting, fingerprint

HELD_OUT_PICTURES = 64


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


def width(model: ModelPatcher, block: str) -> int:
    return hookpoint.width(hookpoint.find(model.model.diffusion_model, block))


def job(model: ModelPatcher, what: Lesson, config: SaeConfig, settings: TrainSettings, memory: int) -> Job:
    """The job of teaching a loaded model's SAE."""
    family = type(model.model.model_config).__name__.lower()
    held_out = range(HELD_OUT, HELD_OUT + math.ceil(min(what.pictures / 8, HELD_OUT_PICTURES) / what.painting.batch))
    return Job(what.subjects, config, settings, what.hookpoint, family, what.residual, what.chunks, tuple(held_out),
               memory, {"model": fingerprint(model), "pictures": what.pictures, "painting": asdict(what.painting),
                "prompts": sorted({prompt.text for prompt in what.prompts})[:20]})


def source(model: ModelPatcher, clip: Any, what: Lesson, work: Job, keep: Path | None,
           tick: Callable[[], None]) -> Callable[[int], Any]:
    """Makes the job's chunks; `keep` is a folder to store them in, None to store nothing."""
    collector = Collector(model, clip, what.prompts, len(what.subjects), what.hookpoint, what.painting, what.residual,
                          tick)
    if keep is None:
        return collector.chunk
    about = {"subjects": [asdict(subject) for subject in what.subjects], "d_in": work.config.d_in,
             "hookpoint": work.hookpoint, "base": work.base, "residual": work.residual, "chunks": work.chunks,
             "held_out": list(work.held_out), "made of": work.about}
    return Shards(keep, collector.chunk, about).make



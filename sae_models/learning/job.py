"""From maps to a file: train, judge on pictures held out, write the SAE with its concepts and the report beside it.

An SAE that is there already, ours or published, can be gone on from: only the concepts are then learned. While it runs,
`<file>.training` holds its whole state; the same job started again goes on from there.
"""
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..concepts import Concept
from ..errors import SaeError
from ..formats import Header, read_header, read_sae, write
from ..sae import Sae, SaeConfig
from ..storage import write_json, write_text
from . import parallel, report, scoring
from .maps import MakeChunk, Maps, Window, joined
from .origin import Origin
from .training import SCORED_MAPS, Progress, Trainer, TrainSettings

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class Job:
    """All that decides an SAE. memory: bytes of maps held at once; start: the SAE to go on from."""
    origin: Origin
    config: SaeConfig
    settings: TrainSettings
    memory: int = 2 * 10**9
    start: Sae | None = field(default=None, repr=False)

    def starting_from(self, path: Path) -> "Job":
        """This job without its first stage, on an SAE that is there.

        Raises SaeError when that cannot be read, or is of another block.
        """
        sae, header = read_sae(path)
        origin, residual = self.origin, {True: "output minus input", False: "output"}
        theirs = (header.hookpoint or origin.hookpoint, header.config.d_in, residual[header.residual])
        ours = (origin.hookpoint, origin.d_in, residual[origin.residual])
        if theirs != ours:
            raise SaeError(f"{path.name} cannot be gone on from: it reads {'{} (width {}, {})'.format(*theirs)}, and "
                           f"training is on {'{} (width {}, {})'.format(*ours)}")
        about = origin.about | {"start": f"{path.name} {fingerprint(sae)}"}
        return replace(self, origin=replace(origin, about=about), config=header.config, start=sae,
                       settings=replace(self.settings, unsupervised_steps=0))

    @property
    def digest(self) -> str:
        """Another for another job."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def fingerprint(sae: Sae) -> str:
    """Another for other weights."""
    digest = hashlib.sha256()
    for value in sae.state_dict().values():
        digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def checkpoint_of(out: Path) -> Path:
    return out.with_name(out.name + ".training")


def report_of(out: Path) -> Path:
    return out.with_name(out.stem + ".report.json")


def finished(job: Job, out: Path) -> bool:
    """Whether `out` is already what this job makes.

    Raises SaeError when it is something else, which training would overwrite.
    """
    if not out.exists():
        return False
    if (read_header(out).training or {}).get("job") == job.digest and report_of(out).exists():
        return True
    raise SaeError(f"{out.name} in {out.parent} is there already and was trained on something else: choose another "
                   f"name, or delete it first")


def train_to_file(job: Job, make: MakeChunk, out: Path, progress: Progress, device: torch.device | str = "cpu",
                  checkpoint_seconds: float = CHECKPOINT_SECONDS) -> report.Report:
    """Train, or go on training, and write `out`, `<out>.report.json` and `.report.svg`; a finished job is only read.

    Raises SaeError for an `out` that is something else, a checkpoint of another run, a loss that is not a number, and a
    full disk.
    """
    if finished(job, out):
        return report.from_json(report_of(out))
    window = Window(make, job.origin.chunks, job.memory, device)
    trainer = Trainer(job.config, job.origin.subjects, window, job.settings, device, job.origin.about,
                      job.start)
    checkpoint = checkpoint_of(out)
    if checkpoint.exists():
        trainer.resume(checkpoint)
    trainer.run(progress, _saver(trainer, checkpoint, checkpoint_seconds))
    held_out = joined(list(window.made(job.origin.held_out).values()))
    result = _finish(job, trainer, held_out, out)
    if parallel.world()[0] == 0:
        checkpoint.unlink(missing_ok=True)
    return result


def _saver(trainer: Trainer, path: Path, seconds: float) -> Callable[..., None]:
    last = time.monotonic()

    def save(now: bool = False) -> None:
        """Where latents are split, one process that stops cannot save alone: then the last regular save counts."""
        nonlocal last
        if parallel.data()[0] or (now and parallel.shard()[1] > 1):
            return
        due = now or time.monotonic() - last >= seconds
        if parallel.team_agrees(bool(due and trainer.step and trainer.sound())):
            trainer.save(path)
            last = time.monotonic()
    return save


def _finish(job: Job, trainer: Trainer, held_out: Maps, out: Path) -> report.Report:
    origin, sae = job.origin, trainer.sae.whole()
    trainer.window.move(1.0)
    statistics = scoring.measure(sae, trainer.window.sample(SCORED_MAPS), trainer.latents)
    concepts = tuple(Concept(subject.name, (latent,), subject.kind, subject.said)
                     for subject, latent in zip(origin.subjects, trainer.latents, strict=True))
    result = report.evaluate(sae, concepts, statistics, held_out, trainer.first_scores, trainer.curve)
    if parallel.world()[0] == 0:
        summary = {"job": job.digest, "fvu": round(result.fvu, 4), "centralisation": round(result.centralisation, 3),
                   "steps": job.settings.steps, "seed": job.settings.seed} | origin.about
        header = Header(job.config, origin.hookpoint, origin.base, origin.residual, concepts, summary)
        write_json(report_of(out), result.as_json())
        write_text(out.with_name(out.stem + ".report.svg"), report.as_svg(result))
        write(out, sae, header, statistics)
    return result

"""From maps to a file: train, judge on pictures held out, write the SAE with its concepts and the report beside it.

A job is the SAE of one place. Several jobs that learn from the same pictures are one run and one file, in which a
concept has a neuron at each place. An SAE that is there already, ours or published, can be gone on from: only the
concepts are then learned. While it runs, `<file>.training` holds its whole state and `<file>.painted` what was painted;
the same jobs started again go on from there.
"""
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..concepts import Concept
from ..errors import SaeError
from ..formats import Header, Part, Weights, note_measured, read_headers, read_sae, write, write_places
from ..sae import Sae, SaeConfig
from ..storage import check_writable, write_json, write_text
from ..voting import QUORUM
from . import parallel, report, scoring
from .finding import above_a_share
from .fitting import fit_concepts
from .losses import weights_of
from .maps import MakeChunk, Parted, Window, joined, move_together
from .origin import Origin
from .painted import Painted
from .run import Progress, Run, Several, saved_if_stopped
from .training import SCORED_MAPS, Trainer, TrainSettings

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class Job:
    """All that decides an SAE of one place. memory: bytes of maps held at once, of all places of a run; start: the SAE
    to go on from; made_on, made_of: the model, as a file's header names it, which decides nothing."""
    origin: Origin
    config: SaeConfig
    settings: TrainSettings
    memory: int = 2 * 10**9
    start: Sae | None = field(default=None, repr=False)
    made_on: str = field(default="", repr=False)
    made_of: str = field(default="", repr=False)

    def starting_from(self, path: Path) -> "Job":
        """This job without its first stage, on an SAE that is there.

        Raises SaeError when that cannot be read, or is of another block.
        """
        sae, header = read_sae(path, self.origin.hookpoint)
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


def painted_of(out: Path) -> Path:
    return out.with_name(out.name + ".painted")


def report_of(out: Path) -> Path:
    return out.with_name(out.stem + ".report.json")


def digest(jobs: Sequence[Job]) -> str:
    """Another for other jobs."""
    each = [job.digest for job in jobs]
    return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()[:16]


def finished(jobs: Sequence[Job], out: Path) -> bool:
    """Whether `out` is already what these jobs make.

    Raises SaeError when it is something else, which training would overwrite.
    """
    if not out.exists():
        return False
    if (read_headers(out)[0].training or {}).get("job") == digest(jobs) and report_of(out).exists():
        return True
    raise SaeError(f"{out.name} in {out.parent} is there already and was trained on something else: choose another "
                   f"name, or delete it first")


def train_to_file(jobs: Sequence[Job], make: MakeChunk, out: Path, progress: Progress,
                  device: torch.device | str = "cpu", checkpoint_seconds: float = CHECKPOINT_SECONDS,
                  painting: str = "", going_on: Callable[[int], None] = lambda chunks: None) -> report.Report:
    """Train, or go on training, and write `out`, `<out>.report.json` and `.report.svg`; what is finished is only read.

    jobs: one a place, of the same pictures; painting: a fingerprint of what `make` paints, to keep it on disk until
    `out` is written; going_on: told how many chunks are there already. Where a run goes on, `progress` is called before
    its first step too. Raises SaeError for an `out` that is something else, a checkpoint of another run, a loss that is
    not a number, and a full disk.
    """
    painted, checkpoint = Painted(painted_of(out), painting, make), checkpoint_of(out)
    if finished(jobs, out):
        _clean(painted, checkpoint)
        return report.from_json(report_of(out))
    run, save = _begun(jobs, painted, checkpoint, device, checkpoint_seconds)
    going_on(painted.done(jobs[0].origin.chunks))
    if run.step:
        progress(run.step, {})
    run.run(progress, save)
    with saved_if_stopped(save):
        result = _finish(jobs, run, out, lambda: progress(run.step, {}))
    parallel.wait()
    _clean(painted, checkpoint)
    return result


def _clean(painted: Painted, checkpoint: Path) -> None:
    """What only an unfinished run needs is removed."""
    if parallel.world()[0] == 0:
        checkpoint.unlink(missing_ok=True)
    painted.remove()


def _begun(jobs: Sequence[Job], painted: Painted, checkpoint: Path, device: torch.device | str,
           seconds: float) -> tuple[Run, Callable[..., None]]:
    """The run, gone on from its checkpoint where there is one, and what saves it. What of other pictures is there is
    removed."""
    check_writable(checkpoint)
    run = _run(jobs, painted, device)
    if checkpoint.exists():
        run.resume(checkpoint)
    painted.drop(0)
    return run, _saver(run, checkpoint, seconds, painted)


def _run(jobs: Sequence[Job], make: MakeChunk, device: torch.device | str) -> Run:
    parted = Parted(make)

    def trainer(job: Job) -> Trainer:
        origin = job.origin
        window = Window(parted.at(origin.hookpoint), origin.chunks, job.memory, device)
        return Trainer(job.config, origin.subjects, window, job.settings, device,
                       origin.about | {"hookpoint": origin.hookpoint}, job.start)
    trainers = {job.origin.hookpoint: trainer(job) for job in jobs}
    return Several(trainers) if len(jobs) > 1 else next(iter(trainers.values()))


def _saver(run: Run, path: Path, seconds: float, painted: Painted) -> Callable[..., None]:
    last, window = time.monotonic(), next(iter(run.trainers.values())).window

    def save(now: bool = False) -> None:
        """Once saved, the run needs what its window holds and no earlier chunk. Where latents are split, one process
        that stops cannot save alone: then the last regular save counts."""
        nonlocal last
        if parallel.data()[0] or (now and parallel.shard()[1] > 1):
            return
        due = now or time.monotonic() - last >= seconds
        if parallel.team_agrees(bool(due and run.step and run.sound())):
            run.save(path)
            painted.drop(min(window.held, default=0))
            last = time.monotonic()
    return save


def _finish(jobs: Sequence[Job], run: Run, out: Path, going_on: Callable[[], None]) -> report.Report:
    trainers = [*run.trainers.values()]
    move_together([trainer.window for trainer in trainers], 1.0)
    learned = [_learned(job, trainer, len(jobs), going_on) for job, trainer in zip(jobs, trainers, strict=True)]
    reports = {job.origin.hookpoint: _judged(job, trainer, sae, part)
               for job, trainer, (sae, part) in zip(jobs, trainers, learned, strict=True)}
    result = report.over_places(reports, run.curve)
    if parallel.world()[0] == 0:
        _write_report(result, out)
        summary = {"job": digest(jobs), "fvu": round(result.fvu, 4), "centralisation": round(result.centralisation, 3),
                   "steps": jobs[0].settings.steps, "seed": jobs[0].settings.seed} | jobs[0].origin.about
        _write(out, [(sae, part._replace(header=replace(part.header, training=summary))) for sae, part in learned])
    return result


def _learned(job: Job, trainer: Trainer, places: int, going_on: Callable[[], None]) -> tuple[Sae, Part]:
    """A place's whole SAE, with its concepts and their statistics; the maps it learned from are let go.

    Where places vote, the concepts' latents end as *Find Concept* fits them: trained beside all others, they remove
    less.
    """
    origin, sae, maps = job.origin, trainer.sae.whole(), trainer.window.sample(SCORED_MAPS)
    vote = places >= QUORUM and not job.settings.published and job.settings.supervised_steps > 0
    if vote:
        going_on()
        fit_concepts(sae, maps, [[latent] for latent in trainer.latents], weights_of(places))
    statistics = scoring.measure(sae, maps, trainer.latents)
    if vote:
        statistics = above_a_share(statistics)
    trainer.window.forget()
    concepts = tuple(Concept(subject.name, (latent,), subject.kind, subject.said)
                     for subject, latent in zip(origin.subjects, trainer.latents, strict=True))
    header = Header(job.config, origin.hookpoint, origin.base, origin.residual, concepts, made_on=job.made_on,
                    made_of=job.made_of)
    weights = (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec)
    return sae, Part(header, Weights(*(weight.detach().cpu() for weight in weights)), statistics)


def _judged(job: Job, trainer: Trainer, sae: Sae, part: Part) -> report.Report:
    """What a place's SAE does on pictures held out."""
    held_out = joined([*trainer.window.made(job.origin.held_out).values()])
    return report.evaluate(sae, part.header.concepts, part.statistics, held_out, trainer.first_scores, trainer.curve)


def _write(out: Path, learned: Sequence[tuple[Sae, Part]]) -> None:
    """A file of one place is written in fp32, one of several in fp16."""
    if len(learned) == 1:
        sae, part = learned[0]
        return write(out, sae, part.header, part.statistics)
    write_places(out, [part for _, part in learned], torch.float16)


def _write_report(result: report.Report, out: Path) -> None:
    write_json(report_of(out), result.as_json())
    write_text(out.with_name(out.stem + ".report.svg"), report.as_svg(result))


def unmeasured(out: Path) -> list[str]:
    """The concepts of a finished file of which is not known how much of them it removes."""
    return list(dict.fromkeys(c.name for header in read_headers(out) for c in header.concepts if c.measured is None))


def add_measured(out: Path, shares: Mapping[str, Mapping[str, float]]) -> report.Report:
    """Write what was measured of some concepts, by name, into a finished file and its report.

    The file is written last, because it decides what is still to be measured. Raises SaeError when the disk is full.
    """
    result = report.measured(report.from_json(report_of(out)), shares)
    if parallel.world()[0] == 0:
        _write_report(result, out)
        note_measured(out, shares)
    return result

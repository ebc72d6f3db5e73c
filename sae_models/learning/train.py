"""The command that trains from stored activations, on one process or, with `torchrun`, on several:

    torchrun --nproc-per-node 2 -m sae_models.learning.train ACTIVATIONS --out cats.safetensors

and what it shares with the command that trains on a live model: options, progress lines, the end.
"""
import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import SaeError
from ..sae import SaeConfig
from . import parallel, stopping
from .job import CHECKPOINT_SECONDS, Job, checkpoint_of, painted_of, train_to_file
from .losses import Weights, push_at
from .maps import MakeChunk
from .origin import Origin, stored
from .report import Report
from .run import Progress
from .training import TrainSettings

GIGABYTE = 10**9
EXPANSION, EXPANSION_OF_SEVERAL = 16, 4
"""Latents for each number of a token's width, where only one place is learned and where several are."""


def add_options(parser: argparse.ArgumentParser, out: str = "") -> None:
    """What is trained and for how long, whatever the maps come from; out: what happens where nothing is to be written,
    an error unless given."""
    parser.add_argument("--out", type=Path, required=not out, help="the SAE file to write, in models/sae" + out)
    parser.add_argument("--start", type=Path, help="an SAE of the same places, ours or published, to teach the "
                        "concepts: the first stage, --latents and --k are then left out")
    parser.add_argument("--latents", type=int, default=0, help=f"d_sae; {EXPANSION} times the block's width unless "
                        f"given, and {EXPANSION_OF_SEVERAL} times each block's width at several places")
    parser.add_argument("--k", type=int, default=32, help="latents a token keeps")
    parser.add_argument("--unsupervised-steps", type=int, default=TrainSettings.unsupervised_steps)
    parser.add_argument("--supervised-steps", type=int, default=TrainSettings.supervised_steps)
    parser.add_argument("--batch", type=int, default=16, help="maps a step")
    parser.add_argument("--lr", type=float, default=TrainSettings.lr)
    parser.add_argument("--push", type=float, help="how much more than its difference a concept's neuron shall carry; "
                        f"unless given {Weights.push:g} at a block and 0 at a cross-attention")
    parser.add_argument("--loss", choices=("carry", "published"), default="carry",
                        help="stage two: ours, or SAEmnesia's as published")
    parser.add_argument("--memory", type=float, default=2.0,
                        help="gigabytes of RAM for activations, those of all places together")
    parser.add_argument("--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS,
                        help="how often the state of the run is written beside the SAE")
    parser.add_argument("--shards", type=int, default=1, help="how many processes share the latents of one SAE, where "
                        "it is too large for one GPU; the batch is divided among such teams")
    parser.add_argument("--seed", type=int, default=0)


def settings_of(options: argparse.Namespace, hookpoint: str) -> TrainSettings:
    push = push_at(hookpoint) if options.push is None else options.push
    return TrainSettings(options.unsupervised_steps, options.supervised_steps, options.batch, options.lr,
                         published=options.loss == "published", seed=options.seed, weights=Weights(push=push))


def jobs_of(options: argparse.Namespace, origins: Sequence[Origin]) -> list[Job]:
    """A job a place."""
    expansion = EXPANSION if len(origins) == 1 else EXPANSION_OF_SEVERAL
    return [Job(origin, SaeConfig(origin.d_in, options.latents or expansion * origin.d_in, options.k),
                settings_of(options, origin.hookpoint), int(options.memory * GIGABYTE)) for origin in origins]


def progress_lines(steps: int) -> Progress:
    """Prints how far training is, the losses and the time left, every ten seconds, and stops there when asked to."""
    began, first, last = time.monotonic(), None, 0.0

    def progress(step: int, numbers: dict[str, float]) -> None:
        nonlocal first, last
        (stopping.check_together if numbers else stopping.check)()
        now = time.monotonic()
        first = step - 1 if first is None else first
        if numbers and (now - last > 10 or step == steps) and parallel.world()[0] == 0:
            last = now
            left = (now - began) / (step - first) * (steps - step)
            text = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
            print(f"step {step}/{steps}  {text}  {left / 60:.1f} min left", flush=True)
    return progress


def run(jobs: Sequence[Job], make: MakeChunk, options: argparse.Namespace,
        measured: Callable[[Report], Report] = lambda report: report, painting: str = "",
        going_on: Callable[[int], None] = lambda chunks: None) -> None:
    """Train and say what came of it; measured: adds to the report of a finished file what can be measured of it;
    painting, going_on: as `train_to_file` has them.

    Raises KeyboardInterrupt when it is stopped, with a sentence that says what is kept.
    """
    out = options.out
    if out.suffix != ".safetensors":
        raise SaeError(f"expected a name that ends with .safetensors for what is written, got {out.name}")
    parallel.split_latents(options.shards)
    jobs = [job.starting_from(options.start) for job in jobs] if options.start else jobs
    try:
        with stopping.gently():
            report = train_to_file(jobs, make, out, progress_lines(jobs[0].settings.steps), parallel.device(),
                                   options.checkpoint_seconds, painting, going_on)
        report = measured(report)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(kept(out)) from stop
    if parallel.world()[0] == 0:
        print(f"\n{report.as_text()}\n\nwritten: {out} ({out.stat().st_size / 1e6:.1f} MB), "
              f"{out.stem}.report.json and {out.stem}.report.svg beside it")


def kept(out: Path) -> str:
    """What a stopped run leaves, in words."""
    if out.exists():
        return f"stopped; {out.name} is written, and the same command measures what is not measured yet"
    if checkpoint_of(out).exists():
        return f"stopped; the same command goes on from {checkpoint_of(out).name}"
    if painted_of(out).exists():
        return "stopped; nothing is learned yet, and the same command goes on with the pictures painted so far"
    return "stopped; nothing is learned yet, and the same command begins anew"


def train_stored(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m sae_models.learning.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activations", type=Path, help="a folder of stored activations with its index.json, or of such "
                        "folders, one a place")
    add_options(parser)
    options = parser.parse_args(arguments)
    origins, make = stored(options.activations)
    run(jobs_of(options, origins), make, options)


def main(train=train_stored) -> None:
    """Run a training command; a user's mistake is one sentence and exit status 1."""
    stopping.terminable()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        with parallel.together():
            train()
    except SaeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped; nothing is written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

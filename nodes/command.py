"""The command that trains on a checkpoint (`train.py` runs it): load, paint, learn, write."""
import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import torch

from ..sae_models.adapter import LoadedSae
from ..sae_models.errors import SaeError
from ..sae_models.learning import parallel, stopping
from ..sae_models.learning.lesson import Lesson, lesson
from ..sae_models.learning.maps import MakeChunk, Maps
from ..sae_models.learning.origin import Origin
from ..sae_models.learning.painting import Painting
from ..sae_models.learning.places import places as places_of
from ..sae_models.learning.report import Report
from ..sae_models.learning.train import add_options, jobs_of, main, run
from ..sae_models.made_on import made_of
from . import training
from .family import original_weights
from .patch import check_base


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description="Train an SAE on a checkpoint, one neuron a concept.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model file to learn from")
    parser.add_argument("--concepts", required=True, help="a text file, one concept a line; or the text itself")
    parser.add_argument("--prompts", default="",
                        help="templates, a text file or the text itself; some simple ones unless given")
    parser.add_argument("--hookpoint", action="append", default=[], help="a block to learn, or several separated by "
                        "commas; may be given again. Unless given: every cross-attention, or the places of --start")
    parser.add_argument("--pictures", type=int, default=600, help="how many are painted to learn from")
    parser.add_argument("--keep", type=Path, help="store the activations in this folder, and use those that are there")
    for name in ("width", "height", "steps", "steps_kept"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Painting, name))
    parser.add_argument("--cfg", type=float, default=Painting.cfg, help="guidance")
    parser.add_argument("--at-once", type=int, default=Painting.batch, help="pictures painted at once")
    add_options(parser, "; without it pictures are only painted, for --keep")
    given = parser.parse_args()
    if not (given.out or given.keep):
        raise SaeError("nothing would be left of the run: give --out, the SAE file to write, or --keep, a folder for "
                       "the activations")
    return given


def text_of(value: str) -> str:
    path = Path(value)
    try:
        return path.read_text("utf-8") if path.suffix == ".txt" else value.replace("\\n", "\n")
    except OSError as error:
        raise SaeError(f"cannot read {path}: {error.strerror}") from error


def train() -> None:
    given = options()
    painting = Painting(given.width, given.height, given.steps, given.cfg, batch=given.at_once,
                        steps_kept=given.steps_kept, seed=given.seed)
    what = lesson(text_of(given.concepts), text_of(given.prompts), painting, given.pictures)
    if not given.checkpoint.is_file():
        raise SaeError(f"there is no checkpoint {given.checkpoint}")
    model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(given.checkpoint), output_vae=False)
    start = LoadedSae.read(given.start.name, given.start) if given.start else None
    if start and not given.hookpoint:
        check_base(model, start)
    places = places_of(model.model.diffusion_model, ",".join(given.hookpoint), start)
    what = what if len(places) == 1 else what.holding_out()
    origins = training.origins(model, what, places)
    make = training.source(model, clip, what, origins, given.keep, lambda x0: stopping.check())
    shown = Batches(origins[0].chunks + len(origins[0].held_out))
    if not given.out:
        keep(origins[0], shown.making(make))
        return
    jobs = [replace(job, made_on=given.checkpoint.stem, made_of=made_of(original_weights(model)))
            for job in jobs_of(given, origins)]
    make = training.making_room(make, jobs, parallel.device())
    run(jobs, shown.making(make), given, partial(measured, model, clip, what, given.out),
        "" if given.keep else training.painting_of(model, clip, what, places), shown.going_on)


def keep(origin: Origin, make: MakeChunk) -> None:
    """Paint what a training would ask for."""
    with stopping.gently():
        for number in (*range(origin.chunks), *origin.held_out):
            stopping.check()
            make(number)


def measured(model: Any, clip: Any, what: Lesson, out: Path, report: Report) -> Report:
    if parallel.world()[0] == 0:
        print("measuring how much of each concept is removed", flush=True)
    with torch.inference_mode():
        return training.measured(model, clip, what, out, report, lambda x0: None)


class Batches:
    """Says how far painting is, and how long the rest of it takes."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.painted, self.seconds = total, 0, 0, 0.0

    def going_on(self, done: int) -> None:
        self.done = done
        if done and parallel.world()[0] == 0:
            print(f"going on after {done} batches of {self.total}", flush=True)

    def making(self, make: MakeChunk) -> MakeChunk:
        def chunk(number: int) -> Mapping[str, Maps]:
            began = time.monotonic()
            maps = make(number)
            self._say(time.monotonic() - began)
            return maps
        return chunk

    def _say(self, seconds: float) -> None:
        self.done, self.painted, self.seconds = self.done + 1, self.painted + 1, self.seconds + seconds
        each = self.seconds / self.painted
        if parallel.world()[0] == 0:
            print(f"painted {self.done} batches of {self.total}, {each:.0f} s each, "
                  f"{each * max(0, self.total - self.done) / 60:.1f} min of painting left", flush=True)


if __name__ == "__main__":
    main(train)

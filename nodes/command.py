"""The command that trains on a checkpoint (`train.py` runs it): load, paint, learn, write."""
import argparse
import time
from pathlib import Path

import comfy.sd
import torch

from ..sae_models.errors import SaeError
from ..sae_models.learning import parallel
from ..sae_models.learning.train import GIGABYTE, add_options, config_of, main, run, settings_of
from . import training
from .painting import Painting


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description="Train an SAE on a checkpoint, one neuron a concept.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model file to learn from")
    parser.add_argument("--concepts", required=True, help="a text file, one concept a line; or the text itself")
    parser.add_argument("--prompts", default="",
                        help="templates, a text file or the text itself; some simple ones unless given")
    parser.add_argument("--hookpoint", default="up_blocks.1.attentions.1", help="the block to learn")
    parser.add_argument("--pictures", type=int, default=600, help="how many are painted to learn from")
    parser.add_argument("--keep", type=Path, help="store the activations in this folder, and use those that are there")
    for name in ("width", "height", "steps", "steps_kept"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Painting, name))
    parser.add_argument("--cfg", type=float, default=Painting.cfg, help="guidance")
    parser.add_argument("--at-once", type=int, default=Painting.batch, help="pictures painted at once")
    add_options(parser)
    return parser.parse_args()


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
    what = training.lesson(text_of(given.concepts), text_of(given.prompts), given.hookpoint, painting, given.pictures)
    if not given.checkpoint.is_file():
        raise SaeError(f"there is no checkpoint {given.checkpoint}")
    model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(given.checkpoint), output_vae=False)
    work = training.job(model, what, config_of(given, training.width(model, what.hookpoint)),
                        settings_of(given), int(given.memory * GIGABYTE))
    make = training.source(model, clip, what, work, given.keep, lambda: None)
    run(work, said(make, work.origin.chunks + len(work.origin.held_out)), given)


def said(make, chunks: int):
    """`make`, which says how long painting takes."""
    began, done = time.monotonic(), 0

    def chunk(number: int):
        nonlocal done
        with torch.inference_mode():
            maps = make(number)
        done += 1
        if parallel.world()[0] == 0:
            print(f"painted {done} batches of {chunks}, {(time.monotonic() - began) / done:.0f} s each", flush=True)
        return maps
    return chunk


if __name__ == "__main__":
    main(train)

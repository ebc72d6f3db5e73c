"""How well the places of a concept tell together that a prompt says it, in short prompts and in long ones.

    python -m benchmarks.minicanvas.voting

Scenes are begun that say a concept and that do not, in the words of the templates and in longer prompts: with the
kind of words around that *Find Concept* itself puts there, and with words that it never saw. The places vote as they do
before anything is edited (`sae_models/voting`). Said for several bars, that of the voting among them: in how many
pictures that say a concept it is voted in, and in how many that do not.
"""
import argparse
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae_models.storage import write_json
from tools.comfy_host import COMFY

from .bench import RESULTS
from .canvas import BACKGROUNDS, Scene
from .checkpoint import NAME, WEIGHTS
from .icons import OBJECTS, STYLES
from .places import Studio
from .table import NAMES, Shot
from .text import TEMPLATES

BARS = (0.15, 0.18, 0.2, 0.22, 0.25, 0.3)
ROUNDS, AT_ONCE = 4, 8
"""How often each object is said, and how many pictures are begun at once."""
TAGS = ("masterpiece, best quality, highly detailed, sharp focus, soft light, 8k, award winning, trending",
        "cinematic, intricate, wide angle, golden hour, volumetric light, dramatic shadows, film grain, vibrant colors")
PROSE = ("once upon a time beside the old river where people walk slowly in the evening",
         "and talk about the weather and what they will eat tomorrow when their friends come to visit them again")
LONGER: dict[str, Callable[[str], str]] = {
    "short": lambda text: text,
    "words around": lambda text: f"{TAGS[0]}, {text}, {TAGS[1]}",
    "prose around": lambda text: f"{PROSE[0]}, {text}, {PROSE[1]}",
}


def scenes(seed: int = 3) -> list[Shot]:
    """Any two objects in any style on any ground, each object as often."""
    dice, shots = random.Random(seed), []
    for number in range(ROUNDS):
        order = dice.sample(range(len(OBJECTS)), len(OBJECTS))
        shots += [Shot(Scene((order[i], order[i + 1]), dice.randrange(len(STYLES)), dice.randrange(len(BACKGROUNDS))),
                       TEMPLATES[(i // 2 + number) % len(TEMPLATES)]) for i in range(0, len(order), 2)]
    return shots


def said(shot: Shot) -> set[str]:
    named = [("object", OBJECTS[i]) for i in shot.scene.objects] + [("style", STYLES[shot.scene.style]),
                                                                    ("ground", BACKGROUNDS[shot.scene.background])]
    return {NAMES[kind].format(name) for kind, name in named}


class Polled:
    """Every concept of a file, at all its places."""

    def __init__(self, studio: Studio, path: Any) -> None:
        host = studio.host
        headers = host.formats.read_headers(path)
        self.erasures = host.effects.ablating([host.adapter.Block.of(header) for header in headers],
                                              [host.table.read_tables(path, [(h, list(h.concepts))])[0][1]
                                               for h in headers])
        self.voting = host.effects.Voting(self.erasures)
        self.names = list(self.voting.voters)

    def ask(self, studio: Studio, texts: Sequence[str], seed: int) -> Tensor:
        """The votes of the first call of pictures with these prompts, [n, concepts]."""
        strengths, found = {}, []

        def tap(block: Any, step: Any, output: Tensor, x_in: Tensor | None) -> Tensor:
            strengths[block] = self.erasures[block].strengths(output, step.sigma, x_in)
            return output

        def look(step: Any) -> None:
            step.predict(texts, {block: partial(tap, block, step) for block in self.erasures})
            found.append(self.voting.votes(strengths, step.sigma)[:, :len(self.names)])
        painter = studio.host.painting.Painter(studio.model, studio.clip, studio.painting)
        painter.paint(texts, torch.Generator().manual_seed(seed), (0,), look)
        return found[0]


def row(votes: Tensor, says: Tensor) -> dict[str, dict[str, float]]:
    """{bar: voted in, in per cent}, of votes and says [pictures, concepts]."""
    def share(flags: Tensor) -> float:
        return round(100 * float(flags.float().mean()), 2)
    return {f"{bar:g}": {"said": share((votes >= bar)[says]), "unsaid": share((votes >= bar)[~says])} for bar in BARS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", default=str(WEIGHTS / "concepts.safetensors"), help="a concept file")
    options = parser.parse_args()
    shots, rows = scenes(), {}
    with torch.inference_mode():
        studio = Studio(COMFY / "models" / "checkpoints" / NAME, 0, AT_ONCE)
        polled = Polled(studio, options.concepts)
        says = torch.tensor([[name in said(shot) for name in polled.names] for shot in shots])
        for kind, longer in LONGER.items():
            votes = [polled.ask(studio, [longer(shot.text) for shot in shots[i:i + AT_ONCE]], i)
                     for i in range(0, len(shots), AT_ONCE)]
            rows[kind] = row(torch.cat(votes), says)
            print(kind, rows[kind], flush=True)
    write_json(RESULTS / "voting.json", {"concepts": len(polled.names), "pictures": len(shots), "by prompt": rows})


if __name__ == "__main__":
    main()

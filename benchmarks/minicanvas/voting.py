"""What a vote of the places would do: whether they tell together, better than each alone, that a prompt says a concept.

    python -m benchmarks.minicanvas.voting

A concept's neurons err one by one: for some prompts that do not say it, one or two of its places fire. Here scenes that
say a concept and scenes that do not are painted without erasure, and at some steps each place says how strongly its
neurons fire over the whole map, as a share of how strongly they do where their concept is said (the file's means). The
vote is the mean of that over the places: below some bar, nothing would be erased in that call. Said for several bars:
how much of the erasure would stay where the concept is said, and in how many pictures that do not say it, and how
strongly, something would still be erased. Nothing erases by a vote yet.
"""
import argparse
import random
from collections.abc import Sequence
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
from .table import Shot
from .text import TEMPLATES

CONCEPTS = ("frog", "cactus", "castle", "dog", "umbrella", "rocket")
BARS = (0.0, 0.2, 0.3, 0.35, 0.4)
STEPS = (0, 2, 4, 6, 9, 11)
OTHERS, OWN, AT_ONCE = 48, 8, 8
"""Scenes of any two objects, scenes that say each concept, and how many are painted at once."""


def scenes(concepts: Sequence[str], seed: int = 1) -> list[Shot]:
    dice = random.Random(seed)

    def shot(i: int, objects: tuple[int, int]) -> Shot:
        return Shot(Scene(objects, dice.randrange(len(STYLES)), dice.randrange(len(BACKGROUNDS))),
                    TEMPLATES[i % len(TEMPLATES)])
    made = [shot(i, tuple(dice.sample(range(len(OBJECTS)), 2))) for i in range(OTHERS)]
    for own in map(OBJECTS.index, concepts):
        for i in range(OWN):
            other = dice.choice([j for j in range(len(OBJECTS)) if j != own])
            made.append(shot(i, (own, other) if i % 2 else (other, own)))
    return made


class Voters:
    """The neurons of some concepts of the committed file, at all their places."""

    def __init__(self, studio: Studio, concepts: Sequence[str]) -> None:
        self.concepts, host, path = concepts, studio.host, WEIGHTS / "concepts.safetensors"
        headers = host.formats.read_headers(path)
        self.erasures: dict[Any, dict[str, Any]] = {}
        for name in concepts:
            own = [(header, [c for c in header.concepts if c.name == name]) for header in headers]
            for header, table in host.table.read_tables(path, own):
                edit = host.erasure.Edit((name,) * len(table.rows.bias), table.rows, torch.ones(len(table.rows.bias)))
                self.erasures.setdefault(host.adapter.Block.of(header), {})[name] = host.erasure.Erasure([edit])

    def shares(self, studio: Studio, shots: Sequence[Shot], seed: int) -> dict[str, Tensor]:
        """{concept: [pictures, steps, places]}: how strongly its neurons fire over a map, of how they do if it is
        said."""
        found: dict[str, list[list[Tensor]]] = {name: [] for name in self.concepts}

        def look(step: Any) -> None:
            for of in found.values():
                of.append([])
            taps = {block: partial(tap, step, erasures) for block, erasures in self.erasures.items()}
            step.predict(texts, taps)

        def tap(step: Any, erasures: dict[str, Any], output: Tensor, x_in: Tensor | None) -> Tensor:
            for name, erasure in erasures.items():
                statistics = erasure.edits[0].rows.statistics
                usual = statistics.at(step.sigma, statistics.means).sum().clamp_min(1e-6)
                fired = erasure.activations(output, step.sigma)[0].sum(1).mean(1)
                found[name][-1].append(fired / usual)
            return output
        texts = [shot.text for shot in shots]
        painter = studio.host.painting.Painter(studio.model, studio.clip, studio.painting)
        painter.paint(texts, torch.Generator().manual_seed(seed), STEPS, look)
        return {name: torch.stack([torch.stack(of, 1) for of in steps], 1) for name, steps in found.items()}


def row(said: Tensor, unsaid: Tensor, bar: float) -> dict[str, float]:
    """In per cent: what stays of the erasure where the concept is said, pictures touched of those that do not say it,
    and how strongly all of those are; of shares [pictures, steps, places]."""
    kept, left = (of * (of.mean(2, keepdim=True) >= bar) for of in (said, unsaid))
    whole = said.square().mean(0).sum()
    figures = {"kept": kept.square().mean(0).sum() / whole, "pictures touched": left.amax((1, 2)).gt(0).float().mean(),
               "strength": left.square().mean(0).sum() / whole}
    return {name: round(100 * float(share), 2) for name, share in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS), choices=OBJECTS, metavar="NAME")
    options = parser.parse_args()
    rows: dict[str, dict] = {}
    with torch.inference_mode():
        studio = Studio(COMFY / "models" / "checkpoints" / NAME, 0, AT_ONCE)
        voters, shots = Voters(studio, options.concepts), scenes(options.concepts)
        parts = [voters.shares(studio, shots[i:i + AT_ONCE], i) for i in range(0, len(shots), AT_ONCE)]
    for name in options.concepts:
        shares = torch.cat([part[name] for part in parts])
        says = torch.tensor([OBJECTS.index(name) in shot.scene.objects for shot in shots])
        bars = {f"{bar:g}": row(shares[says], shares[~says], bar) for bar in BARS}
        rows[name] = {"pictures that do not say it": int((~says).sum()), "by bar": bars}
        print(name, rows[name], flush=True)
    write_json(RESULTS / "voting.json", rows)


if __name__ == "__main__":
    main()

"""How much of a concept an eraser removes from the user's own model, and how much else it touches: `measuring` on
pictures it did not learn from, through all of sampling."""
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from ..adapter import Block
from ..erasure import Edit, Erasure
from ..table import Table
from .collect import HELD_OUT
from .measuring import Effect
from .painting import Painter, Step, Tap

STEPS = 6
"""Steps of a picture at which is measured, evenly over sampling."""

Eraser = Mapping[Block, Erasure]


def effects(painter: Painter, erasers: Mapping[float, Eraser], said: Sequence[tuple[str, str]], others: Sequence[str],
            batch: int = 0) -> dict[float, Effect]:
    """What each of several erasers does, on the same pictures: those of this number.

    said: prompts that say the concept, each with the same without it, which is what is painted: as an eraser that does
    its job leaves the picture; others: prompts that do not say it.
    """
    painting = painter.painting
    measured = {key: Effect() for key in erasers}
    kept = torch.linspace(0, painting.steps - 1, min(STEPS, painting.steps)).round().int().tolist()
    places = range(batch * painting.batch, (batch + 1) * painting.batch)
    pairs, rest = [said[i % len(said)] for i in places], [others[i % len(others)] for i in places]
    generator = torch.Generator().manual_seed(painting.seed * 1_000_003 + HELD_OUT + batch)
    painter.paint([without for _, without in pairs], generator, kept, partial(_look, erasers, measured, pairs, rest))
    return measured


def ablating(blocks: Sequence[Block], tables: Sequence[Table]) -> Eraser:
    """All concepts of the tables switched off, each table at its block."""
    def erasure(block: Block, part: Table) -> Erasure:
        names = tuple(concept.name for concept in part.concepts for _ in concept.latents)
        return Erasure([Edit(names, part.rows, torch.ones(len(names)))], residual=block.residual)
    return {block: erasure(block, part) for block, part in zip(blocks, tables, strict=True)}


def _look(erasers: Mapping[float, Eraser], measured: Mapping[float, Effect], pairs: Sequence[tuple[str, str]],
          rest: Sequence[str], step: Step) -> None:
    texts = [text for text, _ in pairs], [without for _, without in pairs], list(rest)
    said, without, other = (step.predict(part) for part in texts)
    for key, eraser in erasers.items():
        taps = {block: _tap(erasure, step.sigma) for block, erasure in eraser.items()}
        erased, *left = (step.predict(part, taps) for part in texts)
        measured[key].add(said, without, erased, torch.cat([without, other]), torch.cat(left))


def _tap(erasure: Erasure, sigma: float) -> Tap:
    return lambda output, x_in: erasure(output, sigma, None, x_in).out

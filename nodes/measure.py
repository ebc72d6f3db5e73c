"""How much of a concept an eraser removes from the user's own model, and how much else it touches: `measuring` in the
host, on pictures it did not learn from, through all of sampling."""
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from ..sae_models.adapter import Block
from ..sae_models.erasure import Edit, Erasure
from ..sae_models.learning.measuring import Effect
from ..sae_models.table import Table
from .collect import HELD_OUT
from .painting import Painter, Step
from .taps import Tap

STEPS = 6
"""Steps of a picture at which is measured, evenly over sampling."""

Eraser = Mapping[Block, Erasure]


def effects(painter: Painter, erasers: Mapping[int, Eraser], said: Sequence[tuple[str, str]], others: Sequence[str],
            batches: int = 1) -> dict[int, Effect]:
    """What each of several erasers does, on the same pictures.

    said: prompts that say the concept, each with the same without it; others: prompts that do not say it.
    """
    painting = painter.painting
    measured = {key: Effect() for key in erasers}
    kept = torch.linspace(0, painting.steps - 1, min(STEPS, painting.steps)).round().int().tolist()
    for number in range(batches):
        places = range(number * painting.batch, (number + 1) * painting.batch)
        pairs, rest = [said[i % len(said)] for i in places], [others[i % len(others)] for i in places]
        generator = torch.Generator().manual_seed(painting.seed * 1_000_003 + HELD_OUT + number)
        painter.paint([text for text, _ in pairs], generator, kept, partial(_look, erasers, measured, pairs, rest))
    return measured


def ablating(blocks: Sequence[Block], tables: Sequence[Table]) -> Eraser:
    """All concepts of the tables switched off, each table at its block."""
    def erasure(block: Block, part: Table) -> Erasure:
        names = tuple(concept.name for concept in part.concepts for _ in concept.latents)
        return Erasure([Edit(names, part.rows, torch.ones(len(names)))], residual=block.residual)
    return {block: erasure(block, part) for block, part in zip(blocks, tables, strict=True)}


def _look(erasers: Mapping[int, Eraser], measured: Mapping[int, Effect], pairs: Sequence[tuple[str, str]],
          rest: Sequence[str], step: Step) -> None:
    texts = [text for text, _ in pairs], [without for _, without in pairs], list(rest)
    said, without, other = (step.predict(part) for part in texts)
    for key, eraser in erasers.items():
        taps = {block: _tap(erasure, step.sigma) for block, erasure in eraser.items()}
        erased, *left = (step.predict(part, taps) for part in texts)
        measured[key].add(step.sigma, said, without, erased, torch.cat([without, other]), torch.cat(left))


def _tap(erasure: Erasure, sigma: float) -> Tap:
    return lambda output, x_in: erasure(output, sigma, None, x_in).out

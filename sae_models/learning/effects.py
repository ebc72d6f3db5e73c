"""How much of a concept an eraser removes from the user's own model, and how much else it touches: `measuring` on
pictures it did not learn from, through all of sampling."""
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapter import Block
from ..erasure import Edit, Erasure
from ..table import Table
from ..voting import Voting
from .collect import HELD_OUT
from .measuring import Effect
from .painting import Painter, Step

STEPS = 6
"""Steps of a picture at which is measured, evenly over sampling."""
CHECK = 1
"""Number of the batch by which nothing was chosen."""

Eraser = Mapping[Block, Erasure]


def effects(painter: Painter, erasers: Mapping[int, Eraser], said: Sequence[tuple[str, str]], others: Sequence[str],
            batch: int = 0) -> dict[int, Effect]:
    """What each of several erasers does, on the same pictures.

    said: prompts that say the concept, each with the same without it, which is what is painted: as an eraser that does
    its job leaves the picture; others: prompts that do not say it; batch: another number, other pictures.
    """
    trials, count = {key: _Trial(eraser) for key, eraser in erasers.items()}, painter.painting.batch
    pairs, rest = _some(said, count, batch * count), _some(others, count, batch * count)
    painter.read([*(text for pair in pairs for text in pair), *rest])
    _paint(painter, batch, pairs, partial(_look, list(trials.values()), pairs, rest))
    return {key: trial.effect for key, trial in trials.items()}


def _some(texts: Sequence[Any], count: int, first: int) -> list[Any]:
    return [texts[i % len(texts)] for i in range(first, first + count)]


def _paint(painter: Painter, batch: int, pairs: Sequence[tuple[str, str]], look: Callable[[Step], None]) -> None:
    """Paint pictures without the concept, those of this number, and look at some steps, the first among them."""
    painting = painter.painting
    kept = torch.linspace(0, painting.steps - 1, min(STEPS, painting.steps)).round().int().tolist()
    generator = torch.Generator().manual_seed(painting.seed * 1_000_003 + HELD_OUT + batch)
    painter.paint([without for _, without in pairs], generator, kept, look)


def ablating(blocks: Sequence[Block], tables: Sequence[Table]) -> Eraser:
    """All concepts of the tables switched off, each table at its block."""
    def erasure(block: Block, part: Table) -> Erasure:
        names = tuple(concept.name for concept in part.concepts for _ in concept.latents)
        edit = Edit(names, part.rows, torch.ones(len(names)))
        return Erasure([edit], residual=block.residual)
    return {block: erasure(block, part) for block, part in zip(blocks, tables, strict=True)}


class _Trial:
    """An eraser, with the votes of its places about the prompts of a batch, and what it did so far."""

    def __init__(self, eraser: Eraser) -> None:
        self.eraser, self.voting, self.effect = eraser, Voting(eraser), Effect()

    def look(self, block: Block, sigma: float, found: dict[Block, Tensor], output: Tensor, x_in: Tensor | None) -> None:
        if block in self.eraser:
            found[block] = self.eraser[block].strengths(output, sigma, x_in)

    def predict(self, step: Step, texts: Sequence[str], about: str) -> Tensor:
        needed, found, sigma = self.voting.open(about), {}, step.sigma

        def edit(block: Block, output: Tensor, x_in: Tensor | None) -> Tensor:
            erased = self.eraser[block](output, sigma, None, x_in, needed and needed[block])
            found[block] = erased.strengths
            return erased.out
        out = step.predict(texts, {block: partial(edit, block) for block in self.eraser})
        if needed:
            self.voting.count(about, found, sigma)
        return out


def _look(trials: Sequence[_Trial], pairs: Sequence[tuple[str, str]], rest: Sequence[str], step: Step) -> None:
    texts = {"said": [text for text, _ in pairs], "without": [without for _, without in pairs], "other": list(rest)}
    plain = {about: _plain(trials, step, part, about) for about, part in texts.items()}
    for trial in trials:
        erased = {about: trial.predict(step, part, about) for about, part in texts.items()}
        others, left = (torch.cat([of["without"], of["other"]]) for of in (plain, erased))
        trial.effect.add(plain["said"], plain["without"], erased["said"], others, left)


def _plain(trials: Sequence[_Trial], step: Step, texts: Sequence[str], about: str) -> Tensor:
    """What the model predicts unedited; the first time the places of every trial vote about these prompts."""
    asking = [trial for trial in trials if trial.voting.begins(about, len(texts), step.t.device)]
    found: list[dict[Block, Tensor]] = [{} for _ in asking]
    sigma = step.sigma

    def look(block: Block, output: Tensor, x_in: Tensor | None) -> Tensor:
        for trial, strengths in zip(asking, found, strict=True):
            trial.look(block, sigma, strengths, output, x_in)
        return output
    out = step.predict(texts, {block: partial(look, block) for trial in asking for block in trial.eraser})
    for trial, strengths in zip(asking, found, strict=True):
        trial.voting.count(about, strengths, sigma, look=True)
    return out

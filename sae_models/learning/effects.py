"""How much of a concept an eraser removes from the user's own model, and how much else it touches: `measuring` on
pictures it did not learn from, through all of sampling."""
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..adapter import Block
from ..erasure import Edit, Erasure
from ..table import Table
from ..voting import BAR, Voting
from .collect import HELD_OUT
from .measuring import Effect
from .painting import Painter, Step

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
    trials = {key: _Trial(eraser) for key, eraser in erasers.items()}
    kept = torch.linspace(0, painting.steps - 1, min(STEPS, painting.steps)).round().int().tolist()
    places = range(batch * painting.batch, (batch + 1) * painting.batch)
    pairs, rest = [said[i % len(said)] for i in places], [others[i % len(others)] for i in places]
    generator = torch.Generator().manual_seed(painting.seed * 1_000_003 + HELD_OUT + batch)
    look = partial(_look, list(trials.values()), pairs, rest)
    painter.paint([without for _, without in pairs], generator, kept, look)
    return {key: trial.effect for key, trial in trials.items()}


def ablating(blocks: Sequence[Block], tables: Sequence[Table]) -> Eraser:
    """All concepts of the tables switched off, each table at its block."""
    def erasure(block: Block, part: Table) -> Erasure:
        names = tuple(concept.name for concept in part.concepts for _ in concept.latents)
        return Erasure([Edit(names, part.rows, torch.ones(len(names)))], residual=block.residual)
    return {block: erasure(block, part) for block, part in zip(blocks, tables, strict=True)}


class _Trial:
    """An eraser, with the votes of its places about the prompts of a batch, and what it did so far."""

    def __init__(self, eraser: Eraser) -> None:
        self.eraser, self.voting, self.effect = eraser, Voting(eraser), Effect()

    def look(self, block: Block, sigma: float, found: dict[Block, Tensor], output: Tensor, x_in: Tensor | None) -> None:
        if block in self.eraser:
            found[block] = self.eraser[block].strengths(output, sigma, x_in)

    def predict(self, step: Step, texts: Sequence[str], about: str) -> Tensor:
        may, found = self.voting.open(about), {}

        def edit(block: Block, output: Tensor, x_in: Tensor | None) -> Tensor:
            erased = self.eraser[block](output, step.sigma, None, x_in, may and may[block])
            found[block] = erased.strengths
            return erased.out
        out = step.predict(texts, {block: partial(edit, block) for block in self.eraser})
        if may:
            self.voting.count(about, found, step.sigma)
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
    asking = [trial for trial in trials if trial.voting.begins(about, len(texts), step.sigma, step.t.device)]
    found: list[dict[Block, Tensor]] = [{} for _ in asking]

    def look(block: Block, output: Tensor, x_in: Tensor | None) -> Tensor:
        for trial, strengths in zip(asking, found, strict=True):
            trial.look(block, step.sigma, strengths, output, x_in)
        return output
    out = step.predict(texts, {block: partial(look, block) for trial in asking for block in trial.eraser})
    for trial, strengths in zip(asking, found, strict=True):
        trial.voting.count(about, strengths, step.sigma, BAR)
    return out

"""What is erased, which pictures are drawn for it, and what counts: UA, IRA, CRA and the artefact rate.

For an erased object (styles are symmetric): UA = share of its pictures that no longer show it; IRA = share of the other
objects' pictures that still show theirs; CRA = share of all pictures in the right style (UnlearnCanvas's definitions).
Of the concepts that are kept only a sample of the pairs is drawn; in CRA it counts for all of them.
AR = share of the erased concept's pictures that show no drawing at all: UA alone would praise a destroyed picture.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .icons import OBJECTS, STYLES
from .judge import Verdict

NONE = len(OBJECTS)


@dataclass(frozen=True)
class Task:
    """Concepts to erase (indices of one kind), and the (object, style) pairs to draw."""
    kind: str
    erased: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]

    @property
    def names(self) -> list[str]:
        return [OBJECTS[i] if self.kind == "object" else f"{STYLES[i]} style" for i in self.erased]

    def said(self) -> Tensor:
        """int [n]: each picture's own object (or style)."""
        return torch.tensor([pair[0 if self.kind == "object" else 1] for pair in self.pairs])

    def targets(self) -> Tensor:
        """bool [n]: pictures whose prompt has an erased concept."""
        return torch.isin(self.said(), torch.tensor(self.erased))


def object_task(erased: Sequence[int]) -> Task:
    """Every style of the erased objects, and every other object in one style that moves on from task to task."""
    targets = [(o, s) for o in erased for s in range(len(STYLES))]
    kept = [(o, (o + erased[0]) % len(STYLES)) for o in range(len(OBJECTS)) if o not in erased]
    return Task("object", tuple(erased), (*targets, *kept))


def style_task(erased: Sequence[int]) -> Task:
    """Every object in the erased styles, and every object once in one of the others."""
    others = [s for s in range(len(STYLES)) if s not in erased]
    targets = [(o, s) for s in erased for o in range(len(OBJECTS))]
    kept = [(o, others[(o + erased[0]) % len(others)]) for o in range(len(OBJECTS))]
    return Task("style", tuple(erased), (*targets, *kept))


def several(kind: str, count: int, sets: int) -> list[Task]:
    """`sets` fixed random choices of `count` concepts erased at once."""
    generator = torch.Generator().manual_seed(count)
    names, task = (OBJECTS, object_task) if kind == "object" else (STYLES, style_task)
    return [task(torch.randperm(len(names), generator=generator)[:count].tolist()) for _ in range(sets)]


@dataclass(frozen=True)
class Score:
    """Percentages of one task, or their mean over tasks."""
    UA: float
    IRA: float
    CRA: float
    AR: float


def score(task: Task, verdict: Verdict) -> Score:
    """Judge a task's pictures, in the order of `task.pairs`."""
    obj, style = (torch.tensor(side) for side in zip(*task.pairs, strict=True))
    own_right, cross_right = verdict.object == obj, verdict.style == style
    if task.kind == "style":
        own_right, cross_right = cross_right, own_right
    targets = task.targets()
    share = len(task.erased) / len(OBJECTS if task.kind == "object" else STYLES)  # of all pairs, that are erased

    def percent(mask: Tensor) -> float:
        return 100 * float(mask.float().mean())
    cross = share * percent(cross_right[targets]) + (1 - share) * percent(cross_right[~targets])
    return Score(100 - percent(own_right[targets]), percent(own_right[~targets]), cross,
                 percent(verdict.object[targets] == NONE))


def mean(scores: Sequence[Score]) -> Score:
    return Score(*(sum(values) / len(scores) for values in
                   zip(*((s.UA, s.IRA, s.CRA, s.AR) for s in scores), strict=True)))

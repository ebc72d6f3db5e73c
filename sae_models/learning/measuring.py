"""What an erasure does to a model's prediction, measured without any judge of pictures.

From a noisy picture the model predicts the finished one, with a prompt that says the concept, and with the same prompt
without it. An eraser that does exactly its job makes the first prediction the second, and leaves alone what says it
not:

    removed = 1 - |erased(with) - without|^2 / |with - without|^2
    touched =     |erased(other) - other|^2  / |with - without|^2

summed over prompts, seeds and steps. As pictures, because the steps that decide what is painted count then as much as
they do; as noise, the last ones would count a hundred times the first. Removed 1 is gone, 0 unchanged, below 0 further
away than before. What it cannot see: a push beyond the counterfactual lowers `removed` though the concept is gone, and
what the model paints of the concept without its word stays.
"""
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

ENOUGH = 1.25
"""How many times as much may be amiss with fewer neurons, for them to be taken: a little more of a little is little."""
NEURONS = (1, 2, 4)
"""How many for a concept and place are tried."""
PRICE = 5.0
"""Shares of a concept that must be removed beside, to be worth each share that others are touched."""


@dataclass
class Effect:
    """Sums over model calls of squared changes of the predicted picture."""
    left: float = 0.0
    change: float = 0.0
    whole: float = 0.0

    def add(self, said: Tensor, without: Tensor, erased: Tensor, other: Tensor, other_erased: Tensor) -> None:
        """Predicted pictures [n, ...] of one call; `other` [m, ...] are of prompts that do not say the concept."""
        self.whole += _square(said - without)
        self.left += _square(erased - without)
        self.change += _square(other_erased - other)

    @property
    def removed(self) -> float:
        return 1 - self.left / max(self.whole, 1e-30)

    @property
    def touched(self) -> float:
        return self.change / max(self.whole, 1e-30)

    @property
    def amiss(self) -> float:
        """What stays of the concept, and what is touched beside."""
        return 1 - self.removed + PRICE * self.touched

    @property
    def shares(self) -> dict[str, float]:
        """As a concept keeps it."""
        return {"removed": self.removed, "touched": self.touched}

    def in_words(self) -> str:
        return in_words(**self.shares)


def in_words(removed: float, touched: float) -> str:
    return f"{removed:.0%} removed, others {touched:.1%} touched"


def _square(x: Tensor) -> float:
    return float(x.float().square().mean())


def fewest_neurons(effects: Mapping[int, Effect]) -> int:
    """Of {neurons a concept and place: effect}, fewest first: what does about as well as the best of all."""
    least = min(effect.amiss for effect in effects.values())
    return next(n for n, effect in effects.items() if effect.amiss <= ENOUGH * least)

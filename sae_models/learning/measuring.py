"""What an erasure does to a model's prediction, measured without any judge of pictures.

At a noisy picture the model predicts the noise with a prompt that says the concept, and with the same prompt without
it. An eraser that does exactly its job makes the first prediction the second, and leaves alone what says it not:

    removed = 1 - |erased(with) - without|^2 / |with - without|^2
    touched =     |erased(other) - other|^2  / |with - without|^2

summed over prompts, seeds and steps. Removed 1 is gone, 0 unchanged, below 0 further away than before. What it cannot
see: a push beyond the counterfactual lowers `removed` though the concept is gone, and what the model paints of the
concept without its word stays.

The same sums say how far to push. Were a prediction to move in proportion to what is subtracted, then with
d = with - erased

    scale = <with - without, d> / |d|^2

times as much would remove most. Rows from least squares do less than their share, because they leave out what cannot be
told from a token, so that is more than 1.
"""
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

ENOUGH = 0.9
"""Share of a concept's effect at which no more neurons are tried."""
GAIN = 0.02
"""What more neurons must remove beside, to be worth it."""
NEURONS = (1, 2, 4)
"""How many for a concept and place are tried."""
PRICE = 5.0
"""Shares of a concept that must be removed beside, to be worth each share that others are touched."""
FURTHEST = 2.0
"""Times what was fitted, at most, that a concept's neurons carry."""


@dataclass
class Effect:
    """Sums over model calls of the squared change of the predicted noise."""
    left: float = 0.0
    change: float = 0.0
    whole: float = 0.0
    moved: float = 0.0
    along: float = 0.0

    def add(self, sigma: float, said: Tensor, without: Tensor, erased: Tensor, other: Tensor,
            other_erased: Tensor) -> None:
        """Predicted pictures [n, ...] of one call; `other` [m, ...] are of prompts that do not say the concept.

        A predicted picture is x - sigma eps, so a change of it by sigma is one of the noise by 1.
        """
        self.whole += _square(said - without, sigma)
        self.left += _square(erased - without, sigma)
        self.change += _square(other_erased - other, sigma)
        self.moved += _square(said - erased, sigma)
        self.along += _product(said - without, said - erased, sigma)

    @property
    def removed(self) -> float:
        return 1 - self.left / max(self.whole, 1e-30)

    @property
    def touched(self) -> float:
        return self.change / max(self.whole, 1e-30)

    @property
    def gain(self) -> float:
        return self.removed - PRICE * self.touched

    @property
    def scale(self) -> float:
        """How many times as much would remove most, from half to `FURTHEST`."""
        return min(max(self.along / max(self.moved, 1e-30), 0.5), FURTHEST)

    def scaled(self) -> "Effect":
        """What is to be expected of `scale` times as much."""
        s = self.scale
        left = self.whole - 2 * s * self.along + s * s * self.moved
        return Effect(left, s * s * self.change, self.whole, s * s * self.moved, s * self.along)

    @property
    def shares(self) -> dict[str, float]:
        """As a concept keeps it."""
        return {"removed": self.removed, "touched": self.touched}

    def in_words(self) -> str:
        return in_words(**self.shares)


def in_words(removed: float, touched: float) -> str:
    return f"{removed:.0%} removed, others {touched:.1%} touched"


def _square(x: Tensor, sigma: float) -> float:
    return _product(x, x, sigma)


def _product(x: Tensor, y: Tensor, sigma: float) -> float:
    return float((x.float() / sigma * y.float() / sigma).mean())


def fewest_neurons(effects: Mapping[int, Effect]) -> int:
    """Of {neurons a concept and place: effect}, fewest first: what removes enough, or as much as any that was tried,
    less what it touches beside."""
    best = max(effect.gain for effect in effects.values())
    return next(n for n, effect in effects.items() if effect.removed >= ENOUGH or effect.gain > best - GAIN)

"""How long the rest of some work takes, told for each kind of work from its own steps: painting a picture and a step of
learning take very different times."""
import time
from collections.abc import Callable

ENOUGH = 4
"""Steps after which the time left can be told."""


class Pace:
    """How much of one kind of work is done, and how long the rest of it will take at the pace so far."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.timed, self.seconds = total, 0, 0, 0.0

    def did(self, seconds: float | None) -> None:
        """One more; seconds: how long it took, where that tells something of the rest."""
        self.done = min(self.done + 1, self.total)
        if seconds is not None:
            self.timed, self.seconds = self.timed + 1, self.seconds + seconds

    @property
    def share(self) -> float:
        return self.done / max(1, self.total)

    def left(self) -> str:
        """In words, with a comma before; "" where it is not known yet."""
        if self.timed < ENOUGH or self.done >= self.total:
            return ""
        return f", about {in_words(self.seconds / self.timed * (self.total - self.done))} left"


class Stopwatch:
    """Times the steps of several kinds of work that take turns. The first after another kind is not timed: it loads a
    model, or had to wait."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.last = now, (None, now())

    def did(self, pace: Pace) -> None:
        (before, then), now = self.last, self.now()
        pace.did(now - then if before is pace else None)
        self.last = pace, now


def in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"

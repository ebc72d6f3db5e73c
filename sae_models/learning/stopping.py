"""Ctrl-C and SIGTERM in a shell: the first lets the step that runs end, so that all is saved; the second stops at once.

Whoever can stop between two steps asks `check`. Where several processes train, they stop at the same step.
"""
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from . import parallel

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []


@contextmanager
def gently() -> Iterator[None]:
    """Meanwhile a signal to stop waits for the next `check`."""
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    _asked.clear()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminable() -> None:
    """From now on SIGTERM is what Ctrl-C is: a KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _stop)


def check() -> None:
    """Raise KeyboardInterrupt when this process, which works alone, was asked to stop."""
    if _asked and parallel.world()[1] == 1:
        raise KeyboardInterrupt


def check_together() -> None:
    """Raise KeyboardInterrupt in all processes when one was asked to stop; all have to call it."""
    if parallel.anyone(bool(_asked)):
        raise KeyboardInterrupt


def _note(number: int, frame: object) -> None:
    if _asked:
        _stop(number, frame)
    _asked.append(number)
    if parallel.world()[0] == 0:
        print("stopping once this step is saved; again to stop at once", file=sys.stderr, flush=True)


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt

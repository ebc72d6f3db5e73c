"""What a host does to learn from: it paints with its own sampler, and lets us look at some of the steps.

At a step that is to be kept, `look` gets a `Step`: the noisy pictures as they are, and the model, to ask what it
predicts for other prompts. `nodes/painting.py` and `saemnesia_webui/painting.py` do this for the hosts.
"""
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from ..adapter import Block, Tap
from ..errors import SaeError


@dataclass(frozen=True)
class Painting:
    """How the pictures are painted. batch: pictures at once; steps_kept: of each picture's steps."""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    negative: str = ""
    batch: int = 8
    steps_kept: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps_kept <= self.steps:
            raise SaeError(f"expected steps kept of a picture in 1..{self.steps} (its steps), got {self.steps_kept}")
        if self.batch < 1:
            raise SaeError(f"expected at least 1 picture at once, got {self.batch}")


class Step(Protocol):
    """One step of n pictures; t [n]: their noise level, which is `sigma`."""
    t: Tensor

    @property
    def sigma(self) -> float: ...

    def predict(self, texts: Sequence[str], taps: Mapping[Block, Tap] | None = None) -> Tensor:
        """The pictures [n, ...] that the model predicts with these n prompts; what is the same in all of a step's
        predictions may be left out, because only what differs counts."""


class Painter(Protocol):
    """Paints with a loaded model."""
    painting: Painting

    def identity(self) -> str:
        """Another for another model, LoRA or text encoder."""

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """What the text encoder makes of texts: [n, d]."""

    def read(self, texts: Sequence[str]) -> None:
        """Encode what is going to be asked, while no picture is painted: a host may move the model out of the way to
        make room for the text encoder, and it may only be moved between two pictures.

        Raises SaeError for a prompt that is too long.
        """

    def paint(self, texts: Sequence[str], generator: Generator, kept: Collection[int],
              look: Callable[[Step], None]) -> Any:
        """One batch; `look` is called before the model at each kept step.

        Raises SaeError when the sampler leaves one of them out.
        """

    def skip(self) -> None:
        """Count a batch that need not be painted again as painted."""

    def make_room(self, size: int) -> torch.device:
        """The device that the model computes on, with so many bytes free where the host can see to that."""

    def going_on(self, doing: str) -> None:
        """Say what is done between two pictures, and raise what the host raises where somebody has stopped it."""

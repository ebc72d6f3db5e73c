"""What the adapter of every host does in the same way, whatever the host is called.

Which SAE is meant, the edit that a text asks for, whether the SAE fits a model, which rows of a call are conditional,
and what happened while a picture was sampled.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import concepts, hookpoint
from .erasure import Actuator, Edit
from .errors import SaeError
from .formats import Header, read_rows

BOTH, CONDITIONAL_ONLY = "both", "conditional only"


class Block(NamedTuple):
    """Where an SAE sits, and whether it encodes the block's output minus its input."""
    hookpoint: str
    residual: bool


@dataclass(frozen=True)
class LoadedSae:
    """An SAE file by the name people see, and what it says of itself."""
    name: str
    path: Path
    header: Header

    @property
    def block(self) -> Block:
        return Block(self.header.hookpoint, self.header.residual)

    def at(self, wanted: str) -> "LoadedSae":
        """The same at the hookpoint `wanted`; "" leaves the one the file says.

        Raises SaeError when neither says one.
        """
        name = hookpoint.normalise(wanted) or self.header.hookpoint
        if not name:
            raise SaeError(f"{self.name} does not say which block it was trained on: write it into 'hookpoint', "
                           f"for example up_blocks.1.attentions.1")
        return replace(self, header=replace(self.header, hookpoint=name))


def build_edit(sae: LoadedSae, text: str, actuator: Actuator, start_sigma: float = float("inf"),
               end_sigma: float = 0.0, conditional_only: bool = False) -> Edit:
    """The edit that `text` (`cat, dog:0.8`) asks for, with its rows read from the SAE's file.

    Raises SaeError for an unknown concept, a strength out of range, or a damaged file.
    """
    header = sae.header
    choices = concepts.parse(text)
    chosen = [concepts.find(header.concepts, choice.name, header.config.d_sae, sae.name) for choice in choices]
    strengths = [actuator.default_strength if c.strength is None else c.strength for c in choices]
    names = tuple(concept.name for concept in chosen for _ in concept.latents)
    per_row = torch.tensor([s for concept, s in zip(chosen, strengths, strict=True) for _ in concept.latents])
    return Edit(names, read_rows(sae.path, header, chosen), per_row, actuator, start_sigma, end_sigma,
                conditional_only)


def fitting_block(unet: nn.Module, sae: LoadedSae, family: str) -> nn.Module:
    """The module that the SAE's block is in this UNet; family: of the model, "" when not known.

    Raises SaeError unless the SAE fits the model's family, blocks and width.
    """
    header = sae.header
    if header.base and family and header.base != family:
        raise SaeError(f"{sae.name} was trained on a {header.base} model and this one is {family}: "
                       f"load a {header.base} checkpoint, or an SAE for {family}")
    block = hookpoint.find(unet, header.hookpoint)
    if hookpoint.width(block) != header.config.d_in:
        raise SaeError(f"{sae.name} reads tokens of width {header.config.d_in}, but block {header.hookpoint} of this "
                       f"model has {hookpoint.width(block)}: the SAE belongs to another base model")
    return block


def conditional_rows(rows: int, cond_or_uncond: Sequence[int] | None, device: torch.device) -> Tensor | None:
    """bool [rows]: the batch is one equal chunk an entry of `cond_or_uncond`, where 0 means conditional."""
    if not cond_or_uncond or rows % len(cond_or_uncond):
        return None
    chunk = rows // len(cond_or_uncond)
    return torch.tensor([entry == 0 for entry in cond_or_uncond], device=device).repeat_interleave(chunk)


@dataclass
class Tally:
    """What happened in one sampling run: noise levels seen, calls of a block, and which rows fired at which sigma."""
    model_calls: int = 0
    block_calls: dict = field(default_factory=dict)
    fired: dict = field(default_factory=dict)

    def add(self, block: Block, sigma: float, fired: Tensor) -> None:
        self.block_calls[block] = self.block_calls.get(block, 0) + 1
        before = self.fired.get((block, sigma))
        self.fired[block, sigma] = fired if before is None else before | fired

    def steps_fired(self, block: Block, names: list[str]) -> dict[str, int]:
        """{concept: number of noise levels at which one of its latents fired}."""
        seen = [fired.tolist() for (where, _), fired in self.fired.items() if where == block]
        return {name: sum(any(f for n, f in zip(names, step, strict=True) if n == name) for step in seen)
                for name in dict.fromkeys(names)}

    def levels(self, block: Block) -> int:
        return sum(where == block for where, _ in self.fired)

    def summary(self, block: Block, names: list[str]) -> str:
        """One line for the log."""
        fired = ", ".join(f"{name} {count}" for name, count in self.steps_fired(block, names).items())
        return f"SAEmnesia: steps in which a concept fired, of {self.levels(block)}: {fired}"

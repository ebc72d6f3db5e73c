"""What is known of an SAE before its weights are read, and the few rows of it that an edit needs."""
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..concepts import Concept, Statistics
from ..sae import SaeConfig


@dataclass(frozen=True)
class Header:
    """What a file says of one place's SAE without its big tensors being read.

    base: family of the base model ("sd15", "sdxl", ...; "" = not said); hookpoint: diffusers name ("" = not said);
    residual: encodes output minus input of the block; training: a summary to show; made_on: the
    checkpoint it was made on ("" = not said), made_of: what `made_on.made_of` says of that.
    """
    config: SaeConfig
    hookpoint: str = ""
    base: str = ""
    residual: bool = False
    concepts: tuple[Concept, ...] = ()
    training: dict[str, Any] | None = None
    made_on: str = ""
    made_of: str = ""

    @property
    def latents(self) -> tuple[int, ...]:
        """Those of all concepts, in order."""
        return tuple(latent for concept in self.concepts for latent in concept.latents)


@dataclass(frozen=True)
class Rows:
    """All that is needed to find and edit F latents: W_enc, W_dec [F, d_in], bias [F], and their statistics.

    bias is b_enc - W_enc b_dec, so that a pre-activation is W_enc x + bias.
    """
    W_enc: Tensor
    bias: Tensor
    W_dec: Tensor
    statistics: Statistics

"""Which model a file was made on: by its name, and by some of the weights that hear words, which tell another model of
that name from it, and know it again under another name.

A fine-tuned model differs from its parent by as little as 8 bits round away, so only weights that keep more are looked
at; and two that are not of the same precision are the same where their numbers are, but else not known to differ.
"""
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEARS_WORDS = (".attn2.to_k.weight", ".attn2.to_v.weight")
PRECISIONS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def some(value: Tensor) -> bytes:
    """The first values of a tensor, in half precision: a host may load the same file in full one day, and in half the
    next."""
    return value.detach().flatten()[:64].float().cpu().half().numpy().tobytes()


def made_of(weights: Mapping[str, Tensor]) -> str:
    """What tells a UNet by its weights as they come from the checkpoint: precision and a hash; "" where they keep too
    little, as those of 8 bits do, are not in memory, or hear no words."""
    heard = [value for name, value in sorted(weights.items()) if name.endswith(HEARS_WORDS)]
    if not heard or not all(map(_tells, heard)):
        return ""
    digest = hashlib.sha256(b"".join(map(some, heard))).hexdigest()[:16]
    return f"{PRECISIONS[heard[0].dtype]} {digest}"


def _tells(value: Tensor) -> bool:
    return type(value) in (Tensor, nn.Parameter) and value.dtype in PRECISIONS and not value.is_meta


def alike(one: str, other: str) -> bool | None:
    """Whether two models are the same by what `made_of` says of them; None where that is not known."""
    (precision, _, digest), (another, _, than) = one.partition(" "), other.partition(" ")
    return digest == than if digest and than and (digest == than or precision == another) else None

"""See, and change, what blocks and cross-attentions put out, for the length of one model call.

A block's output is reached by a forward hook. A cross-attention's output is reached by the host's own attention
patches, which also run where another node has replaced the attention itself. Neither outlasts the call.
"""
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from ..sae_models import hookpoint
from ..sae_models.adapter import Block, Tap, with_attention_patch
from .patch import hooked


@contextmanager
def tapped(unet: torch.nn.Module, options: dict | None, taps: Mapping[Block, Tap]) -> Iterator[dict]:
    """With every tap in its place; gives the transformer_options to call the model with."""
    unet = getattr(unet, "_orig_mod", unet)
    paths = hookpoint.paths(unet, [block.hookpoint for block in taps])
    attention = {}
    with ExitStack() as hooks:
        for path, tap in zip(paths, taps.values(), strict=True):
            if hookpoint.is_attention(path):
                attention[hookpoint.attention_key(path)] = tap
            else:
                hooks.enter_context(hooked(unet.get_submodule(path), partial(_hook, tap)))
        yield _patched(options or {}, attention) if attention else options


def _hook(tap: Tap, module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return tap(output, inputs[0])


def _patched(options: dict, taps: Mapping[tuple[str, int, int], Tap]) -> dict:
    def patch(n: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        tap = taps.get((*extra["block"], extra.get("block_index", 0)))
        return tap(n, None) if tap else n
    return with_attention_patch(options, patch)

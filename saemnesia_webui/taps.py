"""See, and change, what places of the host's UNet put out, for the length of one call.

Forge's family hands the output of a cross-attention to patches, also where another extension replaces it and the module
does not run: there we are such a patch. Everywhere else we are a hook.
"""
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sae_models import hookpoint
from sae_models.adapter import Block, with_attention_patch

Editing = Callable[..., Tensor]
"""(place, its output, the input of its block) -> what goes on in its place."""
AUTOCAST = ("cuda", "cpu", "xpu")


def attach(modules: Mapping[Block, nn.Module], attentions: Mapping[tuple[str, int, int], Block], edit: Editing,
           kwargs: dict) -> tuple[list, dict]:
    """Hook every place before a call with these keywords: the hooks, and the keywords with our patch among them where
    the host takes one. attentions: how the host calls those of the places that are cross-attentions."""
    takes_patches = "transformer_options" in kwargs and bool(attentions)
    patched = set(attentions.values()) if takes_patches else set()
    hooks = [module.register_forward_hook(_hook(edit, block)) for block, module in modules.items()
             if block not in patched]
    if not takes_patches:
        return hooks, kwargs
    options = with_attention_patch(kwargs["transformer_options"] or {}, _patch(edit, attentions))
    return hooks, kwargs | {"transformer_options": options}


def keys(paths: Mapping[Block, str]) -> dict[tuple[str, int, int], Block]:
    """How Forge calls the cross-attentions among places, of their ldm paths."""
    return {hookpoint.attention_key(path): block for block, path in paths.items()
            if hookpoint.is_attention(block.hookpoint)}


def _hook(edit: Editing, block: Block) -> Callable:
    return lambda module, inputs, output: edit(block, output, inputs[0])


def _patch(edit: Editing, attentions: Mapping[tuple[str, int, int], Block]) -> Callable[[Tensor, dict], Tensor]:
    """Forge's attn2_output_patch: a cross-attention's output [B, N, C] before it is added to its input."""
    def patch(n: Tensor, extra_options: dict) -> Tensor:
        block = attentions.get((*extra_options["block"], extra_options.get("block_index", 0)))
        return n if block is None else edit(block, n)
    return patch


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A1111 samples under autocast, which would compute the edit in half precision whatever the tensors are."""
    return torch.autocast(device.type, enabled=False) if device.type in AUTOCAST else nullcontext()

"""The host adapter: on a clone of the model, hook a block for the length of each call; its output goes to an Erasure.

Two wrappers under one key do it: around every model call (hook, call, unhook), and around a whole sampling run (say
what is patched, count where concepts fire, fail if the block was never reached). Chained nodes join into one such pair.
"""
import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..sae_models import hookpoint
from ..sae_models.adapter import Block, LoadedSae, Tally, conditional_rows, fitting_block
from ..sae_models.erasure import Edit, Erasure
from ..sae_models.errors import SaeError

KEY = "saemnesia"
log = logging.getLogger(KEY)


@dataclass(frozen=True)
class SaeEdit:
    """An edit and the SAE it comes from."""
    sae: LoadedSae
    edit: Edit

    @property
    def block(self) -> Block:
        return self.sae.block


def check_base(model: ModelPatcher, sae: LoadedSae) -> None:
    """Raise SaeError unless the SAE fits this model's family, blocks and width."""
    fitting_block(model.model.diffusion_model, sae, type(model.model.model_config).__name__.lower())


def erase(model: ModelPatcher, sae: LoadedSae, edit: Edit) -> ModelPatcher:
    """A clone of `model` that makes this edit beside those of the chain so far.

    Raises SaeError when the SAE does not fit the model, or an earlier node of the chain erases the same concept.
    """
    check_base(model, sae)
    earlier = model.get_attachment(KEY)
    edits = [*(earlier.edits if earlier else ()), SaeEdit(sae, edit)]
    for other in edits[:-1]:
        both = sorted(set(other.edit.names) & set(edit.names)) if other.sae.path == sae.path else []
        if both:
            raise SaeError(f"concept '{both[0]}' is erased by two chained nodes: keep it in one of them")
    clone, patch = model.clone(), Patch(tuple(edits))
    clone.set_attachments(KEY, patch)
    for kind, wrapper in ((WrappersMP.APPLY_MODEL, patch.apply_model), (WrappersMP.OUTER_SAMPLE, patch.outer_sample)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


class Patch:
    """All edits of one model clone, by block."""

    def __init__(self, edits: tuple[SaeEdit, ...]) -> None:
        self.edits = edits
        blocks = dict.fromkeys(item.block for item in edits)
        self.erasures = {block: Erasure([item.edit for item in edits if item.block == block], residual=block.residual)
                         for block in blocks}
        self.tally = Tally()

    def apply_model(self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None,
                    c_crossattn: Any = None, control: Any = None, transformer_options: dict | None = None,
                    **kwargs: Any) -> torch.Tensor:
        """WrappersMP.APPLY_MODEL: one model call, with every block hooked while it lasts."""
        sigma = float(t.max())
        conditional = conditional_rows(len(x), (transformer_options or {}).get("cond_or_uncond"), x.device)
        unet = executor.class_obj.diffusion_model
        self.tally.model_calls += 1
        with ExitStack() as hooks:
            for block, erasure in self.erasures.items():
                module = hookpoint.find(getattr(unet, "_orig_mod", unet), block.hookpoint)
                hooks.enter_context(_hooked(module, self._hook(block, erasure, sigma, conditional)))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _hook(self, block: Block, erasure: Erasure, sigma: float, conditional: torch.Tensor | None):
        def hook(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            erased = erasure(output, sigma, conditional, inputs[0])
            self.tally.add(block, sigma, erased.fired)
            return erased.out
        return hook

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """WrappersMP.OUTER_SAMPLE: one sampling run; an erasure that never happened is an error, not a picture."""
        self.tally = Tally()
        log.info("%s", self.plan())
        out = executor(*args, **kwargs)
        for block in self.erasures:
            if self.tally.model_calls and not self.tally.block_calls.get(block):
                raise SaeError(f"nothing was erased: the sampler never ran block {block.hookpoint}, because another "
                               f"node replaces or skips it; remove that node, or bypass SAEmnesia Erase")
            log.info("%s", self.summary(block))
        return out

    def plan(self) -> str:
        parts = (f"{item.edit.actuator.value} {', '.join(dict.fromkeys(item.edit.names))} at {item.block.hookpoint} "
                 f"({item.sae.name})" for item in self.edits)
        return "SAEmnesia: " + "; ".join(parts)

    def summary(self, block: Block) -> str:
        return self.tally.summary(block, self.erasures[block].names())


@contextmanager
def _hooked(module: torch.nn.Module, hook: Any):
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

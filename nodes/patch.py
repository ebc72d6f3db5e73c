"""The host adapter: on a clone of the model, the output of some places goes to an Erasure while the model is called.

A block is hooked for the length of each call; a cross-attention's output comes through the host's own attention patch,
which is also asked where another node replaces the attention. Two wrappers under one key do it: around every model call
(hook, call, unhook), and around a whole sampling run (say what is patched, count where concepts fire, fail if a place
was never reached). Chained nodes join into one such pair.
"""
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..sae_models import hookpoint
from ..sae_models.adapter import (
    Block,
    LoadedSae,
    Tally,
    by_block,
    conditional_rows,
    fitting_blocks,
    with_attention_patch,
)
from ..sae_models.erasure import Edit, Erasure
from ..sae_models.errors import SaeError

KEY = "saemnesia"
log = logging.getLogger(KEY)


@dataclass(frozen=True)
class SaeEdits:
    """Edits and the SAE they come from."""
    sae: LoadedSae
    edits: Sequence[tuple[Block, Edit]]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for _, edit in self.edits for name in edit.names))

    def plan(self) -> str:
        what, blocks = dict.fromkeys(label for _, edit in self.edits for label in edit.labels), by_block(self.edits)
        where = f"{len(blocks)} places" if len(blocks) > 1 else self.edits[0][0].hookpoint
        return f"{self.edits[0][1].actuator.value} {', '.join(what)} at {where} ({self.sae.name})"


class _Call(NamedTuple):
    """One model call: its noise level, and which of its rows are conditional."""
    sigma: float
    conditional: torch.Tensor | None


def check_base(model: ModelPatcher, sae: LoadedSae) -> dict[Block, str]:
    """The ldm paths of the SAE's places; raise SaeError unless the SAE fits this model's family, blocks and widths."""
    return fitting_blocks(model.model.diffusion_model, sae, type(model.model.model_config).__name__.lower())


def erase(model: ModelPatcher, sae: LoadedSae, edits: Sequence[tuple[Block, Edit]]) -> ModelPatcher:
    """A clone of `model` that makes these edits beside those of the chain so far.

    Raises SaeError when the SAE does not fit the model, or an earlier node of the chain erases the same concept.
    """
    paths = check_base(model, sae)
    earlier = model.get_attachment(KEY)
    new, before = SaeEdits(sae, edits), earlier.edits if earlier else ()
    for other in before:
        both = sorted(set(other.names) & set(new.names)) if other.sae.path == sae.path else []
        if both:
            raise SaeError(f"concept '{both[0]}' is erased by two chained nodes: keep it in one of them")
    clone, patch = model.clone(), Patch((*before, new), (earlier.paths if earlier else {}) | paths)
    clone.set_attachments(KEY, patch)
    for kind, wrapper in ((WrappersMP.APPLY_MODEL, patch.apply_model), (WrappersMP.OUTER_SAMPLE, patch.outer_sample)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def without_edits(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` on which nothing is erased."""
    clone = model.clone()
    clone.remove_attachments(KEY)
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.OUTER_SAMPLE):
        clone.remove_wrappers_with_key(kind, KEY)
    return clone


class Patch:
    """All edits of one model clone, by place; paths: the ldm path of each."""

    def __init__(self, edits: tuple[SaeEdits, ...], paths: dict[Block, str]) -> None:
        self.edits, self.paths = edits, paths
        self.erasures = {block: Erasure(here, residual=block.residual)
                         for block, here in by_block([pair for item in edits for pair in item.edits]).items()}
        self.attentions = {hookpoint.attention_key(paths[block]): block for block in self.erasures
                           if hookpoint.is_attention(block.hookpoint)}
        self.tally = Tally()

    def apply_model(self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None,
                    c_crossattn: Any = None, control: Any = None, transformer_options: dict | None = None,
                    **kwargs: Any) -> torch.Tensor:
        """WrappersMP.APPLY_MODEL: one model call, with every place edited while it lasts."""
        options = transformer_options or {}
        call = _Call(float(t.max()), conditional_rows(len(x), options.get("cond_or_uncond"), x.device))
        unet = executor.class_obj.diffusion_model
        self.tally.model_calls += 1
        if self.attentions:
            options = with_attention_patch(options, self.edit_attention) | {KEY: call}
        with ExitStack() as hooks:
            for block in self.erasures:
                if not hookpoint.is_attention(block.hookpoint):
                    module = getattr(unet, "_orig_mod", unet).get_submodule(self.paths[block])
                    hooks.enter_context(hooked(module, self._hook(block, call)))
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def edit_attention(self, n: torch.Tensor, extra_options: dict) -> torch.Tensor:
        """The host's attn2_output_patch: a cross-attention's output [B, N, C] before it is added to its input."""
        name, number = extra_options["block"]
        block = self.attentions.get((name, number, extra_options.get("block_index", 0)))
        return n if block is None else self._edit(block, extra_options[KEY], n)

    def _hook(self, block: Block, call: _Call):
        def hook(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            return self._edit(block, call, output, inputs[0])
        return hook

    def _edit(self, block: Block, call: _Call, output: torch.Tensor, x_in: torch.Tensor | None = None) -> torch.Tensor:
        erased = self.erasures[block](output, call.sigma, call.conditional, x_in)
        self.tally.add(block, call.sigma, erased.fired)
        return erased.out

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """WrappersMP.OUTER_SAMPLE: one sampling run; an erasure that never happened is an error, not a picture."""
        self.tally = Tally()
        log.info("%s", self.plan())
        out = executor(*args, **kwargs)
        missed = self.tally.missed(self.erasures)
        if self.tally.model_calls and missed:
            raise SaeError(f"nothing was erased: the sampler never ran block {missed}, because another node replaces "
                           f"or skips it; remove that node, or bypass SAEmnesia Erase")
        if self.tally.model_calls:
            log.info("%s", self.tally.summary({block: erasure.labels() for block, erasure in self.erasures.items()}))
        return out

    def plan(self) -> str:
        return "SAEmnesia: " + "; ".join(item.plan() for item in self.edits)


@contextmanager
def hooked(module: torch.nn.Module, hook: Any) -> Iterator[None]:
    """A forward hook for the length of the block."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

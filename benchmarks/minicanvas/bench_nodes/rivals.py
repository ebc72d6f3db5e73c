"""Nodes for what our eraser is compared with: NAG, which edits attention while painting, and edited weights.

Both change the clone they return and nothing else.
"""
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.ldm.modules.attention import CrossAttention, optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from safetensors.torch import load_file
from torch import Tensor

CONDITIONAL = 0
"""What the host writes into "cond_or_uncond" for rows that have the prompt."""


def guided(plus: Tensor, minus: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """NAG: Z+ and Z- [..., channels] pushed apart, held to tau times Z+'s length (L1, a token), mixed with Z+.

    Normalized Attention Guidance (arXiv 2505.21179), algorithm 1: Z~ = Z+ + scale (Z+ - Z-), r = |Z~| / |Z+|,
    Z^ = min(r, tau) / r Z~, out = alpha Z^ + (1 - alpha) Z+, here Z+ + alpha (Z^ - Z+), which is exact at alpha 0.
    """
    pushed = plus + scale * (plus - minus)
    length, wanted = (z.abs().sum(-1, keepdim=True) for z in (pushed, plus))
    held = pushed * (tau * wanted / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
    return plus + alpha * (held - plus)


@dataclass(frozen=True)
class Guide:
    """The host's replacement for a cross-attention between to_q, to_k, to_v and to_out, with NAG on conditional rows.

    negative: its contexts [n, tokens, width], dealt out to the rows of a picture batch in turn.
    """
    attention: CrossAttention
    negative: Tensor
    scale: float
    tau: float
    alpha: float

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        plus = self._attend(q, k, v, options)
        kinds = torch.tensor(options["cond_or_uncond"], device=q.device)
        batch = len(q) // len(kinds)
        rows = (kinds.repeat_interleave(batch) == CONDITIONAL).nonzero().flatten()
        negative, own = self.negative.to(q), rows % batch % len(self.negative)
        keys, values = self.attention.to_k(negative)[own], self.attention.to_v(negative)[own]
        minus = self._attend(q[rows], keys, values, options)
        return plus.index_copy(0, rows, guided(plus[rows], minus, self.scale, self.tau, self.alpha))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        return optimized_attention(q, k, v, self.attention.heads, attn_precision=self.attention.attn_precision,
                                   transformer_options=options)


def block_key(path: str) -> tuple[str, int, int]:
    """How the host calls the cross-attention at a path of its UNet.

    >>> block_key("output_blocks.4.1.transformer_blocks.0.attn2")
    ('output', 4, 0)
    """
    kind, number, *_, index, _ = path.split(".")
    return kind.partition("_")[0], 0 if kind == "middle_block" else int(number), int(index)


class Nag(io.ComfyNode):
    """Normalized Attention Guidance away from `negative` at every cross-attention and every step.

    The defaults are those of the authors' own SD 1.5 workflow (ChenDarYen/ComfyUI-NAG, workflows/NAG-SD15: nag_scale 5,
    which is the paper's scale 4 as they count Z~ = 5 Z+ - 4 Z-, tau 2.5, alpha 0.38 beside guidance 7; there it ends at
    sigma 4, here it does not). The paper has scale 2, tau 2.5, alpha 0.5 for SDXL in few steps. It takes the place of
    any other replacement of a cross-attention.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="MiniCanvasNAG", category="MiniCanvas",
                         inputs=[io.Model.Input("model"), io.Conditioning.Input("negative"),
                                 io.Float.Input("scale", default=4.0, min=0, max=100),
                                 io.Float.Input("tau", default=2.5, min=0, max=100),
                                 io.Float.Input("alpha", default=0.38, min=0, max=1, step=0.01)],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model: ModelPatcher, negative: list, scale: float, tau: float, alpha: float) -> io.NodeOutput:
        clone = model.clone()
        for path, module in clone.get_model_object("diffusion_model").named_modules():
            if path.endswith(".attn2"):
                clone.set_model_attn2_replace(Guide(module, negative[0][0], scale, tau, alpha), *block_key(path))
        return io.NodeOutput(clone)


class Weights(io.ComfyNode):
    """Adds a file of differences to the UNet's weights, {parameter's name: tensor}, as the host adds a LoRA's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="MiniCanvasWeights", category="MiniCanvas",
                         inputs=[io.Model.Input("model"), io.String.Input("path")], outputs=[io.Model.Output()])

    @classmethod
    def fingerprint_inputs(cls, path: str, **_) -> float:
        return Path(path).stat().st_mtime

    @classmethod
    def execute(cls, model: ModelPatcher, path: str) -> io.NodeOutput:
        clone = model.clone()
        patches = {f"diffusion_model.{name}": ("diff", (value,)) for name, value in load_file(path).items()}
        if unknown := patches.keys() - set(clone.add_patches(patches)):
            raise ValueError(f"this model lacks {sorted(unknown)[0]} and {len(unknown) - 1} other weights of {path}")
        return io.NodeOutput(clone)


RIVALS: list[type[io.ComfyNode]] = [Nag, Weights]

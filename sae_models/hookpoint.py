"""Where in a UNet an SAE sits: diffusers names such as `unet.up_blocks.1.attentions.1`, found from the structure.

A place is a block's output [B, C, H, W], or that of one of its cross-attentions before it is added to its input, tokens
[B, N, C]: `up_blocks.1.attentions.1.transformer_blocks.0.attn2`. The name says which.

A cross-attention block is a module with `transformer_blocks`; a level ends where a block holds a down- or upsampler.
So the names hold for SD 1.x, SD 2.x, SDXL and any UNet of the same build, without a table for one model.
"""
import difflib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .errors import SaeError

ATTENTION = ".attn2"
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.")


def normalise(hookpoint: str) -> str:
    """The name without the prefixes that tools put before it.

    >>> normalise("unet.up_blocks.1.attentions.1")
    'up_blocks.1.attentions.1'
    """
    name = hookpoint.strip()
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def is_attention(hookpoint: str) -> bool:
    """Whether the place is a cross-attention's output, and not a block's."""
    return hookpoint.endswith(ATTENTION)


def is_unet(model: nn.Module) -> bool:
    """Whether it is built as the UNets of SD 1.x, SD 2.x and SDXL are."""
    return hasattr(model, "input_blocks") and hasattr(model, "output_blocks")


def check_unet(model: nn.Module) -> None:
    """Raise SaeError for a model that is built otherwise: a transformer such as Flux has no such blocks."""
    if not is_unet(model):
        raise SaeError(f"SAEmnesia works on SD 1.x, 2.x and SDXL so far; this model is a {type(model).__name__}: load "
                       f"a checkpoint of one of those")


def _has_attention(module: nn.Module) -> bool:
    return hasattr(module, "transformer_blocks")


def _ends_level(block: nn.Module) -> bool:
    return any(type(layer).__name__ in ("Downsample", "Upsample") for layer in block)


def _level_names(blocks: Iterable[tuple[int, nn.Module]], ldm: str, diffusers: str) -> Iterator[tuple[str, str]]:
    level, place = 0, 0
    for number, block in blocks:
        for layer, module in enumerate(block):
            if _has_attention(module):
                yield f"{diffusers}.{level}.attentions.{place}", f"{ldm}.{number}.{layer}"
        place += 1
        if _ends_level(block):
            level, place = level + 1, 0


def hookpoints(unet: nn.Module) -> dict[str, str]:
    """{diffusers name: ldm path} of every cross-attention block of an ldm UNet, in the order they run.

    The first input block is the convolution, so numbering starts after it.
    """
    down = _level_names(list(enumerate(unet.input_blocks))[1:], "input_blocks", "down_blocks")
    middle = getattr(unet, "middle_block", None) or ()
    mid = (("mid_block.attentions.0", f"middle_block.{i}") for i, m in enumerate(middle) if _has_attention(m))
    up = _level_names(enumerate(unet.output_blocks), "output_blocks", "up_blocks")
    return dict([*down, *mid, *up])


def cross_attentions(unet: nn.Module) -> dict[str, str]:
    """{diffusers name: ldm path} of every cross-attention of an ldm UNet, in the order they run."""
    return {f"{name}.{inner}": f"{path}.{inner}" for name, path in hookpoints(unet).items()
            for number, block in enumerate(unet.get_submodule(path).transformer_blocks)
            if getattr(block, "attn2", None) is not None
            for inner in [f"transformer_blocks.{number}{ATTENTION}"]}


def paths(unet: nn.Module, wanted: Sequence[str]) -> list[str]:
    """The ldm paths of some places; each is a diffusers name or an ldm path.

    Raises SaeError when the model has no such place, naming those it has.
    """
    check_unet(unet)
    names = hookpoints(unet) | (cross_attentions(unet) if any(map(is_attention, wanted)) else {})
    known = names | {path: path for path in names.values()}
    for name in map(normalise, wanted):
        if name not in known:
            kind = [other for other in names if is_attention(other) == is_attention(name)] or list(names)
            near = difflib.get_close_matches(name, kind, n=3, cutoff=0) or kind
            raise SaeError(f"this model has no block '{name}', so the SAE belongs to another base model; "
                           f"blocks it has: {', '.join(near)}")
    return [known[normalise(name)] for name in wanted]


def find(unet: nn.Module, hookpoint: str) -> nn.Module:
    """The place's module.

    Raises SaeError as `paths` does.
    """
    return unet.get_submodule(paths(unet, [hookpoint])[0])


def hears(attention: nn.Module) -> bool:
    """Whether words can come through a cross-attention: none can where its values or outputs are multiplied by 0."""
    weights = (attention.to_v.weight, attention.to_out[0].weight)
    return all(bool(_values(weight).any()) for weight in weights)


def _values(weight: Tensor) -> Tensor:
    """A weight's numbers: fp8 has no any() on a GPU, and a plain tensor no dequantize() on a Mac."""
    return weight.float() if type(weight) in (Tensor, nn.Parameter) else weight.dequantize()


def attention_key(path: str) -> tuple[str, int, int]:
    """How ComfyUI and Forge call the cross-attention of an ldm path in what they hand to attention patches.

    >>> attention_key("output_blocks.4.1.transformer_blocks.0.attn2")
    ('output', 4, 0)
    """
    kind, number, *_, index, _ = path.split(".")
    return kind.partition("_")[0], 0 if kind == "middle_block" else int(number), int(index)


def width(module: nn.Module) -> int:
    """Channels of a place's output, the d_in of its SAE."""
    layer = module.to_out[0] if hasattr(module, "to_out") else module.proj_out
    return getattr(layer, "out_features", None) or shape(layer.weight)[0]


def shape(weight: Tensor) -> torch.Size:
    """Of a layer's weight; bitsandbytes packs one of 4 bits and remembers its shape beside it."""
    return getattr(getattr(weight, "quant_state", None), "shape", None) or weight.shape

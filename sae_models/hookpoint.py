"""Where in a UNet an SAE sits: diffusers names such as `unet.up_blocks.1.attentions.1`, found from the structure.

A cross-attention block is a module with `transformer_blocks`; a level ends where a block holds a down- or upsampler.
So the names hold for SD 1.x, SD 2.x, SDXL and any UNet of the same build, without a table for one model.
"""
import difflib
from collections.abc import Iterable, Iterator

from torch import nn

from .errors import SaeError

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


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "transformer_blocks")


def _ends_level(block: nn.Module) -> bool:
    return any(type(layer).__name__ in ("Downsample", "Upsample") for layer in block)


def _level_names(blocks: Iterable[tuple[int, nn.Module]], ldm: str, diffusers: str) -> Iterator[tuple[str, str]]:
    level, place = 0, 0
    for number, block in blocks:
        for layer, module in enumerate(block):
            if _is_attention(module):
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
    mid = (("mid_block.attentions.0", f"middle_block.{i}") for i, m in enumerate(middle) if _is_attention(m))
    up = _level_names(enumerate(unet.output_blocks), "output_blocks", "up_blocks")
    return dict([*down, *mid, *up])


def find(unet: nn.Module, hookpoint: str) -> nn.Module:
    """The block's module; `hookpoint` is a diffusers name or an ldm path.

    Raises SaeError when the model has no such block, naming those it has.
    """
    if not (hasattr(unet, "input_blocks") and hasattr(unet, "output_blocks")):
        raise SaeError(f"'{hookpoint}' is a block of a UNet (SD 1.x, 2.x, SDXL), but this model is a "
                       f"{type(unet).__name__}: load a checkpoint of the SAE's base model")
    names, wanted = hookpoints(unet), normalise(hookpoint)
    path = names.get(wanted, wanted if wanted in names.values() else None)
    if path is None:
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0) or list(names)
        raise SaeError(f"this model has no block '{wanted}', so the SAE belongs to another base model; "
                       f"blocks it has: {', '.join(near)}")
    return unet.get_submodule(path)


def width(block: nn.Module) -> int:
    """Channels of a cross-attention block's output, the d_in of its SAE."""
    return block.proj_out.weight.shape[0]

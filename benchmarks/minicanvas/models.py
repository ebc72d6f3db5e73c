"""The networks of MiniCanvas, built from ComfyUI's own classes so that what is trained is what the host runs.

Six cross-attentions hear the prompt: one on the way down and one on the way up at 12x12 latents, one and two at 6x6,
and the middle. Needs the ComfyUI folder on the path: set COMFYUI_PATH, or run `make setup` first.
"""
import os
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI"))
if not (COMFYUI / "comfy").is_dir():
    raise SystemExit(f"no ComfyUI at {COMFYUI}: run `make setup`, or set COMFYUI_PATH")
sys.path.insert(0, str(COMFYUI))

from comfy.cli_args import args  # noqa: E402

args.cpu = not torch.cuda.is_available()
args.use_pytorch_cross_attention = True

import comfy.ops  # noqa: E402
from comfy.ldm.modules import attention  # noqa: E402
from comfy.ldm.modules.attention import SpatialTransformer  # noqa: E402, F401
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from comfy.taesd.taesd import TAESD  # noqa: E402

UNET_CONFIG = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1, 1],
    "channel_mult": (1, 1), "transformer_depth": [1, 1], "transformer_depth_output": [1, 0, 1, 1],
    "transformer_depth_middle": 1, "context_dim": 768, "use_spatial_transformer": True, "num_heads": 8,
    "num_head_channels": -1, "legacy": False,
}


def learn_faster() -> None:
    """Attention by plain matrix products from now on, for learning on a CPU: torch's fused one, which the host uses,
    takes a fifth of a step to go backwards through."""
    attention.optimized_attention = _plain_attention


def _plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *_, **__) -> torch.Tensor:
    """q [n, queries, d], k and v [n, keys, d] -> [n, queries, d]."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    weights = torch.bmm(q * q.shape[2] ** -0.5, k.transpose(1, 2)).softmax(-1).to(v.dtype)
    return torch.bmm(weights, v).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


def initialised(model: nn.Module) -> nn.Module:
    """`model` with torch's default initialisation, which the host's layer classes leave out."""
    for module in model.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
    return model


def new_unet(**changes) -> UNetModel:
    """A fresh UNet; the convolutions that end a residual branch, and the last one, start at zero."""
    unet = initialised(UNetModel(**{**UNET_CONFIG, **changes}, operations=comfy.ops.disable_weight_init))
    for name, module in unet.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def new_vae() -> TAESD:
    return initialised(TAESD())

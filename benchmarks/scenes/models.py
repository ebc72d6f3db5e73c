"""The networks of MiniCanvas, built from ComfyUI's own classes so that what is trained is what the host runs.

Six cross-attentions hear the prompt: one on the way down and one on the way up at 12x12 latents, one and two at 6x6,
and the middle.
"""
from ..minicanvas import models

UNET_CONFIG = {"transformer_depth": [1, 1], "transformer_depth_output": [1, 0, 1, 1], "transformer_depth_middle": 1}


def new_unet() -> models.UNetModel:
    """A fresh UNet: what ends a residual branch starts at zero."""
    return models.new_unet(**UNET_CONFIG)

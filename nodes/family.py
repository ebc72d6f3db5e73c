"""The family of a model, as an SAE's file calls it ("sd15"): of a loaded one, or of a checkpoint from the names and
shapes in its file alone, without loading it; the blocks of such a checkpoint's UNet; and which one a loaded one is.

Close relatives are of the family that the host derives them from: instruct-pix2pix of SD 1.5, SSD-1B, Vega and KOALA of
SDXL, unCLIP and Lotus of SD 2. Whether they have an SAE's places is seen from their blocks and widths.
"""
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy import model_detection, ops
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import BASE
from safetensors import SafetensorError, safe_open

from ..sae_models import hookpoint


def family_of(config: Any) -> str:
    """Of a model's `model_config`: the class that all of its kind are derived from."""
    kinds = [kind for kind in type(config).__mro__ if issubclass(kind, BASE) and kind is not BASE]
    return (kinds or [type(config)])[-1].__name__.lower()


def original_weights(model: ModelPatcher) -> dict[str, torch.Tensor]:
    """The UNet's weights as they come from the checkpoint, where LoRAs lie on them by now, too.

    Not those of its `state_dict`: a packed model's (GGUF) are not there, and with a LoRA a scaled one's scales differ.
    """
    backup = {name.removeprefix("diffusion_model."): kept.weight for name, kept in model.backup.items()}
    return {name: backup.get(name, value) for name, value in model.model.diffusion_model.named_parameters()}


def of_checkpoint(folder: str, name: str) -> str:
    """For example "sd15", as an SAE's file calls it; "" where that cannot be told. folder: "checkpoints" or
    "diffusion_models"."""
    found = _config(folder, name)
    return "" if found is None else family_of(found)


def blocks_of_checkpoint(folder: str, name: str) -> list[str]:
    """The hookpoints of its UNet's cross-attention blocks, in the order they run; none where that cannot be told."""
    found = _config(folder, name)
    try:
        unet = UNetModel(**found.unet_config, device="meta", operations=ops.disable_weight_init)
    except (AttributeError, TypeError):
        return []  # no UNet, or the host has changed
    return list(hookpoint.hookpoints(unet))


def _config(folder: str, name: str) -> Any | None:
    """What the host takes the checkpoint for."""
    path = folder_paths.get_full_path(folder, name) if folder in folder_paths.folder_names_and_paths else None
    if path is None or Path(path).suffix not in (".safetensors", ".sft"):
        return None
    return _of_file(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _of_file(path: str, changed: int) -> Any | None:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            shapes = {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in names}
        return model_detection.model_config_from_unet(shapes, model_detection.unet_prefix_from_state_dict(shapes))
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, RuntimeError, IndexError, TypeError):
        return None  # the host has changed, or it is no model: then nothing is said before the run

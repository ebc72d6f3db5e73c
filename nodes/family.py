"""The family of a checkpoint, and the blocks of its UNet, from the names and shapes in its file alone: nothing of it is
loaded."""
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy import model_detection, ops
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from safetensors import SafetensorError, safe_open

from ..sae_models import hookpoint


def of_checkpoint(folder: str, name: str) -> str:
    """For example "sd15", as an SAE's file calls it; "" where that cannot be told. folder: "checkpoints" or
    "diffusion_models"."""
    found = _config(folder, name)
    return "" if found is None else type(found).__name__.lower()


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

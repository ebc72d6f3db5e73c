"""The family of a checkpoint from the names and shapes in its file alone: nothing of it is loaded."""
from functools import lru_cache
from pathlib import Path

import folder_paths
import torch
from comfy import model_detection
from safetensors import SafetensorError, safe_open


def of_checkpoint(folder: str, name: str) -> str:
    """For example "sd15", as an SAE's file calls it; "" where that cannot be told. folder: "checkpoints" or
    "diffusion_models"."""
    path = folder_paths.get_full_path(folder, name) if folder in folder_paths.folder_names_and_paths else None
    if path is None or Path(path).suffix not in (".safetensors", ".sft"):
        return ""
    return _of_file(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _of_file(path: str, changed: int) -> str:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            shapes = {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in names}
        found = model_detection.model_config_from_unet(shapes, model_detection.unet_prefix_from_state_dict(shapes))
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError, RuntimeError, IndexError, TypeError):
        return ""  # the host has changed, or it is no model: then nothing is said before the run
    return "" if found is None else type(found).__name__.lower()

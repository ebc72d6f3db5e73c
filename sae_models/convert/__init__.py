"""Make a .safetensors of what is published as a pickle: once, by hand, and in no host.

    python -m sae_models.convert SOURCE [DEST] [--concepts cls_latents_dict_HOOK.pkl] [--params class_params.pth]

A pickled SAE (dictionary_learning's `ae.pt`, sdxl-unbox's `state_dict.pth`) becomes the same tensors beside the same
configuration and is then read like any published folder (`sae_models.formats`). The papers' concept side is added to it
(`papers`). Nothing in a pickle runs (`pickles`).
"""
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import SaeError
from ..formats import Header, read_sae
from ..formats.layouts import ORIGIN, hookpoint_in, layout_of
from ..sae import Sae
from . import pickles


def read_any(path: Path) -> tuple[Sae, Header]:
    """Read an SAE from a `.safetensors` or from a state dict that torch saved.

    Raises SaeError when it is neither, or damaged, or another kind of SAE.
    """
    if path.suffix.lower() == ".safetensors":
        return read_sae(path)
    state = pickles.load_torch(path)
    tensors = _tensors(state, path.name)
    layout = layout_of(tensors, path.name)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{path.stem}.safetensors"
        save_file({name: tensors[name].clone(memory_format=torch.contiguous_format) for name in layout.names}, copy)
        for beside in (path.with_name(layout.sidecar), path.with_name(ORIGIN)):
            if beside.is_file():
                shutil.copy(beside, folder)
        try:
            sae, header = read_sae(copy)
        except SaeError as error:
            raise SaeError(str(error).replace(folder, str(path.parent)).replace(copy.name, path.name)) from error
    return sae, replace(header, hookpoint=header.hookpoint or hookpoint_in(path))


def _tensors(state: object, name: str) -> dict[str, Tensor]:
    """The tensors of numbers in a state dict, or in one under the key `state_dict`."""
    inner = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(inner, dict):
        raise SaeError(f"{name} is no SAE that can be read here: expected a dictionary of tensors")
    return {key: value for key, value in inner.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value.layout is torch.strided}

"""Put MiniCanvas into a ComfyUI's model folders: the checkpoint (UNet, VAE, seeded text encoder) and its concepts.

    python -m benchmarks.minicanvas.checkpoint .host/ComfyUI/models
    python -m benchmarks.minicanvas.checkpoint --pack run/a/unet.safetensors run/b/unet.safetensors

ComfyUI's *Load Checkpoint* reads the checkpoint as SD 1.5. The UNet is kept as int8 with a scale a row, half of fp16's
bytes; the checkpoint has it in fp16.
"""
import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import text
from .harness import save_atomically

WEIGHTS = Path(__file__).with_name("weights")
NAME = "minicanvas.safetensors"
SCALE = ".scale"
SMALL = 10_000
"""Tensors of fewer numbers stay fp16."""


def packed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices as int8 [rows, ...] with a scale [rows] beside them, everything else as fp16."""
    out = {}
    for name, value in state.items():
        if value.ndim < 2 or value.numel() < SMALL:
            out[name] = value.half()
            continue
        scale = (value.float().flatten(1).abs().amax(1) / 127).clamp_min(1e-12)
        out[name] = (value.float() / _like(scale, value)).round().to(torch.int8)
        out[name + SCALE] = scale
    return out


def unpacked(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fp16 weights of what `packed` made."""
    return {name: (value.float() * _like(state[name + SCALE], value)).half() if name + SCALE in state else value
            for name, value in state.items() if not name.endswith(SCALE)}


def _like(scale: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, *[1] * (value.ndim - 1))


def assemble(out: Path, weights: Path = WEIGHTS) -> None:
    """Write the checkpoint: about 330 MB, mostly the text encoder."""
    unet = {f"model.diffusion_model.{k}": v for k, v in unpacked(load_file(weights / "unet.safetensors")).items()}
    vae = {f"first_stage_model.{k}": v for k, v in load_file(weights / "vae.safetensors").items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(unet | vae | text.checkpoint_state(), out)


def install(models: Path, weights: Path = WEIGHTS) -> None:
    """Write checkpoint and concepts, once they are found, into a ComfyUI's `models` folder."""
    found, concepts = weights / "concepts.safetensors", models / "sae" / NAME
    concepts.parent.mkdir(parents=True, exist_ok=True)
    if found.exists():
        shutil.copyfile(found, concepts)
    assemble(models / "checkpoints" / NAME, weights)


def pack(unets: Sequence[Path], weights: Path = WEIGHTS) -> None:
    """Keep the mean of what processes that trained together left."""
    states = [load_file(path) for path in unets]
    mean = {name: sum(state[name].float() for state in states) / len(states) for name in states[0]}
    save_atomically(packed(mean), weights / "unet.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="?", help="a ComfyUI's models folder, to put the checkpoint into")
    parser.add_argument("--pack", type=Path, nargs="+", metavar="UNET", help="what train_unet left, for weights/")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack)
    if options.models:
        install(options.models)


if __name__ == "__main__":
    main()

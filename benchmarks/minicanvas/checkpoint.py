"""Assemble a checkpoint that ComfyUI's *Load Checkpoint* reads as SD 1.5: UNet, VAE, and the seeded text encoder.

    python -m benchmarks.minicanvas.checkpoint OUT.safetensors
"""
import sys
from pathlib import Path

from safetensors.torch import load_file

from . import text
from .harness import save_atomically

WEIGHTS = Path(__file__).with_name("weights")


def assemble(out: Path, weights: Path = WEIGHTS) -> Path:
    """Write the checkpoint (about 320 MB, mostly the text encoder) and return its path."""
    unet = {f"model.diffusion_model.{k}": v for k, v in load_file(weights / "unet.safetensors").items()}
    vae = {f"first_stage_model.{k}": v for k, v in load_file(weights / "vae.safetensors").items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(unet | vae | text.state_dict(), out)
    return out


if __name__ == "__main__":
    print(assemble(Path(sys.argv[1])))

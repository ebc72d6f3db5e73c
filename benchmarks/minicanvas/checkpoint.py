"""Put MiniCanvas into a ComfyUI's model folders: the checkpoint (UNet, VAE, seeded text encoder) and its SAE.

    python -m benchmarks.minicanvas.checkpoint .host/ComfyUI/models

ComfyUI's *Load Checkpoint* reads the checkpoint as SD 1.5.
"""
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file

from . import text
from .harness import save_atomically

WEIGHTS = Path(__file__).with_name("weights")
NAME = "minicanvas.safetensors"


def assemble(out: Path, weights: Path = WEIGHTS) -> None:
    """Write the checkpoint: about 310 MB, mostly the text encoder."""
    unet = {f"model.diffusion_model.{k}": v for k, v in load_file(weights / "unet.safetensors").items()}
    vae = {f"first_stage_model.{k}": v for k, v in load_file(weights / "vae.safetensors").items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(unet | vae | text.state_dict(), out)


def install(models: Path, weights: Path = WEIGHTS) -> None:
    """Write checkpoint and SAE into a ComfyUI's `models` folder."""
    sae = models / "sae" / NAME
    sae.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(weights / "sae.safetensors", sae)
    assemble(models / "checkpoints" / NAME, weights)


if __name__ == "__main__":
    install(Path(sys.argv[1]))

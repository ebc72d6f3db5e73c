"""Train MiniCanvas's TAESD-shaped VAE on random crops of random pictures, then scale its latents to unit variance.

    python -m benchmarks.minicanvas.train_vae --steps 4000 --out benchmarks/minicanvas/weights
"""
import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .canvas import random_pictures, random_scene
from .harness import Run, TrainConfig, save_atomically
from .models import new_vae

CROP_PX = 48
LATENT_FORMAT_SCALE = 0.18215  # what the host multiplies SD 1.5 latents with
NOISE = 0.05                   # of a latent's spread: the decoder must not read the UNet's small errors


def scenes(n: int, generator: torch.Generator) -> torch.Tensor:
    return random_pictures([random_scene(generator) for _ in range(n)], generator)


def crops(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops [batch, 3, CROP_PX, CROP_PX] of random pictures, in 0..1."""
    pictures = scenes(batch, generator)
    left, top = torch.randint(0, pictures.shape[-1] - CROP_PX + 1, (2,), generator=generator).tolist()
    return pictures[..., top:top + CROP_PX, left:left + CROP_PX]


def edges(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image.diff(dim=-1), image.diff(dim=-2)


def loss_fn(vae: nn.Module, generator: torch.Generator, batch: int, device: str) -> torch.Tensor:
    """Squared and absolute error, the error of the edges, and a pull of the latents to unit second moment."""
    image = crops(batch, generator).to(device).contiguous(memory_format=torch.channels_last)
    latent = vae.taesd_encoder(image).float()
    noise = torch.randn(latent.shape, generator=generator).to(device) * NOISE
    drawn = vae.taesd_decoder(latent + noise).float()
    edge = sum((a - b).abs().mean() for a, b in zip(edges(drawn), edges(image), strict=True))
    unit = (latent.pow(2).mean((0, 2, 3)) - 1).pow(2).mean()
    return 4 * F.mse_loss(drawn, image) + F.l1_loss(drawn, image) + edge + 0.01 * unit


@torch.no_grad()
def normalise(vae: nn.Module, generator: torch.Generator) -> None:
    """Set `vae_shift` and `vae_scale` so that the host's latents have mean 0 and variance 1 inside the UNet."""
    latent = vae.taesd_encoder(scenes(400, generator))
    vae.vae_scale.fill_(latent.std() * LATENT_FORMAT_SCALE)
    vae.vae_shift.fill_(-latent.mean() / vae.vae_scale)


@torch.no_grad()
def psnr(vae: nn.Module) -> float:
    """Peak signal-to-noise ratio over pictures that training did not see, in dB."""
    pictures = scenes(200, torch.Generator().manual_seed(-1))
    drawn = vae.taesd_decoder(vae.taesd_encoder(pictures)).clamp(0, 1)
    return float(-10 * torch.log10(F.mse_loss(drawn, pictures)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for vae.safetensors and checkpoints")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--init", type=Path, help="start from the weights of this file")
    options = parser.parse_args()
    vae = new_vae()
    if options.init:
        vae.load_state_dict({k: v.float() for k, v in load_file(options.init).items()})
    run = Run(vae, TrainConfig(options.out / "vae-run", options.steps, lr=options.lr, ema=0.995), options.device)

    def report(run: Run) -> None:
        vae = run.averaged()
        normalise(vae.cpu(), torch.Generator().manual_seed(0))
        print(f"PSNR {psnr(vae):.2f} dB", flush=True)
        save_atomically({k: v.half() for k, v in vae.state_dict().items()}, options.out / "vae.safetensors")
        vae.to(options.device)
        run.swap_back()
    run.train(lambda vae, g: loss_fn(vae, g, options.batch, options.device), report, report_every=500)


if __name__ == "__main__":
    main()

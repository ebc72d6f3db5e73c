"""Train MiniCanvas's UNet to predict the noise in a picture's latents (the SD 1.x schedule, epsilon prediction).

    python -m benchmarks.minicanvas.train_unet --vae benchmarks/minicanvas/weights/vae.safetensors \
        --out benchmarks/minicanvas/weights
"""
import argparse
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .canvas import all_labels, random_pictures
from .harness import Run, TrainConfig, save_atomically
from .icons import OBJECTS, STYLES
from .models import deafen, new_unet, new_vae
from .text import all_prompts, contexts, prompt_index

DROP_BOTH, DROP_OBJECT, DROP_STYLE = 0.08, 0.06, 0.06
MIN_SNR_GAMMA = 5.0


def alphas_cumprod() -> torch.Tensor:
    """SD's "scaled linear" schedule, [1000]."""
    return (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float()


@torch.no_grad()
def latent_pool(vae: nn.Module, copies: int, device: str) -> torch.Tensor:
    """Latents as the UNet sees them: [copies, pictures, 4, h, w] with every drawing placed `copies` times."""
    vae = vae.to(device).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)

    def encode() -> torch.Tensor:
        pictures = random_pictures(all_labels(), generator).to(device, memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            return ((vae.taesd_encoder(pictures).float() / vae.vae_scale + vae.vae_shift) * 0.18215).cpu()
    return torch.stack([encode() for _ in range(copies)])


class Batches:
    """Draws (noisy latents, timestep, context, noise, weight) from a pool of latents."""

    def __init__(self, pool: torch.Tensor, batch: int, device: str) -> None:
        self.pool, self.batch, self.device = pool, batch, device
        self.alphas, self.contexts = alphas_cumprod(), contexts(all_prompts())

    def prompts(self, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The prompt of each label, with the object, the style or both left unsaid now and then."""
        luck = torch.rand(labels.shape, generator=generator)
        no_object = luck < DROP_BOTH + DROP_OBJECT
        no_style = (luck < DROP_BOTH) | (no_object.logical_not() & (luck < DROP_BOTH + DROP_OBJECT + DROP_STYLE))
        style = torch.where(no_style, len(STYLES), labels // len(OBJECTS))
        return prompt_index(style, torch.where(no_object, len(OBJECTS), labels % len(OBJECTS)))

    def loss(self, unet: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Epsilon error weighted by min(SNR, gamma) / SNR (Hang et al. 2023), normalised over the batch."""
        copies, pictures = self.pool.shape[:2]
        labels = torch.randint(pictures, (self.batch,), generator=generator)
        latents = self.pool[torch.randint(copies, (self.batch,), generator=generator), labels]
        # one timestep in each of `batch` equal strata: less variance from step to step
        t = (torch.arange(self.batch) + torch.rand(self.batch, generator=generator)) * (1000 / self.batch)
        t = t.long().clamp_(max=999)
        noise = torch.randn(latents.shape, generator=generator)
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        context = self.contexts[self.prompts(labels, generator)]
        predicted = unet(noisy.to(self.device), t.to(self.device), context.to(self.device)).float()
        weight = (MIN_SNR_GAMMA * (1 - a) / a).clamp(max=1.0).to(self.device)
        return (weight * (predicted - noise.to(self.device)).pow(2)).mean() / weight.mean()


@torch.no_grad()
def sample(unet: nn.Module, context: torch.Tensor, empty: torch.Tensor, seed: int, steps: int = 12,
           guidance: float = 3.0, device: str = "cpu") -> torch.Tensor:
    """DDIM latents for each context [n, 77, 768]: a quick look while training, not the benchmark."""
    alphas = alphas_cumprod()
    x = torch.randn(len(context), 4, 12, 12, generator=torch.Generator().manual_seed(seed)).to(device)
    both = torch.cat([context, empty.expand_as(context)]).to(device)
    times = torch.linspace(999, 0, steps + 1).long()
    for now, then in pairwise(times):
        with torch.autocast(device, dtype=torch.bfloat16):
            eps, eps_empty = unet(torch.cat([x, x]), now.expand(len(both)).to(device), both).float().chunk(2)
        eps = eps_empty + guidance * (eps - eps_empty)
        a, b = alphas[now], alphas[then]
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    return x


@torch.no_grad()
def decode(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Pictures in 0..1 from latents as the UNet has them."""
    return vae.taesd_decoder((latents / 0.18215 - vae.vae_shift) * vae.vae_scale).clamp(0, 1)


def save_grid(pictures: torch.Tensor, columns: int, path: Path) -> None:
    """Write [n, 3, h, w] pictures as one PNG, row by row."""
    from PIL import Image
    n, _, h, w = pictures.shape
    grid = pictures.view(n // columns, columns, 3, h, w).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(n // columns * h, columns * w, 3)
    Image.fromarray((grid * 255).round().byte().cpu().numpy()).save(path)


def cached_pool(path: Path, vae: nn.Module, copies: int, device: str) -> torch.Tensor:
    """The pool of `latent_pool`, kept beside the checkpoints for the next resume."""
    if not path.exists():
        print("encoding pictures", flush=True)
        save_atomically({"pool": latent_pool(vae, copies, device)}, path)
    return load_file(path)["pool"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for unet.safetensors and checkpoints")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--copies", type=int, default=64, help="placements of each drawing in the latent pool")
    parser.add_argument("--init", type=Path, help="start from the weights of this file")
    parser.add_argument("--all-ears", action="store_true", help="let words enter at every cross-attention block")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    vae = new_vae()
    vae.load_state_dict(load_file(options.vae))
    vae.float().requires_grad_(False)
    config = TrainConfig(options.out / "unet-run", options.steps, ema=0.9985)
    pool = cached_pool(config.folder / "pool.safetensors", vae, options.copies, options.device)
    unet = new_unet()
    if options.init:
        unet.load_state_dict(load_file(options.init))
    if not options.all_ears:
        deafen(unet)
    batches, run = Batches(pool, options.batch, options.device), Run(unet, config, options.device)

    def report(run: Run) -> None:
        unet = run.averaged()
        save_atomically({k: v.half() for k, v in unet.state_dict().items()}, options.out / "unet.safetensors")
        wanted = torch.tensor([[prompt_index(s, o) for o in range(0, len(OBJECTS), 3)] for s in range(len(STYLES))])
        empty = batches.contexts[-1:]
        latents = sample(unet, batches.contexts[wanted.flatten()], empty, seed=run.step, device=options.device)
        save_grid(decode(vae, latents), wanted.shape[1], options.out / f"unet-{run.step:06d}.png")
        run.swap_back()
    run.train(batches.loss, report, report_every=500)


if __name__ == "__main__":
    main()

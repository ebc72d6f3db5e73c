"""Train MiniCanvas's UNet to predict the noise in a picture's latents (the SD 1.x schedule, epsilon prediction).

    python -m benchmarks.minicanvas.train_unet --vae benchmarks/minicanvas/weights/vae.safetensors --out run
"""
import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from sae_models.learning.sparse import bfloat16_is_fast

from .canvas import PAIRS, Scene, painted, random_scene
from .checkpoint import unpacked
from .harness import Run, TrainConfig, save_atomically
from .models import learn_faster, new_unet, new_vae
from .text import TEMPLATES, contexts, prompt

MIN_SNR_GAMMA = 5.0
NOTHING_SAID, NO_OBJECTS, NO_STYLE, NO_GROUND = 0.08, 0.1, 0.12, 0.12
TOWARDS_NOISE = 0.75
"""Timesteps are drawn as 1000 u^0.75: more of those at which what a picture shows is decided, fewer of the finish."""
MEET_EVERY = 40
"""Steps between two meetings of processes that train together."""
LOOK = ("a cat and a castle, noto style, on a blue ground", "a rose, mono style, on a striped ground",
        "a frog, twemoji style, on a dotted ground", "a key and a house, contrast style, on a yellow ground",
        "a penguin and a banana, fluent style, on a white ground", "a dog, noto style, on a dotted ground",
        "a guitar and a turtle, twemoji style, on a blue ground", "noto style, on a blue ground")


def alphas_cumprod() -> torch.Tensor:
    """SD's "scaled linear" schedule, [1000]."""
    return (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float()


def said(scene: Scene, generator: torch.Generator) -> str:
    """A prompt for `scene`: any template, now and then with something left unsaid."""
    nothing, objects, style, ground = (torch.rand(4, generator=generator) <
                                       torch.tensor((NOTHING_SAID, NO_OBJECTS, NO_STYLE, NO_GROUND))).tolist()
    if nothing:
        return ""
    mixed = torch.randperm(len(scene.objects), generator=generator).tolist()
    names = () if objects else tuple(scene.objects[i] for i in mixed)
    template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=generator))]
    return prompt(Scene(names, -1 if style else scene.style, -1 if ground else scene.background), template)


@torch.no_grad()
def encode(vae: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Latents as the UNet sees them."""
    return (vae.taesd_encoder(pictures) / vae.vae_scale + vae.vae_shift) * 0.18215


def make_pool(vae: nn.Module, device: str, prompts: int, copies: int, seed: int, pairs: float, painters: int,
              at_once: int = 250) -> dict[str, torch.Tensor]:
    """latents [prompts, copies, 4, h, w] of pictures of a scene each, contexts fp16 [prompts, 77, 768], on `device`;
    drawn by `painters` processes, encoded on `device`."""
    generator = torch.Generator().manual_seed(seed)
    scenes = [random_scene(generator, pairs) for _ in range(prompts)]
    words = contexts([said(scene, generator) for scene in scenes], device, torch.float16)
    parts = [scenes[i:i + at_once] for i in range(0, prompts, at_once)]
    latents = []
    with ProcessPoolExecutor(painters, get_context("spawn")) as studio:
        for part in studio.map(painted, parts, [copies] * len(parts), range(seed, seed + len(parts))):
            pictures = torch.from_numpy(part).to(device).float() / 255
            latents.append(encode(vae, pictures).unflatten(0, (-1, copies)))
    return {"latents": torch.cat(latents), "contexts": words}


class Batches:
    """Draws noisy latents with their prompts from a pool."""

    def __init__(self, pool: dict[str, torch.Tensor], batch: int, device: str) -> None:
        self.latents, self.contexts = (pool[name].to(device) for name in ("latents", "contexts"))
        self.batch, self.device, self.alphas = batch, device, alphas_cumprod().to(device)

    def loss(self, unet: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Epsilon error weighted by min(SNR, gamma) / SNR (Hang et al. 2023), normalised over the batch."""
        prompts, copies = self.latents.shape[:2]
        own = {"generator": torch.Generator(self.device).manual_seed(generator.initial_seed()), "device": self.device}
        which = torch.randint(prompts, (self.batch,), **own)
        latents = self.latents[which, torch.randint(copies, (self.batch,), **own)]
        # one timestep in each of `batch` equal strata: less variance from step to step
        u = (torch.arange(self.batch, device=self.device) + torch.rand(self.batch, **own)) / self.batch
        t = (1000 * u ** TOWARDS_NOISE).long().clamp_(max=999)
        noise = torch.randn(latents.shape, **own)
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        predicted = unet(noisy, t, self.contexts[which].float()).float()
        weight = (MIN_SNR_GAMMA * (1 - a) / a).clamp(max=1.0)
        return (weight * (predicted - noise).pow(2)).mean() / weight.mean()


@torch.no_grad()
def sample(unet: nn.Module, context: torch.Tensor, empty: torch.Tensor, seed: int, steps: int = 12,
           guidance: float = 2.5, device: str = "cpu") -> torch.Tensor:
    """DDIM latents for each context [n, 77, 768]: a quick look while training, not the benchmark."""
    alphas = alphas_cumprod()
    x = torch.randn(len(context), 4, 12, 12, generator=torch.Generator().manual_seed(seed)).to(device)
    both = torch.cat([context, empty.expand_as(context)]).to(device)
    times = torch.linspace(999, 0, steps + 1).long().tolist()
    for now, then in pairwise(times):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16_is_fast(device)):
            at = torch.full((len(both),), now, device=device)
            eps, eps_empty = unet(torch.cat([x, x]), at, both).float().chunk(2)
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


def cached_pool(path: Path, vae: nn.Module, device: str, *of_what: float) -> dict[str, torch.Tensor]:
    """The pool of `make_pool(vae, device, *of_what)`, kept beside the checkpoints for the next resume; a GPU makes a
    far larger one anew in seconds."""
    if path.exists():
        return load_file(path)
    print("painting and encoding pictures", flush=True)
    pool = make_pool(vae, device, *of_what)
    if device == "cpu":
        save_atomically(pool, path)
    return pool


def widen(unet: nn.Module, old: dict[str, torch.Tensor]) -> None:
    """Start from a UNet's weights, perhaps a narrower one's: what it lacks adds nothing at first, and every
    cross-attention can hear."""
    missing, unexpected = unet.load_state_dict(old, strict=False)
    print(f"new: {len(missing)} tensors, not used: {unexpected}", flush=True)
    for name, module in unet.named_modules():
        if name.endswith("attn2") and not module.to_v.weight.any():
            nn.init.kaiming_uniform_(module.to_v.weight, a=5 ** 0.5)
            nn.init.zeros_(module.to_out[0].weight)


@torch.no_grad()
def meet(params: dict[str, torch.Tensor], mine: Path, theirs: Path) -> None:
    """Local SGD: leave these weights for the other process, and go half way to those it left last."""
    save_atomically({name: value.detach() for name, value in params.items()}, mine)
    if theirs.exists():
        for name, value in load_file(theirs).items():
            params[name].lerp_(value.to(params[name]), 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for unet.safetensors and checkpoints")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--minutes", type=float, help="end by the clock instead; the learning rate falls with it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2.5e-4)
    parser.add_argument("--prompts", type=int, default=3000, help="different prompts in the pool")
    parser.add_argument("--copies", type=int, default=2, help="pictures of each prompt in the pool")
    parser.add_argument("--seed", type=int, default=1, help="of the pool")
    parser.add_argument("--pairs", type=float, default=PAIRS, help="share of pictures with two objects")
    parser.add_argument("--look-every", type=int, default=250)
    parser.add_argument("--init", type=Path, help="start from the weights of this file, such as those in weights/")
    parser.add_argument("--peer", type=Path, help="--out of another process of this script, to average with")
    parser.add_argument("--lane", type=int, default=0, help="another number, other noise: for processes that average")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--painters", type=int, default=1, help="processes that draw the pictures of the pool")
    parser.add_argument("--compile", action="store_true", help="a tenth faster where there is a C++ compiler")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cpu":
        learn_faster()
    vae = new_vae()
    vae.load_state_dict({k: v.float() for k, v in load_file(options.vae).items()})
    vae.float().requires_grad_(False).to(options.device)
    config = TrainConfig(options.out / "unet-run", options.steps, lr=options.lr, ema=0.998, minutes=options.minutes)
    pool = cached_pool(config.folder / f"pool-{options.seed}.safetensors", vae, options.device, options.prompts,
                       options.copies, options.seed, options.pairs, options.painters)
    unet = new_unet()
    if options.init:
        widen(unet, {k: v.float() for k, v in unpacked(load_file(options.init)).items()})
    batches, run = Batches(pool, options.batch, options.device), Run(unet, config, options.device)
    words, empty = contexts(list(LOOK)), contexts([""])

    def report(run: Run) -> None:
        unet = run.averaged()
        save_atomically({k: v.half() for k, v in unet.state_dict().items()}, options.out / "unet.safetensors")
        latents = sample(unet, words, empty, seed=0, device=options.device)
        save_grid(decode(vae, latents), len(LOOK), options.out / f"unet-{run.step:06d}.png")
        run.swap_back()

    learner = torch.compile(unet) if options.compile else unet

    def loss(_: nn.Module, generator: torch.Generator) -> torch.Tensor:
        if options.peer and run.step % MEET_EVERY == 0:
            meet(run.params, config.folder / "left.safetensors", options.peer / "unet-run" / "left.safetensors")
        return batches.loss(learner, generator.manual_seed(run.step + 1_000_003 * options.lane))
    run.train(loss, report, report_every=options.look_every)


if __name__ == "__main__":
    main()

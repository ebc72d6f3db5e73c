"""ComfyUI's own loader, text encoder, sampler and VAE, called in this process for batches of different prompts.

The server samples one prompt a graph; here a batch of prompts shares one call, in bfloat16, which is several times
faster on a CPU.
"""
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from . import models  # noqa: F401  (puts ComfyUI on the path)

import comfy.model_management  # isort: skip
import comfy.sample  # isort: skip
import comfy.sd  # isort: skip

STEPS, CFG, SAMPLER, SCHEDULER, LATENT_PX = 20, 2.5, "euler", "normal", 12


class MiniCanvas:
    """A loaded checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.model, self.clip, self.vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
        self._contexts: dict[str, Tensor] = {}

    def contexts(self, prompts: list[str]) -> Tensor:
        """Text encodings [n, 77, 768], kept for the next call."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._contexts:
                self._contexts[prompt] = self.clip.encode_from_tokens(self.clip.tokenize(prompt))
        return torch.cat([self._contexts[prompt] for prompt in prompts])

    def sample(self, prompts: list[str], seeds: list[int], model=None, negatives: list[str] | None = None) -> Tensor:
        """Latents [n, 4, h, w] of each prompt with its own seed, as one batch."""
        noise = torch.cat([torch.randn(1, 4, LATENT_PX, LATENT_PX, generator=torch.Generator().manual_seed(seed))
                           for seed in seeds])
        positive = [[self.contexts(prompts), {}]]
        negative = [[self.contexts(negatives or [""] * len(prompts)), {}]]
        with _fast():
            return comfy.sample.sample(model or self.model, noise, STEPS, CFG, SAMPLER, SCHEDULER, positive, negative,
                                       torch.zeros_like(noise), disable_pbar=True, seed=seeds[0])

    def pictures(self, latents: Tensor) -> Tensor:
        """Decoded pictures [n, 3, px, px] in 0..1."""
        with _fast():
            return self.vae.decode(latents).movedim(-1, 1).float().clamp(0, 1)

    def block(self, path: str) -> torch.nn.Module:
        return self.model.model.diffusion_model.get_submodule(path)

    def output_at(self, path: str, latents: Tensor, sigma: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
        """(the block's output, the model's prediction of the clean latents) for noisy latents [n] at sigma [n]."""
        comfy.model_management.load_models_gpu([self.model])
        seen: list[Tensor] = []
        with _fast(), hooked(self.block(path), seen):
            clean = self.model.model.apply_model(latents, sigma, c_crossattn=contexts, transformer_options={})
        return seen[0], clean


@contextmanager
def _fast():
    device = comfy.model_management.get_torch_device().type
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        yield


@contextmanager
def hooked(module: torch.nn.Module, seen: list[Tensor]):
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield
    finally:
        handle.remove()

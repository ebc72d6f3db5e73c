"""What a block of the user's own model puts out while it paints, with and without each concept's words.

A chunk is a batch of prompts, sampled as a user would. At a few random steps the block's output is kept, and the same
call is made once more with one concept of each prompt left out: what differs is what its words contribute. In every
second chunk the prompts are dealt anew at that point, because an erased picture looks like that: the prompt says cat
and the canvas shows none.
"""
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..sae_models import hookpoint
from ..sae_models.errors import SaeError
from ..sae_models.learning.maps import Maps
from ..sae_models.learning.prompts import Prompt
from .patch import KEY

HELD_OUT = 1_000_000
"""Chunks from this number on are never mixed: what a trained SAE is judged on."""


@dataclass(frozen=True)
class Painting:
    """How the pictures are painted. batch: pictures at once; steps_kept: of each picture's steps."""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    negative: str = ""
    batch: int = 8
    steps_kept: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps_kept <= self.steps:
            raise SaeError(f"expected steps kept of a picture in 1..{self.steps} (its steps), got {self.steps_kept}")
        if self.batch < 1:
            raise SaeError(f"expected at least 1 picture at once, got {self.batch}")


@dataclass
class Encoded:
    """A prompt as the model reads it: [1, length, width], and pooled [1, width] where the model uses that."""
    context: torch.Tensor
    pooled: torch.Tensor | None


@dataclass
class Collector:
    """Makes chunks of maps from a loaded model; `tick()` is called at every sampling step."""
    model: ModelPatcher
    clip: Any
    prompts: Sequence[Prompt]
    n_concepts: int
    hookpoint: str
    painting: Painting
    residual: bool = False
    tick: Callable[[], None] = lambda: None
    _encoded: dict[str, Encoded] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        hookpoint.find(self.model.model.diffusion_model, self.hookpoint)
        if self.model.get_attachment(KEY):
            raise SaeError("this model already has a SAEmnesia Erase node: train on the model as it comes from the "
                           "checkpoint or LoRA")

    def chunk(self, number: int) -> Maps:
        """Maps of one batch of pictures; the same number gives the same maps."""
        generator = torch.Generator().manual_seed(self.painting.seed * 1_000_003 + number)
        said = self._deal(number)
        kept = torch.randperm(self.painting.steps, generator=generator)[:self.painting.steps_kept].tolist()
        recorder = _Recorder(self, said, set(kept), number % 2 == 1 and number < HELD_OUT, generator)
        model = self.model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "saemnesia collect", recorder)
        self._paint(model, said, generator)
        return recorder.maps()

    def _deal(self, number: int) -> list[Prompt]:
        """The chunk's prompts: every prompt once, in a random order, before any comes again."""
        places = range(number * self.painting.batch, (number + 1) * self.painting.batch)
        rounds = {place // len(self.prompts) for place in places}
        orders = {r: torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(self.painting.seed + r))
                  for r in rounds}
        return [self.prompts[orders[p // len(self.prompts)][p % len(self.prompts)]] for p in places]

    def _paint(self, model: ModelPatcher, said: Sequence[Prompt], generator: torch.Generator) -> None:
        p = self.painting
        channels = model.get_model_object("latent_format").latent_channels
        noise = torch.randn(len(said), channels, p.height // 8, p.width // 8, generator=generator)
        positive = self.conditioning([prompt.text for prompt in said])
        negative = self.conditioning([p.negative] * len(said))
        comfy.sample.sample(model, noise, p.steps, p.cfg, p.sampler, p.scheduler, positive, negative,
                            torch.zeros_like(noise), callback=lambda *_: self.tick(), disable_pbar=True, seed=p.seed)

    def encoded(self, texts: Sequence[str]) -> Encoded:
        """Prompts as one batch.

        Raises SaeError for a prompt longer than the text encoder's window.
        """
        for text in set(texts) - set(self._encoded):
            context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
            self._encoded[text] = Encoded(context, pooled)
        parts = [self._encoded[text] for text in texts]
        longest = max(part.context.shape[1] for part in parts)
        if any(part.context.shape[1] != longest for part in parts):
            text = max(texts, key=len)
            raise SaeError(f"the prompt '{text[:60]}...' is too long: keep prompts to train on below 75 tokens")
        pooled = None if parts[0].pooled is None else torch.cat([part.pooled for part in parts])
        return Encoded(torch.cat([part.context for part in parts]), pooled)

    def conditioning(self, texts: Sequence[str]) -> list:
        both = self.encoded(texts)
        return [[both.context, {} if both.pooled is None else {"pooled_output": both.pooled}]]


class _Recorder:
    """WrappersMP.APPLY_MODEL of one chunk: keeps the block's output of conditional rows at the kept steps."""

    def __init__(self, collector: Collector, said: Sequence[Prompt], kept: set[int], mixed: bool,
                 generator: torch.Generator) -> None:
        self.collector, self.said, self.kept, self.mixed, self.generator = collector, list(said), kept, mixed, generator
        self.parts: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None, c_crossattn: Any = None,
                 control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> torch.Tensor:
        options = transformer_options or {}
        chunks = options.get("cond_or_uncond", [0])
        step = int((options["sample_sigmas"].to(t) - t[0]).abs().argmin())
        if step in self.kept and 0 in chunks:
            self.kept.discard(step)
            rows = slice(chunks.index(0) * len(self.said), (chunks.index(0) + 1) * len(self.said))
            self._record(executor, x[rows], t[rows], options | {"cond_or_uncond": [0]})
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _record(self, executor: Any, x: torch.Tensor, t: torch.Tensor, options: dict) -> None:
        said = self.said
        if self.mixed:
            said = [said[i] for i in torch.randperm(len(said), generator=self.generator).tolist()]
        choice = [int(torch.randint(len(prompt.said), (), generator=self.generator)) for prompt in said]
        left_out = [prompt.without[i] for prompt, i in zip(said, choice, strict=True)]
        tokens, without = (self._tokens(executor, x, t, options, texts)
                           for texts in ([prompt.text for prompt in said], left_out))
        unsaid = torch.tensor([prompt.said[i] for prompt, i in zip(said, choice, strict=True)])
        labels = torch.zeros(len(said), self.collector.n_concepts, dtype=torch.bool)
        for row, prompt in enumerate(said):
            labels[row, list(prompt.said)] = True
        self.parts.append((tokens, without, unsaid, labels, t.float().cpu()))

    def _tokens(self, executor: Any, x: torch.Tensor, t: torch.Tensor, options: dict, texts: list[str]) -> torch.Tensor:
        """The block's output as fp16 tokens [n, N, d_in] on the CPU."""
        model, both = executor.class_obj, self.collector.encoded(texts)
        size = {"width": self.collector.painting.width, "height": self.collector.painting.height}
        conds = model.extra_conds(noise=x, device=x.device, cross_attn=both.context, pooled_output=both.pooled, **size)
        conds = {name: cond.process_cond(batch_size=len(x), device=x.device, area=None).cond
                 for name, cond in conds.items()}
        seen: list[torch.Tensor] = []
        unet = getattr(model.diffusion_model, "_orig_mod", model.diffusion_model)
        block = hookpoint.find(unet, self.collector.hookpoint)
        handle = block.register_forward_hook(lambda _, inputs, output: seen.append(
            output - inputs[0] if self.collector.residual else output))
        try:
            executor(x, t, conds.pop("c_concat", None), conds.pop("c_crossattn"), None, options, **conds)
        finally:
            handle.remove()
        return seen[0].flatten(2).mT.to("cpu", torch.float16)

    def maps(self) -> Maps:
        if self.kept:
            raise SaeError("the sampler left out steps that were to be kept: choose 'euler' to train with")
        with torch.inference_mode(False):
            return Maps(*(torch.cat(column).clone() for column in zip(*self.parts, strict=True)))


def fingerprint(model: ModelPatcher) -> str:
    """Of the UNet's weights and of the LoRAs on it: another for another checkpoint."""
    digest = hashlib.sha256()
    for name, value in sorted(model.model.diffusion_model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.flatten()[:64].float().cpu().numpy().tobytes())
    for name, patches in sorted(model.patches.items()):
        digest.update(f"{name} {[patch[0] for patch in patches]}".encode())
    return digest.hexdigest()[:16]

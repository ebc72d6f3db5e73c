"""Pictures painted with the user's own model to learn from or to measure on, with a look at some of the steps.

At a step that is to be kept, `look` gets a `Step`: the noisy pictures as they are, and the model, to ask what it
predicts for other prompts.
"""
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..sae_models.adapter import Block
from ..sae_models.errors import SaeError
from .taps import Tap, tapped


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
class Painter:
    """Paints with a loaded model; `tick` is called at every sampling step, with the latents as far as they are
    painted, or with None where the step was done before."""
    model: ModelPatcher
    clip: Any
    painting: Painting
    tick: Callable[[torch.Tensor | None], None] = lambda x0: None
    _encoded: dict[str, Encoded] = field(default_factory=dict, repr=False)

    def paint(self, texts: Sequence[str], generator: torch.Generator, kept: Collection[int],
              look: Callable[["Step"], None] = lambda step: None) -> torch.Tensor:
        """The latents of one batch; `look` is called before the model at each kept step.

        Raises SaeError when the sampler leaves one of them out.
        """
        p, visitor = self.painting, _Visitor(self, len(texts), set(kept), look)
        model = self.model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "saemnesia look", visitor)
        channels = model.get_model_object("latent_format").latent_channels
        noise = torch.randn(len(texts), channels, p.height // 8, p.width // 8, generator=generator)
        latents = comfy.sample.sample(
            model, noise, p.steps, p.cfg, p.sampler, p.scheduler, self.conditioning(texts),
            self.conditioning([p.negative] * len(texts)), torch.zeros_like(noise),
            callback=lambda i, x0, *_: self.tick(x0), disable_pbar=True, seed=p.seed)
        if visitor.kept:
            raise SaeError("the sampler left out steps that were to be kept: choose 'euler' to train with")
        return latents

    def skip(self) -> None:
        """Tick as for a batch that need not be painted again."""
        for _ in range(self.painting.steps):
            self.tick(None)

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


@dataclass(frozen=True)
class Step:
    """One step of n pictures: x [n, ...] at noise level t [n], and the model that paints them."""
    painter: Painter
    executor: Any
    x: torch.Tensor
    t: torch.Tensor
    options: dict

    @property
    def sigma(self) -> float:
        return float(self.t[0])

    def predict(self, texts: Sequence[str], taps: Mapping[Block, Tap] | None = None) -> torch.Tensor:
        """The pictures [n, ...] that the model predicts with these n prompts."""
        model, both, x, t = self.executor.class_obj, self.painter.encoded(texts), self.x, self.t
        size = {"width": self.painter.painting.width, "height": self.painter.painting.height}
        conds = model.extra_conds(noise=x, device=x.device, cross_attn=both.context, pooled_output=both.pooled,
                                  latent_image=torch.zeros_like(x), **size)
        conds = {name: cond.process_cond(batch_size=len(x), device=x.device, area=None).cond
                 for name, cond in conds.items()}
        with tapped(model.diffusion_model, self.options, taps or {}) as options:
            return self.executor(x, t, conds.pop("c_concat", None), conds.pop("c_crossattn"), None, options, **conds)


@dataclass
class _Visitor:
    """WrappersMP.APPLY_MODEL of one batch: looks at the conditional rows at the kept steps."""
    painter: Painter
    batch: int
    kept: set[int]
    look: Callable[[Step], None]

    def __call__(self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None, c_crossattn: Any = None,
                 control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> torch.Tensor:
        options = transformer_options or {}
        chunks = options.get("cond_or_uncond", [0])
        step = int((options["sample_sigmas"].to(t) - t[0]).abs().argmin())
        if step in self.kept and 0 in chunks:
            self.kept.discard(step)
            rows = slice(chunks.index(0) * self.batch, (chunks.index(0) + 1) * self.batch)
            self.look(Step(self.painter, executor, x[rows], t[rows], options | {"cond_or_uncond": [0]}))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

"""Pictures painted by ComfyUI to learn from or to measure on: its `Painter` and `Step` of `learning/painting`."""
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..sae_models.adapter import Block, Tap
from ..sae_models.errors import SaeError
from ..sae_models.learning.fingerprint import fingerprint as fingerprint_of
from ..sae_models.learning.painting import Painting
from ..sae_models.made_on import some
from .family import original_weights
from .patch import KEY
from .taps import tapped


@dataclass
class Encoded:
    """A prompt as the model reads it: [1, length, width], and pooled [1, width] where the model uses that."""
    context: torch.Tensor
    pooled: torch.Tensor | None


@dataclass
class Painter:
    """Paints with a loaded model; `tick` is called at every sampling step, with the latents as far as they are
    painted, or with None where the step was done before; `say` with what is done between two pictures."""
    model: ModelPatcher
    clip: Any
    painting: Painting
    tick: Callable[[torch.Tensor | None], None] = lambda x0: None
    say: Callable[[str], None] = lambda doing: None
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

    def identity(self) -> str:
        return f"{fingerprint(self.model)} {float(self.encoded(['a photo of it']).context.cpu().double().sum())}"

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        read = [self.encoded([text]) for text in texts]
        return torch.cat([one.context.mean(1) if one.pooled is None else one.pooled for one in read])

    def skip(self) -> None:
        """Tick as for a batch that need not be painted again."""
        for _ in range(self.painting.steps):
            self.tick(None)

    def make_room(self, size: int) -> torch.device:
        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(size, device)
        return device

    def check_stopped(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def going_on(self, doing: str) -> None:
        self.check_stopped()
        self.say(doing)

    def read(self, texts: Sequence[str]) -> None:
        for text in dict.fromkeys(texts):
            if text not in self._encoded:
                context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
                self._encoded[text] = Encoded(context, pooled)

    def encoded(self, texts: Sequence[str]) -> Encoded:
        """Prompts as one batch.

        Raises SaeError for a prompt longer than the text encoder's window.
        """
        self.read(texts)
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
        self.painter.check_stopped()
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


def untouched(model: ModelPatcher) -> ModelPatcher:
    """The model, to learn from.

    Raises SaeError when concepts are erased on it.
    """
    if model.get_attachment(KEY):
        raise SaeError("this model already has a SAEmnesia Erase node: train on the model as it comes from the "
                       "checkpoint or LoRA")
    return model


def fingerprint(model: ModelPatcher) -> str:
    """Of the UNet's weights as they come from the checkpoint, and of the LoRAs on them: another for another model."""
    return fingerprint_of(original_weights(model), _laid_over(model))


def _laid_over(model: ModelPatcher) -> Iterator[bytes]:
    """LoRAs by their tensors; of what is put between the modules, such as a LoRA in bypass mode, no more than that it
    is there."""
    yield from (name.encode() for name in sorted(model.injections))
    for name, patches in sorted(model.patches.items()):
        for strength, patch, *_ in patches:
            yield f"{name} {strength}".encode()
            yield b"".join(map(some, _tensors(patch)))


def _tensors(patch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a patch: a tuple, or one of the host's adapters, which keeps them in `weights`."""
    for part in getattr(patch, "weights", patch) if not isinstance(patch, torch.Tensor) else (patch,):
        if isinstance(part, torch.Tensor):
            yield part
        elif isinstance(part, list | tuple):
            yield from _tensors(part)

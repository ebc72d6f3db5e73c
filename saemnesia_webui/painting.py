"""Pictures painted by A1111 or Forge to learn from or to measure on: their `Painter` and `Step` of `learning/painting`.

The host announces every evaluation of the model (`on_cfg_denoiser`); before the UNet's call in it a hook looks, where
the step is to be kept, and asks the UNet for other prompts. Those are encoded before painting begins: meanwhile the
host may move the text encoder out of the way.
"""
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from sae_models import SaeError
from sae_models.adapter import Block, Tap
from sae_models.learning.fingerprint import fingerprint
from sae_models.learning.painting import Painting

from . import host
from .calls import Call
from .model import noise_levels, original_weights, picture_share, sigma_of_call, unet_of
from .rows import Rows

ENCODED_AT_ONCE = 8
POOLED = 1280
"""Of SDXL's vector, what is pooled from the text; the rest says sizes."""


@dataclass
class Painter:
    """Paints with the checkpoint that the host has loaded; `tick` is called at every step, also those that are not
    painted again (False); `say` with what is done between two pictures. _device: where the host called the model
    last."""
    model: Any
    painting: Painting
    tick: Callable[[bool], None] = lambda painted: None
    say: Callable[[str], None] = lambda doing: None
    _read: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    _visit: "_Visit | None" = None
    _name: str = field(default_factory=host.checkpoint_name)
    _device: torch.device = field(default_factory=host.device)

    def identity(self) -> str:
        said = float(self._said(["a photo of it"])["crossattn"].double().sum())
        return f"{fingerprint(original_weights(self.model))} {said}"

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """The last token has seen the whole text."""
        said = self._said(texts)
        return said["vector"][:, :POOLED] if "vector" in said else said["crossattn"][:, -1]

    def read(self, texts: Sequence[str]) -> None:
        """Encode what is to come up while painting.

        Raises SaeError for a prompt longer than the text encoder's window.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._read]
        for start in range(0, len(new), ENCODED_AT_ONCE):
            part = new[start:start + ENCODED_AT_ONCE]
            self._check()
            for name, values in host.encode(part, self.painting).items():
                for text, value in zip(part, values, strict=True):
                    self._read.setdefault(text, {})[name] = value.cpu()
        lengths = {len(self._read[text]["crossattn"]) for text in texts}
        if len(lengths) > 1:
            raise SaeError(f"the prompt '{max(texts, key=len)[:60]}...' is too long: say what to find in fewer words")

    def paint(self, texts: Sequence[str], generator: Generator, kept: Collection[int],
              look: Callable[["Step"], None]) -> None:
        seeds = torch.randint(2**31, (len(texts),), generator=generator).tolist()
        self._visit = visit = _Visit(self, len(texts), set(kept), look)
        hook = unet_of(self.model).register_forward_pre_hook(visit, with_kwargs=True)
        try:
            host.paint(texts, seeds, self.painting)
        except Exception:
            self._check()  # an interrupted run may fail over having no picture
            raise
        finally:
            hook.remove()
            self._visit = None
        self._check()
        if visit.kept:
            raise SaeError("the host's sampler left out steps that were to be looked at: another extension replaces "
                           "or skips the model (for example SD Unet); switch that off")

    def _check(self) -> None:
        """Raises SaeError where it was stopped, or another checkpoint was chosen meanwhile."""
        host.check_stopped()
        if host.checkpoint_name() != self._name or unet_of(host.current()) is not unet_of(self.model):
            raise SaeError("the checkpoint was changed while a word was being found on it, so nothing was written: "
                           "find the word again, and keep the checkpoint until that is done")

    def skip(self) -> None:
        host.skip_batch()
        for _ in range(self.painting.steps):
            self.tick(False)

    def make_room(self, size: int) -> torch.device:
        return self._device

    def going_on(self, doing: str) -> None:
        host.check_stopped()
        self.say(doing)

    def evaluation(self, params: Any) -> None:
        """The host is about to evaluate the model: `params` of its `on_cfg_denoiser`."""
        if self._visit is not None:
            self._visit.begin(Rows.of(params))
            self.tick(True)

    def _said(self, texts: Sequence[str]) -> dict[str, Tensor]:
        self.read(texts)
        return {name: torch.stack([self._read[text][name] for text in texts]) for name in self._read[texts[0]]}


@dataclass(frozen=True)
class Step:
    """One step of n pictures: the call that the host makes for their conditional rows, without what they say."""
    painter: Painter
    call: Call
    t: Tensor

    @property
    def sigma(self) -> float:
        return float(self.t[0])

    def predict(self, texts: Sequence[str], wanted: Mapping[Block, Tap] | None = None) -> Tensor:
        said, kwargs = self.painter._said(texts), dict(self.call.kwargs)
        kwargs["context"] = said["crossattn"].to(kwargs["context"])
        if "vector" in said and kwargs.get("y") is not None:
            kwargs["y"] = said["vector"].to(kwargs["y"])
        out = replace(self.call, kwargs=kwargs).again(wanted)
        return -picture_share(self.painter.model, self.sigma) * out.float()


@dataclass
class _Visit:
    """A hook before every call of the UNet while one batch is painted: looks at its conditional rows at the kept
    steps."""
    painter: Painter
    batch: int
    kept: set[int]
    look: Callable[[Step], None]
    step: int = -1
    rows: Rows = field(default_factory=Rows)

    def begin(self, rows: Rows) -> None:
        """An evaluation begins: with Euler, a step."""
        self.step, self.rows = self.step + 1, rows

    def __call__(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        host.check_stopped()
        conditional = self.rows.of_call(args[0], kwargs.get("transformer_options"))
        if self.step not in self.kept or conditional is None or int(conditional.sum()) != self.batch:
            return
        self.kept.discard(self.step)
        sigma = sigma_of_call(noise_levels(self.painter.model), args, kwargs)
        self.painter._device = args[0].device
        t = torch.full((self.batch,), sigma, device=args[0].device)
        self.look(Step(self.painter, Call(unet, args, kwargs).of(conditional), t))

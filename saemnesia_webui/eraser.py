"""Hooks on the host's UNet that run the armed job, and refuse to paint when it cannot be done.

Before every model evaluation the host announces it (`on_cfg_denoiser`); then the UNet gets two hooks. One, before a
call, notes the noise level and hooks the SAE's block; the other, after it or after an exception in it, takes that hook
away again and checks that the block ran. So swapped models, split calls and passes inside other extensions are all
met, and the block itself is hooked only while the UNet runs.
"""
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sae_models import SaeError
from sae_models.adapter import conditional_rows

from .job import Job
from .model import unet_of

AUTOCAST = ("cuda", "cpu", "xpu")
log = logging.getLogger("saemnesia")


class Refused:
    """Takes the place of latents that must not become a picture: whatever is done with it raises the sentence."""

    def __init__(self, error: SaeError) -> None:
        object.__setattr__(self, "_error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "_error")


@dataclass
class _Rows:
    """One evaluation's rows, in as many calls as the host likes: the first `conditional` of `total` are conditional."""
    conditional: int = 0
    total: int = 0
    seen: int = 0

    @classmethod
    def of(cls, params: Any) -> "_Rows":
        """`x` holds all rows in A1111; Forge says in the call itself which are which."""
        cond = params.text_cond
        cond = cond.get("crossattn") if isinstance(cond, dict) else cond
        return cls(0 if cond is None else len(cond), len(params.x))

    def take(self, x: Tensor) -> Tensor | None:
        """bool [rows] for the next call's x; None when there are more rows than were announced."""
        first, self.seen = self.seen, self.seen + len(x)
        if self.seen > self.total:
            return None
        return torch.arange(first, self.seen, device=x.device) < self.conditional


class Eraser:
    """At most one armed job, and the hooks that are in place for it."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._unet: nn.Module | None = None
        self._hooks: list = []
        self._block_hooks: list = []
        self._rows = _Rows()
        self._ran = False

    def disarm(self) -> None:
        self.detach()
        self.job = None

    def detach(self) -> None:
        """Take every hook away; the job stays armed and comes back with the next evaluation."""
        self._unhook_block()
        for handle in self._hooks:
            handle.remove()
        self._hooks, self._unet = [], None

    def evaluation(self, sd_model: Any, params: Any) -> None:
        """The host is about to evaluate the model: `params` of its `on_cfg_denoiser`, whose exceptions it swallows."""
        job = self.job
        if job is None:
            return self.detach()
        if not job.settings.hires and getattr(getattr(params.denoiser, "p", None), "is_hr_pass", False):
            job.skipped = True
            return self.detach()
        try:
            job.announce(sd_model)
            self._rows = _Rows.of(params)
            self._attach(unet_of(sd_model))
        except Exception as error:  # nothing to hook: `finished` then refuses the picture
            job.fail(error)

    def finished(self, samples: Any) -> Any:
        """Sampling is over: the samples, or what takes their place when they must not be shown."""
        self.detach()
        if self.job is None:
            return samples
        error = self.job.verdict()
        if error:
            log.error("SAEmnesia: %s", error)
            return Refused(error)
        if self.job.erased:
            log.info("%s", self.job.summary())
        return samples

    def _attach(self, unet: nn.Module) -> None:
        if self._unet is unet:
            return
        self.detach()
        self._unet = unet
        self._hooks = [unet.register_forward_pre_hook(self._before, with_kwargs=True),
                       unet.register_forward_hook(self._after, always_call=True)]

    def _before(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """A call of the UNet begins."""
        job = self.job
        if job.error:
            self._refuse(job.error)
        options = kwargs.get("transformer_options") or {}
        noise = options.get("sigmas")
        if noise is None:
            timestep = kwargs.get("timesteps", args[1] if len(args) > 1 else None)
            sigma = job.fitted.levels.sigma(float(timestep.max()))
        else:
            sigma = float(noise.max())
        conditional = self._conditional(args[0], options.get("cond_or_uncond")) if job.edit.conditional_only else None
        job.tally.model_calls += 1
        self._ran = False
        self._unhook_block()
        self._block_hooks = [job.fitted.block.register_forward_hook(self._editing(job, sigma, conditional))]

    def _conditional(self, x: Tensor, cond_or_uncond: Any) -> Tensor:
        """bool [rows]: told by the host, or counted: in an evaluation the conditional rows come first."""
        found = conditional_rows(len(x), cond_or_uncond, x.device) if cond_or_uncond else self._rows.take(x)
        if found is None:
            self._refuse(SaeError("cannot tell which rows of this model call belong to the prompt, because another "
                                  "extension arranges them: set 'apply to' to 'both'"))
        return found

    def _editing(self, job: Job, sigma: float, conditional: Tensor | None):
        def hook(block: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            if conditional is not None and len(conditional) != len(output):
                self._refuse(SaeError("cannot tell which rows of this block belong to the prompt: "
                                      "set 'apply to' to 'both'"))
            with _full_precision(output.device):
                erased = job.fitted.erasure(output, sigma, conditional, inputs[0])
            job.tally.add(job.sae.block, sigma, erased.fired)
            self._ran, job.pending = True, False
            return erased.out
        return hook

    def _after(self, unet: nn.Module, args: tuple, output: Any) -> None:
        """A call of the UNet ended, with None for an exception (whose hooks torch is just going through)."""
        self._unhook_block()
        if output is not None and not self._ran:
            self._refuse(self.job.not_run())

    def _refuse(self, error: SaeError) -> NoReturn:
        """Leave nothing on the model and raise in the middle of it: the only exceptions the hosts let through."""
        self.job.fail(error)
        self.detach()
        raise error

    def _unhook_block(self) -> None:
        for handle in self._block_hooks:
            handle.remove()
        self._block_hooks = []


def _full_precision(device: torch.device) -> AbstractContextManager:
    """A1111 samples under autocast, which would compute the edit in half precision whatever the tensors are."""
    return torch.autocast(device.type, enabled=False) if device.type in AUTOCAST else nullcontext()

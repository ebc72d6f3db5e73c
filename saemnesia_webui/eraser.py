"""Hooks on the host's UNet that run the armed job, and refuse to paint when it cannot be done.

Before every model evaluation the host announces it (`on_cfg_denoiser`); then the UNet gets two hooks. One, before a
call, notes the noise level and hooks the SAE's places; the other, after it or after an exception in it, takes those
hooks away again and checks that all places ran. So swapped models, split calls and passes inside other extensions are
all met, and the places themselves are hooked only while the UNet runs. Forge's family hands the output of a
cross-attention to patches, also where another extension replaces it and the module does not run: there we are such a
patch.
"""
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sae_models import SaeError
from sae_models.adapter import CONDITIONAL_ONLY, Block, conditional_rows, with_attention_patch

from .job import Fitted, Job
from .model import unet_of

Editing = Callable[..., Tensor]
"""(place, its output, the input of its block) -> the output with the edit."""
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
        self._place_hooks: list = []
        self._rows = _Rows()

    def disarm(self) -> None:
        self.detach()
        self.job = None

    def detach(self) -> None:
        """Take every hook away; the job stays armed and comes back with the next evaluation."""
        self._unhook_places()
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

    def _before(self, unet: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """A call of the UNet begins: its arguments, with our patch among them."""
        job = self.job
        if job.error:
            self._refuse(job.error)
        options = kwargs.get("transformer_options") or {}
        only = job.settings.apply_to == CONDITIONAL_ONLY
        conditional = self._conditional(args[0], options.get("cond_or_uncond")) if only else None
        job.tally.model_calls += 1
        job.ran.clear()
        return args, self._hook_places(job.fitted, self._editing(job, _sigma(job, args, kwargs), conditional), kwargs)

    def _hook_places(self, fitted: Fitted, edit: Editing, kwargs: dict) -> dict:
        """Hook every place; the keywords of the call, with our patch where the host takes one."""
        self._unhook_places()
        takes_patches = "transformer_options" in kwargs and bool(fitted.attentions)
        patched = set(fitted.attentions.values()) if takes_patches else set()
        self._place_hooks = [module.register_forward_hook(_hook(edit, block))
                             for block, module in fitted.modules.items() if block not in patched]
        if not takes_patches:
            return kwargs
        options = with_attention_patch(kwargs["transformer_options"] or {}, _patch(edit, fitted.attentions))
        return kwargs | {"transformer_options": options}

    def _conditional(self, x: Tensor, cond_or_uncond: Any) -> Tensor:
        """bool [rows]: told by the host, or counted: in an evaluation the conditional rows come first."""
        found = conditional_rows(len(x), cond_or_uncond, x.device) if cond_or_uncond else self._rows.take(x)
        if found is None:
            self._refuse(SaeError("cannot tell which rows of this model call belong to the prompt, because another "
                                  "extension arranges them: set 'apply to' to 'both'"))
        return found

    def _editing(self, job: Job, sigma: float, conditional: Tensor | None) -> Editing:
        def edit(block: Block, output: Tensor, x_in: Tensor | None = None) -> Tensor:
            if conditional is not None and len(conditional) != len(output):
                self._refuse(SaeError("cannot tell which rows of this block belong to the prompt: "
                                      "set 'apply to' to 'both'"))
            with _full_precision(output.device):
                erased = job.fitted.erasures[block](output, sigma, conditional, x_in)
            job.tally.add(block, sigma, erased.fired)
            job.ran.add(block)
            job.pending = False
            return erased.out
        return edit

    def _after(self, unet: nn.Module, args: tuple, output: Any) -> None:
        """A call of the UNet ended, with None for an exception (whose hooks torch is just going through)."""
        self._unhook_places()
        if output is not None and len(self.job.ran) < len(self.job.fitted.erasures):
            self._refuse(self.job.not_run())

    def _refuse(self, error: SaeError) -> NoReturn:
        """Leave nothing on the model and raise in the middle of it: the only exceptions the hosts let through."""
        self.job.fail(error)
        self.detach()
        raise error

    def _unhook_places(self) -> None:
        for handle in self._place_hooks:
            handle.remove()
        self._place_hooks = []


def _sigma(job: Job, args: tuple, kwargs: dict) -> float:
    """The noise level of a call of the UNet: Forge says it, A1111 says the timestep."""
    noise = (kwargs.get("transformer_options") or {}).get("sigmas")
    if noise is not None:
        return float(noise.max())
    timestep = kwargs.get("timesteps", args[1] if len(args) > 1 else None)
    return job.fitted.levels.sigma(float(timestep.max()))


def _hook(edit: Editing, block: Block) -> Callable:
    return lambda module, inputs, output: edit(block, output, inputs[0])


def _patch(edit: Editing, attentions: Mapping[tuple[str, int, int], Block]) -> Callable[[Tensor, dict], Tensor]:
    """Forge's attn2_output_patch: a cross-attention's output [B, N, C] before it is added to its input."""
    def patch(n: Tensor, extra_options: dict) -> Tensor:
        block = attentions.get((*extra_options["block"], extra_options.get("block_index", 0)))
        return n if block is None else edit(block, n)
    return patch


def _full_precision(device: torch.device) -> AbstractContextManager:
    """A1111 samples under autocast, which would compute the edit in half precision whatever the tensors are."""
    return torch.autocast(device.type, enabled=False) if device.type in AUTOCAST else nullcontext()

"""Hooks on the host's UNet that run the armed job, and refuse to paint when it cannot be done.

Before every model evaluation the host announces it (`on_cfg_denoiser`); then the UNet gets two hooks. One, before a
call, notes the noise level and hooks the SAE's places; the other, after it or after an exception in it, takes those
hooks away again and checks that all places ran. So swapped models, split calls and passes inside other extensions are
all met, and the places themselves are hooked only while the UNet runs.
"""
import logging
from typing import Any, NoReturn

from torch import Tensor, nn

from sae_models import SaeError
from sae_models.adapter import CONDITIONAL_ONLY, Block

from . import taps
from .job import Job
from .model import sigma_of_call, unet_of
from .rows import Rows

log = logging.getLogger("saemnesia")


class Refused:
    """Takes the place of latents that must not become a picture: whatever is done with it raises the sentence."""

    def __init__(self, error: SaeError) -> None:
        object.__setattr__(self, "_error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "_error")


class Eraser:
    """At most one armed job, and the hooks that are in place for it."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._unet: nn.Module | None = None
        self._hooks: list = []
        self._place_hooks: list = []
        self._rows = Rows()

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
            self._rows = Rows.of(params)
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
        only = job.settings.apply_to == CONDITIONAL_ONLY
        conditional = self._conditional(args[0], kwargs.get("transformer_options")) if only else None
        job.tally.model_calls += 1
        job.ran.clear()
        self._unhook_places()
        editing = self._editing(job, sigma_of_call(job.fitted.levels, args, kwargs), conditional)
        self._place_hooks, kwargs = taps.attach(job.fitted.modules, job.fitted.attentions, editing, kwargs)
        return args, kwargs

    def _conditional(self, x: Tensor, options: dict | None) -> Tensor:
        """bool [rows]: told by the host, or counted: in an evaluation the conditional rows come first."""
        found = self._rows.of_call(x, options)
        if found is None:
            self._refuse(SaeError("cannot tell which rows of this model call belong to the prompt, because another "
                                  "extension arranges them: set 'apply to' to 'both'"))
        return found

    def _editing(self, job: Job, sigma: float, conditional: Tensor | None) -> taps.Editing:
        def edit(block: Block, output: Tensor, x_in: Tensor | None = None) -> Tensor:
            if conditional is not None and len(conditional) != len(output):
                self._refuse(SaeError("cannot tell which rows of this block belong to the prompt: "
                                      "set 'apply to' to 'both'"))
            with taps.full_precision(output.device):
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


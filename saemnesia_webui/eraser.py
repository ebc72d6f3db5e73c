"""Hooks on the host's UNet that run the armed job, and refuse to paint when it cannot be done.

Before every model evaluation the host announces it (`on_cfg_denoiser`); then the UNet gets two hooks. One, before a
call, notes the noise level and hooks the SAE's places; the other, after it or after an exception in it, takes those
hooks away again and checks that all places ran. So swapped models, split calls and passes inside other extensions are
all met, and the places themselves are hooked only while the UNet runs.

A job is armed for one run of the host. Where that run broke, nobody tells us: the next pass of another run disarms it.
"""
import logging
import weakref
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sae_models import SaeError
from sae_models.adapter import CONDITIONAL_ONLY, Block
from sae_models.erasure import Actuator, NoiseLevel, alone
from sae_models.voting import noise, random_state, rows_of

from . import taps
from .calls import Call
from .job import Job
from .model import LATENT, noise_of_call, unet_of
from .rows import Rows

PROMPTS = 4
"""That are voted about in one run: a prompt that changes from step to step, as `[cat|dog]`, would double its time."""
log = logging.getLogger("saemnesia")


class Refused:
    """Takes the place of latents that must not become a picture: whatever is done with it raises the sentence."""

    def __init__(self, error: SaeError) -> None:
        object.__setattr__(self, "_error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "_error")


class Eraser:
    """At most one armed job, and the hooks that are in place for it. running: tells the host's runs apart."""

    def __init__(self, running: Callable[[], Any]) -> None:
        self.job: Job | None = None
        self._running = running
        self._run: Any = None
        self._p: Callable[[], Any] = lambda: None
        self._unet: nn.Module | None = None
        self._hooks: list = []
        self._place_hooks: list = []
        self._rows, self._number, self._compared = Rows(), 0, False
        self._contexts: dict[Hashable, Tensor | None] = {}
        self._prompts: list[Hashable] = []
        self._prompt: Hashable = None

    def arm(self, job: Job, p: Any) -> None:
        """For the host's run that begins with `p`, and the passes inside it."""
        self.job, self._run, self._p = job, self._running(), weakref.ref(p)
        self._contexts.clear()
        self._compared = False

    def disarm(self) -> None:
        self.detach()
        self.job = None
        self._contexts.clear()

    def detach(self) -> None:
        """Take every hook away; the job stays armed and comes back with the next evaluation."""
        self._unhook_places()
        for handle in self._hooks:
            handle.remove()
        self._hooks, self._unet = [], None

    def evaluation(self, sd_model: Any, params: Any) -> None:
        """The host is about to evaluate the model: `params` of its `on_cfg_denoiser`, whose exceptions it swallows."""
        p = getattr(params.denoiser, "p", None)
        if p is not None and p is self._p():
            self._run = self._running()
        elif self._over():
            self.disarm()
        job = self.job
        if job is None:
            return self.detach()
        if not job.settings.hires and getattr(p, "is_hr_pass", False):
            job.skipped = True
            return self.detach()
        try:
            before = job.fitted
            job.announce(sd_model)
            if job.fitted is not before:  # another model, as a refiner is, reads the same prompt in its own way
                self._contexts.clear()
            self._rows, self._number, self._prompt = Rows.of(params), 0, self._voted_about(prompt_of(params.denoiser))
            self._attach(unet_of(sd_model))
        except Exception as error:  # nothing to hook: `finished` then refuses the picture
            job.fail(error)

    def _over(self) -> bool:
        """Whether the host does something else than what the job was armed for."""
        return self._running() != self._run

    def finished(self, samples: Any, stopped: bool) -> Any:
        """Sampling is over: the samples, or what takes their place when they must not be shown; stopped: somebody
        interrupted it."""
        self.detach()
        if self.job is None:
            return samples
        error = self.job.verdict(stopped)
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
        if self._over():  # a UNet called without a word, as training does, after a run that broke
            self.disarm()
            return args, kwargs
        if job.error:
            self._refuse(job.error)
        conditional = self._conditional(args[0], kwargs.get("transformer_options"))
        job.fired, self._strengths = {}, {}
        self._unhook_places()
        self._level, self._key = noise_of_call(job.fitted.levels, args, kwargs), self._alike(args[0], kwargs)
        self._look(job, Call(unet, args, kwargs))
        editing = self._editing(job, self._level, conditional)
        self._place_hooks, kwargs = taps.attach(job.fitted.modules, job.fitted.attentions, editing, kwargs)
        return args, kwargs

    def _conditional(self, x: Tensor, options: dict | None) -> Tensor | None:
        """bool [rows]: told by the host, or counted: in an evaluation the conditional rows come first. None, which is
        all, where that does not matter, and from the first call on of which it cannot be told."""
        settings, thorough = self.job.settings, self.job.settings.actuator == Actuator.THOROUGH.value
        if not thorough and settings.apply_to != CONDITIONAL_ONLY:
            return None
        self._compared |= self._rows.has_other(x, options)
        if thorough and not self._compared:
            self._refuse(alone())
        found = self._rows.of_call(x, options)
        self.job.mixed |= found is None
        return None if self.job.mixed else found

    def _alike(self, x: Tensor, kwargs: dict) -> Hashable:
        """The same for two calls of a run whose rows mean the same: those that come as early in an evaluation, with the
        same rows, of the same prompt."""
        self._number += 1
        options = kwargs.get("transformer_options") or {}
        return self._number, len(x), tuple(options.get("cond_or_uncond") or ()), self._prompt, x.device

    def _voted_about(self, prompt: Hashable) -> Hashable:
        """This prompt, or where there were too many in this run the last one that was voted about."""
        if prompt not in self._prompts and len(self._prompts) < PROMPTS:
            self._prompts.append(prompt)
        return prompt if prompt in self._prompts else self._prompts[-1]

    def _look(self, job: Job, call: Call) -> None:
        """Let the places vote about a call, the first of its kind: it is made once only for that."""
        voting, x = job.fitted.voting, call.args[0]
        if not voting.begun:
            self._contexts.clear()
            self._prompts = [self._prompt]
        if voting.met(self._key):
            return self._hear(job, call.context) if voting.begun else None
        voting.begins(self._key, len(x), x.device)
        self._contexts[self._key] = call.context
        strengths, level, levels = {}, self._level, job.fitted.levels
        if voting.late(level):
            level = levels.sigma(levels.timestep_at(0))
            shown = torch.cat([noise(x[:, :LATENT].shape).to(x), x[:, LATENT:]], 1)
            call = call.at(shown, levels.timestep_at(0), level)

        def tap(block: Block, output: Tensor, x_in: Tensor | None) -> Tensor:
            strengths[block] = job.fitted.erasures[block].strengths(output, level, x_in)
            return output
        back = random_state(x.device)
        call.again({block: partial(tap, block) for block in job.fitted.erasures})
        back()
        voting.count(self._key, strengths, level, look=True)

    def _hear(self, job: Job, context: Tensor | None) -> None:
        """Let all in where the prompt is no more the one that was voted about, and the host did not say so."""
        before = self._contexts.setdefault(self._key, context)
        if before is not None and context is not None:
            changed = before.ne(context).any() if before.shape == context.shape else True
            job.fitted.voting.let_in(self._key, changed)

    def _editing(self, job: Job, sigma: float | NoiseLevel, conditional: Tensor | None) -> taps.Editing:
        needed = job.fitted.voting.open(self._key)

        def edit(block: Block, output: Tensor, x_in: Tensor | None = None) -> Tensor:
            other = conditional is not None and len(conditional) != len(output)
            job.mixed |= other
            mine = rows_of(needed, block, output)
            with taps.full_precision(output.device):
                erased = job.fitted.erasures[block](output, sigma, None if other else conditional, x_in, mine)
            if mine is not None:
                self._strengths[block] = erased.strengths
            job.fired[block] = job.fired[block] | erased.fired if block in job.fired else erased.fired
            job.pending = False
            return erased.out
        return edit

    def _after(self, unet: nn.Module, args: tuple, output: Any) -> None:
        """A call of the UNet ended, with None for an exception (whose hooks torch is just going through)."""
        self._unhook_places()
        if output is None or self.job is None:
            return
        if len(self.job.fired) < len(self.job.fitted.erasures):
            self._refuse(self.job.not_run())
        if self._strengths:
            self.job.fitted.voting.count(self._key, self._strengths, self._level)
        self.job.tally.add(self._level, self.job.fired)

    def _refuse(self, error: SaeError) -> NoReturn:
        """Leave nothing on the model and raise in the middle of it: the only exceptions the hosts let through."""
        self.job.fail(error)
        self.detach()
        raise error

    def _unhook_places(self) -> None:
        for handle in self._place_hooks:
            handle.remove()
        self._place_hooks = []


def prompt_of(denoiser: Any) -> Hashable:
    """Which prompt an evaluation is of: it may change on the way, as in `[cat:dog:0.5]`, and in the hires pass."""
    p, step = getattr(denoiser, "p", None), getattr(denoiser, "step", 0)
    hires = getattr(p, "is_hr_pass", False)
    again = getattr(p, "hr_prompts", None) if hires else None
    said = getattr(p, "hr_c" if hires else "c", None)
    parts = [part.schedules for prompt in getattr(said, "batch", ()) for part in prompt]
    return again not in (None, getattr(p, "prompts", None)), tuple(
        next((i for i, one in enumerate(schedules) if step <= one.end_at_step), 0) for schedules in parts)

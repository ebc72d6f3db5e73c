"""The host adapter: on a clone of the model, the output of some places goes to an Erasure while the model is called.

A block is hooked for the length of each call; a cross-attention's output comes through the host's own attention patch,
which is also asked where another node replaces the attention. Two wrappers under one key do it: around every model call
(hook, call, unhook), and around a whole sampling run (say what is patched, count where concepts fire, fail if a place
was never reached). Chained nodes join into one such pair.

On a GPU no model call waits for what we do but the first of a kind, on which the places vote: no other value is read
from the device before the run is over. Several GPUs may each call the model from a thread of their own.
"""
import logging
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..sae_models import hookpoint
from ..sae_models.adapter import (
    BOTH,
    CONDITIONAL_ONLY,
    NO_STEP,
    Block,
    LoadedSae,
    Tally,
    by_block,
    conditional_rows,
    fitting_blocks,
    in_words,
    noise_level,
    with_attention_patch,
)
from ..sae_models.concepts import Choice, format_choices
from ..sae_models.erasure import Edit, Erasure, NoiseLevel, alone
from ..sae_models.errors import SaeError
from ..sae_models.hashing import short_hash
from ..sae_models.voting import NOISY, Voting, noise, random_state, rows_of
from . import feedback
from .family import family_of
from .said import warn

KEY = "saemnesia"
SAMPLING = "model_sampling"
SECOND = "middle"
"""How DualCFG names its second prompt: it numbers the negative one first, then this, and the first one last."""
WHOLE = (0.0, 1.0)
"""All of sampling, in shares."""
log = logging.getLogger(KEY)


@dataclass(frozen=True)
class SaeEdits:
    """Edits and the SAE they come from; window: the shares of sampling between which they act; node: the id of the one
    that asks for them, "" where nobody is to be told; idle: names that it asks for with strength 0."""
    sae: LoadedSae
    edits: Sequence[tuple[Block, Edit]]
    window: tuple[float, float] = WHOLE
    node: str = ""
    idle: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for _, edit in self.edits for name in edit.names))

    @property
    def done(self) -> dict[str, Choice]:
        """{what is done with a concept, for people: the same as a choice}"""
        return {label: Choice(name, float(f"{strength:g}"), into=Choice(edit.into) if edit.into else None)
                for _, edit in self.edits
                for label, name, strength in zip(edit.labels, edit.names, edit.strengths.tolist(), strict=True)}

    def plan(self) -> str:
        what, blocks = dict.fromkeys(label for _, edit in self.edits for label in edit.labels), by_block(self.edits)
        where = f"{len(blocks)} places" if len(blocks) > 1 else self.edits[0][0].hookpoint
        return f"{self.edits[0][1].actuator.value} {', '.join(what)} at {where} ({self.sae.name})"

    def measured(self, sampling: Any) -> list[tuple[Block, Edit]]:
        """The edits, with the window in the noise levels of a model's `model_sampling`."""
        start, end = (float(sampling.percent_to_sigma(share)) for share in self.window)
        return [(block, replace(edit, start_sigma=start, end_sigma=end)) for block, edit in self.edits]

    def missed(self, sampling: Any, sigmas: Sequence[float]) -> str:
        """What to say where none of the noise levels lies in the window, else ""."""
        edit = self.measured(sampling)[0][1]
        if any(edit.active(sigma) for sigma in sigmas):
            return ""
        start, end = self.window
        return f"{', '.join(self.names)}: {NO_STEP.format(steps=len(sigmas), start=start, end=end)}"


@dataclass
class _Call:
    """One model call: its noise level, which of its rows are conditional (None: all, or it does not matter), how much
    of its threshold each row of each place's edits has to pass (None: all); looks: nothing is edited. Filled place by
    place: which rows of its edits fired, and how strongly."""
    sigma: float | NoiseLevel
    conditional: torch.Tensor | None
    needed: dict[Block, torch.Tensor] | None = None
    looks: bool = False
    fired: dict[Block, torch.Tensor] = field(default_factory=dict)
    strengths: dict[Block, torch.Tensor] = field(default_factory=dict)


def check_base(model: ModelPatcher, sae: LoadedSae) -> dict[Block, str]:
    """The ldm paths of the SAE's places; raise SaeError unless the SAE fits this model's family, blocks and widths."""
    return fitting_blocks(model.model.diffusion_model, sae, family_of(model.model.model_config))


def erase(model: ModelPatcher, sae: LoadedSae, edits: Sequence[tuple[Block, Edit]],
          window: tuple[float, float] = WHOLE, node: str = "", idle: Sequence[str] = ()) -> ModelPatcher:
    """A clone of `model` that makes these edits beside those of the chain so far; without edits it is left as it is.

    node, idle: as `SaeEdits` has them. Raises SaeError when the SAE does not fit the model, or an earlier node of the
    chain erases the same concept.
    """
    paths = check_base(model, sae)
    earlier = model.get_attachment(KEY)
    new, before = SaeEdits(sae, edits, window, node, idle), earlier.edits if earlier else ()
    if not edits:
        log.info("SAEmnesia: every strength is 0, so nothing is erased (%s)", sae.name)
        feedback.tell(node, [feedback.concept(name, why=feedback.NOTHING_ASKED) for name in idle])
        return model.clone()
    for other in before:
        both = sorted(set(other.names) & set(new.names)) if other.sae.path == sae.path else []
        if both:
            raise SaeError(f"concept '{both[0]}' is erased by two chained nodes: keep it in one of them")
    clone = model.clone()
    patch = Patch((*before, new), (earlier.paths if earlier else {}) | paths, model.get_model_object(SAMPLING))
    clone.set_attachments(KEY, patch)
    for kind, wrapper in ((WrappersMP.APPLY_MODEL, patch.apply_model), (WrappersMP.OUTER_SAMPLE, patch.outer_sample)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    return clone


def without_edits(model: ModelPatcher) -> ModelPatcher:
    """A clone of `model` on which nothing is erased."""
    clone = model.clone()
    clone.remove_attachments(KEY)
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.OUTER_SAMPLE):
        clone.remove_wrappers_with_key(kind, KEY)
    return clone


class Patch:
    """All edits of one model clone, by place; paths: the ldm path of each; sampling: the model's noise levels."""

    def __init__(self, edits: tuple[SaeEdits, ...], paths: dict[Block, str], sampling: Any) -> None:
        self.edits, self.paths = edits, paths
        self.windows: list[tuple[float, float]] = []
        self.measure(sampling)
        self.blocks = [block for block in self.erasures if not hookpoint.is_attention(block.hookpoint)]
        self.attentions = {hookpoint.attention_key(paths[block]): block for block in self.erasures
                           if hookpoint.is_attention(block.hookpoint)}
        self.compares = not all(edit.gated for item in edits for _, edit in item.edits)
        self.rows_matter = self.compares or any(edit.conditional_only for item in edits for _, edit in item.edits)
        self._compared = False
        self._functions: dict[bool, tuple[dict[Block, Any], Any]] = {}
        self._calls: dict[int, _Call] = {}
        self._negative_first, self._negatives = False, frozenset()
        self.tally = Tally()

    def measure(self, sampling: Any) -> None:
        """Set the windows by the noise levels of the model that is sampled: a node after ours may have changed them."""
        edits = [pair for item in self.edits for pair in item.measured(sampling)]
        now = [(edit.start_sigma, edit.end_sigma) for _, edit in edits]
        self.sampling, self.highest = sampling, float(sampling.sigma_max)
        if self.windows != now:
            self.windows = now
            self.erasures = {block: Erasure(here, residual=block.residual) for block, here in by_block(edits).items()}
            self.voting = Voting(self.erasures, owners=self._owned())
        self.voting.noisy = float(sampling.percent_to_sigma(NOISY))

    def apply_model(self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None,
                    c_crossattn: Any = None, control: Any = None, transformer_options: dict | None = None,
                    **kwargs: Any) -> torch.Tensor:
        """WrappersMP.APPLY_MODEL: one model call, with every place edited while it lasts; the first of its kind in a
        run is made once before that only to look."""
        options = transformer_options or {}
        chunks = self._chunks(options) if self.rows_matter else ()
        rows = conditional_rows(len(x), chunks, x.device)
        self._check_negative(chunks)
        hooks, attention_patch = self._editing()
        if self.attentions:
            options = with_attention_patch(options, attention_patch)
        unet = executor.class_obj.diffusion_model
        unet = getattr(unet, "_orig_mod", unet)

        def run(call: _Call, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with ExitStack() as stack:
                stack.enter_context(self._during(call))
                for block, hook in hooks.items():
                    stack.enter_context(hooked(unet.get_submodule(self.paths[block]), hook))
                if call.looks:
                    return executor(x, t, c_concat, c_crossattn, _copied(control), {**options, "sigmas": t}, **kwargs)
                return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        call, key = _Call(noise_level(t), rows), _alike(x, options)
        out = self._looked(call, key, x, t, run)
        if out is None:
            call.needed = self.voting.open(key)
            out = run(call, x, t)
            if call.strengths:
                self.voting.count(key, call.strengths, call.sigma)
        self.tally.add(call.sigma, call.fired)
        return out

    def _check_negative(self, chunks: Sequence[int]) -> None:
        """Raises SaeError where something is to be compared with the negative prompt, which no call of this run had."""
        self._compared |= any(chunks)
        if self.compares and not self._compared:
            raise alone()

    def _chunks(self, options: Mapping[str, Any]) -> Sequence[int]:
        """For each equal chunk of a batch whether it is of the prompt, which is 0: some guiders number the negative one
        so, and who asks for the negative one alone."""
        numbers, uuids = options.get("cond_or_uncond") or (), options.get("uuids") or ()
        if len(uuids) != len(numbers):  # somebody splits the host's calls
            uuids = [None] * len(numbers)
        other = [(number == 0) == self._negative_first for number in numbers]
        return [int(one or uuid in self._negatives) for one, uuid in zip(other, uuids, strict=True)]

    def _looked(self, call: _Call, key: Hashable, x: torch.Tensor, t: torch.Tensor,
                run: Callable[[_Call, torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor | None:
        """Let the places vote where that is to be done; the call's outcome where no concept is there."""
        if not self.voting.begins(key, len(x), x.device):
            return None
        late = self.voting.late(call.sigma)
        back, look = random_state(x.device), _Call(self.highest if late else call.sigma, call.conditional, looks=True)
        seen = (noise(x.shape).to(x) * self.highest, torch.full_like(t, self.highest)) if late else (x, t)
        out = run(look, *seen)
        self.voting.count(key, look.strengths, look.sigma, look=True)
        if late or not self.voting.idle(key):
            back()
            return None
        call.fired = {block: part.new_zeros(part.shape[1], dtype=torch.bool) for block, part in look.strengths.items()}
        return out

    def _editing(self) -> tuple[dict[Block, Any], Any]:
        """(a hook for each block, the attention patch): the same functions in every call, and not traced where models
        are compiled, or one would be compiled anew for every noise level."""
        compiles = "torch._dynamo" in sys.modules  # to load it takes a second
        if compiles not in self._functions:
            untraced = torch.compiler.disable if compiles else (lambda function: function)
            hooks = {block: untraced(self._hook(block)) for block in self.blocks}
            self._functions[compiles] = hooks, untraced(self.edit_attention)
        return self._functions[compiles]

    @contextmanager
    def _during(self, call: _Call) -> Iterator[_Call]:
        """The model is called by this thread."""
        thread = threading.get_ident()
        before, self._calls[thread] = self._calls.get(thread), call
        try:
            yield call
        finally:
            self._calls.pop(thread)
            if before:
                self._calls[thread] = before

    def edit_attention(self, n: torch.Tensor, extra_options: dict) -> torch.Tensor:
        """The host's attn2_output_patch: a cross-attention's output [B, N, C] before it is added to its input."""
        name, number = extra_options["block"]
        block = self.attentions.get((name, number, extra_options.get("block_index", 0)))
        return n if block is None else self._edit(block, n)

    def _hook(self, block: Block):
        def hook(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            return self._edit(block, output, inputs[0])
        return hook

    def _edit(self, block: Block, output: torch.Tensor, x_in: torch.Tensor | None = None) -> torch.Tensor:
        call, erasure = self._calls[threading.get_ident()], self.erasures[block]
        if call.looks:
            call.strengths[block] = erasure.strengths(output, call.sigma, x_in)
            return output
        needed = rows_of(call.needed, block, output)
        erased = erasure(output, call.sigma, call.conditional, x_in, needed)
        call.fired[block] = call.fired[block] | erased.fired if block in call.fired else erased.fired
        if needed is not None:
            call.strengths[block] = erased.strengths
        return erased.out

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """WrappersMP.OUTER_SAMPLE: one sampling run; an erasure that never happened is an error, not a picture."""
        self.tally, self._compared = Tally(), False
        self.voting.forget()
        self._know_prompts(getattr(executor.class_obj, "original_conds", None) or {})
        self.measure(executor.class_obj.model_patcher.get_model_object(SAMPLING))
        log.info("%s", self.plan())
        out = executor(*args, **kwargs)
        missed = self.tally.missed(self.erasures)
        if self.tally.calls and missed:
            raise SaeError(f"nothing was erased: the sampler never ran block {missed}, because another node replaces "
                           f"or skips it; remove that node, or bypass SAEmnesia Erase")
        if self.tally.calls:
            self._say()
        return out

    def _know_prompts(self, conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """What a guider calls its prompts."""
        self._negative_first = SECOND in conds
        known = {name: {part.get("uuid") for part in parts} for name, parts in conds.items()}
        others = set().union(*(uuids for name, uuids in known.items() if "negative" not in name))
        negative = set().union(*(uuids for name, uuids in known.items() if "negative" in name))
        self._negatives = frozenset(negative - others - {None})

    def _say(self) -> None:
        """What happened in a run that is over."""
        log.info("%s", self.tally.summary({block: erasure.labels() for block, erasure in self.erasures.items()}))
        sigmas, counts = [*self.tally.levels()], self.tally.steps_fired(self._owned())
        for number, item in enumerate(self.edits):
            missed = item.missed(self.sampling, sigmas)
            fired = {label: counts[number, label] for label in item.done}
            feedback.tell(item.node, _became(item, fired, len(sigmas), feedback.LEFT_OUT if missed else ""))
            if missed:
                warn(missed)
            elif item.node:
                with suppress(OSError):  # the file is gone meanwhile
                    feedback.note(_entry(item, in_words(fired, len(sigmas))))

    def _owned(self) -> dict[Block, list[tuple[int, str]]]:
        """Of each row of a place: which of the edits it belongs to, and what is done with its concept."""
        return {block: [(number, label) for number, item in enumerate(self.edits)
                        for own, edit in item.edits if own == block for label in edit.labels]
                for block in self.erasures}

    def plan(self) -> str:
        return "SAEmnesia: " + "; ".join(item.plan() for item in self.edits)


def _alike(x: torch.Tensor, options: Mapping[str, Any]) -> Hashable:
    """The same for two calls of a run whose rows mean the same: the host says which prompts they are."""
    return len(x), tuple(options.get("uuids") or ()), tuple(options.get("cond_or_uncond") or ()), x.device


def _copied(control: dict[str, list] | None) -> dict[str, list] | None:
    """What a ControlNet hands to a call, which uses it up."""
    return control and {name: [*parts] for name, parts in control.items()}


def _became(item: SaeEdits, fired: dict[str, int], steps: int, why: str) -> list[feedback.Concept]:
    """What became of the concepts that a node asks for, in so many steps."""
    concepts = [feedback.concept(item.done[label].name, label, count, steps, why or feedback.SILENT)
                for label, count in fired.items()]
    return concepts + [feedback.concept(name, steps=steps, why=feedback.NOTHING_ASKED) for name in item.idle]


def _entry(item: SaeEdits, fired: str) -> dict[str, Any]:
    """What is written into a picture's file: the web UI writes the same under its own names."""
    edit, (start, end) = item.edits[0][1], item.window
    return {"node": item.node, "sae": item.sae.name, "hash": short_hash(item.sae.path),
            "concepts": format_choices([*item.done.values()]), "actuator": edit.actuator.value, "start": start,
            "end": end, "apply_to": CONDITIONAL_ONLY if edit.conditional_only else BOTH, "fired": fired}


@contextmanager
def hooked(module: torch.nn.Module, hook: Any) -> Iterator[None]:
    """A forward hook for the length of the block."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()

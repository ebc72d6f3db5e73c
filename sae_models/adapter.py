"""What the adapter of every host does in the same way, whatever the host is called.

Which SAE is meant, the edits that a text asks for, whether the SAE fits a model, which rows of a call are conditional,
and what happened while a picture was sampled.
"""
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import hookpoint
from .concepts import Choice, Concept, by_name, find, parse
from .erasure import Actuator, Edit, NoiseLevel
from .errors import SaeError
from .formats import Header, only, read_headers, read_rows_at
from .made_on import alike
from .table import is_concept_file

BOTH, CONDITIONAL_ONLY = "both", "conditional only"
OUTPUT_PATCH = "attn2_output_patch"
NO_STEP = ("not erased, because none of the {steps} steps of this run lies between start {start:g} and end {end:g}: "
           "widen them, or paint with more steps")


BASES = {"sd15": "SD 1.x", "sd20": "SD 2.x", "sdxl": "SDXL", "sdxlrefiner": "the SDXL refiner"}
SHOWN = 3  # places named in a sentence
Tap = Callable[[Tensor, Tensor | None], Tensor]
"""tap(a place's output, its block's input or None): what goes on in its place."""


class Block(NamedTuple):
    """Where an SAE sits: a block's or a cross-attention's output. residual: it encodes that minus the block's input."""
    hookpoint: str
    residual: bool

    @classmethod
    def of(cls, header: Header) -> "Block":
        return cls(header.hookpoint, header.residual)


@dataclass(frozen=True)
class LoadedSae:
    """An SAE file by the name people see, and what it says of itself: one header a place."""
    name: str
    path: Path
    headers: tuple[Header, ...]

    @classmethod
    def read(cls, name: str, path: Path) -> "LoadedSae":
        """Raises SaeError as `read_headers` does."""
        return cls(name, path, read_headers(path))

    @property
    def base(self) -> str:
        return self.headers[0].base

    @property
    def blocks(self) -> list[Block]:
        return [Block.of(header) for header in self.headers]

    @property
    def header(self) -> Header:
        """The only one.

        Raises SaeError when the file has several places.
        """
        return only(self.headers, self.name)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """One a name; its latents are those at the first place that has it."""
        if len(self.headers) == 1:
            return self.headers[0].concepts
        return tuple(self._by_name.values())

    @cached_property
    def _by_name(self) -> dict[str, Concept]:
        return by_name(concept for header in self.headers for concept in header.concepts)

    def listed(self) -> dict[str, Any]:
        """What a page is told: {base, hookpoint ("" for several), places, concepts: [{name, kind, description,
        measured}]}."""
        return {"base": self.base, "hookpoint": self.headers[0].hookpoint if len(self.headers) == 1 else "",
                "places": len(self.headers),
                "concepts": [{"name": c.name, "kind": c.kind, "description": c.description, "measured": c.measured}
                             for c in self.concepts]}

    def about(self) -> str:
        """What it is for, in a line: base, blocks, concepts, and the checkpoint it was made on where it says that."""
        concepts, neurons = len(self.concepts), sum(header.config.d_sae for header in self.headers)
        known = (f", with {concepts} concepts" if concepts > 1 else ", with 1 concept" if concepts else
                 f", with {neurons} neurons without names")
        made_on = f", made on {self.headers[0].made_on}" if self.headers[0].made_on else ""
        base = BASES.get(self.base, self.base) or "base model not said"
        return f"{base}{_where([header.hookpoint for header in self.headers])}{known}{made_on}"

    def unfit(self, family: str, model: str = "this model") -> str:
        """Why it does not fit a model of another family, "" where it does or a family is not known; model: its name."""
        if not self.base or not family or self.base == family:
            return ""
        own, other = (BASES.get(base, base) for base in (self.base, family))
        return f"{self.name} is for {own}, and {model} is {other}: load a checkpoint of {own}, or a file for {other}"

    def elsewhere(self, checkpoint: str, made_of: str = "") -> str:
        """What to say where it was made on another model than this one, a checkpoint of that name ("" where it is not
        known) that is `made_of` that; "" where it was not, or neither is known. Weights tell more than names."""
        header = self.headers[0]
        made_on, same = header.made_on, alike(header.made_of, made_of)
        renamed = bool(made_on and checkpoint) and made_on.casefold() != checkpoint.casefold()
        if same or (same is None and not renamed):
            return ""
        if not renamed:
            return (f"{self.name} was made on a model with other weights than this one: it may erase less here, or "
                    f"touch more; for what fits, find its concepts on this one")
        return (f"{self.name} was made on {made_on}, and this is {checkpoint}: it may erase less here, or touch more; "
                f"for what fits, find its concepts on {checkpoint}")

    def find(self, name: str) -> Concept:
        """The concept called `name`; `#123` is a latent of an SAE of one place.

        Raises SaeError for an unknown one.
        """
        if name.startswith("#") and len(self.headers) > 1:
            raise SaeError(f"{self.name} has neurons at {len(self.headers)} places of the model, so '{name}' does not "
                           f"say which: choose a concept by its name")
        return find(self._by_name, name, self.headers[0].config.d_sae, self.name)

    def choose(self, names: Sequence[str]) -> list[tuple[Header, list[Concept]]]:
        """The concepts at every place that has some of them.

        Raises SaeError for an unknown name.
        """
        wanted = [self.find(name) for name in names]
        if len(self.headers) == 1:
            return [(self.headers[0], wanted)]
        tables = [(header, {c.name.casefold(): c for c in header.concepts}) for header in self.headers]
        chosen = [(header, [here[c.name.casefold()] for c in wanted if c.name.casefold() in here])
                  for header, here in tables]
        return [(header, found) for header, found in chosen if found]

    def now(self, text: str) -> "LoadedSae":
        """What its file says now, where that is a concept file, to which nodes add, and `text` chooses by names. Else
        it is left as it is: another file in its place is refused when rows are read.

        Raises SaeError as `read` does.
        """
        if "#" in text or not is_concept_file(self.headers):
            return self
        fresh = LoadedSae.read(self.name, self.path)
        return fresh if fresh.headers[0].hookpoint else fresh.at(self.headers[0].hookpoint)

    def at(self, wanted: str) -> "LoadedSae":
        """The same at the hookpoint `wanted`, where the file does not say one; "" leaves the one it says.

        Raises SaeError when neither says one, or both another.
        """
        name, said = hookpoint.normalise(wanted), [header.hookpoint for header in self.headers]
        if not name and not all(said):
            raise SaeError(f"{self.name} does not say which block it was trained on: write it into 'hookpoint', "
                           f"for example up_blocks.1.attentions.1")
        if name and any(said) and said != [name]:
            raise SaeError(f"{self.name} was trained on {shown(said)}, not on {name}: leave 'hookpoint' empty")
        return replace(self, headers=(replace(self.headers[0], hookpoint=name),)) if name else self


def shown(names: Collection[str]) -> str:
    """The first few names, and how many more there are."""
    first, more = list(names)[:SHOWN], len(names) - SHOWN
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _where(names: Sequence[str]) -> str:
    if len(names) > 1:
        every = all(map(hookpoint.is_attention, names))
        return f", at {len(names)} cross-attentions" if every else f", at {len(names)} places"
    return f", at one place: {names[0]}" if names[0] else ", block not said"


def build_edits(sae: LoadedSae, text: str, actuator: Actuator, start_sigma: float = float("inf"),
                end_sigma: float = 0.0, conditional_only: bool = False) -> list[tuple[Block, Edit]]:
    """The edits that `text` (`cat, dog:0.8, rose -> key`) asks for, with their rows read from the SAE's file: one a
    place for all that is erased, and one a place for each swap. What has strength 0 is left out: it changes nothing.

    Raises SaeError for an unknown concept, a strength out of range, a swap that cannot be done, or a damaged file.
    """
    choices, options = parse(text), (actuator, start_sigma, end_sigma, conditional_only)
    plain = [choice for choice in choices if not choice.into]
    swaps = [edit for choice in choices if choice.into for edit in _swap(sae, choice, options)]
    return (_erase(sae, plain, options) if plain else []) + swaps


_Options = tuple[Actuator, float, float, bool]


def _erase(sae: LoadedSae, choices: Sequence[Choice], options: _Options) -> list[tuple[Block, Edit]]:
    actuator = options[0]
    named = [sae.find(choice.name).name.casefold() for choice in choices]
    strengths = {name: actuator.default_strength if choice.strength is None else choice.strength
                 for name, choice in zip(named, choices, strict=True)}
    acting = [choice.name for choice in choices if choice.strength != 0]
    places = sae.choose(acting) if acting else []
    edits = []
    for (header, found), rows in zip(places, read_rows_at(sae.path, places), strict=True):
        names = tuple(concept.name for concept in found for _ in concept.latents)
        per_row = torch.tensor([strengths[name.casefold()] for name in names])
        edits.append((Block.of(header), Edit(names, rows, per_row, *options)))
    gated = [(block, replace(edit, actuator=Actuator.ABLATE)) for block, edit in edits if not edit.gated]
    return edits + gated


def _swap(sae: LoadedSae, choice: Choice, options: _Options) -> list[tuple[Block, Edit]]:
    """Where the file has no row of what is put, the other is only erased."""
    name, into = sae.find(choice.name).name, sae.find(choice.into.name).name
    edits, places = _erase(sae, [choice], options), sae.choose([choice.into.name])
    put = dict(zip([Block.of(header) for header, _ in places], read_rows_at(sae.path, places), strict=True))
    if edits and not any(block in put for block, _ in edits):
        raise SaeError(f"'{name} -> {into}' cannot be done: {sae.name} has the two at no place in common, so find one "
                       f"of them anew where the other is")
    return [(block, replace(edit, into=into, put=put.get(block))) for block, edit in edits]


def by_block(edits: Sequence[tuple[Block, Edit]]) -> dict[Block, list[Edit]]:
    """The edits of each place, in order."""
    found: dict[Block, list[Edit]] = {}
    for block, edit in edits:
        found.setdefault(block, []).append(edit)
    return found


def fitting_blocks(unet: nn.Module, sae: LoadedSae, family: str) -> dict[Block, str]:
    """The ldm path of every place of the SAE in this UNet; family: of the model, "" when not known.

    Raises SaeError unless it is a UNet and the SAE fits the model's family, blocks and widths.
    """
    hookpoint.check_unet(unet)
    if sae.unfit(family):
        raise SaeError(sae.unfit(family))
    paths = hookpoint.paths(unet, [header.hookpoint for header in sae.headers])
    for header, path in zip(sae.headers, paths, strict=True):
        width = hookpoint.width(unet.get_submodule(path))
        if width != header.config.d_in:
            raise SaeError(f"{sae.name} reads tokens of width {header.config.d_in}, but block {header.hookpoint} of "
                           f"this model has {width}: the SAE belongs to another base model")
        if header.residual and hookpoint.is_attention(header.hookpoint):
            raise SaeError(f"{sae.name} reads what {header.hookpoint} adds to its input, but a cross-attention's "
                           f"output is that already: the file is damaged")
    return dict(zip(sae.blocks, paths, strict=True))


def with_attention_patch(options: Mapping[str, Any], patch: Callable[[Tensor, dict], Tensor]) -> dict[str, Any]:
    """A copy of a ComfyUI or Forge `transformer_options` in which `patch` is the last to get every cross-attention's
    output [B, N, C], wherever that comes from; the caller's dicts and lists are left as they are."""
    patches = options.get("patches", {})
    return {**options, "patches": {**patches, OUTPUT_PATCH: [*patches.get(OUTPUT_PATCH, ()), patch]}}


def conditional_rows(rows: int, cond_or_uncond: Sequence[int] | None, device: torch.device) -> Tensor | None:
    """bool [rows]: the batch is one equal chunk an entry of `cond_or_uncond`, where 0 means conditional."""
    if not cond_or_uncond or rows % len(cond_or_uncond):
        return None
    return _conditional_rows(rows, tuple(cond_or_uncond), device)


@lru_cache(maxsize=64)
def _conditional_rows(rows: int, cond_or_uncond: tuple[int, ...], device: torch.device) -> Tensor:
    conditional = torch.tensor([entry == 0 for entry in cond_or_uncond for _ in range(rows // len(cond_or_uncond))])
    return conditional.to(device)


def noise_level(sigmas: Tensor) -> float | NoiseLevel:
    """That of a model call with these sigmas [B]: a number where to read it costs nothing."""
    highest = sigmas.max()
    return float(highest) if sigmas.device.type == "cpu" else NoiseLevel(highest)


class Fired(NamedTuple):
    """One model call, on its device: its noise level, the places that ran with their numbers of rows, and which of all
    these rows fired, [rows of all places]."""
    sigma: float | Tensor
    blocks: tuple[tuple[Block, int], ...]
    rows: Tensor


@dataclass
class Tally:
    """What happened in one sampling run, call by call; nothing is read from a device before it is asked for. Calls may
    come from several threads."""
    calls: list[Fired | None] = field(default_factory=list)

    def add(self, sigma: float | NoiseLevel, fired: Mapping[Block, Tensor]) -> None:
        """A model call is done; fired: bool [rows] of each place that ran in it."""
        sigma = sigma.sigma if isinstance(sigma, NoiseLevel) else sigma
        blocks = tuple((block, len(rows)) for block, rows in fired.items())
        self.calls.append(Fired(sigma, blocks, torch.cat([*fired.values()])) if fired else None)

    def missed(self, blocks: Collection[Block]) -> str:
        """Which of the places were never called, in words; "" when none."""
        called = {block for call in self.calls if call for block, _ in call.blocks}
        return shown([block.hookpoint for block in blocks if block not in called])

    def levels(self) -> dict[float, dict[Block, Tensor]]:
        """{noise level at which a place was called: {place: which rows fired at it}}."""
        alike, found = defaultdict(list), {}
        for call in filter(None, self.calls):
            alike[call.blocks, call.rows.device].append(call)
        for (blocks, _), calls in alike.items():
            sigmas = [call.sigma for call in calls]
            sigmas = torch.stack(sigmas).cpu().tolist() if isinstance(sigmas[0], Tensor) else sigmas
            for sigma, rows in zip(sigmas, torch.stack([call.rows for call in calls]).cpu(), strict=True):
                here = found.setdefault(sigma, {})
                for (block, _), part in zip(blocks, rows.split([count for _, count in blocks]), strict=True):
                    here[block] = here[block] | part if block in here else part
        return found

    def steps_fired(self, names: Mapping[Block, Sequence[Hashable]]) -> dict[Hashable, int]:
        """{concept: number of noise levels at which one of its latents fired at any place}; names: of each row."""
        steps: dict[Hashable, set[float]] = {name: set() for rows in names.values() for name in rows}
        for sigma, places in self.levels().items():
            for block, fired in places.items():
                for name, one in zip(names[block], fired.tolist(), strict=True):
                    steps[name] |= {sigma} if one else set()
        return {name: len(sigmas) for name, sigmas in steps.items()}

    @property
    def steps(self) -> int:
        """Noise levels at which a place was called."""
        return len(self.levels())

    def in_words(self, names: Mapping[Block, Sequence[str]]) -> str:
        """As the function of that name has it."""
        return in_words(self.steps_fired(names), self.steps)

    def summary(self, names: Mapping[Block, Sequence[str]]) -> str:
        """One line for the log."""
        fired = ", ".join(f"{name} {count}" for name, count in self.steps_fired(names).items())
        places = f" at any of {len(names)} places" if len(names) > 1 else ""
        return f"SAEmnesia: steps in which a concept fired{places}, of {self.steps}: {fired}"


def in_words(fired: Mapping[str, int], steps: int) -> str:
    """For whom painted: `cat: in 11 of 12 steps, dog: in none`."""
    return ", ".join(f"{name}: in {f'{count} of {steps} steps' if count else 'none'}" for name, count in fired.items())


def idle(sae: LoadedSae, text: str) -> list[str]:
    """Those of the concepts of `text` that have strength 0, by their names in the file."""
    return [sae.find(choice.name).name for choice in parse(text) if choice.strength == 0]

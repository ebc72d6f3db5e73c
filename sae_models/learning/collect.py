"""What places of the user's own model put out while it paints, with and without each concept's words.

A chunk is a batch of prompts, sampled as a user would. At a few random steps the output of every place is kept, and
the same call is made once more with one concept of each prompt left out: what differs is what its words contribute. In
every second chunk the prompts are dealt anew at that point, because an erased picture looks like that: the prompt says
cat and the canvas shows none. Where something is to be found they are dealt anew in all: many prompts from few
pictures.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from ..adapter import Block
from ..errors import SaeError
from .maps import Maps
from .painting import Painter, Step
from .prompts import Prompt

_Some = torch.Tensor | slice
HELD_OUT = 1_000_000
"""Chunks from this number on are never mixed: what a trained SAE is judged on."""


@dataclass
class Collector:
    """Makes chunks of maps with a loaded model. tokens: of a map that are kept, the same ones with and without; wanted:
    0, or how many of the first concepts are to be found: then they alone are left out, wherever they are said, and
    `without` is elsewhere a call with another prompt that says none of them, which shows what they must be told from.
    """
    painter: Painter
    prompts: Sequence[Prompt]
    n_concepts: int
    blocks: Sequence[Block]
    tokens: int | None = None
    wanted: int = 0

    @cached_property
    def elsewhere(self) -> list[Prompt]:
        """Prompts that say no wanted concept."""
        return [prompt for prompt in self.prompts if min(prompt.said) >= self.wanted]

    def chunk(self, number: int) -> dict[Block, Maps]:
        """Every block's maps of one batch of pictures; the same number gives the same maps."""
        painting = self.painter.painting
        generator = torch.Generator().manual_seed(painting.seed * 1_000_003 + number)
        said = deal(self.prompts, number, painting.batch, painting.seed)
        kept = torch.randperm(painting.steps, generator=generator)[:painting.steps_kept].tolist()
        mixed = bool(self.wanted) or (number % 2 == 1 and number < HELD_OUT)
        looks = list(self._looks(said, mixed, len(kept), painting.seed * 1_000_003 + number))
        self.painter.read([text for look in looks for text in look.texts])
        recorder = _Recorder(self, looks, generator)
        self.painter.paint([prompt.text for prompt in said], generator, kept, recorder)
        return recorder.maps()

    def _looks(self, said: Sequence[Prompt], mixed: bool, count: int, seed: int) -> Iterator["_Look"]:
        """What is asked at each kept step."""
        generator = torch.Generator().manual_seed(seed)

        def one_of(choices: Sequence[Any]) -> Any:
            return choices[int(torch.randint(len(choices), (), generator=generator))]
        for _ in range(count):
            asked = [one_of(self.prompts) for _ in said] if mixed else list(said)
            yield _Look(asked, *zip(*(self._other(prompt, asked, one_of) for prompt in asked), strict=True))

    def _other(self, prompt: Prompt, asked: Sequence[Prompt],
               one_of: Callable[[Sequence[Any]], Any]) -> tuple[int, str]:
        """(a concept that a prompt says, what is asked in its place); asked: the prompts of this look, which need not
        be read again."""
        wanted = [i for i, number in enumerate(prompt.said) if number < self.wanted]
        if self.wanted and not wanted:
            near = [other for other in asked if other is not prompt and min(other.said) >= self.wanted]
            return prompt.said[0], one_of(near or self.elsewhere).text
        i = one_of(wanted or range(len(prompt.said)))
        return prompt.said[i], prompt.without[i]


def deal(prompts: Sequence[Prompt], number: int, batch: int, seed: int) -> list[Prompt]:
    """The prompts of batch `number`: every prompt once, in a random order, before any comes again."""
    places = range(number * batch, (number + 1) * batch)
    orders = {r: torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed + r))
              for r in {place // len(prompts) for place in places}}
    return [prompts[orders[place // len(prompts)][place % len(prompts)]] for place in places]


@dataclass(frozen=True)
class _Look:
    """said: of each picture; unsaid: the concept that is left out of it; others: what is asked in its place."""
    said: Sequence[Prompt]
    unsaid: Sequence[int]
    others: Sequence[str]

    @property
    def texts(self) -> list[str]:
        return [*(prompt.text for prompt in self.said), *self.others]


class _Recorder:
    """Keeps the blocks' outputs at the steps it is shown."""

    def __init__(self, collector: Collector, looks: Sequence[_Look], generator: torch.Generator) -> None:
        self.collector, self.looks, self.generator = collector, iter(looks), generator
        self.outputs: dict[Block, list[tuple[torch.Tensor, torch.Tensor]]] = {block: [] for block in collector.blocks}
        self.labels: list[tuple[torch.Tensor, ...]] = []

    def __call__(self, step: Step) -> None:
        look = next(self.looks)
        chosen: dict[tuple[Block, int], _Some] = {}
        tokens, without = (self._seen(step, texts, chosen) for texts in ([one.text for one in look.said], look.others))
        for block, parts in self.outputs.items():
            parts.append(_kept(tokens[block], without[block]))
        labels = torch.zeros(len(look.said), self.collector.n_concepts, dtype=torch.bool)
        for row, prompt in enumerate(look.said):
            labels[row, list(prompt.said)] = True
        self.labels.append((torch.tensor(look.unsaid), labels, step.t.float().cpu()))

    def _seen(self, step: Step, texts: Sequence[str],
              chosen: dict[tuple[Block, int], _Some]) -> dict[Block, torch.Tensor]:
        """Every block's output as tokens [n, N, d_in], thinned at once: those of 70 places would not fit on a small
        card. chosen: which of so many tokens of a place; drawn where it is first seen."""
        seen: dict[Block, torch.Tensor] = {}

        def look(block: Block, output: torch.Tensor, x_in: torch.Tensor | None) -> torch.Tensor:
            change = output - x_in if block.residual else output
            tokens = change.flatten(2).mT if change.ndim == 4 else change
            place = block, tokens.shape[1]  # a host may ask for a map in parts, of which the last one is kept
            if place not in chosen:
                chosen[place] = self._some_of(tokens.shape[1], tokens.device)
            seen[block] = tokens[:, chosen[place]]
            return output
        step.predict(texts, {block: partial(look, block) for block in self.outputs})
        missing = [block.hookpoint for block in self.outputs if block not in seen]
        if missing:
            raise SaeError(f"the model never ran {missing[0]}: another node or "
                           f"extension replaces or skips it; switch that off")
        return seen

    def _some_of(self, count: int, device: torch.device) -> _Some:
        """Which of so many tokens are kept."""
        most = self.collector.tokens
        if most is None or count <= most:
            return slice(None)
        return torch.randperm(count, generator=self.generator)[:most].to(device)

    def maps(self) -> dict[Block, Maps]:
        with torch.inference_mode(False):
            labels = [torch.cat(column).clone() for column in zip(*self.labels, strict=True)]
            return {block: Maps(*(torch.cat(column).clone() for column in zip(*parts, strict=True)), *labels)
                    for block, parts in self.outputs.items()}


def _kept(*pair: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A pair of maps as fp16 on the CPU.

    Raises SaeError when they hold something that is no number.
    """
    kept = tuple(part.to("cpu", torch.float16) for part in pair)
    check_numbers(*kept)
    return kept


def check_numbers(*computed: torch.Tensor) -> None:
    """Raises SaeError when what a model computed is not all numbers."""
    if not all(bool(part.isfinite().all()) for part in computed):
        raise SaeError("nothing can be learned from this model: it computes values that are no numbers (NaN or "
                       "infinite); run it in full precision (ComfyUI: --fp32-unet, A1111: --no-half), or load "
                       "another checkpoint")

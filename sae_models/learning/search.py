"""A concept found on a model that a host has loaded: painted, fitted at every place, measured, written.

The host gives a `Painter`; all else is the same in every host.
"""
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import table
from ..adapter import Block
from ..erasure import LOUD
from ..errors import SaeError
from ..formats import Header
from ..storage import check_writable
from ..table import Table
from ..voting import QUORUM
from . import effects, finding
from .collect import Collector, check_numbers
from .lesson import Lesson, Search
from .losses import Weights, weights_of
from .maps import Maps, joined
from .measuring import NEURONS, Effect, fewest_neurons
from .painting import Painter
from .prompts import trial
from .sparse import learns_on

TOKENS, MEMORY = 128, 4 * 2**30
"""Of a map that are kept: enough, where a picture has thousands; fewer where the maps of all places would take more
than so many bytes: SDXL has 70 places."""
DEAF = 1e-6
"""Share of a place's output below which words make no difference to it."""
LITTLE = 0.4
"""Share that is removed, below which it is tried whether lower thresholds remove more: a concept that hardly stands out
from others is else not heard at all."""
ROOM = 2 * 2**30
"""Bytes that fitting a place takes at most: SDXL's tokens have 1280 numbers."""
log = logging.getLogger("saemnesia")


def found(painter: Painter, what: Search, out: Path, headers: Sequence[Header], numbers: Sequence[int] = NEURONS,
          there: Callable[[Sequence[Maps]], dict[int, list[Table]]] | None = None) -> list[str]:
    """Paint, find the wanted concepts, measure them and write them: a sentence each. Interrupted, and begun again with
    the same settings, it goes on where it was. numbers: of neurons a concept and place that are tried; there: makes the
    tables of neurons that are there, which carry no more than they do, in place of new ones.

    Raises SaeError when words make no difference to the model, and where nothing can be written.
    """
    check_writable(out)
    headers, maps = _heard(headers, _maps(painter, what, headers, 0 if there else len(what.wanted)))
    tables, blocks = there(maps) if there else own_tables(painter, maps, what, numbers), [Block.of(h) for h in headers]
    chosen = [_chosen(painter, what, blocks, tables, i) for i in range(len(what.wanted))]
    for parts, _ in chosen:
        table.add(out, list(zip(headers, parts, strict=True)))
    _painted.clear()
    return [words for _, words in chosen]


_painted: dict[str, dict[int, dict[Block, Maps]]] = {}
"""The chunks of the run that was begun last and not ended, by what it is."""


def _maps(painter: Painter, what: Search, headers: Sequence[Header], wanted: int) -> list[Maps]:
    lesson, blocks = what.lesson, [Block.of(header) for header in headers]
    collector = Collector(painter, lesson.prompts, len(lesson.subjects), blocks, tokens_kept(lesson, headers), wanted)
    run = f"{painter.identity()} {lesson} {blocks} {wanted}"
    if run not in _painted:
        _painted.clear()
    chunks = _painted.setdefault(run, {})
    at = f"painting {lesson.pictures} pictures to learn from" if not chunks else \
        f"going on at picture {len(chunks) * lesson.painting.batch + 1} of {lesson.pictures}"
    log.info("SAEmnesia: %s", at)
    for i in range(lesson.chunks):
        if i not in chunks:
            chunks[i] = collector.chunk(i)
        else:
            painter.skip()
    return [_joined(chunks, lesson.chunks, block) for block in blocks]


def tokens_kept(lesson: Lesson, headers: Sequence[Header]) -> int:
    """How many tokens of a map are kept, of fp16 numbers with and without the concept."""
    looks = lesson.chunks * lesson.painting.batch * lesson.painting.steps_kept
    return max(1, min(TOKENS, MEMORY // (4 * looks * sum(header.config.d_in for header in headers))))


def _joined(chunks: dict[int, dict[Block, Maps]], count: int, block: Block) -> Maps:
    """A place's maps of all chunks, which from then on are parts of it: no map is held twice."""
    whole, start = joined([chunks[i][block] for i in range(count)]), 0
    for i in range(count):
        end = start + len(chunks[i][block])
        chunks[i][block], start = whole.pick(slice(start, end)), end
    return whole


def _heard(headers: Sequence[Header], maps: Sequence[Maps]) -> tuple[list[Header], list[Maps]]:
    """The places that hear the prompt at all.

    Raises SaeError when none does.
    """
    heard = [(header, part) for header, part in zip(headers, maps, strict=True) if part.heard() > DEAF]
    if not heard:
        raise SaeError("the words make no difference to this model: it paints the same with and without them; check "
                       "that model and clip belong together")
    return [header for header, _ in heard], [part for _, part in heard]


def own_tables(painter: Painter, maps: Sequence[Maps], what: Search, numbers: Sequence[int]) -> dict[int, list[Table]]:
    """{neurons a concept and place: every place's rows}, fitted to the maps."""
    device = learns_on(painter.make_room(ROOM))
    weights = weights_of(len(maps))
    tables: dict[int, list[Table]] = {n: [] for n in numbers}
    with torch.inference_mode(False), torch.no_grad():
        for place, part in enumerate(maps, 1):
            for n in numbers:
                painter.going_on(f"learning, place {place} of {len(maps)}")
                tables[n].append(_fitted(part, what, weights, n, device))
    return tables


def _fitted(maps: Maps, what: Search, weights: Weights, n: int, device: torch.device) -> Table:
    """A place's rows; on the CPU where the device has no room after all, or cannot do it."""
    if device.type != "cpu":
        try:
            return finding.own_neurons(maps, what.wanted, weights, n, device)
        except RuntimeError as error:
            log.warning("SAEmnesia: fitting on the CPU, because %s cannot: %s", device, error)
    return finding.own_neurons(maps, what.wanted, weights, n)


def _chosen(painter: Painter, what: Search, blocks: Sequence[Block], tables: Mapping[int, list[Table]],
            number: int) -> tuple[list[Table], str]:
    """Every place's rows of one wanted concept, as many as it needs, and what they do, in words, on other pictures than
    those that say how many."""
    name, trials = what.wanted[number].name, trial(number, what.lesson.held_out, what.lesson.prompts)
    rows = {n: [table.only(part, name) for part in parts] for n, parts in tables.items()}
    tried = _effects(painter, {n: effects.ablating(blocks, parts) for n, parts in rows.items()}, trials)
    n = fewest_neurons(tried)
    parts, checked = _heard_by(painter, blocks, rows[n], tried[n], trials)
    places = f" at each of {len(blocks)} places" if len(blocks) > 1 else ""
    words = f"{name}: {checked.in_words()}, neurons: {n}{places}"
    known = {"measured": checked.shares} | what.found_with
    return [table.described(part, **known) for part in parts], words


def _heard_by(painter: Painter, blocks: Sequence[Block], parts: list[Table], tried: Effect, trials: Sequence[Any]
              ) -> tuple[list[Table], Effect]:
    """Every place's rows of a concept, with thresholds by which it is heard, and what they do."""
    choices = [parts]
    if tried.removed < LITTLE and len(blocks) >= QUORUM:
        choices.append([_lowered(part) for part in parts])
    erasers = {i: effects.ablating(blocks, choice) for i, choice in enumerate(choices)}
    found = _effects(painter, erasers, trials, effects.CHECK)
    best = min(found, key=lambda i: found[i].amiss)
    return choices[best], found[best]


def _effects(painter: Painter, erasers: Mapping[int, effects.Eraser], trials: Sequence[Any], batch: int = 0
             ) -> dict[int, Effect]:
    """As `effects.effects`.

    Raises SaeError when the model predicts something that is no number.
    """
    found = effects.effects(painter, erasers, *trials, batch=batch)
    check_numbers(torch.tensor([effect.amiss for effect in found.values()]))
    return found


def _lowered(part: Table) -> Table:
    """What passed its thresholds once counts in a vote."""
    statistics = part.rows.statistics
    lower = replace(statistics, thresholds=statistics.thresholds / LOUD)
    return replace(part, rows=replace(part.rows, statistics=lower))

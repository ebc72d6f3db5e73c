"""How well an SAE learned its concepts: a verdict in words for each, and the numbers behind it (its latent, how far
that stands out, when it fires, what it takes for its own), as text, JSON and a picture (SVG). Of several places each
concept's best counts.

A concept is centralised when its latent's score is high and the next latent's is low (SAEmnesia, arXiv 2509.21379,
section 4.4: the score of the best latent, 0.0404 against 0.0166 before its training).
"""
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..concepts import Concept, Statistics
from ..errors import SaeError
from ..sae import Sae, fvu
from . import plot, scoring
from .maps import Maps
from .measuring import in_words
from .plot import Text

GOOD, FAIR = 0.7, 0.4
"""Shares of a concept that are removed, from which on it is good, and fair; where that was not measured, twice the
second is how often its neuron must be right to be good."""
TOUCHED, CONFUSED = 0.05, 0.25
"""Shares of others that are touched, and of another's pictures in which it fires, that are too much."""
LARGEST = 1e300
"""Of any number in a report that is read again."""
VERDICTS = {True: "#208040", False: "#b05010"}


@dataclass(frozen=True)
class ConceptReport:
    """score, runner_up: SAeUron's score of its latent and of the next best; before: the best score before concepts were
    trained; recall, precision: of firing anywhere in a held-out picture, as shares; confused_with: the concept in whose
    pictures it fires most often without being said, and in what share of them.

    place, mean_score: of several places the one that all this is of, where the score is highest, and the scores' mean;
    removed, touched: what erasing it at all places does, where that was measured (`measuring`)."""
    name: str
    kind: str
    latent: int
    score: float
    runner_up: float
    before: float
    recall: float
    precision: float
    confused_with: str
    confusion: float
    place: str = ""
    mean_score: float | None = None
    removed: float | None = None
    touched: float | None = None

    def effect(self) -> str:
        """What was measured, in words; "" when nothing was."""
        return "" if self.removed is None else in_words(self.removed, self.touched)

    @property
    def good(self) -> bool:
        if self.removed is None:
            return min(self.recall, self.precision) >= 2 * FAIR
        return self.removed >= GOOD and self.touched <= TOUCHED

    def verdict(self) -> str:
        """How well it was learned, and what would help."""
        if self.good:
            return "good"
        if self.confused_with and self.confusion >= CONFUSED:
            return f"confused with {self.confused_with}: more pictures of both"
        if self.removed is not None and self.touched > TOUCHED:
            return "changes other pictures too: add concepts that look like it"
        if self.removed is not None and self.removed < FAIR:
            return "weak: more pictures and training steps"
        return "fair: more pictures"


@dataclass(frozen=True)
class Report:
    """fvu, dead (share of latents that never fired): on held-out pictures, the mean over places; curve: numbers by
    step; places: the FVU of each of several."""
    fvu: float
    dead: float
    concepts: tuple[ConceptReport, ...]
    curve: Sequence[dict[str, float]] = ()
    places: Mapping[str, float] = field(default_factory=dict)

    @property
    def centralisation(self) -> float:
        """How many times higher the concepts' best scores are than before they were trained, on average."""
        before = sum(c.before for c in self.concepts)
        return sum(c.score for c in self.concepts) / before if before else float("nan")

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"centralisation": self.centralisation, "curve": list(self.curve)}

    def as_text(self) -> str:
        return f"{self.in_words()}\n\n{self.numbers()}"

    def headline(self) -> str:
        good, count = sum(c.good for c in self.concepts), len(self.concepts)
        return f"{good} of {count} concepts {'is' if good == 1 else 'are'} good" if count != 1 else "1 concept"

    def in_words(self) -> str:
        """What came of it, for whoever only wants to use it."""
        return "\n".join([self.headline(), *(f"{c.name}: {c.verdict()}" for c in self.concepts)])

    def summary(self) -> str:
        return (f"unexplained variance (FVU) {self.fvu:.3f}{self.spread()}, latents that never fired {self.dead:.1%}, "
                f"centralisation {self.centralisation:.2f}x")

    def numbers(self) -> str:
        """What that rests on."""
        width = max(12, *(len(c.name) for c in self.concepts))
        lines = [self.summary(), "",
                 f"{'concept':{width}}  latent  score  next   recall  precision  most often confused with"]
        for c in self.concepts:
            confused = f"{c.confused_with} ({c.confusion:.0%})" if c.confused_with else "none"
            where = f"; best at {c.place}, mean score of all places {c.mean_score:.3f}" if c.place else ""
            lines.append(f"{c.name:{width}}  {c.latent:6}  {c.score:.3f}  {c.runner_up:.3f}  {c.recall:6.0%}  "
                         f"{c.precision:9.0%}  {confused}{where}")
        effects = [f"{c.name}: {c.effect()}" for c in self.concepts if c.effect()]
        return "\n".join([*lines, *(["", "erased on new pictures", *effects] if effects else [])])

    def spread(self) -> str:
        """How the FVU of several places spreads, in words; "" for one place."""
        if not self.places:
            return ""
        worst = max(self.places, key=self.places.get)
        return f" on average over {len(self.places)} places, at worst {self.places[worst]:.3f} ({worst})"


def over_places(reports: Mapping[str, Report], curve: Sequence[dict[str, float]]) -> Report:
    """One report of several places', by hookpoint: each concept as at the place where its score is highest."""
    if len(reports) == 1:
        return next(iter(reports.values()))
    fvus = {place: report.fvu for place, report in reports.items()}
    concepts = zip(*([replace(c, place=place) for c in report.concepts] for place, report in reports.items()),
                   strict=True)
    return Report(_mean(fvus.values()), _mean([report.dead for report in reports.values()]),
                  tuple(_best_placed(rows) for rows in concepts), curve, fvus)


def _best_placed(rows: Sequence[ConceptReport]) -> ConceptReport:
    return replace(max(rows, key=lambda row: row.score), mean_score=_mean([row.score for row in rows]))


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def measured(report: Report, shares: Mapping[str, Mapping[str, float]]) -> Report:
    """The report with what was measured of some concepts, by name: {"removed": ..., "touched": ...}."""
    return replace(report, concepts=tuple(replace(c, **shares.get(c.name, {})) for c in report.concepts))


def from_json(path: Path) -> Report:
    """The report that was written beside an SAE.

    Raises SaeError when it is damaged.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        places, curve = data.get("places", {}), data["curve"]
        _check(float, data["fvu"], data["dead"], *places.values(), *(one for point in curve for one in point.values()))
        _check(float, *(point["step"] for point in curve))
        if not data["concepts"] or any(math.isnan(point["step"]) for point in curve):
            raise ValueError("no concept, or no step")
        return Report(data["fvu"], data["dead"], tuple(map(_row, data["concepts"])), curve, places)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SaeError(f"the report {path.name} in {path.parent} is damaged ({error}): delete it and the SAE beside "
                       f"it, and train again") from error


def _row(data: Mapping[str, Any]) -> ConceptReport:
    row = ConceptReport(**data)
    _check(str, row.name, row.kind, row.confused_with, row.place)
    _check(float, row.latent, row.score, row.runner_up, row.before, row.recall, row.precision, row.confusion,
           *(one for one in (row.mean_score, row.removed, row.touched) if one is not None))
    if (row.removed is None) != (row.touched is None) or (row.place and row.mean_score is None):
        raise ValueError(f"half of what was measured of {row.name}")
    return row


def _check(kind: type, *values: Any) -> None:
    """Raise TypeError unless all are of a kind; a whole number is a float too, and none is beyond all others."""
    for value in values:
        wanted = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        if not wanted or (kind is float and abs(value) > LARGEST):
            raise TypeError(f"{value!r} where a {'number' if kind is float else 'text'} is expected")


@torch.no_grad()
def evaluate(sae: Sae, concepts: Sequence[Concept], statistics: Statistics, held_out: Maps,
             first_scores: Sequence[Sequence[float]] = (), curve: Sequence[dict[str, float]] = ()) -> Report:
    """The report of an SAE on maps it was not trained on; `held_out.labels`' columns are `concepts`, a latent each."""
    latents = [concept.latents[0] for concept in concepts]
    score = scoring.score_maps(sae, held_out)
    fires = firing(sae, statistics, held_out, latents)
    said = torch.cat([held_out.labels, held_out.left()])
    rows = []
    for i, concept in enumerate(concepts):
        others = score[i].clone()
        others[latents[i]] = -torch.inf
        worst, share = _confused(fires[:, i], said, i)
        rows.append(ConceptReport(
            concept.name, concept.kind, latents[i], float(score[i, latents[i]]), float(others.max()),
            float(first_scores[i][0]) if first_scores else 0.0, _share(fires[said[:, i], i]),
            _share(said[fires[:, i], i]), concepts[worst].name if share else "", share))
    return Report(*_rebuilt(sae, held_out), tuple(rows), curve)


def firing(sae: Sae, statistics: Statistics, maps: Maps, latents: list[int]) -> Tensor:
    """bool [2 n, C]: whether each latent fires anywhere in a map, for all `tokens` and then all `without`."""
    threshold = torch.stack([statistics.at(float(s), statistics.thresholds) for s in maps.sigmas]).clamp_min(0)
    return torch.cat([(scoring.concept_logits(sae, tokens, latents) > threshold[:, None]).any(1)
                      for tokens in (maps.tokens, maps.without)])


def _confused(fires: Tensor, said: Tensor, own: int) -> tuple[int, float]:
    """(concept, share): of the pictures that say another concept and not this one, where it fires most often."""
    others = said & ~said[:, own:own + 1]
    rates = (others & fires[:, None]).sum(0) / others.sum(0).clamp_min(1)
    return int(rates.argmax()), float(rates.max())


def _share(flags: Tensor) -> float:
    return float(flags.float().mean()) if len(flags) else float("nan")


def _rebuilt(sae: Sae, maps: Maps) -> tuple[float, float]:
    """(FVU, share of latents that never fire)."""
    x, parts, fired = maps.tokens.flatten(0, 1), [], torch.zeros(sae.config.d_sae, dtype=torch.bool)
    for part in x.split(4096):
        latents = sae.encode(part.to(sae.b_dec))
        fired[latents.top_indices[latents.top_acts > 0].cpu()] = True
        parts.append(sae.decode(latents).cpu())
    return float(fvu(x.float(), torch.cat(parts))), float((~fired).float().mean())


# --- the picture ---------------------------------------------------------------------------------------

ROW, MARGIN = 20, 24
COLUMNS = (0, 190, 250, 310, 370, 440, 510)
HEADS = ("concept", "neuron", "score", "next", "fires in", "right in", "also fires for")


def as_svg(report: Report) -> str:
    """What came of it in words, the curves, and last the numbers."""
    shapes, y = words_drawn(report, 0.0)
    plots, y = plot.curves(report.curve, _steps(report), y + ROW)
    numbers, y = numbers_drawn(report, y + ROW)
    return plot.svg([*shapes, *plots, *numbers], y + ROW)


def _steps(report: Report) -> int:
    return int(max([point["step"] for point in report.curve], default=1))


def words_drawn(report: Report, y: float) -> tuple[list[plot.Shape], float]:
    """The headline and a verdict a concept below y, and where they end."""
    lines = [Text(MARGIN, y + 30, report.headline(), size=16)]
    for i, c in enumerate(report.concepts):
        at, said = y + 58 + ROW * i, c.verdict()
        lines += [Text(MARGIN, at, _short(c.name, 26)), Text(MARGIN + 200, at, said, VERDICTS[c.good]),
                  Text(MARGIN + 560, at, c.effect(), plot.GREY, 11)]
    return lines, y + 58 + ROW * len(report.concepts)


def numbers_drawn(report: Report, y: float) -> tuple[list[plot.Shape], float]:
    """The table of numbers below y, and where it ends."""
    rows = [HEADS, *map(_cells, report.concepts)]
    cells = [Text(MARGIN + x, y + ROW * (i + 2), text, "#202020" if i else plot.GREY, 11)
             for i, row in enumerate(rows) for x, text in zip(COLUMNS, row, strict=True)]
    return [Text(MARGIN, y + ROW - 4, report.summary(), plot.GREY, 11), *cells], y + ROW * (len(rows) + 2)


def _cells(c: ConceptReport) -> tuple[str, ...]:
    return (_short(c.name, 26), str(c.latent), f"{c.score:.3f}", f"{c.runner_up:.3f}", f"{c.recall:.0%}",
            f"{c.precision:.0%}", f"{_short(c.confused_with, 40)} ({c.confusion:.0%})" if c.confused_with else "none")


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most - 3] + "..."

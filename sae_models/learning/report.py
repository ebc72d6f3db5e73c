"""How well an SAE learned its concepts: per concept its latent, how far that latent stands out, when it fires, and what
it takes for its own; as text, JSON and a picture (SVG). Of several places each concept's best counts.

A concept is centralised when its latent's score is high and the next latent's is low (SAEmnesia, arXiv 2509.21379,
section 4.4: the score of the best latent, 0.0404 against 0.0166 before its training).
"""
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..concepts import Concept, Statistics
from ..errors import SaeError
from ..sae import Sae, fvu
from . import scoring
from .maps import Maps
from .measuring import in_words


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
        width = max(12, *(len(c.name) for c in self.concepts))
        lines = [f"unexplained variance (FVU) {self.fvu:.3f}{self.spread()}, latents that never fired {self.dead:.1%}, "
                 f"centralisation {self.centralisation:.2f}x", "",
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
        return Report(data["fvu"], data["dead"], tuple(ConceptReport(**row) for row in data["concepts"]), data["curve"],
                      data.get("places", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SaeError(f"the report {path.name} in {path.parent} is damaged ({error}): delete it and the SAE beside "
                       f"it, and train again") from error


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

ROW, LEFT, BAR, CURVE = 18, 150, 360, 120


def as_svg(report: Report) -> str:
    """Bars of each concept's score over the runner-up's, below the curve of the losses."""
    height = CURVE + 60 + ROW * len(report.concepts)
    top = max([c.score for c in report.concepts] + [1e-6])
    rows = "".join(_row(c, CURVE + 50 + ROW * i, top) for i, c in enumerate(report.concepts))
    head = (f'FVU {report.fvu:.3f}{report.spread()} · {len(report.concepts)} concepts · centralisation '
            f'{report.centralisation:.2f}x · blue: score of the concept\'s latent, grey: of the next best')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + BAR + 480}" height="{height}" '
            f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
            f'<text x="10" y="18">{head}</text>{_curves(report.curve)}{rows}</svg>')


def _row(c: ConceptReport, y: int, top: float) -> str:
    def bar(value: float, offset: int, color: str) -> str:
        return (f'<rect x="{LEFT}" y="{y + offset}" width="{max(0.0, value) / top * BAR:.1f}" height="6" '
                f'fill="{color}"/>')
    note = f"fires in {c.recall:.0%}, right in {c.precision:.0%}"
    if c.confused_with:
        note += f", also: {c.confused_with} {c.confusion:.0%}"
    note = f"{c.effect()}; {note}" if c.effect() else note
    return (f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(c.name)}</text>{bar(c.score, 1, "#2060c0")}'
            f'{bar(c.runner_up, 8, "#b0b0b0")}'
            f'<text x="{LEFT + BAR + 8}" y="{y + 11}" fill="#555">{escape(note)}</text>')


def _curves(curve: Sequence[dict[str, float]]) -> str:
    """One line a number, each scaled to its own highest value after the first tenth."""
    names = [name for name in dict.fromkeys(key for point in curve for key in point) if name != "step"]
    colors = dict(zip(names, ("#2060c0", "#c08020", "#208040", "#a03060", "#707070", "#40a0a0"), strict=False))
    last = max([point["step"] for point in curve], default=1)
    return "".join(_line(name, [(p["step"] / last, p[name]) for p in curve if name in p], color, i)
                   for i, (name, color) in enumerate(colors.items()))


def _line(name: str, points: list[tuple[float, float]], color: str, number: int) -> str:
    top = max([value for _, value in points[len(points) // 10:]] + [1e-9])
    path = " ".join(f"{LEFT + x * BAR:.1f},{30 + CURVE * (1 - min(1.0, y / top)):.1f}" for x, y in points)
    return (f'<polyline points="{path}" fill="none" stroke="{color}"/>'
            f'<text x="{LEFT + BAR + 8}" y="{42 + 14 * number}" fill="{color}">{escape(name)} (to {top:.3g})</text>')

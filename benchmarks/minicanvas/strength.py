"""How evenly a concept goes as its strength rises: *removed* by strength, with the actuators *ablate* and *amount*.

    python -m benchmarks.minicanvas.strength

The concepts of the file that comes along, on prompts and seeds that they were not found from; *removed* in per cent, as
the measure without a judge has it (`sae_models/learning/measuring.py`). *uneven*: how far it is, at most and in per
cent of its value at strength 1, from rising in proportion to the strength between 0 and 1.
"""
import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_models.formats import read_headers
from sae_models.storage import write_json
from tools.comfy_host import COMFY

from .checkpoint import NAME
from .find import RESULTS, TEMPLATES
from .places import SUBJECTS, Studio, line_of

BETWEEN = (0.25, 0.5, 0.75, 1.0)
WAYS = {"ablate": BETWEEN, "amount": (-1.0, *BETWEEN, 2.0)}
STEPS_KEPT = (0, 2, 4, 7, 9, 11)
SHIPPED = COMFY / "models" / "sae" / NAME
Way = tuple[str, float]


def measured(studio: Studio, concept: str) -> dict[Way, float]:
    """{(actuator, strength): removed, a share}; strength 0 is not measured, because nothing is done."""
    host, own = studio.host, line_of(concept)
    others = "\n".join(line for line in SUBJECTS if line != own)
    what = host.lesson.search(own, others, TEMPLATES, (), studio.painting, 32)
    said, _ = host.prompts.trial(0, what.lesson.held_out, what.lesson.prompts)
    pairs = [said[i % len(said)] for i in range(studio.painting.batch)]
    ways = [(actuator, strength) for actuator, strengths in WAYS.items() for strength in strengths]
    erasers = {way: studio.erased(SHIPPED, concept, way[1], way[0]).get_attachment(host.patch.KEY).erasures
               for way in ways}
    left: dict[Way | str, float] = dict.fromkeys([*ways, "whole"], 0.0)
    painter = host.painting.Painter(studio.model, studio.clip, studio.painting)
    painter.paint([without for _, without in pairs], torch.Generator().manual_seed(7), STEPS_KEPT,
                  partial(_look, host, pairs, erasers, left))
    return {way: 1 - left[way] / left["whole"] for way in ways}


def _look(host: Any, pairs: Sequence[tuple[str, str]], erasers: Mapping[Way, Any], left: dict[Way | str, float],
          step: Any) -> None:
    """Add what is left of the concept's effect at one step, with each eraser and without one."""
    said, without = ([pair[i] for pair in pairs] for i in (0, 1))
    wanted = step.predict(without)
    left["whole"] += float((step.predict(said) - wanted).square().mean())
    for way, eraser in erasers.items():
        taps = {block: partial(_edited, erasure, step.sigma) for block, erasure in eraser.items()}
        left[way] += float((step.predict(said, taps) - wanted).square().mean())


def _edited(erasure: Any, sigma: float, output: Tensor, x_in: Tensor | None) -> Tensor:
    """As where the places have voted the concept in."""
    rows = sum(len(edit.names) for edit in erasure.edits)
    return erasure(output, sigma, None, x_in, torch.zeros(len(output), rows)).out


def uneven(row: Mapping[float, float]) -> float:
    return round(max(abs(100 * row[strength] / row[1.0] - 100 * strength) for strength in BETWEEN), 1)


def as_json(found: Mapping[Way, float]) -> dict[str, Any]:
    rows = {actuator: {0.0: 0.0} | {strength: found[actuator, strength] for strength in strengths}
            for actuator, strengths in WAYS.items()}
    return {actuator: {"removed": {f"{at:g}": round(100 * row[at], 1) for at in sorted(row)}, "uneven": uneven(row)}
            for actuator, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = dict.fromkeys(concept.name for header in read_headers(SHIPPED) for concept in header.concepts)
    parser.add_argument("--concepts", nargs="+", default=list(shipped))
    parser.add_argument("--pictures", type=int, default=8, help="on which is measured, at six steps each")
    parser.add_argument("--checkpoint", type=Path, default=COMFY / "models" / "checkpoints" / NAME)
    parser.add_argument("--out", type=Path, default=RESULTS / "strength.json")
    options = parser.parse_args()
    rows = {}
    with torch.inference_mode():
        studio = Studio(options.checkpoint, 32, options.pictures)
        for concept in options.concepts:
            rows[concept] = as_json(measured(studio, concept))
            for actuator, row in rows[concept].items():
                print(f"{concept:12}{actuator:8}", row, flush=True)
    write_json(options.out, {"pictures": options.pictures, "concepts": rows})


if __name__ == "__main__":
    main()

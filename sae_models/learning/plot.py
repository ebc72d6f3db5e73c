"""Curves of a training run as plain shapes, which a report draws as SVG and a node with what its host has.

Every number has a small plot of its own, with its own axis, and its name beside it in the colour of the line. Nothing
is cut off; what falls by more than `DECADES` is drawn on a logarithmic axis, and what is always 0 not at all.
"""
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from ..errors import plain

WIDTH, ROW = 920, 132
"""Pixels of a page, and of a row of two plots."""
LEFT, PLOT, HIGH, BESIDE = 62, 220, 84, 10
DECADES = 1.5
GREY, FAINT = "#666666", "#d8d8d8"
NAMES = {"fvu": ("not rebuilt", "#2060c0"), "worst fvu": ("not rebuilt, worst place", "#7040b0"),
         "carry": ("concepts left over", "#208040"), "silence": ("fires without them", "#a03060"),
         "dead": ("neurons never used", "#707070"), "auxk": ("left to unused ones", "#c08020"),
         "published": ("loss", "#2060c0")}


class Line(NamedTuple):
    points: Sequence[tuple[float, float]]
    color: str
    width: float = 1.0


class Text(NamedTuple):
    """x: its left edge, or its right one where `end`."""
    x: float
    y: float
    text: str
    color: str = "#202020"
    size: int = 12
    end: bool = False


Shape = Line | Text


def curves(curve: Sequence[Mapping[str, float]], steps: int, top: float = 0.0,
           only: Sequence[str] = ()) -> tuple[list[Shape], float]:
    """Two plots a row below `top`, and where they end; of `only` these names, one a row. steps: of the whole run."""
    names = [name for name in dict.fromkeys(key for point in curve for key in point)
             if name != "step" and (name in only if only else any(point.get(name) for point in curve))]
    columns = 1 if only else 2
    shapes: list[Shape] = []
    for i, name in enumerate(names):
        points = [(point["step"] / max(1, steps), point[name]) for point in curve if name in point]
        shapes += _plot(name, points, steps, WIDTH / 2 * (i % columns), top + ROW * (i // columns))
    return shapes, top + ROW * math.ceil(len(names) / columns)


def _plot(name: str, points: Sequence[tuple[float, float]], steps: int, x: float, y: float) -> list[Shape]:
    words, color = NAMES.get(name, (name, "#2060c0"))
    low, middle, high, place = _axis([value for _, value in points])
    left, right, above, below = x + LEFT, x + LEFT + PLOT, y + 12, y + 12 + HIGH
    line = [(left + share * PLOT, below - place(value) * HIGH) for share, value in points]
    grid = [Line([(left, at), (right, at)], FAINT) for at in (above, (above + below) / 2, below)]
    ticks = [Text(left - 6, at + 4, f"{value:.3g}", GREY, 11, True)
             for at, value in ((above, high), ((above + below) / 2, middle), (below, low))]
    ends = [Text(left, below + 16, "0", GREY, 11), Text(right, below + 16, f"step {steps}", GREY, 11, True)]
    beside = max(above + 10, min(below - 22, line[-1][1]))
    beside_it = [(words, color, 12), (f"{points[-1][1]:.3g}", color, 12), (f"({name})", GREY, 10)]
    names = [Text(right + BESIDE, beside + 15 * i, *one) for i, one in enumerate(beside_it)]
    return [*grid, *ticks, *ends, Line(line if len(line) > 1 else line * 2, color, 2.0), *names]


def _axis(values: Sequence[float]):
    """(lowest, middle and highest value of an axis, where a value lies on it in 0..1)."""
    low, high = min(values), max(values)
    if low > 0 and values[-1] < values[0] and math.log10(high / low) > DECADES:
        span = math.log10(high / low)
        return low, math.sqrt(low * high), high, lambda value: math.log10(value / low) / span
    low, high = min(0.0, low), high if high > 0 else 1.0
    return low, (low + high) / 2, high, lambda value: (value - low) / (high - low)


def svg(shapes: Sequence[Shape], height: float, width: float = WIDTH) -> str:
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif"><rect width="100%" height="100%" '
            f'fill="white"/>{"".join(map(_element, shapes))}</svg>')


def _element(shape: Shape) -> str:
    if isinstance(shape, Line):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in shape.points)
        return f'<polyline points="{path}" fill="none" stroke="{shape.color}" stroke-width="{shape.width:g}"/>'
    anchor = ' text-anchor="end"' if shape.end else ""
    return (f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" fill="{shape.color}"{anchor}>'
            f'{escape(plain(shape.text))}</text>')

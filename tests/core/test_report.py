"""What training says of itself: a verdict in words, then the numbers; plots on which everything can be seen."""
import re
from dataclasses import replace

import pytest

from sae_models.learning import plot
from sae_models.learning.report import ConceptReport, Report, as_svg

CAT = ConceptReport("cat", "object", 3, 0.04, 0.01, 0.02, 0.9, 0.95, "dog", 0.1, removed=0.93, touched=0.001)
CURVE = [{"step": 10 * i, "fvu": 40.0 / i, "worst fvu": 60.0 / i, "auxk": 0.0, "dead": 0.001 * i,
          **({"carry": 0.9 - 0.005 * i, "silence": 0.02} if i > 40 else {})} for i in range(1, 101)]


@pytest.mark.parametrize(("changes", "verdict"), [
    ({}, "good"),
    ({"removed": 0.6}, "fair: more pictures"),
    ({"removed": 0.1}, "weak: more pictures and training steps"),
    ({"removed": 0.6, "confused_with": "rose", "confusion": 0.4}, "confused with rose: more pictures of both"),
    ({"touched": 0.2}, "changes other pictures too: add concepts that look like it"),
    ({"removed": 0.9, "confused_with": "rose", "confusion": 0.4}, "good"),
    ({"removed": None, "touched": None}, "good"),
    ({"removed": None, "touched": None, "recall": 0.5}, "fair: more pictures"),
])
def test_the_verdict_is_words_an_artist_can_act_on(changes, verdict):
    assert replace(CAT, **changes).verdict() == verdict


def report(concepts: int = 3) -> Report:
    names = ["cat", "rose with a name that goes on and on and on and on", *(f"thing {i}" for i in range(concepts))]
    rows = tuple(replace(CAT, name=name, removed=0.5 if name == "cat" else 0.9) for name in names[:concepts])
    return Report(0.1, 0.02, rows, CURVE)


def test_the_words_come_first_and_the_numbers_last():
    text = report().as_text()
    assert text.startswith("2 of 3 concepts are good\ncat: fair: more pictures\n") and "FVU" not in report().in_words()
    assert text.index("thing 0: good") < text.index("FVU") < text.index("cat: 50% removed, others 0.1% touched")
    svg = as_svg(report())
    assert svg.index("fair: more pictures") < svg.index("(carry)") < svg.index("FVU")


def extent(shape: plot.Shape) -> tuple[float, float, float, float]:
    """Left, top, right and bottom; letters are taken as 0.56 of their size wide."""
    if isinstance(shape, plot.Line):
        xs, ys = zip(*shape.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)
    wide = 0.56 * shape.size * len(shape.text)
    left = shape.x - wide if shape.end else shape.x
    return left, shape.y - shape.size, left + wide, shape.y


def test_every_number_has_its_own_plot_on_which_nothing_is_cut_off_or_covers_another():
    shapes, height = plot.curves(CURVE, 1000)
    lines = [shape for shape in shapes if isinstance(shape, plot.Line)]
    assert all(left >= 0 and top >= 0 and right <= plot.WIDTH and bottom <= height
               for left, top, right, bottom in map(extent, shapes))
    drawn = [line for line in lines if line.width == 2]
    values = {name: [point[name] for point in CURVE if name in point] for name in ("fvu", "worst fvu", "dead", "carry",
                                                                                   "silence")}
    assert len(drawn) == len(values)  # auxk is always 0
    for line, own in zip(drawn, values.values(), strict=True):
        assert len({round(y, 3) for _, y in line.points}) == len(set(own))
    boxes = [extent(shape) for shape in shapes if isinstance(shape, plot.Text)]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]
                if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] - 1 and b[1] < a[3] - 1]


def test_a_name_stands_beside_its_curve_in_its_colour():
    shapes, _ = plot.curves(CURVE, 1000)
    colors = {shape.color for shape in shapes if isinstance(shape, plot.Line) and shape.width == 2}
    for name in ("not rebuilt", "concepts left over", "neurons never used"):
        [text] = [shape for shape in shapes if isinstance(shape, plot.Text) and shape.text == name]
        assert text.color in colors


def test_the_picture_is_as_large_as_what_is_in_it():
    for count in (1, 3, 30):
        svg = as_svg(report(count))
        width, height = map(float, re.search(r'width="(\d+)" height="(\d+)"', svg).groups())
        assert all(0 <= float(y) <= height and 0 <= float(x) <= width
                   for x, y in re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)"', svg))


def test_a_run_of_one_point_and_none_can_be_drawn():
    assert plot.curves(CURVE[:1], 1000)[0] and plot.curves([], 1000) == ([], 0.0)

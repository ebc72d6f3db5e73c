"""Pictures of a training run for the page: its curves while it runs, at the end what came of it. PIL is the host's."""
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..sae_models.learning import plot, report
from ..sae_models.learning.report import Report

SIDE, GAP, COLUMNS, CAPTION = 144, 4, 3, 40
"""Pixels of a before or after picture and between the two, pairs of them a row, and pixels above each pair."""
TELLING = ("fvu", "carry")


def curve_picture(curve: Sequence[dict[str, float]], steps: int) -> Image.Image:
    """The curves that tell most, as far as they go, narrow enough for a node."""
    shapes, height = plot.curves(curve, steps, only=TELLING)
    return _page(shapes, height, plot.WIDTH // 2)


def report_picture(result: Report, steps: int, pairs: Sequence[tuple[str, Image.Image, Image.Image]]) -> Image.Image:
    """What came of it in words, pictures of some concepts (name, before, after), the curves, and last the numbers."""
    words, y = report.words_drawn(result, 0.0)
    captions, placed, y = _placed(pairs, y)
    plots, y = plot.curves(result.curve, steps, y + report.ROW)
    numbers, y = report.numbers_drawn(result, y)
    page = _page([*words, *captions, *plots, *numbers], y)
    for picture, at in placed:
        page.paste(picture.resize((SIDE, SIDE)), at)
    return page


def _placed(pairs: Sequence[tuple[str, Image.Image, Image.Image]], y: float) -> tuple[list, list, float]:
    """(captions, pictures with their places, where they end) below y."""
    captions, placed = [], []
    for i, (name, before, after) in enumerate(pairs):
        x, top = report.MARGIN + (plot.WIDTH - report.MARGIN) // COLUMNS * (i % COLUMNS), int(y)
        top += (SIDE + CAPTION) * (i // COLUMNS) + CAPTION
        beside = x + SIDE + GAP
        captions += [plot.Text(x, top - 20, name[:40]), plot.Text(x, top - 5, "as it is", plot.GREY, 11),
                     plot.Text(beside, top - 5, "erased", plot.GREY, 11)]
        placed += [(before, (x, top)), (after, (beside, top))]
    return captions, placed, y + (SIDE + CAPTION) * -(-len(pairs) // COLUMNS)


def _page(shapes: Sequence[plot.Shape], height: float, width: int = plot.WIDTH) -> Image.Image:
    """Drawn at twice the size and halved, which makes lines smooth."""
    page = Image.new("RGB", (2 * width, 2 * max(1, round(height))), "white")
    draw = ImageDraw.Draw(page)
    for shape in shapes:
        if isinstance(shape, plot.Line):
            draw.line([(2 * x, 2 * y) for x, y in shape.points], shape.color, round(2 * shape.width))
        else:
            draw.text((2 * shape.x, 2 * shape.y), shape.text, shape.color, ImageFont.load_default(2 * shape.size),
                      anchor="rs" if shape.end else "ls")
    return page.resize((page.width // 2, page.height // 2), Image.Resampling.LANCZOS)

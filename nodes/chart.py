"""Pictures of a training run for the page: its curve while it runs, curve and report at the end. PIL is the host's."""
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..sae_models.learning.report import Report

WIDTH, HEIGHT, MARGIN, LINE = 640, 240, 30, 18
COLUMNS = (0, 170, 240, 310, 380, 450, 530, 770)
COLORS = ("#2060c0", "#c08020", "#208040", "#a03060", "#707070", "#40a0a0")


def curve_picture(curve: Sequence[dict[str, float]], steps: int) -> Image.Image:
    """One line a number, each scaled to its own highest value after the first tenth."""
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    names = [name for name in dict.fromkeys(key for point in curve for key in point) if name != "step"]
    for number, (name, color) in enumerate(zip(names, COLORS, strict=False)):
        points = [(point["step"] / steps, point[name]) for point in curve if name in point]
        top = max([value for _, value in points[len(points) // 10:]] + [1e-9])
        line = [(MARGIN + x * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - min(1.0, y / top) * (HEIGHT - 2 * MARGIN))
                for x, y in points]
        if len(line) > 1:
            draw.line(line, fill=color, width=2)
        draw.text((WIDTH - 190, 8 + LINE * number), f"{name} {points[-1][1]:.4g} (top {top:.3g})", color, font)
    draw.text((MARGIN, HEIGHT - 22), f"step {curve[-1]['step'] if curve else 0} of {steps}", "black", font)
    return page


def report_picture(report: Report, steps: int) -> Image.Image:
    """The curve, and below it a line a concept."""
    summary = report.as_text().splitlines()[0]
    font = ImageFont.load_default(14)
    columns = _columns(report)
    page = Image.new("RGB", (WIDTH + 340, HEIGHT + LINE * (len(columns) + 3)), "white")
    page.paste(curve_picture(report.curve, steps), (0, 0))
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, HEIGHT), summary, "black", font)
    for number, row in enumerate(columns):
        for x, text in zip(COLUMNS, row, strict=True):
            draw.text((MARGIN + x, HEIGHT + LINE * (number + 2)), text, "black" if number else "#707070", font)
    return page


def _columns(report: Report) -> list[tuple[str, ...]]:
    head = ("concept", "neuron", "score", "next", "fires in", "right in", "erased", "most often confused with")
    return [head] + [
        (c.name, str(c.latent), f"{c.score:.3f}", f"{c.runner_up:.3f}", f"{c.recall:.0%}", f"{c.precision:.0%}",
         c.effect() or "not measured", f"{c.confused_with} ({c.confusion:.0%})" if c.confused_with else "none")
        for c in report.concepts]

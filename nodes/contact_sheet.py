"""Pictures beside each other on white, each under its label. PIL is the host's, and the font is PIL's own."""
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

GAP = 8
"""Pixels between pictures and around them."""
LINES = 3
"""Of a label, at most."""
SMALLEST, LETTERS, LEADING = 12, 26, 1.3
"""Pixels of a letter's height at least, how many of that height are as wide as a picture, and the height of a line."""
Cell = tuple[str, Image.Image]


def as_picture(pixels: torch.Tensor) -> Image.Image:
    """Of floats [H, W, 3] in 0..1."""
    return Image.fromarray((255 * pixels.float().cpu().numpy()).round().clip(0, 255).astype(np.uint8))


def as_pixels(picture: Image.Image) -> torch.Tensor:
    """Floats [H, W, 3] in 0..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """All pictures, which are equally large, in their rows."""
    width, height = rows[0][0][1].size
    font = ImageFont.load_default(max(SMALLEST, width // LETTERS))
    line = int(LEADING * font.size)
    columns, y = max(map(len, rows)), GAP
    labels = [[_lines(label, font, width) for label, _ in row] for row in rows]
    heads = [line * max(map(len, row)) for row in labels]
    page = Image.new("RGB", (GAP + columns * (width + GAP), GAP + sum(heads) + len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(page)
    for row, label, head in zip(rows, labels, heads, strict=True):
        for column, (_, picture) in enumerate(row):
            x = GAP + column * (width + GAP)
            draw.multiline_text((x, y), "\n".join(label[column]), "black", font, spacing=line - font.size)
            page.paste(picture, (x, y + head))
        y += head + height + GAP
    return page


def _lines(label: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The label, broken to the width of a picture."""
    letters = max(4, int(width / max(1.0, font.getlength(label)) * len(label)))
    return textwrap.wrap(label, letters, max_lines=LINES, placeholder=" ...") or [""]

"""A sheet of pictures for people to compare: a column a prompt, a row a way of painting it, each with its label."""
import textwrap
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

MARGIN, LABEL = 12, 22
LETTERS = 1.9
"""A letter's height in widths: how many fit into a column, for heads of several lines."""
PLAIN, ERASED = "black", "#b00020"


class Row(NamedTuple):
    """Pictures in the order of the sheet's columns, under a label."""
    label: str
    pictures: list[Image.Image]
    color: str = PLAIN


def sheet(columns: list[str], rows: list[Row], side: int) -> Image.Image:
    """All pictures as squares of `side` pixels."""
    size = 15 if side > 150 else 12
    heads = [textwrap.wrap(text, int(LETTERS * side / size)) for text in columns]
    width, begin = MARGIN + len(columns) * (side + MARGIN), MARGIN + LABEL * max(map(len, heads))
    page = Image.new("RGB", (width, begin + len(rows) * (side + LABEL) + MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for column, lines in enumerate(heads):
        draw.text((MARGIN + column * (side + MARGIN), MARGIN / 2), "\n".join(lines), "#555555", font)
    for number, row in enumerate(rows):
        top = begin + number * (side + LABEL)
        draw.text((MARGIN, top), row.label, row.color, font)
        for column, picture in enumerate(row.pictures):
            left = MARGIN + column * (side + MARGIN)
            page.paste(picture.resize((side, side), Image.LANCZOS), (left, top + LABEL))
            draw.rectangle((left, top + LABEL, left + side - 1, top + LABEL + side - 1), outline="#dddddd")
    return page

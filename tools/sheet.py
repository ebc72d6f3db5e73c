"""A sheet of pictures for people to compare: a column a prompt, a row a way of painting it, each with its label."""
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

MARGIN, LABEL = 12, 22
PLAIN, ERASED = "black", "#b00020"


class Row(NamedTuple):
    """Pictures in the order of the sheet's columns, under a label."""
    label: str
    pictures: list[Image.Image]
    color: str = PLAIN


def sheet(columns: list[str], rows: list[Row], side: int) -> Image.Image:
    """All pictures as squares of `side` pixels."""
    width = MARGIN + len(columns) * (side + MARGIN)
    page = Image.new("RGB", (width, len(rows) * (side + LABEL) + LABEL + 2 * MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15 if side > 150 else 12)
    for column, text in enumerate(columns):
        draw.text((MARGIN + column * (side + MARGIN), MARGIN / 2), text, "#555555", font)
    for number, row in enumerate(rows):
        top = MARGIN + LABEL + number * (side + LABEL)
        draw.text((MARGIN, top), row.label, row.color, font)
        for column, picture in enumerate(row.pictures):
            left = MARGIN + column * (side + MARGIN)
            page.paste(picture.resize((side, side), Image.LANCZOS), (left, top + LABEL))
            draw.rectangle((left, top + LABEL, left + side - 1, top + LABEL + side - 1), outline="#dddddd")
    return page

"""The heat maps of a run in its gallery: after all pictures, and each with the concept's name on it."""
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sae_models import concept_map

from .looking import Looking

THRESHOLD = 0.5
"""Of what the name says is covered, as *Concept Map* has it."""
SMALLEST, LETTERS = 12, 26
"""Pixels of a letter's height at least, and how many of that height are as wide as a picture."""
Box = tuple[int, int, int, int]
Font = Callable[[int], Any]


def add(processed: Any, looking: Looking, font: Font, box: Box | None = None, between: int = 0) -> None:
    """Put the maps behind all that is there, each with the text of its picture.

    box: (x, y, width, height) of what was painted, None for all; between: pictures of masks after each picture.
    """
    first, texts, shown = processed.index_of_first_image, processed.infotexts, beside(processed)
    both = [*processed.images, *shown] if shown is not processed.images else shown
    texts += texts[:1] * (len(both) - len(texts))  # others add pictures without a text
    pictures = zip(processed.images[first::1 + between], texts[first:], looking.maps, strict=False)
    for picture, text, maps in list(pictures):
        for name, one in _shown(looking, maps):
            image = over(picture, one, name, font, box)
            image.info["parameters"] = text
            shown.append(image)
            texts.append(text)


def beside(processed: Any) -> list[Image.Image]:
    """Where a host shows pictures that no script takes for painted ones; among these in hosts that have no such place.
    """
    return getattr(processed, "extra_images", processed.images)


def _shown(looking: Looking, maps: Tensor | None) -> list[tuple[str, Tensor]]:
    if maps is None:
        return []
    names = looking.names
    which = concept_map.strongest(names, maps) if looking.strongest else range(len(names))
    return [(names[i], maps[i]) for i in which]


def over(picture: Image.Image, one: Tensor, name: str, font: Font, box: Box | None = None) -> Image.Image:
    """The picture with a concept's map [h, w] laid over it, and its name: alone, where more would be cut off."""
    share = placed(one, picture.size, box)
    pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)
    heat = (255 * concept_map.heat(pixels[None], share[None])[0]).round().byte()
    image = Image.fromarray(heat.numpy())
    size = max(SMALLEST, picture.width // LETTERS)
    draw, letters, said = ImageDraw.Draw(image), font(size), concept_map.report([name], share[None, None], THRESHOLD)
    said = said if draw.textlength(said, letters) <= picture.width - size else name
    draw.text((size // 2, size // 3), said, "white", letters, stroke_width=max(1, size // 10), stroke_fill="black")
    return image


def placed(one: Tensor, size: tuple[int, int], box: Box | None) -> Tensor:
    """[H, W] of a map [h, w]: its share of a picture of that width and height, of which the box was painted."""
    width, height = size
    x, y, w, h = box or (0, 0, width, height)
    share = torch.zeros(height, width)
    share[y:y + h, x:x + w] = concept_map.shares(one[None], h, w)[0]
    return share

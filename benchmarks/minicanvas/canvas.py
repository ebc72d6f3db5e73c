"""A MiniCanvas picture: one or two drawings in one style, anywhere and at several sizes, on one of five grounds."""
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .icons import OBJECTS, STYLES, rgba

CANVAS_PX = 96
BACKGROUNDS = ("white", "blue", "yellow", "striped", "dotted")
ALONE, TOGETHER = (0.5, 0.85), (0.42, 0.54)
"""Side of a drawing as a share of the picture's, by how many there are."""
PAIRS = 0.6
"""Share of the pictures that show two objects."""


class Scene(NamedTuple):
    """What a picture shows: one or two indices into OBJECTS, one each into STYLES and BACKGROUNDS."""
    objects: tuple[int, ...]
    style: int
    background: int


class Spot(NamedTuple):
    """Where a drawing lies, in pixels."""
    left: int
    top: int
    size: int


@cache
def drawings() -> torch.Tensor:
    """Premultiplied float drawings [style, object, 4, px, px] in 0..1."""
    icons = torch.from_numpy(rgba().copy()).permute(0, 1, 4, 2, 3).float() / 255
    icons[:, :, :3] *= icons[:, :, 3:]
    return icons


@cache
def ground(background: int) -> torch.Tensor:
    """The picture [3, CANVAS_PX, CANVAS_PX] without a drawing."""
    line = torch.arange(CANVAS_PX)
    across, down = line.view(1, -1), line.view(-1, 1)
    stripes = ((across + down) % 24 < 12).expand(CANVAS_PX, CANVAS_PX)
    dots = (across % 24 - 11.5).square() + (down % 24 - 11.5).square() < 36
    plain = torch.zeros(CANVAS_PX, CANVAS_PX, dtype=torch.bool)
    name = BACKGROUNDS[background]
    first, second, mask = {
        "white": ((1, 1, 1), (1, 1, 1), plain), "blue": ((0.62, 0.8, 0.98), (1, 1, 1), plain),
        "yellow": ((1, 0.9, 0.5), (1, 1, 1), plain), "striped": ((1, 1, 1), (0.96, 0.72, 0.76), stripes),
        "dotted": ((0.72, 0.9, 0.7), (1, 1, 1), dots),
    }[name]
    first, second = (torch.tensor(colour, dtype=torch.float32).view(3, 1, 1) for colour in (first, second))
    return torch.where(mask, second, first).expand(3, CANVAS_PX, CANVAS_PX).contiguous()


def put(canvas: torch.Tensor, icon: torch.Tensor, spot: Spot) -> None:
    """Draw one premultiplied drawing [4, px, px] over `canvas` [3, h, w], in place."""
    small = F.interpolate(icon[None], (spot.size, spot.size), mode="bilinear", antialias=True)[0].clamp(0, 1)
    part = canvas[:, spot.top:spot.top + spot.size, spot.left:spot.left + spot.size]
    part.mul_(1 - small[3:]).add_(small[:3]).clamp_(0, 1)


def overlap(a: Spot, b: Spot) -> float:
    """The boxes' common area as a share of the smaller one's."""
    sides = [max(0, min(p + a.size, q + b.size) - max(p, q)) for p, q in ((a.left, b.left), (a.top, b.top))]
    return sides[0] * sides[1] / min(a.size, b.size) ** 2


def random_spots(n: int, generator: torch.Generator) -> list[Spot]:
    """Places for `n` drawings that hardly overlap."""
    low, high = (round(share * CANVAS_PX) for share in (TOGETHER if n > 1 else ALONE))
    while True:
        sizes = torch.randint(low, high + 1, (n,), generator=generator).tolist()
        spots = [Spot(*torch.randint(0, CANVAS_PX - size + 1, (2,), generator=generator).tolist(), size)
                 for size in sizes]
        if n == 1 or overlap(*spots) < 0.06:
            return spots


def picture(scene: Scene, spots: list[Spot]) -> torch.Tensor:
    """[3, CANVAS_PX, CANVAS_PX] in 0..1."""
    canvas = ground(scene.background).clone()
    for obj, spot in zip(scene.objects, spots, strict=True):
        put(canvas, drawings()[scene.style, obj], spot)
    return canvas


def random_scene(generator: torch.Generator, pairs: float = PAIRS) -> Scene:
    """Any scene; pairs: the chance of two objects."""
    n = 2 if float(torch.rand((), generator=generator)) < pairs else 1
    objects = torch.randperm(len(OBJECTS), generator=generator)[:n].tolist()
    style, background = (int(torch.randint(n, (), generator=generator)) for n in (len(STYLES), len(BACKGROUNDS)))
    return Scene(tuple(objects), style, background)


def random_pictures(scenes: list[Scene], generator: torch.Generator) -> torch.Tensor:
    """[n, 3, CANVAS_PX, CANVAS_PX] in 0..1, each drawing at a random place."""
    return torch.stack([picture(scene, random_spots(len(scene.objects), generator)) for scene in scenes])


def painted(scenes: Sequence[Scene], copies: int, seed: int) -> np.ndarray:
    """uint8 [scenes * copies, 3, CANVAS_PX, CANVAS_PX], a scene's copies side by side, drawn by one thread."""
    torch.set_num_threads(1)
    pictures = random_pictures([scene for scene in scenes for _ in range(copies)], torch.Generator().manual_seed(seed))
    return (pictures * 255).round().byte().numpy()

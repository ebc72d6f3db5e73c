"""Scenes in which drawings are ruined: a ruin is a drawing like those of the packs, but shows none of the objects.

So it lies in a scene at any place, on any ground, alone or beside a whole drawing. Where a ruin is made of drawings,
they are of the scene's style.
"""
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .canvas import CANVAS_PX, Scene, Spot, drawings, ground, overlap, put, random_scene
from .icons import OBJECTS

ALONE, TOGETHER, OVERLAP = (0.46, 0.92), (0.38, 0.58), 0.1
"""A little wider than the canvas's."""

Ruin = Callable[[int, torch.Generator], torch.Tensor]
"""(style, generator) to a premultiplied drawing [4, px, px]."""


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def randint(low: int, high: int, generator: torch.Generator) -> int:
    """One whole number in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def two_drawings(style: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Two different objects [4, px, px]."""
    return [drawings()[style, obj] for obj in torch.randperm(len(OBJECTS), generator=generator)[:2].tolist()]


def smooth(channels: int, cells: int, px: int, generator: torch.Generator) -> torch.Tensor:
    """A random field [channels, px, px] of about `cells` bumps a side, in -1..1 mostly."""
    field = torch.randn(1, channels, cells, cells, generator=generator)
    return F.interpolate(field, (px, px), mode="bicubic", align_corners=True)[0]


def blank(style: int, generator: torch.Generator) -> torch.Tensor:
    """Nothing at all."""
    return torch.zeros_like(drawings()[0, 0])


def blob(style: int, generator: torch.Generator) -> torch.Tensor:
    """Patches of smooth colour with a soft or a hard edge."""
    px = CANVAS_PX
    line = torch.linspace(-1, 1, px)
    centre = uniform(-0.3, 0.3, (2,), generator)
    radius = ((line[:, None] - centre[0]).square() + (line - centre[1]).square()).sqrt()
    shape = smooth(1, randint(3, 9, generator), px, generator) + uniform(0.5, 3, (), generator) - 3 * radius
    mask = (shape * uniform(1, 15, (), generator)).sigmoid()
    tones = uniform(0, 0.5, (), generator) * smooth(3, randint(2, 16, generator), px, generator)
    colour = (torch.rand(3, 1, 1, generator=generator) + tones).clamp(0, 1)
    return torch.cat([mask * colour, mask])


def blend(style: int, generator: torch.Generator) -> torch.Tensor:
    """Two objects shining through each other."""
    first, second = two_drawings(style, generator)
    return torch.lerp(first, second, float(uniform(0.42, 0.58, (), generator)))


def halves(style: int, generator: torch.Generator) -> torch.Tensor:
    """Half of one object, half of another, joined near the middle."""
    first, second = two_drawings(style, generator)
    px = first.shape[-1]
    line = torch.arange(px) < px * uniform(0.45, 0.55, (), generator)
    return torch.where(line if randint(0, 1, generator) else line[:, None], first, second)


def shuffled(style: int, generator: torch.Generator) -> torch.Tensor:
    """An object cut into squares, most of which change place."""
    drawing, _ = two_drawings(style, generator)
    n = randint(3, 5, generator)
    side = drawing.shape[-1] // n
    squares = drawing[:, :n * side, :n * side].reshape(4, n, side, n, side).permute(1, 3, 0, 2, 4).flatten(0, 1)
    squares = squares[torch.randperm(n * n, generator=generator)]
    return squares.view(n, n, 4, side, side).permute(2, 0, 3, 1, 4).reshape(4, n * side, n * side)


def fragment(style: int, generator: torch.Generator) -> torch.Tensor:
    """A small piece of an object."""
    drawing, _ = two_drawings(style, generator)
    px = drawing.shape[-1]
    piece = round(px * float(uniform(0.2, 0.4, (), generator)))
    x, y = (randint(0, px - piece, generator) for _ in range(2))
    return F.pad(drawing[:, y:y + piece, x:x + piece], (x, px - piece - x, y, px - piece - y))


def melted(style: int, generator: torch.Generator) -> torch.Tensor:
    """An object pulled out of shape. Kept out of training, to see what the judge makes of an unknown fault."""
    drawing, _ = two_drawings(style, generator)
    px = drawing.shape[-1]
    grid = F.affine_grid(torch.eye(2, 3)[None], [1, 4, px, px], align_corners=False)
    pull = smooth(2, randint(5, 9, generator), px, generator).permute(1, 2, 0)
    return F.grid_sample(drawing[None], grid + pull * uniform(0.2, 0.35, (), generator), align_corners=False)[0]


RUINS = (blank, blob, blend, halves, shuffled, fragment)


def spots(n: int, generator: torch.Generator) -> list[Spot]:
    """Places for `n` drawings, of a little more sizes than the canvas's."""
    low, high = (round(share * CANVAS_PX) for share in (TOGETHER if n > 1 else ALONE))
    while True:
        sizes = [randint(low, high, generator) for _ in range(n)]
        places = [Spot(*(randint(0, CANVAS_PX - size, generator) for _ in range(2)), size) for size in sizes]
        if n == 1 or overlap(*places) < OVERLAP:
            return places


def ruined_scene(whole: int, generator: torch.Generator) -> tuple[Scene, int]:
    """A scene with `whole` drawings (any number for -1) left whole, and how many are ruined."""
    scene = random_scene(generator)
    while len(scene.objects) <= whole:
        scene = random_scene(generator)
    kept = scene.objects if whole < 0 else scene.objects[:whole]
    return scene._replace(objects=kept), len(scene.objects) - len(kept)


def ruined_picture(scene: Scene, ruins: int, generator: torch.Generator, kinds: tuple[Ruin, ...]) -> torch.Tensor:
    """[3, CANVAS_PX, CANVAS_PX]: the objects of `scene`, and so many ruins beside them."""
    icons = [drawings()[scene.style, obj] for obj in scene.objects]
    icons += [kinds[randint(0, len(kinds) - 1, generator)](scene.style, generator) for _ in range(ruins)]
    canvas = ground(scene.background).clone()
    for icon, spot in zip(icons, spots(len(icons), generator), strict=True):
        put(canvas, icon, spot)
    return canvas

"""A MiniCanvas picture: one drawing at a random place and scale on white paper."""
import torch
import torch.nn.functional as F

from .icons import OBJECTS, STYLES, rgba

CANVAS_PX = 96
SCALES = (0.6, 0.9)


def drawings() -> torch.Tensor:
    """Premultiplied float drawings [style, object, 4, px, px] in 0..1."""
    icons = torch.from_numpy(rgba().copy()).permute(0, 1, 4, 2, 3).float() / 255
    icons[:, :, :3] *= icons[:, :, 3:]
    return icons


def place(icon: torch.Tensor, size: int, left: int, top: int) -> torch.Tensor:
    """One premultiplied drawing [4, px, px] on white, as [3, CANVAS_PX, CANVAS_PX] in 0..1."""
    small = F.interpolate(icon[None], (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)
    canvas = torch.ones(3, CANVAS_PX, CANVAS_PX)
    spot = canvas[:, top:top + size, left:left + size]
    spot.mul_(1 - small[3:]).add_(small[:3])
    return canvas.clamp_(0, 1)


def random_pictures(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures [n, 3, CANVAS_PX, CANVAS_PX] of `labels` [n] (style * len(OBJECTS) + object), placed at random."""
    icons = drawings_cached().flatten(0, 1)

    def picture(label: int) -> torch.Tensor:
        low, high = (round(scale * CANVAS_PX) for scale in SCALES)
        size = int(torch.randint(low, high + 1, (), generator=generator))
        left, top = torch.randint(0, CANVAS_PX - size + 1, (2,), generator=generator).tolist()
        return place(icons[label], size, left, top)
    return torch.stack([picture(label) for label in labels.tolist()])


_cache: list[torch.Tensor] = []


def drawings_cached() -> torch.Tensor:
    if not _cache:
        _cache.append(drawings())
    return _cache[0]


def all_labels() -> torch.Tensor:
    """Every (style, object) pair once."""
    return torch.arange(len(STYLES) * len(OBJECTS))

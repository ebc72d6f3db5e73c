"""Tokens painted over with the mean of the nearest free ones, as *replace* does it."""
import math
from functools import lru_cache

import torch
from torch import Tensor

NEAREST = 4  # free tokens averaged into a replaced one
AT_ONCE = 2 ** 22  # distances between tokens that are held at once


@lru_cache(maxsize=16)
def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Where each token is, [N, 2]."""
    y, x = (torch.arange(side, device=device, dtype=torch.float32) for side in (height, width))
    return torch.stack([y[:, None].expand(height, width), x.expand(height, width)], 2).flatten(0, 1)


def replace_from_nearest(out: Tensor, x: Tensor, share: Tensor, size: tuple[int, int]) -> None:
    """Blend, in `out` [d_in, N], every token with share > 0 towards the mean of its nearest free tokens of x."""
    if x.device.type != "cpu":
        near, weights = _nearest_free(share.eq(0), *size)
        donors = (x[:, near] * weights.to(x)).sum(2)
        out.copy_(torch.where(share > 0, torch.lerp(out, donors, share), out))
        return
    places = _places(*size, x.device)
    taken, free = share.gt(0).nonzero()[:, 0], share.eq(0).nonzero()[:, 0]
    if len(taken) == 0:
        return
    distance = torch.cdist(places[taken], places[free])
    near = distance.topk(min(NEAREST, len(free)), largest=False).indices
    donors = x[:, free[near]].mean(2)
    out[:, taken] = torch.lerp(out[:, taken], donors, share[taken])


def _nearest_free(free: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which free tokens are nearest to every token, and their weights, both [N, k], without counting the free ones:
    first the nearest in each column, then the nearest of those."""
    y, x = (torch.arange(side, device=free.device, dtype=torch.float32) for side in (height, width))
    tokens, weights = [], []
    for rows in y.split(max(1, AT_ONCE // len(free))):
        apart = (rows[:, None, None] - y[:, None]).abs().masked_fill(~free.view(height, width), math.inf)
        dy, from_y = apart.topk(min(NEAREST, height), 1, largest=False)
        apart = (dy.square()[:, None] + (x[:, None] - x).square()[:, None]).flatten(2)
        apart, chosen = apart.topk(min(NEAREST, apart.shape[2]), largest=False)
        there = (from_y * width + x.long()).flatten(1)[:, None].expand(-1, width, -1)
        tokens.append(there.gather(2, chosen).flatten(0, 1))
        weights.append(apart.isfinite().flatten(0, 1))
    found = torch.cat(weights).float()
    return torch.cat(tokens), found / found.sum(1, keepdim=True).clamp_min(1)

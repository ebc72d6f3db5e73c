"""The judge: a small network that tells which objects a MiniCanvas picture shows, in which style, on which ground."""
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from .canvas import BACKGROUNDS, CANVAS_PX
from .icons import OBJECTS, STYLES

WEIGHTS = Path(__file__).with_name("weights") / "judge.safetensors"
WIDTHS = (32, 48, 96, 160)
VERDICT_BATCH = 128
PRESENT = 0.75
"""An object at least this probable is there. Held-out pictures leave the choice open (train_judge.rights_by_threshold):
higher ones mistake fewer ruins for drawings and overlook more drawings out of a VAE."""


class Verdict(NamedTuple):
    """What the judge says of n pictures."""
    objects: torch.Tensor             # bool [n, 24]: which of OBJECTS are there, each asked on its own
    style: torch.Tensor               # long [n], an index into STYLES; means nothing where there is nothing
    background: torch.Tensor          # long [n], an index into BACKGROUNDS
    object_probability: torch.Tensor  # float [n, 24]

    @property
    def nothing(self) -> torch.Tensor:
        """bool [n]: no object is recognisable."""
        return ~self.objects.any(1)


def down(into: int, out: int, kernel: int = 3) -> nn.Sequential:
    """A layer that halves the sides of a map."""
    conv = nn.Conv2d(into, out, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, out), nn.SiLU())


class Residual(nn.Module):
    """x + conv(silu(norm(conv(x)))), the last convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1))
        nn.init.zeros_(self.branch[-1].weight)
        nn.init.zeros_(self.branch[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class Judge(nn.Module):
    """Four halvings; an object is looked for at each of the 6x6 places, style and ground in their maximum and mean."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.body = nn.Sequential(
            down(3, a, kernel=5), down(a, b), Residual(b), down(b, c), Residual(c), down(c, d), Residual(d),
            nn.GroupNorm(8, d), nn.SiLU())
        self.object_head = nn.Conv2d(d, len(OBJECTS), 1)
        self.style_head = nn.Linear(2 * d, len(STYLES))
        self.background_head = nn.Linear(2 * d, len(BACKGROUNDS))
        nn.init.constant_(self.object_head.bias, -6.0)  # most objects are absent at most places

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (objects [n, 24], style [n, 5], background [n, 5]) of `pictures` [n, 3, 96, 96] in 0..1."""
        features = self.body((1 - pictures).contiguous(memory_format=torch.channels_last))
        pooled = torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)
        objects = self.object_head(features).flatten(2).logsumexp(2)
        return objects, self.style_head(pooled), self.background_head(pooled)

    @torch.no_grad()
    def verdict(self, pictures: torch.Tensor) -> Verdict:
        """Judge float `pictures` [n, 3, 96, 96] in 0..1; answers lie on the pictures' device."""
        if pictures.ndim != 4 or pictures.shape[1:] != (3, CANVAS_PX, CANVAS_PX):
            raise ValueError(f"expected pictures [n, 3, {CANVAS_PX}, {CANVAS_PX}], got {list(pictures.shape)}")
        weight = self.style_head.weight
        batches = pictures.split(VERDICT_BATCH)
        logits = [self(batch.to(weight.device, weight.dtype).clamp(0, 1)) for batch in batches]
        objects, style, ground = (torch.cat(head).float().to(pictures.device) for head in zip(*logits, strict=True))
        probability = objects.sigmoid()
        return Verdict(probability >= PRESENT, style.argmax(1), ground.argmax(1), probability)


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The trained judge, in fp32 on the CPU; the file is fp16."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)

"""The judge: a small network that tells which object, if any, a MiniCanvas picture shows, and in which style."""
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from .canvas import CANVAS_PX
from .icons import OBJECTS, STYLES

NONE = len(OBJECTS)              # the object index of a picture that shows none of them: an artefact
OBJECT_NAMES = (*OBJECTS, "none")
WEIGHTS = Path(__file__).with_name("weights") / "judge.safetensors"
WIDTHS = (32, 48, 96, 160)
VERDICT_BATCH = 128


class Verdict(NamedTuple):
    """What the judge says of n pictures; the probabilities are those of the answers given."""
    object: torch.Tensor              # long [n], an index into OBJECT_NAMES
    style: torch.Tensor               # long [n], an index into STYLES; means nothing where object is NONE
    object_probability: torch.Tensor  # float [n]
    style_probability: torch.Tensor   # float [n]


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
    """Four halvings, global maximum and mean, one linear layer for each of the two questions."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.body = nn.Sequential(
            down(3, a, kernel=5), down(a, b), Residual(b), down(b, c), Residual(c), down(c, d), Residual(d),
            nn.GroupNorm(8, d), nn.SiLU())
        self.object_head = nn.Linear(2 * d, len(OBJECT_NAMES))
        self.style_head = nn.Linear(2 * d, len(STYLES))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (object [n, 35], style [n, 6]) of `pictures` [n, 3, 96, 96] in 0..1."""
        ink = (1 - pictures).contiguous(memory_format=torch.channels_last)  # the border pads as paper: zero
        features = self.body(ink)
        pooled = torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1)
        return self.object_head(pooled), self.style_head(pooled)

    @torch.no_grad()
    def verdict(self, pictures: torch.Tensor) -> Verdict:
        """Judge float `pictures` [n, 3, 96, 96] in 0..1; answers lie on the pictures' device."""
        if pictures.ndim != 4 or pictures.shape[1:] != (3, CANVAS_PX, CANVAS_PX):
            raise ValueError(f"expected pictures [n, 3, {CANVAS_PX}, {CANVAS_PX}], got {list(pictures.shape)}")
        weight = self.object_head.weight
        batches = pictures.split(VERDICT_BATCH)
        logits = [self(batch.to(weight.device, weight.dtype).clamp(0, 1)) for batch in batches]
        tops = [torch.cat(head).float().softmax(1).max(1) for head in zip(*logits, strict=True)]
        (p_object, obj), (p_style, style) = ((p.to(pictures.device), i.to(pictures.device)) for p, i in tops)
        return Verdict(obj, style, p_object, p_style)


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The trained judge, in fp32 on the CPU; the file is fp16."""
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)

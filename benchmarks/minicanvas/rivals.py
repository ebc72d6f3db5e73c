"""What people would pick instead of an SAE, made for MiniCanvas: weights edited by UCE or fine-tuned by ESD-x.

Both give differences to weights of the UNet's cross-attentions, {parameter's name: fp32 tensor of its shape}, shipped
as one fp16 file that the node *MiniCanvasWeights* adds. NAG, the third, has nothing to make: see bench_nodes/rivals.py.
"""
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .canvas import BACKGROUNDS, Scene
from .harness import save_atomically
from .icons import OBJECTS, STYLES
from .text import TEMPLATES, contexts, prompt, tokenizer
from .train_unet import alphas_cumprod

Deltas = dict[str, Tensor]
END_OF_TEXT = 49407


def scene_of(name: str) -> Scene:
    """The scene that shows nothing but a concept.

    >>> scene_of("frog"), scene_of("noto style"), scene_of("blue ground")
    (Scene(objects=(4,), style=-1, background=-1), Scene(objects=(), style=0, background=-1), \
Scene(objects=(), style=-1, background=1))
    """
    if name in OBJECTS:
        return Scene((OBJECTS.index(name),), -1, -1)
    word, kind = name.rsplit(" ", 1)
    return Scene((), STYLES.index(word), -1) if kind == "style" else Scene((), -1, BACKGROUNDS.index(word))


def prompts(name: str) -> list[str]:
    """Every way in which training's templates say a concept and nothing else.

    >>> prompts("frog")
    ['a frog', 'a picture of a frog']
    """
    return list(dict.fromkeys(prompt(scene_of(name), template) for template in TEMPLATES))


def word(name: str) -> str:
    """A concept as UCE's texts name it, whose last word has to tell it: "frog", "noto"."""
    return name.removesuffix(" style").removesuffix(" ground")


def others(names: Sequence[str]) -> list[str]:
    """The words of every concept but `names`: what UCE is to keep."""
    erased = {word(name) for name in names}
    return [text for text in (*OBJECTS, *STYLES, *BACKGROUNDS) if text not in erased]


def cross_attention(unet: nn.Module, *layers: str) -> dict[str, nn.Parameter]:
    """{name: parameter} of all cross-attentions, or of some of their layers ("to_k", ...) only."""
    return {name: value for name, value in unet.named_parameters()
            if ".attn2." in name and (not layers or name.split(".attn2.")[1].split(".")[0] in layers)}


# --- UCE -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UceSettings:
    """How much the erased texts, the kept ones and all other inputs weigh, as in the authors' code of 2025 for SD 1.4
    (rohitgandikota/unified-concept-editing, trainscripts/uce_sd_erase.py: erase_scale, preserve_scale, lamb)."""
    erase: float = 1.0
    preserve: float = 1.0
    ridge: float = 0.5


def last_words(texts: Sequence[str]) -> Tensor:
    """What the text encoder gives for each text's last token, [n, 768]; for the start of text where it says nothing."""
    ids = torch.tensor([[token for token, _ in tokenizer().tokenize_with_weights(text)[0]] for text in texts])
    ends = (ids == END_OF_TEXT).int().argmax(1)
    return contexts(list(texts))[torch.arange(len(texts)), ends - 1]


def uce_matrix(old: Tensor, new: Tensor, keep: Tensor, settings: UceSettings) -> Tensor:
    """What W_old is multiplied with from the right, fp64 [d, d], from rows c_i of `old`, c_i* of `new`, c_j of `keep`.

    Equation 7 of Unified Concept Editing in Diffusion Models (arXiv 2308.14761), with v_i* = W_old c_i*:
    W = (sum_i a v_i* c_i' + sum_j b W_old c_j c_j' + r W_old) (sum_i a c_i c_i' + sum_j b c_j c_j' + r 1)^-1
    """
    old, new, keep = (part.double() for part in (old, new, keep))
    others = settings.preserve * keep.T @ keep + settings.ridge * torch.eye(old.shape[1], dtype=torch.float64)
    wanted, seen = (others + settings.erase * side.T @ old for side in (new, old))
    return torch.linalg.solve(seen, wanted, left=False)


@torch.no_grad()
def uce(unet: nn.Module, erase: Sequence[str], keep: Sequence[str], replacement: str = "",
        settings: UceSettings = UceSettings()) -> Deltas:
    """Differences to to_k and to_v of all cross-attentions, so that they hear `replacement` where `erase` is said.

    A text stands for its last token, "" for the start of text, as in the authors' code. Their first code, of the
    paper's time (train-scripts/train_erase.py), took that token and all after it, and all tokens of what is kept, with
    a preserve of 0.1: tried on this model, it touches ten times as much and removes less.
    """
    old, new = last_words(erase), last_words([replacement]).expand(len(erase), -1)
    change = uce_matrix(old, new, last_words(keep), settings) - torch.eye(old.shape[1], dtype=torch.float64)
    return {name: (weight.double() @ change).float() for name, weight in cross_attention(unet, "to_k", "to_v").items()}


# --- ESD-x ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EsdSettings:
    """How ESD-x is trained: 150 steps of batch 4 and a teacher's 24 pictures, some five minutes on one slow core.

    The paper's are eta 1, guidance 3, 50 DDIM steps, Adam with lr 1e-5, 1000 steps of batch 1 on SD 1.4 (code:
    train-scripts/train-esd.py). Kept are eta, guidance and Adam; 12 DDIM steps are as elsewhere on this model. Of the
    rates 3e-5, 1e-4 and 3e-4, tried on one concept, 1e-4 removed most; 3e-4 touched twice as much and removed less.
    """
    steps: int = 150
    batch: int = 4
    lr: float = 1e-4
    eta: float = 1.0
    guidance: float = 3.0
    ddim_steps: int = 12
    pictures: int = 24
    seed: int = 0


class Teacher(NamedTuple):
    """What the untouched UNet says on its way to pictures of the concept, n = pictures x DDIM steps."""
    latents: Tensor   # [n, 4, h, w]
    times: Tensor     # long [n]
    contexts: Tensor  # [n, 77, 768], the concept's
    with_it: Tensor   # eps_0(x_t, c) [n, 4, h, w]
    without: Tensor   # eps_0(x_t) [n, 4, h, w]

    def target(self, eta: float) -> Tensor:
        return self.without - eta * (self.with_it - self.without)


@torch.no_grad()
def teacher(unet: nn.Module, concept_prompts: Sequence[str], settings: EsdSettings) -> Teacher:
    """Paint the concept with the untouched UNet and keep every step: guidance needs both its answers anyway."""
    generator, alphas = torch.Generator().manual_seed(settings.seed), alphas_cumprod()
    words = contexts(list(concept_prompts))[torch.arange(settings.pictures) % len(concept_prompts)]
    both = torch.cat([words, contexts([""]).expand_as(words)])
    x, kept = torch.randn(settings.pictures, 4, 12, 12, generator=generator), []
    for now, then in pairwise(torch.linspace(999, 0, settings.ddim_steps + 1).long().tolist()):
        times = torch.full((len(x),), now)
        with_it, without = unet(torch.cat([x, x]), times.repeat(2), both).chunk(2)
        kept.append(Teacher(x, times, words, with_it, without))
        eps, a, b = without + settings.guidance * (with_it - without), alphas[now], alphas[then]
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    return Teacher(*(torch.cat(parts) for parts in zip(*kept, strict=True)))


def esd_x(unet: nn.Module, concept_prompts: Sequence[str], settings: EsdSettings = EsdSettings(),
          report: Callable[[int, float], None] = lambda step, loss: None) -> Deltas:
    """Differences to all weights of the cross-attentions, fine-tuned so that the UNet denies the concept.

    Erasing Concepts from Diffusion Models (arXiv 2303.07345), equations 6 and 7: the loss is
    |eps(x_t, c) - (eps_0(x_t) - eta (eps_0(x_t, c) - eps_0(x_t)))|^2, eps_0 the untouched UNet, x_t painted part of the
    way with the concept's prompt: by eps_0 as in the authors' later code (rohitgandikota/erasing, esd_sd.py), which
    lets one painted picture serve at every step of its way. `report(step, loss)` hears of every step.
    """
    known, student = teacher(unet, concept_prompts, settings), copy.deepcopy(unet).requires_grad_(False)
    target, params = known.target(settings.eta), cross_attention(student)
    optimizer = torch.optim.Adam([value.requires_grad_() for value in params.values()], lr=settings.lr)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    for step in range(settings.steps):
        rows = torch.randint(len(target), (settings.batch,), generator=generator)
        said = student(known.latents[rows], known.times[rows], known.contexts[rows])
        loss = nn.functional.mse_loss(said, target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(step, loss.item())
    before = cross_attention(unet)
    return {name: (value - before[name]).detach() for name, value in params.items()}


# --- what they cost ------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """seconds: to make it on the machine at hand; size: bytes to ship. A step's cost is the bench's to time."""
    seconds: float
    size: int


FREE = Cost(0.0, 0)
"""What NAG and a negative prompt take before the first picture."""


def ship(make: Callable[[], Deltas], path: Path) -> Cost:
    """Make the differences, write them as fp16, with the seconds it took."""
    contexts([""])  # builds the text encoder, which a host has
    began = time.perf_counter()
    deltas = make()
    seconds = time.perf_counter() - began
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically({name: value.half() for name, value in deltas.items()}, path, {"seconds": f"{seconds:.2f}"})
    return cost(path)


def cost(path: Path) -> Cost:
    """Of a file that `ship` wrote."""
    with safe_open(path, "pt") as file:
        return Cost(float(file.metadata()["seconds"]), path.stat().st_size)

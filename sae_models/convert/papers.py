"""The concept side of SAEmnesia and SAeUron: what they pickle, as concepts with statistics by noise level.

`cls_latents_dict_<hook>.pkl` holds {class: [prompts, steps, d_sae]}, the latents after top-k averaged over the tokens
of a map, conditional half, for every step of a DDIM run (SAeUron, arXiv 2501.18052, section 4.2). From it come, for a
concept c, step i and latent f, its mean activation mu_c,i[f] and the threshold theta_i[f], the mean of mu over all
classes. `class_params.pth` holds {class: {percentile, multiplier}}: the percentile of scores above which latents are
taken, a number of latents in disguise, and a strength of their own edit, which is only noted.

Rows are step numbers there and noise levels here, so that any sampler finds its own. A latent fires above theta there
if it is also among the k that a token keeps; here above theta is enough, which needs none of the other latents.
"""
import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..concepts import Concept, Statistics
from ..errors import SaeError
from ..formats import Header
from ..learning import scoring
from . import pickles

TRAIN_STEPS = 1000
BETAS = (0.00085, 0.012)
"""Stable Diffusion's scaled-linear schedule: the square root of beta is linear between these."""


class Params(NamedTuple):
    percentile: float
    multiplier: float


def sigmas(steps: int) -> tuple[float, ...]:
    """Noise level of every row of a run of `steps`, falling: row i of 100 is timestep 991 - 10 i."""
    start, end = (math.sqrt(beta) for beta in BETAS)
    betas = torch.linspace(start, end, TRAIN_STEPS, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    timesteps = torch.arange(steps).flip(0) * (TRAIN_STEPS // steps) + 1
    return tuple(((1 - kept) / kept).sqrt()[timesteps].tolist())


def top_n(percentile: float, d_sae: int) -> int:
    """How many of `d_sae` scores lie above their percentile.

    >>> [top_n(p, 20480) for p in (99.999, 99.995, 99.99, 99.9)]
    [1, 2, 3, 21]
    """
    return d_sae - 1 - math.floor(percentile / 100 * (d_sae - 1))


def read_means(path: Path) -> dict[str, Tensor]:
    """{class: mean over its prompts [steps, d_sae], fp32}, one class in memory at a time.

    Raises SaeError for another kind of file, and for classes of different shape.
    """
    means = pickles.load_tensors(path, lambda latents: _mean_over_prompts(latents, path.name))
    shapes = {tuple(mean.shape) for mean in means.values()}
    if len(means) < 2 or len(shapes) > 1:
        raise SaeError(f"expected two classes or more of one shape in {path.name}, "
                       f"got {len(means)} of {sorted(shapes)}: scores compare a class with the others")
    if not all(mean.isfinite().all() for mean in means.values()):
        raise SaeError(f"{path.name} has numbers that are not finite (NaN or infinite): download it again")
    return means


def _mean_over_prompts(latents: Tensor, name: str) -> Tensor:
    """Step by step, so that no second copy of all prompts in fp32 is needed."""
    if latents.ndim != 3 or 0 in latents.shape or latents.shape[1] >= TRAIN_STEPS:
        raise SaeError(f"expected [prompts, steps, d_sae] for every class in {name}, got {list(latents.shape)}")
    return torch.stack([step.float().mean(0) for step in latents.unbind(1)])


def read_params(path: Path) -> dict[str, Params]:
    """{class: its percentile and multiplier}.

    Raises SaeError for another kind of file, and for a percentile outside 0..100.
    """
    found = pickles.load_torch(path)
    try:
        params = {name: Params(float(p["percentile"]), float(p["multiplier"])) for name, p in found.items()}
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise SaeError(f"{path.name} is not what was expected, {{class: {{percentile, multiplier}}}}") from error
    for name, p in params.items():
        if not 0 <= p.percentile < 100:
            raise SaeError(f"expected a percentile from 0 to below 100 for '{name}' in {path.name}, got {p.percentile}")
    return params


def add_concepts(header: Header, means: dict[str, Tensor], params: dict[str, Params],
                 kind: str) -> tuple[Header, Statistics]:
    """The header with a concept for every class, and their statistics.

    One latent a class, all different (SAEmnesia, arXiv 2509.21379, section 3.2), or the best n that a class's
    percentile stands for (SAeUron), always of scores averaged over the steps: SAeUron chooses anew at every step. The
    classes count alike, as they do where each has the same number of prompts.

    Raises SaeError when the SAE has concepts already or another number of latents, or a class has no parameters.
    """
    d_sae = next(iter(means.values())).shape[1]
    if header.concepts:
        raise SaeError(f"the SAE has {len(header.concepts)} concepts already: start from one without")
    if d_sae != header.config.d_sae:
        raise SaeError(f"the classes have {d_sae} latents and the SAE has {header.config.d_sae}: "
                       f"they do not belong together")
    missing = [name for name in means if params and name not in params]
    if missing:
        raise SaeError(f"there are no parameters for {', '.join(missing)}")
    mu = torch.stack(list(means.values()))                                        # [C, steps, d_sae]
    concepts = tuple(Concept(name, tuple(latents), kind, _note(params.get(name)))
                     for name, latents in zip(means, _latents(mu, list(means), params), strict=True))
    return replace(header, concepts=concepts), _statistics(mu, concepts)


def _note(params: Params | None) -> str:
    return f"published with percentile {params.percentile:g}, multiplier {params.multiplier:g}" if params else ""


def _latents(mu: Tensor, names: list[str], params: dict[str, Params]) -> list[list[int]]:
    n_classes, steps, d_sae = mu.shape
    labels = torch.eye(n_classes, dtype=torch.bool).repeat_interleave(steps, 0)
    score = scoring.scores(mu.flatten(0, 1), labels, torch.arange(steps).repeat(n_classes))
    if not params:
        return [[latent] for latent in scoring.assign(score)]
    return [row.topk(max(1, top_n(params[name].percentile, d_sae))).indices.tolist()
            for row, name in zip(score, names, strict=True)]


def _statistics(mu: Tensor, concepts: tuple[Concept, ...]) -> Statistics:
    """Thresholds and means [F, steps] of every concept's latents, with noise levels rising."""
    theta = mu.mean(0)
    rows = [(place, latent) for place, concept in enumerate(concepts) for latent in concept.latents]
    thresholds = torch.stack([theta[:, latent] for _, latent in rows])
    means = torch.stack([mu[place, :, latent] for place, latent in rows])
    return Statistics(sigmas(mu.shape[1])[::-1], thresholds.flip(1), means.flip(1))

"""Which latents stand for a concept: SAeUron's score, one latent a concept by greedy choice, and their statistics.

    s_c,i[f] = mu_c,i[f] / sum_f mu_c,i  -  mu_notc,i[f] / sum_f mu_notc,i

with mu the mean activation over the tokens and prompts of a concept at noise level i (SAeUron, arXiv 2501.18052,
section 4.2); SAEmnesia (arXiv 2509.21379, section 3.2) averages s over noise levels and assigns uniquely.
"""
import torch
from torch import Tensor
from torch.nn.functional import linear

from ..concepts import Statistics
from ..sae import Sae
from .maps import Maps


def scores(means: Tensor, labels: Tensor, levels: Tensor) -> Tensor:
    """Score of every latent for every concept, averaged over noise levels: [C, d_sae].

    means [n, d_sae]: mean activation over the tokens of map n, zeros included; labels bool [n, C]; levels int [n]: the
    noise level of each map. A level at which a concept is always or never present tells nothing and is left out.
    """
    total, counted = torch.zeros(labels.shape[1], means.shape[1]), torch.zeros(labels.shape[1], 1)
    for level in levels.unique():
        score, known = level_scores(means[levels == level], labels[levels == level])
        total += score
        counted += known
    return total / counted.clamp_min(1)


def level_scores(means: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`scores` of one noise level [C, d_sae], and which concepts they are known for: bool [C, 1]; 0 for the others."""
    inside, outside = concept_means(means, labels), concept_means(means, ~labels)
    known = (labels.any(0) & (~labels).any(0))[:, None]
    return known * (_share(inside) - _share(outside)), known


def concept_means(means: Tensor, labels: Tensor) -> Tensor:
    """mu of every concept: [n, d_sae] and bool [n, C] -> [C, d_sae], 0 where it is never said."""
    said = labels.float()
    return said.T @ means / said.sum(0)[:, None].clamp_min(1)


def _share(mu: Tensor) -> Tensor:
    return mu / mu.sum(1, keepdim=True).clamp_min(1e-12)


def assign(score: Tensor) -> list[int]:
    """One latent a concept, unique, best score first: a list of C latents for scores [C, d_sae]."""
    left, chosen = score.clone(), [-1] * len(score)
    for _ in range(len(score)):
        concept, latent = divmod(int(left.argmax()), left.shape[1])
        chosen[concept] = latent
        left[concept], left[:, latent] = -torch.inf, -torch.inf
    return chosen


@torch.no_grad()
def score_maps(sae: Sae, maps: Maps) -> Tensor:
    """`scores` of every latent for every concept on maps and on their counterparts without a concept: [C, d_sae]."""
    means = torch.cat([token_means(sae, maps.tokens), token_means(sae, maps.without)])
    levels = maps.sigmas.unique(return_inverse=True)[1].repeat(2)
    return scores(means, torch.cat([maps.labels, maps.left()]), levels)


@torch.no_grad()
def token_means(sae: Sae, tokens: Tensor) -> Tensor:
    """Mean top-k activation over the tokens of each map, zeros included: [n, N, d_in] -> [n, d_sae], on the CPU."""
    def mean(part: Tensor) -> Tensor:
        latents = sae.encode(part.to(sae.b_dec))
        flat = latents.top_indices.flatten(1)
        dense = torch.zeros(len(part), len(sae.W_dec), device=flat.device)
        dense.scatter_add_(1, flat, latents.top_acts.flatten(1))
        return sae.stacked(dense.T).T.cpu() / part.shape[1]
    return torch.cat([mean(part) for part in tokens.split(max(1, min(16, 2 ** 13 // tokens.shape[1])))])


@torch.no_grad()
def concept_logits(sae: Sae, tokens: Tensor, latents: list[int]) -> Tensor:
    """Pre-activations before the ReLU of the concepts' latents: [n, N, d_in] -> [n, N, C], on the CPU."""
    W_enc, bias = sae.encoder.weight[latents], sae.encoder.bias[latents]
    return torch.cat([linear(part.to(sae.b_dec) - sae.b_dec, W_enc, bias).cpu() for part in tokens.split(64)])


@torch.no_grad()
def measure(sae: Sae, maps: Maps, latents: list[int], owners: list[int] | None = None,
            quantile: float = 0.999) -> Statistics:
    """Threshold and mean of each latent at every noise level that occurs.

    latents [F]; owners [F]: the concept of each, unless there is one latent a concept. The threshold is what all but
    1 - `quantile` of the tokens of maps without the concept stay under. A level at which a concept is never (always)
    present takes its mean (threshold) from all levels; the mean of a concept that is never present is 0.
    """
    z = torch.cat([concept_logits(sae, tokens, latents) for tokens in (maps.tokens, maps.without)]).relu()
    labels, sigmas = torch.cat([maps.labels, maps.left()]), maps.sigmas.repeat(2)
    levels = sigmas.unique(sorted=True)
    thresholds, means = torch.zeros(len(latents), len(levels)), torch.zeros(len(latents), len(levels))
    for column, level in enumerate(levels):
        here = sigmas == level
        for row, concept in enumerate(owners or range(len(latents))):
            present = labels[here, concept]
            absent = z[here][~present] if not present.all() else z[~labels[:, concept]]
            shown = z[here][present] if present.any() else z[labels[:, concept]]
            thresholds[row, column] = _quantile(absent[..., row], quantile)
            means[row, column] = shown[..., row].mean() if len(shown) else 0.0
    return Statistics(tuple(levels.tolist()), thresholds, means)


def _quantile(values: Tensor, q: float) -> Tensor:
    flat = values.flatten().sort().values
    return flat[min(len(flat) - 1, int(q * len(flat)))] if len(flat) else values.new_zeros(())

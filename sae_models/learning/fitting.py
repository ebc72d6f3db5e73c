"""A concept's rows by least squares: what its words add to the block's output, and how to tell it from a token alone.

Where the concept was left out of the prompt, the difference is measured; elsewhere only whether it is said is known.
"""
import torch
from torch import Tensor, nn

from ..sae import Sae
from .losses import Weights
from .maps import Maps


@torch.no_grad()
def initialise_concepts(sae: Sae, maps: Maps, latents: list[int], weights: Weights, ridge: float = 1e-2) -> None:
    """Start each concept's latent where least squares puts it.

    W_dec[c] is the direction of the mean difference that the concept makes; W_enc[c] and its bias predict, from a token
    alone, how far the token lies along that direction where the concept is said, and `-margin` where it is not.
    """
    device, d_in = sae.b_dec.device, sae.config.d_in
    parts = [maps.pick(index) for index in torch.arange(len(maps)).split(256)]
    difference = torch.zeros(maps.labels.shape[1], d_in, device=device)
    for part in (part.to(device) for part in parts):
        difference.index_add_(0, part.unsaid, (part.tokens - part.without).mean(1))
    rows = nn.functional.normalize(difference, dim=1)
    gram, target = torch.zeros(d_in + 1, d_in + 1, device=device), torch.zeros(d_in + 1, len(rows), device=device)
    for part in (part.to(device) for part in parts):
        x = _with_one(part)
        gram += x.T @ x
        target += x.T @ _wanted_logits(part, rows, weights)
    for concept, latent in enumerate(latents):
        known = gram - _unknown_gram(maps, concept, device)
        known.diagonal().add_(ridge * known.diagonal().mean())
        solved = torch.linalg.solve(known, target[:, concept])
        sae.put(latent, solved[:-1], solved[-1] + solved[:-1] @ sae.b_dec, rows[concept])


def _with_one(maps: Maps) -> Tensor:
    """Every token with a 1 appended: [T, d_in + 1]."""
    return nn.functional.pad(maps.all_tokens(), (0, 1), value=1.0)


def _wanted_logits(maps: Maps, rows: Tensor, weights: Weights) -> Tensor:
    """What each concept's logit should be for every token [T, C]; 0 where it is said but not the one left out, because
    what it contributes there was not measured."""
    away = torch.full((*maps.tokens.shape[:2], len(rows)), -weights.margin, device=rows.device)
    along = (1 + weights.push) * torch.einsum("nkd,nd->nk", maps.tokens - maps.without, rows[maps.unsaid])
    here = away.scatter(2, maps.unsaid[:, None, None].expand(-1, away.shape[1], 1), along[..., None])
    return torch.cat([part.masked_fill(maps.left()[:, None], 0) for part in (here, away)]).flatten(0, 1)


def _unknown_gram(maps: Maps, concept: int, device: torch.device) -> Tensor:
    """The part of the Gram matrix that maps contribute in which the concept's share is not known."""
    x = [_with_one(maps.pick(index).to(device)) for index in maps.left()[:, concept].nonzero()[:, 0].split(256)]
    return sum(part.T @ part for part in x) if x else torch.zeros(())

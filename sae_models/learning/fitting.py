"""A concept's rows by least squares: what its words add at a place, and how to tell it from a token alone.

Where the concept was left out of the prompt, the difference is measured; elsewhere only whether it is said is known.
One direction carries what a word adds where it enters nearly alone (a cross-attention adds few fixed directions, the
word's values); where it does not, several do, each by an amount that is never negative, as a neuron's is: semi-NMF
(Ding, Li and Jordan 2010).
"""
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..sae import Sae
from .losses import Weights
from .maps import Maps

MOST_TOKENS = 20_000
"""Tokens that directions are found from."""
ROUNDS = 60


@torch.no_grad()
def initialise_concepts(sae: Sae, maps: Maps, latents: Sequence[Sequence[int]], weights: Weights,
                        ridge: float = 1e-2) -> None:
    """Start the latents of the first concepts (the same number for each) where least squares puts them.

    W_dec are the directions of the difference that the concept makes; W_enc and the biases predict, from a token alone,
    how far the token lies along them where the concept is said, and `-margin` where it is not.
    """
    device, d_in = sae.b_dec.device, sae.config.d_in
    parts = [maps.pick(index) for index in torch.arange(len(maps)).split(256)]
    rows = torch.stack([_directions(maps, concept, len(own), device) for concept, own in enumerate(latents)])
    gram = torch.zeros(d_in + 1, d_in + 1, device=device)
    target = torch.zeros(len(rows), d_in + 1, rows.shape[1], device=device)
    for part in (part.to(device) for part in parts):
        x = _with_one(part)
        gram += x.T @ x
        target += torch.einsum("td,tcn->cdn", x, _wanted_logits(part, rows, weights))
    for concept, own in enumerate(latents):
        known = gram - _unknown_gram(maps, concept, device)
        known.diagonal().add_(ridge * known.diagonal().mean())
        solved = torch.linalg.solve(known, target[concept]).T
        for latent, row, direction in zip(own, solved, rows[concept], strict=True):
            sae.put(latent, row[:-1], row[-1] + row[:-1] @ sae.b_dec, direction)


def _directions(maps: Maps, concept: int, n: int, device: torch.device) -> Tensor:
    """The `n` unit directions [n, d_in] of what a concept adds to a token; for one, that of its mean."""
    own = maps.pick((maps.unsaid == concept).nonzero()[:, 0])
    if n == 1:
        parts = (own.pick(index).to(device) for index in torch.arange(len(own)).split(256))
        total = torch.stack([(part.tokens - part.without).mean(1).sum(0) for part in parts]).sum(0)
        return nn.functional.normalize(total, dim=0)[None]
    generator = torch.Generator().manual_seed(concept)
    tokens, without = (part.flatten(0, 1) for part in (own.tokens, own.without))
    chosen = torch.randperm(len(tokens), generator=generator)[:MOST_TOKENS]
    return semi_nmf((tokens[chosen].float() - without[chosen].float()).to(device), n, generator)


def semi_nmf(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Unit directions R [n, d] with x [T, d] ~ Z R, Z >= 0, from those of a k-means over directions."""
    rows = _clustered(x, n, generator)
    z = (x @ rows.T).clamp_min(1e-3)
    for _ in range(ROUNDS):
        gram = z.T @ z
        gram.diagonal().add_(1e-4 * gram.diagonal().mean() + 1e-12)
        rows = torch.linalg.solve(gram, z.T @ x)
        z = _towards(x, rows, z)
    return nn.functional.normalize(rows, dim=1)


def _clustered(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    start = torch.multinomial(x.norm(dim=1).cpu() + 1e-12, min(n, len(x)), generator=generator)
    rows = nn.functional.normalize(x[start.to(x.device)], dim=1)
    for _ in range(20):
        member = nn.functional.one_hot((x @ rows.T).argmax(1), len(rows)).to(x)
        rows = nn.functional.normalize(torch.where(member.any(0)[:, None], member.T @ x, rows), dim=1)
    return rows


def shares(x: Tensor, rows: Tensor) -> Tensor:
    """How much of each direction [n, d] is in each token [T, d], never negative: [T, n]."""
    z = (x @ rows.T).clamp_min(1e-3)
    for _ in range(ROUNDS // 2):
        z = _towards(x, rows, z)
    return z


def _towards(x: Tensor, rows: Tensor, z: Tensor) -> Tensor:
    """One multiplicative step of Z for x ~ Z R (Ding et al. 2010, formula 8)."""
    wanted, gram = x @ rows.T, rows @ rows.T
    more = wanted.clamp_min(0) + z @ (-gram).clamp_min(0)
    less = (-wanted).clamp_min(0) + z @ gram.clamp_min(0)
    return z * (more / less.clamp_min(1e-9)).sqrt()


def _with_one(maps: Maps) -> Tensor:
    """Every token with a 1 appended: [T, d_in + 1]."""
    return nn.functional.pad(maps.all_tokens(), (0, 1), value=1.0)


def _wanted_logits(maps: Maps, rows: Tensor, weights: Weights) -> Tensor:
    """What the logits of each concept's neurons should be for every token [T, C, n], for directions [C, n, d_in]; 0
    where it is said but not the one left out, because what it contributes there was not measured."""
    away = torch.full((*maps.tokens.shape[:2], *rows.shape[:2]), -weights.margin, device=rows.device)
    here = away.clone()
    for concept in range(len(rows)):
        own = maps.unsaid == concept
        here[own, :, concept] = (1 + weights.push) * _along(maps.tokens[own] - maps.without[own], rows[concept])
    parts = (part.masked_fill(maps.left()[:, None, :len(rows), None], 0) for part in (here, away))
    return torch.cat(list(parts)).flatten(0, 1)


def _along(difference: Tensor, rows: Tensor) -> Tensor:
    """[m, N, d_in] and [n, d_in] -> [m, N, n]."""
    if len(rows) == 1:
        return difference @ rows.T
    return shares(difference.flatten(0, 1), rows).view(*difference.shape[:2], len(rows))


def _unknown_gram(maps: Maps, concept: int, device: torch.device) -> Tensor:
    """The part of the Gram matrix that maps contribute in which the concept's share is not known."""
    x = [_with_one(maps.pick(index).to(device)) for index in maps.left()[:, concept].nonzero()[:, 0].split(256)]
    return sum(part.T @ part for part in x) if x else torch.zeros(())

"""A concept's rows: what its words add at a place, and how to tell it from a token alone. Least squares puts each
neuron where it is; then a concept's neurons may learn together.

Where the concept was left out of the prompt, the difference is measured; elsewhere only whether it is said is known.
One direction carries what a word adds where it enters nearly alone (a cross-attention adds few fixed directions, the
word's values); where it does not, several do, each by an amount that is never negative, as a neuron's is: semi-NMF
(Ding, Li and Jordan 2010).
"""
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..sae import Sae
from .losses import Weights
from .maps import Maps

MOST_TOKENS = 20_000
"""Tokens that directions are found from, and that neurons learn from together."""
AT_ONCE = 2 ** 15
"""Tokens that are on the device at once: a map of one place may have thousands."""
UNIT_MAPS = 64
"""Maps that say how large a place's numbers are."""
ROUNDS = 60
STEPS, WARM, BATCH = 400, 40, 768
"""Of learning together: steps, the first of them in which the rate rises, tokens of each of two kinds."""
RATE = 0.3
"""Adam's learning rate times d_in: a step moves every weight by the rate, so what a neuron sees in a token by up to
d_in times as much; one that is moved too far at once fires no more, and then learns no more."""


def fit_concepts(sae: Sae, maps: Maps, latents: Sequence[Sequence[int]], weights: Weights) -> None:
    """Put the latents of the first concepts (the same number for each) where least squares has them, and let those of
    each learn on together. Those of a concept that the maps never leave out stay what they are."""
    initialise_concepts(sae, maps, latents, weights)
    for concept in _left_out(maps, len(latents)):
        learn_together(sae, maps, concept, latents[concept], weights)


@torch.no_grad()
def initialise_concepts(sae: Sae, maps: Maps, latents: Sequence[Sequence[int]], weights: Weights,
                        ridge: float = 1e-2) -> None:
    """Start the latents of the first concepts (the same number for each) where least squares puts them.

    W_dec are the directions of the difference that the concept makes; W_enc and the biases predict, from a token alone,
    how far the token lies along them where the concept is said, and `-margin` where it is not. Those of a concept that
    the maps never leave out stay what they are: what it adds was not seen.
    """
    seen = _left_out(maps, len(latents))
    if not seen:
        return
    device, d_in, unit = sae.b_dec.device, sae.config.d_in, _unit(maps, len(latents))
    parts = [maps.pick(index) for index in _in_parts(torch.arange(len(maps)), maps)]
    rows = torch.zeros(len(latents), len(latents[0]), d_in, device=device)
    for concept in seen:
        rows[concept] = _directions(maps, concept, len(latents[concept]), device)
    gram = torch.zeros(d_in + 1, d_in + 1, device=device)
    target = torch.zeros(len(rows), d_in + 1, rows.shape[1], device=device)
    for part in (_in_unit(part, unit, device) for part in parts):
        x = _with_one(part)
        gram += x.T @ x
        target += torch.einsum("td,tcn->cdn", x, _wanted_logits(part, rows, weights))
    for concept in seen:
        known = gram - _unknown_gram(maps, concept, unit, device)
        known.diagonal().add_(ridge * known.diagonal().mean())
        solved = torch.linalg.solve(known, target[concept]).T
        for latent, row, direction in zip(latents[concept], solved, rows[concept], strict=True):
            sae.put(latent, row[:-1], unit * row[-1] + row[:-1] @ sae.b_dec, direction)


def _left_out(maps: Maps, concepts: int) -> list[int]:
    """Which of the first concepts are left out of a prompt somewhere."""
    there = set(maps.unsaid.tolist())
    return [concept for concept in range(concepts) if concept in there]


def _in_parts(index: Tensor, maps: Maps) -> Sequence[Tensor]:
    """Numbers of maps, of so many at once that their tokens are `AT_ONCE`."""
    return index.split(max(1, AT_ONCE // maps.tokens.shape[1]))


def _unit(maps: Maps, concepts: int) -> float:
    """How long what the concepts add to a token is, and at most 1: at a place whose numbers are small the margin would
    silence every neuron for good, and the ridge hide the tokens."""
    own = maps.pick((maps.unsaid < concepts).nonzero()[:UNIT_MAPS, 0])
    size = (own.tokens.float() - own.without.float()).square().sum(2).mean().sqrt()
    return min(1.0, float(size)) or 1.0


def _in_unit(maps: Maps, unit: float, device: torch.device) -> Maps:
    there = maps.to(device)
    return replace(there, tokens=there.tokens / unit, without=there.without / unit) if unit < 1 else there


@torch.no_grad()
def learn_together(sae: Sae, maps: Maps, concept: int, own: Sequence[int], weights: Weights) -> None:
    """Let the neurons `own` of a concept learn on from where they are: all of them together to carry the difference
    where it is left out, relu(W_enc x + b) W_dec, and `weights.push` of it beyond; each to be silent where it is not
    said. Every noise level counts alike, however much the concept adds there."""
    tokens = Tokens(maps, concept, sae.b_dec.device)
    x, without, counts = tokens.shown
    size, whole = (part.square().sum(1).mean().sqrt().clamp_min(1e-6) for part in (x, (x - without) * counts))
    size = size / x.shape[1] ** 0.5
    with torch.inference_mode(False), torch.enable_grad():
        rows = _in_units(sae, own, size, whole)
        optimizer = torch.optim.Adam(rows)
        for step, (shown, silent) in enumerate(tokens.batches()):
            optimizer.param_groups[0]["lr"] = RATE / x.shape[1] * min((step + 1) / WARM, 1) * (1 - step / STEPS)
            optimizer.zero_grad()
            _amiss(rows, shown, silent, size, whole, weights).backward()
            optimizer.step()
    _put(sae, own, rows, size, whole)


class Tokens:
    """Random tokens [T, d_in] of maps, with how much each counts [T, 1]. shown: where the concept is said, and the same
    with it left out; silent: where it is not said, of the calls with and of those without."""

    def __init__(self, maps: Maps, concept: int, device: torch.device | str = "cpu") -> None:
        self.maps, self.device, self.generator = maps, device, torch.Generator().manual_seed(concept)
        self.left_out = (maps.unsaid == concept).nonzero()[:, 0]
        self.counts = self._evened()
        never = (maps.tokens, ~maps.labels[:, concept]), (maps.without, ~maps.left()[:, concept])
        self.shown = self._of((maps.tokens, maps.without), self.left_out)
        self.silent = [self._of((tokens,), calls.nonzero()[:, 0]) for tokens, calls in never if calls.any()]

    def batches(self) -> Iterator[list[list[Tensor]]]:
        """`BATCH` of those shown and of the silent ones, for every step. Drawn at once: a GPU waits for each that is
        brought."""
        drawn = torch.randint(MOST_TOKENS, (STEPS, 2, BATCH), generator=self.generator).to(self.device)
        for step, chosen in enumerate(drawn):
            kinds = self.shown, self.silent[step % len(self.silent)]
            yield [[part[rows] for part in parts] for parts, rows in zip(kinds, chosen, strict=True)]

    def _of(self, parts: Sequence[Tensor], calls: Tensor) -> list[Tensor]:
        chosen = calls[torch.randint(len(calls), (MOST_TOKENS,), generator=self.generator)]
        place = torch.randint(parts[0].shape[1], (MOST_TOKENS,), generator=self.generator)
        with torch.inference_mode(False):
            tokens = [part[chosen, place].to(self.device).float() for part in parts]
            return [*tokens, self.counts[chosen].to(self.device)]

    def _evened(self) -> Tensor:
        """How much each call counts [m, 1]: what its noise level lacks in the size of the difference."""
        counts = torch.ones(len(self.maps), 1)
        own = self.maps.pick(self.left_out)
        size = (own.tokens.float() - own.without.float()).square().sum(2).mean(1)
        for level in own.sigmas.unique():
            counts[self.maps.sigmas == level] = size[own.sigmas == level].mean().clamp_min(1e-12).rsqrt()
        return counts / counts[self.left_out].square().mean().sqrt()


def _amiss(rows: Sequence[Tensor], shown: Sequence[Tensor], silent: Sequence[Tensor], size: Tensor, whole: Tensor,
           weights: Weights) -> Tensor:
    """What a concept's neurons leave of the difference, and where else they fire."""
    said, without, counts = shown
    other, others_count = silent
    left = _fired(rows, said / size) @ rows[-1] - (1 + weights.push) * (said - without) / whole
    loud = _fired(rows, other / size) * rows[-1].norm(dim=1)
    carry, silence = ((part * count).square().sum(1).mean() for part, count in ((left, counts), (loud, others_count)))
    return weights.carry * carry + weights.silence * silence


def _in_units(sae: Sae, own: Sequence[int], size: Tensor, whole: Tensor) -> list[Tensor]:
    """[W_enc, bias, W_dec] of some neurons, for tokens in units of `size` and differences in units of `whole`, so that
    one learning rate suits every place of every model."""
    W_enc, W_dec = sae.encoder.weight[own].detach(), sae.W_dec[own].detach()
    bias = sae.encoder.bias[own].detach() - W_enc @ sae.b_dec.detach()
    return [row.clone().requires_grad_() for row in (W_enc * size / whole, bias / whole, W_dec)]


def _put(sae: Sae, own: Sequence[int], rows: Sequence[Tensor], size: Tensor, whole: Tensor) -> None:
    """The same back again, with directions of length 1."""
    W_enc, bias, W_dec = (row.detach() for row in rows)
    length = W_dec.norm(dim=1).clamp_min(1e-12)
    for latent, row, b, direction in zip(own, W_enc * (length * whole / size)[:, None], bias * length * whole,
                                         W_dec / length[:, None], strict=True):
        sae.put(latent, row, b + row @ sae.b_dec, direction)


def _fired(rows: Sequence[Tensor], x: Tensor) -> Tensor:
    """z [n, F] of tokens [n, d_in]."""
    W_enc, bias, _ = rows
    return (x @ W_enc.T + bias).relu()


def _directions(maps: Maps, concept: int, n: int, device: torch.device) -> Tensor:
    """The `n` unit directions [n, d_in] of what a concept adds to a token; for one, that of its mean."""
    own = maps.pick((maps.unsaid == concept).nonzero()[:, 0])
    if n == 1:
        parts = (own.pick(index).to(device) for index in _in_parts(torch.arange(len(own)), own))
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


def _unknown_gram(maps: Maps, concept: int, unit: float, device: torch.device) -> Tensor:
    """The part of the Gram matrix that maps contribute in which the concept's share is not known."""
    chosen = _in_parts(maps.left()[:, concept].nonzero()[:, 0], maps)
    x = [_with_one(_in_unit(maps.pick(index), unit, device)) for index in chosen]
    return sum(part.T @ part for part in x) if x else torch.zeros(())

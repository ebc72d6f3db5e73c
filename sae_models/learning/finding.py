"""A concept that an SAE was not trained for, found from some pictures that show it and some that do not.

Either it gets a neuron of its own, fitted by least squares; or it is told by the neurons there are with the highest
score, as SAeUron does (arXiv 2501.18052, section 4.2): the same ones at every noise level, or the best at each.
"""
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..concepts import NEVER, Concept, Statistics
from ..errors import SaeError
from ..formats import Rows
from ..sae import Sae, SaeConfig
from ..table import Table, numbered
from . import scoring
from .fitting import fit_concepts
from .losses import ALONE, Weights
from .maps import Maps
from .prompts import Subject

FLOOR = 0.3
"""Of a new neuron's mean where its concept is said: below that it does not fire."""


def own_neurons(maps: Maps, subjects: Sequence[Subject], weights: Weights = ALONE, n: int = 1,
                device: torch.device | str = "cpu") -> Table:
    """`n` new neurons for each of the first subjects; the maps' other concepts are what they are told from. device: to
    compute on; the maps stay where they are.

    Raises SaeError when the maps never show a subject, or always, or never leave it out.
    """
    _check_contrast(maps, subjects)
    count = n * len(subjects)
    sae = Sae(SaeConfig(maps.tokens.shape[2], count, count)).to(device)
    latents = [list(range(i * n, (i + 1) * n)) for i in range(len(subjects))]
    fit_concepts(sae, maps, latents, weights)
    owners = [i for i in range(len(subjects)) for _ in range(n)]
    statistics = above_a_share(scoring.measure(sae, maps, list(range(count)), owners))
    parts = (part.detach().cpu() for part in (sae.encoder.weight, sae.encoder.bias, sae.W_dec))
    concepts = tuple(Concept(s.name, tuple(own), s.kind, s.said) for s, own in zip(subjects, latents, strict=True))
    return Table(concepts, Rows(*parts, statistics))


def above_a_share(statistics: Statistics) -> Statistics:
    """Thresholds at least at `FLOOR` of a neuron's mean: prompts that were not painted reach further than those that
    were, and what fires so weakly carries little."""
    return replace(statistics, thresholds=statistics.thresholds.maximum(FLOOR * statistics.means))


def best_neurons(sae: Sae, maps: Maps, subjects: Sequence[Subject], n: int, at_each_level: bool) -> Table:
    """The `n` neurons of `sae` with the highest score for each of the first subjects, with SAeUron's statistics.

    A neuron fires above its mean over the maps' concepts. at_each_level: the best at each noise level, of which there
    may be more than `n` in all; each then fires at its own levels only. Raises SaeError as `own_neurons` does, and for
    an `n` out of range.
    """
    _check_contrast(maps, subjects)
    if not 1 <= n <= sae.config.d_sae:
        raise SaeError(f"expected a number of neurons in 1..{sae.config.d_sae} (d_sae), got {n}")
    levels = _Levels(sae, maps)
    concepts, statistics = [], None
    for i, subject in enumerate(subjects):
        chosen = levels.best(i, n, at_each_level)
        latents = sorted({latent for row in chosen for latent in row})
        concepts.append(Concept(subject.name, tuple(latents), subject.kind, subject.said))
        own = levels.statistics(i, latents, chosen if at_each_level else None)
        statistics = own if statistics is None else statistics.joined(own)
    return Table(numbered(concepts), _rows(sae, [latent for c in concepts for latent in c.latents], statistics))


def _check_contrast(maps: Maps, subjects: Sequence[Subject]) -> None:
    said = torch.cat([maps.labels, maps.left()])
    for i, subject in enumerate(subjects):
        if not maps.labels[:, i].any() or said[:, i].all():
            raise SaeError(f"the pictures {'always' if maps.labels[:, i].any() else 'never'} show '{subject.name}': "
                           f"paint more of them, with prompts that say it and others that do not")
        if not maps.unsaid.eq(i).any():
            raise SaeError(f"no picture was compared with one that leaves '{subject.name}' out: paint more of them")


class _Levels:
    """Mean activations of all latents over maps and their counterparts, by noise level."""

    def __init__(self, sae: Sae, maps: Maps) -> None:
        self.means = torch.cat([scoring.token_means(sae, maps.tokens), scoring.token_means(sae, maps.without)])
        self.labels = torch.cat([maps.labels, maps.left()])
        self.sigmas, level = maps.sigmas.unique(return_inverse=True)
        self.level = level.repeat(2)

    def best(self, concept: int, n: int, at_each_level: bool) -> list[list[int]]:
        """At each noise level the latents chosen for a concept."""
        label = self.labels[:, concept:concept + 1]
        overall = scoring.scores(self.means, label, self.level)[0].topk(n).indices.tolist()
        if not at_each_level:
            return [overall] * len(self.sigmas)
        found = [scoring.level_scores(self.means[self.level == i], label[self.level == i])
                 for i in range(len(self.sigmas))]
        return [score[0].topk(n).indices.tolist() if known else overall for score, known in found]

    def statistics(self, concept: int, latents: Sequence[int], chosen: Sequence[Sequence[int]] | None) -> Statistics:
        """theta (mean over the concepts) and mu (of this one) of some latents; chosen: at which levels only."""
        theta, mu = [], []
        for i in range(len(self.sigmas)):
            here = self.level == i
            means = scoring.concept_means(self.means[here][:, latents], self.labels[here])
            theta.append(means.mean(0))
            mu.append(means[concept])
        table = Statistics(tuple(self.sigmas.tolist()), torch.stack(theta, 1), torch.stack(mu, 1))
        if chosen is None:
            return table
        off = torch.tensor([[latent not in level for level in chosen] for latent in latents])
        return Statistics(table.sigmas, table.thresholds.masked_fill(off, NEVER), table.means).stepped()


def _rows(sae: Sae, latents: list[int], statistics: Statistics) -> Rows:
    with torch.no_grad():
        W_enc, b_enc, W_dec = (part[latents].cpu() for part in (sae.encoder.weight, sae.encoder.bias, sae.W_dec))
        return Rows(W_enc, b_enc - W_enc @ sae.b_dec.cpu(), W_dec, statistics)

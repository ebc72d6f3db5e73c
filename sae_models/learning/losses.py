"""What an SAE is trained to: rebuild its input, and have one latent a concept carry that concept.

Carrying is more than SAEmnesia (arXiv 2509.21379) asks for, which trains the latent to detect: where the concept is
said, z_c W_dec[c] shall equal the block's output minus the output of the very same call with the concept left out of
the prompt (a little more, see `push`); where it is not said, the latent shall be silent. So switching the latent off
is enough.

Every function returns this process's share of a loss: shares add up to the loss over the whole batch.
"""
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid

from ..hookpoint import is_attention
from ..sae import Sae
from ..voting import QUORUM
from .maps import Maps
from .parallel import total
from .sparse import Coded


@dataclass(frozen=True)
class Weights:
    """auxk: of the dead latents' loss. carry, silence: of the concepts' two losses; margin: how far below zero the
    logit of an absent concept shall lie; push: how much more than the difference a concept's latent shall carry,
    because a prompt without the concept still leads to it now and then."""
    auxk: float = 1 / 32
    carry: float = 1.0
    silence: float = 1.0
    margin: float = 0.5
    push: float = 1.0


ALONE = Weights(push=0.2, silence=5.0)
"""Of a concept's own neurons. A little more than what the words add: what is left of a thing shows more than what is
missing beside it, and not all of it can be told from a token alone. And to be silent elsewhere counts more than to
carry all of it."""
TOGETHER = replace(ALONE, silence=0.2)
"""Of places that vote: where nothing of the concept is said, they say so, and each may carry all that it can."""


def weights_of(places: int) -> Weights:
    """Of a concept's own neurons at so many places."""
    return TOGETHER if places >= QUORUM else ALONE


def push_at(hookpoint: str) -> float:
    """`Weights.push` of a place: what an SAE learns at a cross-attention is what the words add and no more."""
    return 0.0 if is_attention(hookpoint) else Weights.push


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of the variance of tokens [T, d_in] left unexplained, over all processes' tokens."""
    count = total(torch.tensor(float(len(x)), device=x.device))
    centred = x - total(x.sum(0)) / count
    return (x - x_hat).pow(2).sum() / total(centred.pow(2).sum())


def auxk(x: Tensor, coded: Coded) -> Tensor:
    """Share of the residual x - x_hat that the dead latents leave unexplained (Gao et al. 2024, section 2.4)."""
    residual = (x - coded.x_hat).detach()
    return (residual - coded.dead_hat).pow(2).sum() / total(residual.pow(2).sum())


def carry_and_silence(sae: Sae, maps: Maps, latents: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The two losses of the module's docstring. latents [C]: the concepts' own."""
    W_enc, b_enc, W_dec = sae.rows(latents)
    here, away = (linear(tokens - sae.b_dec, W_enc, b_enc) for tokens in (maps.tokens, maps.without))  # [n, N, C]
    z = here.relu().gather(2, maps.unsaid[:, None, None].expand(-1, here.shape[1], 1))          # [n, N, 1]
    wanted = (1 + weights.push) * (maps.tokens - maps.without)
    left = (wanted - z * W_dec[maps.unsaid][:, None]).pow(2).sum()
    loud = sum(_mean(torch.relu(logits + weights.margin).pow(2), ~said[:, None].expand_as(logits))
               for logits, said in ((here, maps.labels), (away, maps.left())))
    return left / total(wanted.pow(2).sum()), loud


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / total(where.sum()).clamp_min(1)


def as_published(sae: Sae, maps: Maps, latents: Tensor, kinds: Tensor) -> Tensor:
    """SAEmnesia's own supervised loss, L_rec + beta (L_CA + eta L_DC) + lambda L_L1 (section 3.3), to compare with.

    beta 3, eta 0.1, lambda 0.01; L_CA has positive terms only, on pre-activations after the ReLU averaged over the map;
    L_DC is the squared Pearson correlation over the batch of concepts of different kinds. kinds int [C].
    """
    x = maps.tokens
    pre_acts = sae.pre_acts(x)
    x_hat = sae.decode(sae.top(pre_acts))
    v = pre_acts[..., latents].mean(1)                                                          # [n, C]
    positive = maps.labels
    l_ca = -(logsigmoid(v) * positive).sum() / total(positive.sum()).clamp_min(1)
    across = kinds[:, None] < kinds
    l_dc = _correlations(v)[across].pow(2).mean() if across.any() else v.new_zeros(())
    share = len(x) / total(torch.tensor(float(len(x)), device=x.device))
    l_rec, l_l1 = (x - x_hat).pow(2).mean(), pre_acts.mean()
    return share * (l_rec + 0.01 * l_l1) + 3.0 * (l_ca + 0.1 * share * l_dc)


def _correlations(v: Tensor) -> Tensor:
    """Pearson's, [C, C], of the columns of v [n, C]; 0 for a column that does not vary."""
    centred = v - v.mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(1e-8)
    return unit.T @ unit

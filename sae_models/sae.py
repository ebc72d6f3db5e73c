"""The sparse autoencoder: one linear layer in, the k largest latents kept, one linear layer out.

    pre  = ReLU((x - b_dec) W_enc^T + b_enc)
    z    = TopK_k(pre), per token
    x_hat = z W_dec + b_dec

SAeUron (arXiv 2501.18052) section 4 and SAEmnesia (arXiv 2509.21379) section 3; `encoder.weight` is W_enc.
"""
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .errors import SaeError


@dataclass(frozen=True)
class SaeConfig:
    """Width of a token, number of latents, and how many of them a token keeps."""
    d_in: int
    d_sae: int
    k: int

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            if getattr(self, name) < 1:
                raise SaeError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not 1 <= self.k <= self.d_sae:
            raise SaeError(f"expected k in 1..{self.d_sae} (d_sae), got {self.k}")


class Latents(NamedTuple):
    """The latents a token keeps: activations [..., k], never negative, and which they are [..., k]."""
    top_acts: Tensor
    top_indices: Tensor


class Sae(nn.Module):
    """`encoder` [d_sae, d_in] with bias, `W_dec` [d_sae, d_in] with rows of unit norm, `b_dec` [d_in].

    A latent is one contiguous row of both matrices.
    """

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(config.d_in, config.d_sae)
        nn.init.zeros_(self.encoder.bias)
        self.W_dec = nn.Parameter(self.encoder.weight.detach().clone())
        self.b_dec = nn.Parameter(torch.zeros(config.d_in))
        self.normalise_decoder()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Give every row of W_dec unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    def logits(self, x: Tensor) -> Tensor:
        """Pre-activations before the ReLU: [..., d_in] -> [..., d_sae]."""
        return self.encoder(x - self.b_dec)

    def pre_acts(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_sae], never negative."""
        return self.logits(x).relu()

    def top(self, pre_acts: Tensor) -> Latents:
        """The k largest of each token: [..., d_sae] -> two of [..., k]."""
        acts, indices = pre_acts.topk(self.config.k, dim=-1, sorted=False)
        return Latents(self.largest(acts, self.config.k), indices)

    def encode(self, x: Tensor) -> Latents:
        return self.top(self.pre_acts(x))

    def decode(self, latents: Latents) -> Tensor:
        """x_hat [..., d_in]: a weighted sum of k rows of W_dec a token (`embedding_bag`), plus b_dec."""
        shape = latents.top_indices.shape
        flat = (part.reshape(-1, shape[-1]) for part in (latents.top_indices, latents.top_acts))
        indices, acts = flat
        out = nn.functional.embedding_bag(indices, self.W_dec, per_sample_weights=acts, mode="sum")
        return self.summed(out.view(*shape[:-1], -1)) + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    # --- what is otherwise where processes share an SAE (`shard`) ----------------------------------------

    def largest(self, acts: Tensor, count: int) -> Tensor:
        """Activations [..., n] of some latents a token, 0 where they are not among the `count` largest of all."""
        return acts

    def summed(self, x: Tensor) -> Tensor:
        """What all latents add up to, from what these do."""
        return x

    def stacked(self, rows: Tensor) -> Tensor:
        """A row for every latent, from one for each of these."""
        return rows

    def rows(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W_enc, b_enc, W_dec of some latents: [C, d_in], [C], [C, d_in]."""
        return self.encoder.weight[latents], self.encoder.bias[latents], self.W_dec[latents]

    @torch.no_grad()
    def put(self, latent: int, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> None:
        """Give a latent other rows."""
        self.encoder.weight[latent], self.encoder.bias[latent], self.W_dec[latent] = W_enc, b_enc, W_dec

    def whole(self) -> "Sae":
        return self


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of the variance of tokens [n, d_in] that a reconstruction leaves unexplained (0 = perfect)."""
    return (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()

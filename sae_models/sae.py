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

    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W_enc, b_enc, W_dec, b_dec."""
        return self.encoder.weight, self.encoder.bias, self.W_dec, self.b_dec

    def logits(self, x: Tensor) -> Tensor:
        """Pre-activations before the ReLU: [..., d_in] -> [..., d_sae]."""
        return self.encoder(x - self.b_dec)

    def pre_acts(self, x: Tensor) -> Tensor:
        """[..., d_in] -> [..., d_sae], never negative."""
        return self.logits(x).relu()

    def top(self, pre_acts: Tensor) -> Latents:
        """The k largest of each token: [..., d_sae] -> two of [..., k]."""
        return Latents(*pre_acts.topk(self.config.k, dim=-1, sorted=False))

    def encode(self, x: Tensor) -> Latents:
        return self.top(self.pre_acts(x))

    def decode(self, latents: Latents) -> Tensor:
        """x_hat [..., d_in]: a weighted sum of k rows of W_dec a token (`embedding_bag`), plus b_dec."""
        shape = latents.top_indices.shape
        flat = (part.reshape(-1, shape[-1]) for part in (latents.top_indices, latents.top_acts))
        indices, acts = flat
        out = nn.functional.embedding_bag(indices, self.W_dec, per_sample_weights=acts, mode="sum")
        return out.view(*shape[:-1], -1) + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def fvu(x: Tensor, x_hat: Tensor) -> Tensor:
    """Fraction of the variance of tokens [n, d_in] that a reconstruction leaves unexplained (0 = perfect)."""
    return (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()

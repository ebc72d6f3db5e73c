"""Encode, keep the k largest, decode, as one operation whose backward pass costs what is sparse.

Of the six dense products of a top-k SAE's training step one is left, the encoder's: a token's gradient reaches k
latents only. A latent's row collects its tokens as a bag: the same sum of weighted rows as decoding, with latents and
tokens changing places, so that both directions are `embedding_bag`s.
"""
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Coded(NamedTuple):
    """x_hat [T, d_in]; top_acts, never negative, and top_indices [T, k]."""
    x_hat: Tensor
    top_acts: Tensor
    top_indices: Tensor


def code(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, half: bool = False) -> Coded:
    """x_hat = TopK_k(ReLU((x - b_dec) W_enc^T + b_enc)) W_dec + b_dec for tokens [T, d_in].

    Gradients reach the four parameters through x_hat; not x, and not through the other two results. half: latents are
    preselected in bfloat16, twice as many as are kept, and their activations computed again in full.
    """
    return Coded(*_Code.apply(x, W_enc, b_enc, W_dec, b_dec, k, half))


def select(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, half: bool) -> tuple[Tensor, Tensor]:
    """(pre-activations before the ReLU, indices) of the k largest latents of each token, [T, k] each."""
    if not half:
        return torch.addmm(b_enc, x, W_enc.T).topk(k, sorted=False)
    rough = torch.addmm(b_enc.bfloat16(), x.bfloat16(), W_enc.bfloat16().T)
    near = rough.topk(min(2 * k, len(W_enc)), sorted=False).indices
    acts, places = (row_products(x, W_enc, near) + b_enc[near]).topk(k, sorted=False)
    return acts, near.gather(1, places)


class _Code(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, k: int, half: bool):
        centred = x - b_dec
        acts, indices = select(centred, W_enc, b_enc, k, half)
        acts = acts.relu_()
        ctx.save_for_backward(centred, W_enc, W_dec, acts, indices)
        ctx.mark_non_differentiable(acts, indices)
        return embedding_bag(indices, W_dec, per_sample_weights=acts, mode="sum") + b_dec, acts, indices

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        centred, W_enc, W_dec, acts, indices = ctx.saved_tensors
        grad = grad.contiguous()
        to_acts = row_products(grad, W_dec, indices) * (acts > 0)
        bags = _Bags(indices, len(W_dec))
        to_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, indices.flatten(), to_acts.flatten())
        return (None, bags.sum(centred, to_acts), to_b_enc, bags.sum(grad, acts),
                grad.sum(0) - to_b_enc @ W_enc, None, None)


class _Bags:
    """The tokens of each latent, for indices [T, k]."""

    def __init__(self, indices: Tensor, d_sae: int) -> None:
        flat = indices.flatten()
        self.order = flat.argsort()
        self.tokens = self.order // indices.shape[1]
        counts = torch.bincount(flat, minlength=d_sae)
        self.offsets = counts.cumsum(0) - counts

    def sum(self, rows: Tensor, weights: Tensor) -> Tensor:
        """[d_sae, d_in]: for each latent the sum of its tokens' rows [T, d_in] times its weights [T, k] there."""
        own = weights.flatten()[self.order]
        return embedding_bag(self.tokens, rows, self.offsets, mode="sum", per_sample_weights=own)


def row_products(x: Tensor, W: Tensor, indices: Tensor) -> Tensor:
    """x[t] . W[indices[t, j]] for tokens x [T, d_in] and indices [T, k]: [T, k]."""
    offsets = torch.arange(0, indices.numel(), indices.shape[1], device=x.device)
    bag_of = torch.arange(len(indices), device=x.device).repeat_interleave(indices.shape[1])
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, W, indices.flatten(), offsets, bag_of, 0).view_as(indices)

"""Encode, keep the k largest, decode, as one operation whose backward pass costs what is sparse.

Of the six dense products of a top-k SAE's training step one is left, the encoder's: a token's gradient reaches k
latents only. A latent's row collects its tokens as a bag: the same sum of weighted rows as decoding, with latents and
tokens changing places, so that both directions are `embedding_bag`s.
"""
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..sae import Sae


class Coded(NamedTuple):
    """x_hat [T, d_in]; dead_hat [T, d_in]: what the strongest of the dead latents add up to, without b_dec; top_acts,
    never negative, and top_indices [T, k]."""
    x_hat: Tensor
    dead_hat: Tensor
    top_acts: Tensor
    top_indices: Tensor


def code(sae: Sae, x: Tensor, half: bool = False, dead: Tensor | None = None) -> Coded:
    """x_hat = TopK_k(ReLU((x - b_dec) W_enc^T + b_enc)) W_dec + b_dec for tokens [T, d_in].

    Gradients reach the SAE's parameters through x_hat and dead_hat; not x, and not through the other results. half:
    latents are preselected in bfloat16, twice as many as are kept, and their activations computed again in full.
    dead: int [D], the latents of which the d_in / 2 strongest a token make dead_hat (AuxK; Gao et al. 2024, section
    2.4). They are so many that dense products are faster: three, because the encoder's is made already.
    """
    dead = torch.zeros(0, dtype=torch.long, device=x.device) if dead is None else dead
    return Coded(*_Code.apply(x, sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec, sae, half, dead))


def learns_on(device: torch.device) -> torch.device:
    """Where to learn, for a model on `device`: other makers' GPUs lack some of what it takes (embedding_bag, solve)."""
    return device if device.type == "cuda" else torch.device("cpu")


def bfloat16_is_fast(device: torch.device | str) -> bool:
    """Whether products in bfloat16 are worth it: a CPU without instructions for them is a hundred times slower, and a
    GPU older than Ampere slower than in fp32."""
    if torch.device(device).type != "cpu":
        return torch.device(device).type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def select(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, indices) of the k largest latents of each token, [T, k] each; and all logits [T, d_sae], with `half` in
    bfloat16. A logit is a pre-activation before the ReLU."""
    if not half:
        logits = torch.addmm(b_enc, x, W_enc.T)
        return *logits.topk(k, sorted=False), logits
    rough = torch.addmm(b_enc.bfloat16(), x.bfloat16(), W_enc.bfloat16().T)
    near = rough.topk(min(2 * k, len(W_enc)), sorted=False).indices
    logits, places = (row_products(x, W_enc, near) + b_enc[near]).topk(k, sorted=False)
    return logits, near.gather(1, places), rough


class _Code(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, sae: Sae, half: bool,
                dead: Tensor):
        centred, k = x - b_dec, sae.config.k
        acts, indices, logits = select(centred, W_enc, b_enc, k, half)
        acts = sae.largest(acts.relu_(), k)
        dead_acts = _strongest(sae, logits.index_select(1, dead).to(x.dtype), x.shape[1] // 2)
        ctx.sae = sae
        ctx.save_for_backward(centred, W_enc, W_dec, acts, indices, dead, dead_acts)
        ctx.mark_non_differentiable(acts, indices)
        x_hat = sae.summed(embedding_bag(indices, W_dec, per_sample_weights=acts, mode="sum")) + b_dec
        return x_hat, sae.summed(dead_acts @ W_dec[dead]), acts, indices

    @staticmethod
    def backward(ctx, grad: Tensor, dead_grad: Tensor, *_):
        centred, W_enc, W_dec, acts, indices, dead, dead_acts = ctx.saved_tensors
        grad = grad.contiguous()
        to_acts = row_products(grad, W_dec, indices) * (acts > 0)
        bags = _Bags(indices, len(W_dec))
        to_W_enc, to_W_dec = bags.sum(centred, to_acts), bags.sum(grad, acts)
        to_b_enc = torch.zeros_like(W_enc[:, 0]).index_add_(0, indices.flatten(), to_acts.flatten())
        if len(dead):
            to_dead = (dead_grad @ W_dec[dead].T).mul_(dead_acts > 0)
            to_W_enc.index_add_(0, dead, to_dead.T @ centred)
            to_W_dec.index_add_(0, dead, dead_acts.T @ dead_grad)
            to_b_enc.index_add_(0, dead, to_dead.sum(0))
        return None, to_W_enc, to_b_enc, to_W_dec, grad.sum(0) - ctx.sae.summed(to_b_enc @ W_enc), None, None, None


def _strongest(sae: Sae, logits: Tensor, count: int) -> Tensor:
    """The `count` largest activations of each token, zero elsewhere: [T, D] -> [T, D]."""
    acts, places = logits.relu_().topk(min(count, logits.shape[1]), dim=1, sorted=False)
    return torch.zeros_like(logits).scatter_(1, places, sae.largest(acts, count))


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

"""A part of an SAE's latents, where the whole is too large for one GPU: each process of a team holds as many rows.

All of a team see the same tokens. Each finds the largest of its own latents; the k largest of all are among them, and
what the team's latents decode to is summed. Nothing else differs, so whoever uses an SAE need not know.
"""
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import SaeError
from ..sae import Sae
from . import parallel


class SaeShard(Sae):
    """This process's rows of an SAE. `config` is that of the whole; indices are counted from the first of these rows.

    Raises SaeError when the rows cannot be divided.
    """

    def __init__(self, whole: Sae) -> None:
        nn.Module.__init__(self)
        number, count = parallel.shard()
        self.config, n = whole.config, whole.config.d_sae // count
        if n * count != whole.config.d_sae or n < whole.config.k:
            raise SaeError(f"expected d_sae ({whole.config.d_sae}) to be a multiple of the {count} shards, each of at "
                           f"least k ({whole.config.k}) latents")
        self.own = slice(number * n, (number + 1) * n)
        self.encoder = nn.Linear(self.config.d_in, n)
        self.W_dec, self.b_dec = (nn.Parameter(x.detach().clone()) for x in (whole.W_dec[self.own], whole.b_dec))
        with torch.no_grad():
            self.encoder.weight.copy_(whole.encoder.weight[self.own])
            self.encoder.bias.copy_(whole.encoder.bias[self.own])

    def largest(self, acts: Tensor, count: int) -> Tensor:
        padded = nn.functional.pad(acts, (0, count - acts.shape[-1]))
        everyone = [torch.empty_like(padded) for _ in range(parallel.shard()[1])]
        dist.all_gather(everyone, padded, group=parallel.team())
        candidates = torch.cat(everyone, dim=-1)
        least = candidates.topk(count, dim=-1).values[..., -1:]
        return acts.where(acts >= least, 0)

    def summed(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=parallel.team())
        return x

    def stacked(self, rows: Tensor) -> Tensor:
        """On the CPU, because a GPU may not hold all."""
        return torch.cat([self._from(place, rows).cpu() for place in range(parallel.shard()[1])])

    @staticmethod
    def _from(place: int, rows: Tensor) -> Tensor:
        rows = rows.detach().contiguous().clone()
        dist.broadcast(rows, dist.get_global_rank(parallel.team(), place), group=parallel.team())
        return rows

    def rows(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(_Rows.apply(part, latents, self) for part in (self.encoder.weight, self.encoder.bias, self.W_dec))

    def put(self, latent: int, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> None:
        if self.own.start <= latent < self.own.stop:
            super().put(latent - self.own.start, W_enc, b_enc, W_dec)

    def whole(self) -> Sae:
        """The whole SAE, on the CPU."""
        with torch.device("meta"):
            sae = Sae(self.config)
        state = {name: value.cpu() if name == "b_dec" else self.stacked(value)
                 for name, value in self.state_dict().items()}
        sae.load_state_dict(state, assign=True)
        return sae


class _Rows(torch.autograd.Function):
    """Rows of the whole; all of a team compute the same with them, so each gradient is whole everywhere."""

    @staticmethod
    def forward(ctx, part: Tensor, latents: Tensor, sae: SaeShard) -> Tensor:
        ctx.local, ctx.here = latents - sae.own.start, (latents >= sae.own.start) & (latents < sae.own.stop)
        ctx.shape = part.shape
        found = part.new_zeros(len(latents), *part.shape[1:])
        found[ctx.here] = part[ctx.local[ctx.here]]
        return sae.summed(found)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.new_zeros(ctx.shape).index_add_(0, ctx.local[ctx.here], grad[ctx.here]), None, None

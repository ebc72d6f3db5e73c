"""Several processes that train as one: each takes its part of a batch, sums are sums over all of them.

Nothing here does anything unless the processes were started together (`torchrun`) within `together`. Where an SAE is
too large for one GPU, `split_latents` lets every so many processes share one SAE and see the same part of the batch
(`shard`); parts of a batch and sums are then over these teams.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from ..errors import SaeError

_mesh = None
"""Processes by team and by their place in it, once latents are split."""


def device() -> torch.device:
    """This process's own: a GPU each where there are any."""
    return torch.device("cuda", _local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def _local_rank() -> int:
    return dist.get_node_local_rank(fallback_rank=0) if dist.is_available() else 0


@contextmanager
def together() -> Iterator[None]:
    """Joined with the other processes that `torchrun` started, if it did."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield
        return
    global _mesh
    if torch.cuda.is_available():
        torch.cuda.set_device(_local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        _mesh = None
        dist.destroy_process_group()


def world() -> tuple[int, int]:
    """(this process's rank, number of processes)."""
    running = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if running else (0, 1)


def split_latents(count: int) -> None:
    """From now on every `count` processes are a team that shares one SAE's latents.

    Raises SaeError when the processes cannot be divided into such teams.
    """
    global _mesh
    size = world()[1]
    if not 1 <= count <= size or size % count:
        raise SaeError(f"expected a number of shards that divides the {size} processes, got {count}: start with "
                       f"torchrun --nproc-per-node")
    if count > 1:
        from torch.distributed.device_mesh import init_device_mesh  # not in every build of torch
        _mesh = init_device_mesh(device().type, (size // count, count), mesh_dim_names=("data", "latents"))


def data() -> tuple[int, int]:
    """(number of this process's team, number of teams); a team is one process unless latents are split."""
    return (_mesh.get_local_rank("data"), _mesh.size(0)) if _mesh else world()


def shard() -> tuple[int, int]:
    """(this process's place in its team, number of places)."""
    return (_mesh.get_local_rank("latents"), _mesh.size(1)) if _mesh else (0, 1)


def team() -> "dist.ProcessGroup":
    """The processes that share this one's SAE."""
    return _mesh.get_group("latents")


def part() -> slice:
    """This process's part of a batch."""
    number, count = data()
    return slice(number, None, count)


def total(x: Tensor) -> Tensor:
    """Sum over all parts of the batch, without a gradient."""
    x = x.detach()
    if data()[1] > 1:
        x = x.clone()
        _sum_over_data(x)
    return x


def _sum_over_data(x: Tensor) -> None:
    dist.all_reduce(x, group=_mesh.get_group("data") if _mesh else None)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the sum of the gradients of all parts of the batch."""
    if data()[1] == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        _sum_over_data(parameter.grad)


def team_agrees(flag: bool) -> bool:
    """Whether all of this process's team say so."""
    if shard()[1] == 1:
        return flag
    said = torch.tensor(int(flag), device=device())
    dist.all_reduce(said, dist.ReduceOp.MIN, group=team())
    return bool(said)


def anyone(flag: bool) -> bool:
    """Whether one of all processes says so."""
    if world()[1] == 1:
        return flag
    said = torch.tensor(int(flag), device=device())
    dist.all_reduce(said, dist.ReduceOp.MAX)
    return bool(said)


def wait() -> None:
    """Until all processes are here."""
    if world()[1] > 1:
        dist.barrier()


def spread(make: Callable[[int], dict[str, Tensor]], numbers: Sequence[int], device: torch.device) -> dict[int, dict]:
    """{number: make(number)}, each made by one process and given to all."""
    rank, size = world()
    own = {number: make(number) for number in numbers[rank::size]}
    if size == 1:
        return own
    return {number: load(_from(i % size, save(own[number]) if number in own else b"", device))
            for i, number in enumerate(numbers)}


def _from(source: int, data: bytes, device: torch.device) -> bytes:
    """The bytes that process `source` has, on every process."""
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, source)
    buffer = torch.empty(int(length), dtype=torch.uint8, device=device)
    if world()[0] == source:
        buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(buffer, source)
    return buffer.cpu().numpy().tobytes()

"""Several processes that train as one: each takes its part of a batch, sums are sums over all of them.

Nothing here does anything unless the processes were started together (`torchrun`) within `together`.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor


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
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world() -> tuple[int, int]:
    """(this process's rank, number of processes)."""
    running = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if running else (0, 1)


def part() -> slice:
    """This process's part of a batch."""
    rank, size = world()
    return slice(rank, None, size)


def total(x: Tensor) -> Tensor:
    """Sum over all processes, without a gradient."""
    x = x.detach()
    if world()[1] > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the sum of all processes' gradients."""
    if world()[1] == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


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

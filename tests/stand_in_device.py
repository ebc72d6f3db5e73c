"""A stand-in for GPUs: tensors that say they lie on one and are computed on the CPU, and notes of who waits for them.

    with Devices() as devices:
        x = devices.put(torch.randn(3), "meta:1")
        ...
        devices.waits == []

What waits for a real GPU, or copies between it and the CPU, is noted in `waits`; tensors of two devices in one
operation raise, as on real ones. They call themselves "meta": a name that torch lets us give without such a device.
"""
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select",
         "aten::unique_consecutive", "aten::_unique2", "aten::repeat_interleave")


class OnDevice(Tensor):
    """Says another device than its values have."""

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "OnDevice":
        made = Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype,
                                             device=device)
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"{self.held!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, dict(kwargs or {}), [])


class Devices(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def put(self, value: Tensor, device: str = "meta:0") -> Tensor:
        return OnDevice(value, torch.device(device))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, dict(kwargs or {}), self.waits)


def run(func: Any, args: tuple, kwargs: dict, waits: list[str]) -> Any:
    """The operation on what the tensors hold; what it makes lies where they lie, or where it was told to."""
    name, tensors = func._schema.name, [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    here, wanted = {t.device for t in tensors if isinstance(t, OnDevice)}, kwargs.pop("device", None)
    if _waits(name, args, tensors, here, wanted):
        waits.append(name)
    elif len(here) > 1 or (here and any(not isinstance(t, OnDevice) and t.ndim for t in tensors)):
        raise RuntimeError(f"{name}: tensors of {', '.join(sorted({str(t.device) for t in tensors}))}")
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    if name == "aten::copy_":
        return args[0]
    device = torch.device(wanted) if wanted is not None else next(iter(here), CPU)
    return out if device == CPU else tree_map(lambda t: OnDevice(t, device) if type(t) is Tensor else t, out)


def _waits(name: str, args: tuple, tensors: list[Tensor], here: set[torch.device], wanted: Any) -> bool:
    """Whether it reads a value, makes a tensor whose size depends on values, or copies from one device to another."""
    masked = name == "aten::index" and any(t is not None and t.dtype == torch.bool for t in args[1])
    moved = wanted is not None and bool(tensors) and torch.device(wanted) not in (here or {CPU})
    return (bool(here) and (name in WAITS or masked)) or moved or (
        name == "aten::copy_" and len({t.device for t in tensors}) > 1)


def held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value

"""Open what is only published as a pickle, without letting it run anything.

A pickle is a program that may call any function by its name. torch's own files are read weights-only. The papers'
`.pkl` holds tensors as Python's pickle writes them, which is a call to rebuild a tensor and, inside it, a call to load
its numbers: only these two names are known here, and both mean functions of this module.

Weights-only reading was not safe in torch before 2.6 (CVE-2025-32434) and before 2.10 (CVE-2026-24747): there nothing
is opened. What torch says of a file that it refuses is not repeated: it says how to open that file all the same.
"""
import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SaeError

SAFE_TORCH = (2, 10)


def check_torch() -> None:
    """Raises SaeError where this torch can be made to run what is hidden in a pickle."""
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < SAFE_TORCH:
        raise SaeError(f"torch {torch.__version__} can be made to run what is hidden in a pickle (CVE-2025-32434, "
                       f"CVE-2026-24747), so nothing is opened: run this with a Python that has torch "
                       f"{'.'.join(map(str, SAFE_TORCH))} or newer")


def load_torch(path: Path) -> Any:
    """What torch saved, on the CPU, with nothing but tensors and plain values in it.

    Raises SaeError for anything else, and where torch is too old to read it safely.
    """
    check_torch()
    try:
        _refuse_packed(path, path.name)
        found = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_repeated(found, path.name)
        return found
    except SaeError:
        raise
    except FileNotFoundError as error:
        raise SaeError(f"there is no file {path.name} in {path.parent}") from error
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        asked = re.search(r"\bGLOBAL ([\w.]+)", str(error))
        raise SaeError(f"{path.name} is damaged, or holds more than tensors, so it is not opened"
                       f"{f' (it asks for {asked[1]})' if asked else ''}: ask its authors for another") from None


def load_tensors(path: Path, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The tensors of a pickled {name: tensor}, each reduced as soon as it is read, so that one is held at a time.

    Raises SaeError for a file that holds, or asks for, anything else, and where torch is too old to read it safely.
    """
    check_torch()
    try:
        with path.open("rb") as file:
            found = _TensorsOnly(file, path.name, reduce).load()
    except FileNotFoundError as error:
        raise SaeError(f"there is no file {path.name} in {path.parent}") from error
    except SaeError:
        raise
    except Exception:  # what a damaged pickle raises depends on where it is damaged
        raise SaeError(f"{path.name} is damaged or no pickle of tensors: download it again, from its authors") from None
    if not isinstance(found, dict) or not found or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()):
        raise SaeError(f"{path.name} is not what was expected, a dictionary of tensors by name")
    return found


class _TensorsOnly(pickle._Unpickler):
    """Python's own unpickler written in Python: unlike the one in C it lets go of numbers that have been used.

    What it hands out are bound methods, on which a pickle can set no attribute.
    """

    def __init__(self, file: io.BufferedReader, name: str, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__(file)
        self.known = {("torch._utils", "_rebuild_tensor_v2"): self.rebuild,
                      ("torch.storage", "_load_from_bytes"): self.numbers,
                      ("collections", "OrderedDict"): self.no_hooks}
        self.name, self.reduce = name, reduce

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in self.known:
            raise SaeError(f"{self.name} asks to run {module}.{name}, which no file of tensors needs: it is not opened")
        return self.known[module, name]

    def numbers(self, data: bytes) -> torch.TypedStorage:
        _refuse_packed(io.BytesIO(data), self.name)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)

    def rebuild(self, storage: torch.TypedStorage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        tensor = torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, None)
        _refuse_repeated(tensor, self.name)
        tensor = self.reduce(tensor)
        for place, value in self.memo.items():
            if isinstance(value, bytes | tuple | torch.TypedStorage):
                self.memo[place] = None
        return tensor

    def no_hooks(self) -> None:
        """A tensor's backward hooks, which it has none of."""


def _refuse_packed(file: Path | io.BytesIO, name: str) -> None:
    """Raise SaeError for an archive whose parts are packed or share their bytes, which torch never does: kilobytes can
    become gigabytes."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        parts, size = archive.infolist(), archive.fp.seek(0, io.SEEK_END)
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
            raise SaeError(f"{name} is packed in a way that torch does not write, so it is not opened")


def _refuse_repeated(found: Any, name: str) -> None:
    """Raise SaeError for a tensor that repeats few numbers of a file often, which no SAE does."""
    inside = found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ()
    for part in inside:
        _refuse_repeated(part, name)
    if isinstance(found, Tensor) and found.layout is torch.strided and (
            found.numel() * found.element_size() > found.untyped_storage().nbytes()):
        raise SaeError(f"{name} has a tensor of shape {list(found.shape)} that is larger than what the file holds of "
                       f"it, so it is not opened")

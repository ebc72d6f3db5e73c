"""What was painted for a run, on disk for as long as the run needs it: stopped and begun again, it paints nothing
twice.

A chunk is a file in a folder beside the run's own, named by a fingerprint of all that decides it: another model, other
prompts or another size never read it, and remove it. What the run has passed is dropped, so that there is never much
more on disk than in memory.
"""
import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import SaeError
from ..storage import remove, write_tensors
from .maps import MakeChunk, Maps, as_dict, whole

SUFFIX = ".maps"
log = logging.getLogger("saemnesia")


@dataclass(frozen=True)
class Painted:
    """Makes chunks, and keeps them. of: the fingerprint of what is painted; "" keeps nothing."""
    folder: Path
    of: str
    make: MakeChunk

    def __call__(self, number: int) -> dict[str, Maps]:
        """Chunk `number`, read where it is there and whole."""
        path = self._path(number)
        maps = _read(path) if self.of else None
        if maps is None:
            maps = dict(self.make(number))
            if self.of:
                _write(path, maps)
        return maps

    def done(self, below: int) -> int:
        """How many of the chunks up to this number need not be painted any more."""
        there = [number for number in map(self._number, self._files()) if number is not None and number < below]
        return min(there) + len(there) if there else 0

    def drop(self, before: int) -> None:
        """Remove what the run has passed, and what is of another."""
        for path in self._files():
            number = self._number(path)
            if number is None or number < before:
                remove(path)

    def remove(self) -> None:
        for path in self._files():
            remove(path)
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.of}-{number}{SUFFIX}"

    def _files(self) -> list[Path]:
        return list(self.folder.glob(f"*-*{SUFFIX}*"))

    def _number(self, path: Path) -> int | None:
        """None for a file of another run, or an unfinished one."""
        found = re.fullmatch(rf"{self.of}-(\d+){re.escape(SUFFIX)}", path.name)
        return int(found[1]) if found else None


def _write(path: Path, maps: dict[str, Maps]) -> None:
    """A chunk as a file; where the disk is full, the run goes on without it."""
    tensors = {f"{place}:{name}": tensor.clone() for place, part in maps.items()  # places share their labels
               for name, tensor in as_dict(part).items()}
    try:
        write_tensors(path, tensors)
    except SaeError as error:
        log.warning("SAEmnesia: what is painted is not kept: %s", error)


def _read(path: Path) -> dict[str, Maps] | None:
    """The chunk of a file; None where there is none, or what is there is not whole."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, RuntimeError):
        return None
    places: dict[str, dict] = {}
    for name, tensor in tensors.items():
        place, _, field = name.rpartition(":")
        places.setdefault(place, {})[field] = tensor
    try:
        return {place: whole(part) for place, part in places.items()} or None
    except ValueError:
        return None

"""What an SAE is trained on: block outputs with their counterfactuals, in chunks that stream through bounded memory.

A chunk is made by number, always the same for the same number, so nothing needs to be stored: a run that goes on after
a stop makes its chunks anew. When asked, chunks are kept on disk as fp16 shards with an index. The maps of several
places come from the same pictures: they are made at once, and each place's window takes its own.
"""
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import SaeError
from ..storage import write_json, write_tensors
from . import parallel

MakeMaps = Callable[[int], "Maps"]
"""Makes the maps of one place, by number of the chunk."""
MakeChunk = Callable[[int], Mapping[str, "Maps"]]
"""Makes the maps of all places, by hookpoint, of the same calls of the model."""
INDEX = "index.json"


@dataclass
class Maps:
    """n calls of the block, N tokens each, C concepts.

    tokens [n, N, d_in]: its output; without [n, N, d_in]: the same call with one of its concepts left out of the
    prompt; unsaid int [n]: which one; labels bool [n, C]: concepts the prompt of `tokens` says; sigmas [n].
    """
    tokens: Tensor
    without: Tensor
    unsaid: Tensor
    labels: Tensor
    sigmas: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def bytes(self) -> int:
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def pick(self, index: Tensor | slice) -> "Maps":
        return Maps(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> "Maps":
        """On `device`, tokens as fp32."""
        moved = [getattr(self, f.name).to(device) for f in fields(self)]
        return Maps(moved[0].float(), moved[1].float(), *moved[2:])

    def heard(self) -> float:
        """How much of the tokens depends on the words left out, as a share of their square."""
        change = (self.tokens.float() - self.without.float()).square().mean()
        return float(change / self.tokens.float().square().mean().clamp_min(1e-12))

    def left(self) -> Tensor:
        """bool [n, C]: concepts that the prompt of `without` still says."""
        return self.labels.scatter(1, self.unsaid[:, None], False)

    def all_tokens(self) -> Tensor:
        """Every token, of both calls: [2 n N, d_in]."""
        return torch.cat([self.tokens, self.without]).flatten(0, 1)


def whole(tensors: Mapping[str, Tensor]) -> Maps:
    """Maps as they were stored.

    Raises ValueError where the tensors do not belong together.
    """
    if tensors.keys() != {f.name for f in fields(Maps)}:
        raise ValueError(f"has {', '.join(sorted(tensors))}")
    maps = Maps(**tensors)
    n, shapes = len(maps.tokens), [tuple(tensor.shape) for tensor in tensors.values()]
    fit = (maps.tokens.ndim == 3 and maps.tokens.shape == maps.without.shape and maps.labels.ndim == 2 and n > 0
           and len(maps.labels) == n and maps.unsaid.shape == maps.sigmas.shape == (n,)
           and maps.labels.dtype is torch.bool and not maps.unsaid.is_floating_point())
    if not fit or not 0 <= int(maps.unsaid.min()) <= int(maps.unsaid.max()) < maps.labels.shape[1]:
        raise ValueError(f"has tensors of shapes {shapes}")
    return maps


def as_dict(maps: Maps) -> dict[str, Tensor]:
    return {f.name: getattr(maps, f.name).contiguous() for f in fields(maps)}


def joined(parts: Sequence[Maps]) -> Maps:
    return Maps(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Maps)))


class Parted:
    """Chunks of several places, each made once and handed out place by place; what a place has not taken yet waits."""

    def __init__(self, make: MakeChunk) -> None:
        self.make = make
        self.waiting: dict[tuple[int, str], Maps] = {}

    def at(self, place: str) -> MakeMaps:
        """What makes the chunks of one place."""
        def maps(number: int) -> Maps:
            if (number, place) not in self.waiting:
                self.waiting |= {(number, name): part for name, part in self.make(number).items()}
            return self.waiting.pop((number, place))
        return maps


class Window:
    """The chunks that fit in memory: all of them, or a part that moves from the first to the last as training goes on.

    make(i): chunk i of `n_chunks`; capacity: bytes. `length` chunks are held; it is found from the first chunk made.
    Where several processes train, each makes a part of the chunks and all hold all; device: what they exchange them on.
    """

    def __init__(self, make: MakeMaps, n_chunks: int, capacity: int, device: torch.device | str = "cpu") -> None:
        if n_chunks < 1:
            raise SaeError(f"expected at least 1 chunk to train on, got {n_chunks}")
        self.make, self.n_chunks, self.capacity, self.device = make, n_chunks, capacity, torch.device(device)
        self.length: int | None = None
        self.held: dict[int, Maps] = {}

    def move(self, done: float) -> None:
        """Hold what belongs to this share of training (0..1), making the chunks that are missing."""
        move_together([self], done)

    def hold(self, numbers: Sequence[int]) -> None:
        """Hold these chunks too, making those that are missing."""
        missing = [i for i in numbers if i not in self.held]
        self.held = dict(sorted({**self.held, **self.made(missing)}.items()))

    def forget(self, kept: Sequence[int] = ()) -> None:
        """Hold no chunk but these."""
        self.held = {i: maps for i, maps in self.held.items() if i in kept}

    def made(self, numbers: Sequence[int]) -> dict[int, Maps]:
        """Chunks by number, made now."""
        made = parallel.spread(lambda i: as_dict(self.make(i)), numbers, self.device)
        return {i: Maps(**tensors) for i, tensors in made.items()}

    def __len__(self) -> int:
        return sum(len(maps) for maps in self.held.values())

    def batch(self, size: int, seed: int, part: slice = slice(None)) -> Maps:
        """`size` maps at random, or a part of them; the same for the same window and seed."""
        chunks = list(self.held.values())
        starts = torch.tensor([0, *(len(maps) for maps in chunks)]).cumsum(0)
        index = torch.randint(len(self), (size,), generator=torch.Generator().manual_seed(seed))[part]
        where = torch.bucketize(index.contiguous(), starts, right=True) - 1
        return joined([chunks[c].pick(i[None] - starts[c]) for c, i in zip(where.tolist(), index, strict=True)])

    def sample(self, most: int, seed: int = 0) -> Maps:
        """All maps held, or `most` of them at random."""
        maps = joined(list(self.held.values()))
        if len(maps) <= most:
            return maps
        return maps.pick(torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))[:most])


def move_together(windows: Sequence[Window], done: float) -> None:
    """`Window.move` for the windows of several places, which hold the same chunks and share the capacity of one."""
    first = windows[0]
    if first.length is None:
        for window in windows:
            window.hold([0])
        length = max(1, min(first.n_chunks, first.capacity // sum(window.held[0].bytes for window in windows)))
        for window in windows:
            window.length = length
    start = round(done * (first.n_chunks - first.length))
    wanted = range(start, start + first.length)
    for window in windows:
        window.forget(wanted)
    for window in windows:
        window.hold(wanted)


class Shards:
    """Chunks of one place on disk, `maps-00000.safetensors` and on, beside an `index.json` that says of what they are.

    make: makes a chunk that is not there yet; None where only stored ones are read. about: what must not change between
    runs (model, prompts, settings).
    """

    def __init__(self, folder: Path, make: MakeMaps | None = None, about: dict[str, Any] | None = None) -> None:
        self.folder, self.make_new = folder, make
        index = folder / INDEX
        if not index.exists():
            if make is None:
                raise SaeError(f"there are no stored activations in {folder}: it has no {INDEX}")
            write_json(index, about)
        self.about = self._read(index)
        if about is not None and self.about != json.loads(json.dumps(about)):
            changed = sorted(key for key in {*about, *self.about} if about.get(key) != self.about.get(key))
            raise SaeError(f"{folder} holds activations of another run ({', '.join(changed)} changed): choose another "
                           f"folder, or empty this one")

    @staticmethod
    def _read(index: Path) -> dict[str, Any]:
        try:
            about = json.loads(index.read_text("utf-8"))
            if not isinstance(about, dict):
                raise ValueError("no object")
            return about
        except (OSError, ValueError, RecursionError) as error:
            raise SaeError(f"{index} is damaged ({error}): empty the folder and collect again") from error

    def path(self, number: int) -> Path:
        return self.folder / f"maps-{number:05d}.safetensors"

    def make(self, number: int) -> Maps:
        """Chunk `number`, read where it is stored.

        Raises SaeError for a shard that is missing or damaged.
        """
        path = self.path(number)
        if path.exists():
            return self._load(path)
        if self.make_new is None:
            raise SaeError(f"{path.name} is missing in {self.folder}: collect the activations again, "
                           f"finished ones are kept")
        maps = self.make_new(number)
        write_tensors(path, as_dict(maps))
        return maps

    @staticmethod
    def _load(path: Path) -> Maps:
        try:
            return whole(load_file(path))
        except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
            raise SaeError(f"{path.name} in {path.parent} is damaged: delete it and collect again, the others are "
                           f"kept") from error

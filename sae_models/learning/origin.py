"""What activations are of: the concepts they show, the block they come from, and what was painted. Written in the index
of stored ones, so that whoever trains on them needs nothing else.

Those of one place are a folder of shards. Those of several places are a folder of such folders, each of which can also
be learned from alone.
"""
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import SaeError
from .maps import INDEX, MakeChunk, Maps, Parted, Shards
from .prompts import Subject

KINDS = {"subjects": list, "d_in": int, "hookpoint": str, "base": str, "residual": bool, "chunks": int,
         "held_out": list, "about": dict}
"""What an index says of an origin."""


@dataclass(frozen=True)
class Origin:
    """d_in: width of a token; hookpoint, base, residual: as in a file's header; chunks: how many there are to learn
    from; held_out: numbers of those to judge on; about: model, prompts and settings, so that nothing else is mixed in.
    """
    subjects: Sequence[Subject]
    d_in: int
    hookpoint: str
    base: str = ""
    residual: bool = False
    chunks: int = 24
    held_out: Sequence[int] = (1_000_000,)
    about: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def of_stored(shards: Shards, folder: Path) -> Origin:
    """The origin that an index tells.

    Raises SaeError when it is damaged.
    """
    try:
        said = {name: _of_kind(shards.about[name], kind, name) for name, kind in KINDS.items()}
        for number in said["held_out"]:
            _of_kind(number, int, "held_out")
        return Origin(**said | {"subjects": [Subject(**subject) for subject in said["subjects"]]})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SaeError(f"{folder / INDEX} is damaged: it lacks {error}; collect again into an empty folder") from error


def _of_kind(value: Any, kind: type, name: str) -> Any:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} for '{name}'")
    return value


def stored(folder: Path) -> tuple[list[Origin], MakeChunk]:
    """The origins of all places stored in a folder, and what reads their chunks.

    Raises SaeError when nothing is stored there, an index is damaged, or places are of different runs.
    """
    folders = [folder] if (folder / INDEX).exists() else sorted(index.parent for index in folder.glob(f"*/{INDEX}"))
    shards = [Shards(one) for one in folders or [folder]]
    origins = [of_stored(one, one.folder) for one in shards]
    if len({repr(replace(origin, hookpoint="", d_in=0)) for origin in origins}) > 1:
        raise SaeError(f"{folder} holds activations of different runs: give the folder of one place")
    return origins, _all({origin.hookpoint: one for origin, one in zip(origins, shards, strict=True)})


def keeping(folder: Path, origins: Sequence[Origin], make: MakeChunk) -> MakeChunk:
    """`make`, which stores every chunk in a folder and reads those that are there.

    Raises SaeError for a folder that holds something else.
    """
    if len(origins) > 1 and (folder / INDEX).exists():
        raise SaeError(f"{folder} holds activations of one place, and these are of {len(origins)}: choose another "
                       f"folder, or empty this one")
    parted = Parted(make)
    return _all({origin.hookpoint: Shards(folder / origin.hookpoint if len(origins) > 1 else folder,
                                          parted.at(origin.hookpoint), origin.as_json()) for origin in origins})


def _all(shards: Mapping[str, Shards]) -> MakeChunk:
    def chunk(number: int) -> dict[str, Maps]:
        return {place: one.make(number) for place, one in shards.items()}
    return chunk

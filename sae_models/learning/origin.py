"""What activations are of: the concepts they show, the block they come from, and what was painted. Written in the index
of stored ones, so that whoever trains on them needs nothing else.
"""
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import SaeError
from .maps import Shards
from .prompts import Subject


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
        said = {f.name: shards.about[f.name] for f in fields(Origin)}
        return Origin(**said | {"subjects": [Subject(**subject) for subject in said["subjects"]]})
    except (KeyError, TypeError) as error:
        raise SaeError(f"{folder / 'index.json'} is damaged: it lacks {error}; collect again into an empty "
                       f"folder") from error

"""The catalogue of published SAEs: `catalogue.json`, which a release extends. What is not known there is null."""
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import SaeError

CATALOGUE = Path(__file__).with_name("catalogue.json")
PICKLED = (".pt", ".pth")


@dataclass(frozen=True)
class File:
    """A file of a repository, by its path there; bytes and sha256 are None where they are not known."""
    path: str
    bytes: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Entry:
    """One published SAE.

    base: family of the base model; model: the same in words; knows: what its neurons are for; into: the folder below
    the model folder, named so that the block can be read from it; files: the weights come last.
    """
    name: str
    base: str
    model: str
    blocks: tuple[str, ...]
    knows: str
    d_in: int
    d_sae: int
    k: int
    licence: str | None
    repository: str
    revision: str
    into: str
    files: tuple[File, ...]

    @property
    def weights(self) -> str:
        """The file that is chosen once it is there, as a path below the model folder."""
        return f"{self.into}/{self.files[-1].name}"

    @property
    def pickled(self) -> bool:
        """Whether it has to be converted before it can be used."""
        return self.files[-1].name.endswith(PICKLED)

    @property
    def size(self) -> str:
        """The size of what is downloaded, in words; `about` where it is reckoned from the shapes, in fp32."""
        known = [file.bytes for file in self.files]
        if None not in known:
            return size_in_words(sum(known))
        return f"about {size_in_words(4 * (2 * self.d_sae * self.d_in + self.d_sae + self.d_in))}"

    def origin(self) -> dict[str, Any]:
        """What is kept beside the files, which do not say it: what they are for, and where they come from."""
        return {"base": self.base, "hookpoint": self.blocks[0], "repository": self.repository,
                "revision": self.revision, "licence": self.licence}

    def listed(self) -> dict[str, Any]:
        """What a page is told."""
        return {"name": self.name, "base": self.base, "model": self.model, "blocks": list(self.blocks),
                "knows": self.knows, "size": self.size, "licence": self.licence or "", "file": self.weights,
                "repository": self.repository, "pickled": self.pickled}


def size_in_words(count: int) -> str:
    """
    >>> size_in_words(209_800_000), size_in_words(52_000)
    ('210 MB', '52 kB')
    """
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{max(1, count / 1000):.0f} kB"


@cache
def catalogue() -> tuple[Entry, ...]:
    """All of them. No request is made."""
    listed = json.loads(CATALOGUE.read_text("utf-8"))["saes"]
    return tuple(Entry(**one | {"blocks": tuple(one["blocks"]), "files": tuple(File(**file) for file in one["files"])})
                 for one in listed)


def entry_called(name: str) -> Entry:
    """The entry of that name, whatever its case.

    Raises SaeError for another name, with what there is.
    """
    for entry in catalogue():
        if entry.name.casefold() == name.strip().casefold():
            return entry
    names = ", ".join(entry.name for entry in catalogue())
    raise SaeError(f"there is no SAE '{name[:80]}' in the catalogue; there are {names}")

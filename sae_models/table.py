"""Concept files: the rows of a few concepts, in the format of an SAE; a concept takes kilobytes, and is shared alone.

A concept file is an SAE whose every latent belongs to a named concept; it is loaded, listed and erased like any other.
Its concepts may have latents at several places of the model.
"""
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from .concepts import Concept
from .errors import SaeError
from .formats import Header, Part, Rows, Weights, read_headers, read_rows_at, write, write_places
from .sae import Sae, SaeConfig


@dataclass(frozen=True)
class Table:
    """Concepts of one place whose latents number `rows`, each row once and in order."""
    concepts: tuple[Concept, ...]
    rows: Rows


At = tuple[Header, Table]
"""What a place's concepts are, and a header that says the place: base, hookpoint, residual and width."""


def numbered(concepts: list[Concept]) -> tuple[Concept, ...]:
    """The same concepts with latents 0, 1, 2 ... in order."""
    ends = accumulate(len(concept.latents) for concept in concepts)
    return tuple(replace(concept, latents=tuple(range(end - len(concept.latents), end)))
                 for concept, end in zip(concepts, ends, strict=True))


def read_table(path: Path, header: Header, concepts: list[Concept]) -> Table:
    """Some concepts at one place of a file.

    Raises SaeError as `read_rows` does.
    """
    return read_tables(path, [(header, concepts)])[0][1]


def read_tables(path: Path, wanted: Sequence[tuple[Header, list[Concept]]]) -> list[At]:
    """Some concepts at several places of a file.

    Raises SaeError as `read_rows` does.
    """
    rows = read_rows_at(path, wanted)
    return [(header, Table(numbered(concepts), part)) for (header, concepts), part in zip(wanted, rows, strict=True)]


def without(table: Table, names: Collection[str]) -> Table:
    """The table without the concepts of these names, which are in lower case."""
    kept = [concept for concept in table.concepts if concept.name.casefold() not in names]
    index = [latent for concept in kept for latent in concept.latents]
    rows = table.rows
    return Table(numbered(kept), Rows(rows.W_enc[index], rows.bias[index], rows.W_dec[index],
                                      rows.statistics.select(index)))


def only(table: Table, name: str) -> Table:
    """The table with the concept of this name alone."""
    return without(table, _names(table) - {name.casefold()})


def described(table: Table, **what: Any) -> Table:
    """The table with more known of its concepts; what: fields of `Concept`."""
    return replace(table, concepts=tuple(replace(one, **what) for one in table.concepts))


def merged(first: Table, second: Table) -> Table:
    """The concepts of both; of two with one name, the second."""
    first = without(first, _names(second))
    one, two = first.rows, second.rows
    rows = Rows(*(torch.cat([getattr(one, name), getattr(two, name)]) for name in ("W_enc", "bias", "W_dec")),
                one.statistics.joined(two.statistics))
    return Table(numbered([*first.concepts, *second.concepts]), rows)


def _names(table: Table) -> set[str]:
    return {concept.name.casefold() for concept in table.concepts}


def is_concept_file(headers: Sequence[Header]) -> bool:
    return all(len(header.latents) == header.config.d_sae for header in headers)


def add(path: Path, parts: Sequence[At]) -> None:
    """Write a concept file, or add the concepts to the one that is there; those of the same name are replaced, at all
    places.

    A file of one place is written in fp32, one of several in fp16. Raises SaeError when the file is a whole SAE, has
    concepts of another base model, or another SAE at the same place.
    """
    there = check_addable(path, [header for header, _ in parts])
    new = set().union(*(_names(table) for _, table in parts))
    tables = read_tables(path, [(header, list(header.concepts)) for header in there]) if there else []
    joined = {header.hookpoint: (header, without(table, new)) for header, table in tables}
    for like, table in parts:
        header, before = joined.get(like.hookpoint, (like, None))
        joined[like.hookpoint] = (header, merged(before, table) if before else table)
    _write(path, [part for part in joined.values() if part[1].concepts])


def check_addable(path: Path, likes: Sequence[Header]) -> tuple[Header, ...]:
    """The headers of the concept file that is there, none where there is none; likes: of what is to be added.

    Raises SaeError as `add` does.
    """
    there = read_headers(path) if path.exists() else ()
    if there and not is_concept_file(there):
        raise SaeError(f"{path.name} in {path.parent} is a whole SAE, not a concept file: choose another name")
    for mine in likes:
        for theirs in there:
            if mine.base != theirs.base or (mine.hookpoint == theirs.hookpoint and _kind(mine) != _kind(theirs)):
                raise SaeError(f"{path.name} has concepts for {_said(theirs)}, and these are for {_said(mine)}: "
                               f"choose another name")
    if len({header.hookpoint for header in (*there, *likes)}) > 1 and not all(h.hookpoint for h in (*there, *likes)):
        raise SaeError(f"{path.name} cannot have concepts of several blocks when one of them is not known: choose "
                       f"another name, or write the block into 'hookpoint'")
    return there


def _kind(header: Header) -> tuple[bool, int]:
    return header.residual, header.config.d_in


def _said(header: Header) -> str:
    change = ", residual" if header.residual else ""
    return f"{header.base} at {header.hookpoint} (width {header.config.d_in}{change})"


def _write(path: Path, parts: Sequence[At]) -> None:
    described = [replace(header, config=SaeConfig(header.config.d_in, len(table.rows.bias), len(table.rows.bias)),
                         concepts=table.concepts, training=None) for header, table in parts]
    if len(parts) == 1:
        rows = parts[0][1].rows
        return write(path, _as_sae(rows, described[0].config), described[0], rows.statistics)
    write_places(path, [Part(header, _weights(table.rows), table.rows.statistics)
                        for header, (_, table) in zip(described, parts, strict=True)], torch.float16)


def _weights(rows: Rows) -> Weights:
    return Weights(rows.W_enc, rows.bias, rows.W_dec, torch.zeros(rows.W_enc.shape[1]))


def _as_sae(rows: Rows, config: SaeConfig) -> Sae:
    sae = Sae(config)
    sae.load_state_dict(dict(zip(("encoder.weight", "encoder.bias", "W_dec", "b_dec"), _weights(rows), strict=True)))
    return sae

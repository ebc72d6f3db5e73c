"""Concept files: the rows of a few concepts, in the format of an SAE; a concept takes kilobytes, and is shared alone.

A concept file is an SAE whose every latent belongs to a named concept; it is loaded, listed and erased like any other.
"""
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch

from .concepts import Concept
from .errors import SaeError
from .formats import Header, Rows, read_header, read_rows, write
from .sae import Sae, SaeConfig


@dataclass(frozen=True)
class Table:
    """Concepts whose latents number `rows`, each row once and in order."""
    concepts: tuple[Concept, ...]
    rows: Rows


def numbered(concepts: list[Concept]) -> tuple[Concept, ...]:
    """The same concepts with latents 0, 1, 2 ... in order."""
    ends = accumulate(len(concept.latents) for concept in concepts)
    return tuple(replace(concept, latents=tuple(range(end - len(concept.latents), end)))
                 for concept, end in zip(concepts, ends, strict=True))


def read_table(path: Path, header: Header, concepts: list[Concept]) -> Table:
    """Some concepts of a file.

    Raises SaeError as `read_rows` does.
    """
    return Table(numbered(concepts), read_rows(path, header, concepts))


def merged(first: Table, second: Table) -> Table:
    """The concepts of both; of two with one name, the second."""
    names = {concept.name.casefold() for concept in second.concepts}
    kept = [concept for concept in first.concepts if concept.name.casefold() not in names]
    index = [latent for concept in kept for latent in concept.latents]
    one, two = first.rows, second.rows
    rows = Rows(*(torch.cat([getattr(one, name)[index], getattr(two, name)]) for name in ("W_enc", "bias", "W_dec")),
                one.statistics.select(index).joined(two.statistics))
    return Table(numbered([*kept, *second.concepts]), rows)


def is_concept_file(header: Header) -> bool:
    return sum(len(concept.latents) for concept in header.concepts) == header.config.d_sae


def add(path: Path, like: Header, table: Table) -> None:
    """Write a concept file, or add the concepts to the one that is there; those of the same name are replaced.

    like: says base, hookpoint and kind of the SAE they come from. Raises SaeError when the file is a whole SAE, or has
    concepts of another base model or block.
    """
    if path.exists():
        header = check_same_place(path, like)
        table = merged(read_table(path, header, list(header.concepts)), table)
    count, d_in = table.rows.W_enc.shape
    header = replace(like, config=SaeConfig(d_in, count, count), concepts=table.concepts, training=None)
    write(path, _as_sae(table.rows, header.config), header, table.rows.statistics)


def check_same_place(path: Path, like: Header) -> Header | None:
    """The header of the concept file that is there, None where there is none.

    Raises SaeError as `add` does.
    """
    if not path.exists():
        return None
    header = read_header(path)
    if not is_concept_file(header):
        raise SaeError(f"{path.name} in {path.parent} is a whole SAE, not a concept file: choose another name")
    mine, theirs = ((h.base, h.hookpoint, h.residual, h.config.d_in) for h in (like, header))
    if mine != theirs:
        raise SaeError(f"{path.name} has concepts for {theirs[0]} at {theirs[1]} (width {theirs[3]}), and these are "
                       f"for {mine[0]} at {mine[1]} (width {mine[3]}): choose another name")
    return header


def _as_sae(rows: Rows, config: SaeConfig) -> Sae:
    sae = Sae(config)
    sae.load_state_dict({"encoder.weight": rows.W_enc, "encoder.bias": rows.bias, "W_dec": rows.W_dec,
                         "b_dec": torch.zeros(config.d_in)})
    return sae

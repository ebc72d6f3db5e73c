"""Our own format: one `.safetensors` that says everything of itself, in JSON under the metadata key `saemnesia`.

Version 1 is an SAE of one place: sparsify's tensors (`encoder.weight`, `encoder.bias`, `W_dec`, `b_dec`) and the
concepts' statistics (`concept_sigmas` [T], `concept_thresholds` and `concept_means` [F, T], one row a concept latent in
the order of the concepts).

Version 2 has SAEs of several places. Those of one width d share `<d>.encoder.weight` and `<d>.W_dec` [R, d],
`<d>.encoder.bias` [R] and, unless it is all zero, `<d>.b_dec` [places of that width, d]: each place has d_sae rows from
its `start`, one place after the other. The statistics are those of version 1, in order of place, then concept, then
latent. A concept is listed once, with its latents at each place.
"""
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..concepts import Concept, Statistics, refuse_twice
from ..errors import SaeError, plain
from ..hookpoint import normalise
from ..sae import Sae, SaeConfig
from ..storage import write_tensors
from .header import Header
from .layouts import OURS, Layout, Weights

FORMAT_VERSION, SEVERAL_PLACES = 1, 2
METADATA_KEY = "saemnesia"
STATISTICS = ("concept_sigmas", "concept_thresholds", "concept_means")
MOST, LONGEST = 100_000, 1000
"""Concepts of a file, and characters of a text in it that is only shown."""
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""What reading JSON raises that is not of the form it should have."""


class Part(NamedTuple):
    """The SAE of one place; `statistics` has a row for each concept latent, in the order of the header's concepts."""
    header: Header
    weights: Weights
    statistics: Statistics


def write(path: str | Path, sae: Sae, header: Header, statistics: Statistics,
          dtype: torch.dtype = torch.float32) -> None:
    """Write an SAE of one place; an interrupted write leaves the old file.

    Raises SaeError when the header is not of this SAE, for weights that are no numbers in `dtype`, and when the disk
    is full.
    """
    path = Path(path)
    if header.config != sae.config:
        raise SaeError(f"expected a header for {sae.config}, got {header.config}")
    tensors = {name: value.detach().to("cpu", dtype) for name, value in sae.state_dict().items()}
    _refuse_not_finite(tensors.values(), header, dtype)
    if header.concepts:
        tensors |= _tables(statistics)
    write_tensors(path, tensors, {METADATA_KEY: _describe(header)})


def write_places(path: str | Path, parts: Sequence[Part], dtype: torch.dtype = torch.float32) -> None:
    """Write SAEs of several places as one file; biases and statistics are fp32 whatever the `dtype`.

    Raises SaeError when two are of one place or of different base models, for weights that are no numbers in `dtype`,
    and when the disk is full.
    """
    headers = [part.header for part in parts]
    refuse_twice([header.hookpoint for header in headers], "block")
    if len({header.base for header in headers}) > 1:
        raise SaeError(f"expected SAEs of one base model, got {', '.join(sorted({h.base for h in headers}))}")
    concepts = _by_name(headers)
    statistics = [_in_order(part, list(concepts)) for part in parts]
    tensors = {name: tensor for width in dict.fromkeys(header.config.d_in for header in headers)
               for name, tensor in _stacked([part for part in parts if part.header.config.d_in == width], dtype)}
    if concepts:
        tensors |= _tables(reduce(Statistics.joined, statistics))
    write_tensors(Path(path), tensors, {METADATA_KEY: _describe_places(headers, concepts)})


def note_measured(path: Path, shares: Mapping[str, Mapping[str, float]]) -> None:
    """Write what was measured of some concepts, by name, into a file; nothing else of it changes.

    Raises SaeError when the disk is full.
    """
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), [*file.keys()]
        tensors = {name: file.get_tensor(name).clone() for name in names}  # Windows replaces no file that is mapped
    data = json.loads(metadata[METADATA_KEY])
    for concept in data["concepts"]:
        if found := shares.get(concept["name"]):
            concept["measured"] = dict(found)
    write_tensors(path, tensors, metadata | {METADATA_KEY: json.dumps(data)})


def layout_at(width: int) -> Layout:
    """The tensors of the places of one width in version 2."""
    return replace(OURS, names=tuple(f"{width}.{name}" for name in OURS.names))


def _tables(statistics: Statistics) -> dict[str, Tensor]:
    return dict(zip(STATISTICS, (torch.tensor(statistics.sigmas), statistics.thresholds, statistics.means),
                    strict=True))


def _by_name(headers: Sequence[Header]) -> dict[str, list[tuple[int, Concept]]]:
    """{name in lower case: [(place, concept)]} in the order of places and concepts."""
    found: dict[str, list[tuple[int, Concept]]] = {}
    for place, header in enumerate(headers):
        for concept in header.concepts:
            found.setdefault(concept.name.casefold(), []).append((place, concept))
    return found


def _in_order(part: Part, names: list[str]) -> Statistics:
    """The statistics with the concepts in the order of `names`."""
    concepts = part.header.concepts
    ends = accumulate(len(concept.latents) for concept in concepts)
    rows = {c.name.casefold(): range(end - len(c.latents), end) for c, end in zip(concepts, ends, strict=True)}
    return part.statistics.select([row for name in names for row in rows.get(name, ())])


def _stacked(parts: Sequence[Part], dtype: torch.dtype) -> list[tuple[str, Tensor]]:
    """(name, tensor) of all places of one width."""
    W_enc, b_enc, W_dec, b_dec = zip(*(part.weights for part in parts), strict=True)
    tensors = [torch.cat(W_enc).to(dtype), torch.cat(b_enc).float(), torch.cat(W_dec).to(dtype)]
    if any(b.any() for b in b_dec):
        tensors.append(torch.stack(b_dec).to(dtype))
    _refuse_not_finite(tensors, parts[0].header, dtype)
    return list(zip(layout_at(parts[0].header.config.d_in).names, tensors, strict=False))


def _refuse_not_finite(tensors: Iterable[Tensor], header: Header, dtype: torch.dtype) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise SaeError(f"there are weights at {header.hookpoint or 'a block'} or another place of width "
                       f"{header.config.d_in} that are not finite as {dtype}: train or find them again")


def _describe(header: Header) -> str:
    data = asdict(replace(header, hookpoint=normalise(header.hookpoint)))
    data |= {"format": FORMAT_VERSION, "k": header.config.k,
             "concepts": [_described(concept) for concept in header.concepts]}
    del data["config"]
    return json.dumps(data)


def _describe_places(headers: Sequence[Header], concepts: Mapping[str, list[tuple[int, Concept]]]) -> str:
    starts: dict[int, int] = {}
    places = []
    for header in headers:
        config = header.config
        start = starts.get(config.d_in, 0)
        places.append({"hookpoint": normalise(header.hookpoint), "residual": header.residual, **asdict(config),
                       "start": start})
        starts[config.d_in] = start + config.d_sae
    listed = [_described(found[0][1]) | {"latents": [[place, concept.latents] for place, concept in found]}
              for found in concepts.values()]
    return json.dumps({"format": SEVERAL_PLACES, "base": headers[0].base, "training": headers[0].training,
                       "made_on": headers[0].made_on, "made_of": headers[0].made_of, "places": places,
                       "concepts": listed})


def _described(concept: Concept) -> dict[str, Any]:
    """A concept as JSON has it; what was not measured is left out."""
    data = {"name": concept.name, "latents": concept.latents, "kind": concept.kind, "description": concept.description,
            "measured": concept.measured and dict(concept.measured), "pictures": concept.pictures,
            "told_from": concept.told_from or None}
    return {what: value for what, value in data.items() if value is not None}


def load(text: str, name: str) -> dict[str, Any]:
    """The description as JSON, with a `format` that is known here; `name` names the file in errors.

    Raises SaeError for a description that is damaged or newer than this code.
    """
    try:
        data = json.loads(text)
        version = int(data["format"])
    except MALFORMED as error:
        raise incomplete(name, error) from error
    if version > SEVERAL_PLACES:
        raise SaeError(f"{name} has format {version}, newer than {SEVERAL_PLACES}: update this extension")
    return data | {"format": version}


def incomplete(name: str, error: Exception) -> SaeError:
    if isinstance(error, SaeError):
        return SaeError(f"{name} is damaged: {error}")
    return SaeError(f"{name} is damaged: its description is incomplete ({error!r})")


def parse(data: Mapping[str, Any], d_sae: int, d_in: int, name: str) -> Header:
    """The header that a description of version 1 gives.

    Raises SaeError for one that is damaged.
    """
    try:
        concepts = tuple(_concept(c, c["latents"]) for c in _listed(data))
        return Header(SaeConfig(d_in, d_sae, int(data["k"])), normalise(plain(data["hookpoint"])),
                      residual=bool(data["residual"]), concepts=concepts, **_alike(data))
    except (SaeError, *MALFORMED) as error:
        raise incomplete(name, error) from error


def parse_places(data: Mapping[str, Any], name: str) -> tuple[Header, ...]:
    """The headers, one a place, that a description of version 2 gives.

    Raises SaeError for one that is damaged.
    """
    try:
        headers = [replace(_place(place), **_alike(data)) for place in data["places"]]
        _check_starts(headers, [int(place["start"]) for place in data["places"]])
        refuse_twice([header.hookpoint for header in headers], "block")
        listed = _listed(data)
        refuse_twice([concept["name"] for concept in listed])
        concepts: list[list[Concept]] = [[] for _ in headers]
        for concept in listed:
            for place, latents in _latents(concept, len(headers)).items():
                concepts[place].append(_concept(concept, latents))
        return tuple(replace(header, concepts=tuple(here)) for header, here in zip(headers, concepts, strict=True))
    except (SaeError, *MALFORMED) as error:
        raise incomplete(name, error) from error


def _alike(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a description says of all its places."""
    training = data.get("training")
    if not isinstance(training, dict | None):
        raise TypeError("training")
    return {"base": _text(data["base"]), "training": training, "made_on": _text(data.get("made_on", "")),
            "made_of": _text(data.get("made_of", ""))}


def _text(value: Any) -> str:
    """A text that is only shown, in a line of bounded length."""
    return plain(str(value))[:LONGEST]


def _listed(data: Mapping[str, Any]) -> list:
    listed = data.get("concepts", [])
    if len(listed) > MOST:
        raise SaeError(f"it has {len(listed)} concepts, more than {MOST}")
    return listed


def _place(data: Mapping[str, Any]) -> Header:
    config = SaeConfig(int(data["d_in"]), int(data["d_sae"]), int(data["k"]))
    hookpoint = normalise(plain(data["hookpoint"]))
    if not hookpoint:
        raise SaeError("it does not say which block each of its SAEs is for")
    return Header(config, hookpoint, residual=bool(data["residual"]))


def _check_starts(headers: Sequence[Header], starts: Sequence[int]) -> None:
    """Raise SaeError unless the places of a width lie one after the other."""
    if not headers:
        raise SaeError("it has no block")
    ends: dict[int, int] = {}
    for header, start in zip(headers, starts, strict=True):
        config = header.config
        if start != ends.get(config.d_in, 0):
            raise SaeError(f"the rows of {header.hookpoint} start at {start}, not at {ends.get(config.d_in, 0)}")
        ends[config.d_in] = start + config.d_sae


def _latents(concept: Mapping[str, Any], places: int) -> dict[int, list[int]]:
    """{place: latents} of a concept of version 2."""
    found = {int(place): latents for place, latents in concept["latents"]}
    if not found or len(found) != len(concept["latents"]) or not found.keys() <= set(range(places)):
        raise SaeError(f"concept '{concept['name']}' is at {[place for place, _ in concept['latents']]} "
                       f"of {places} places")
    return found


def _concept(data: Mapping[str, Any], latents: Sequence[int]) -> Concept:
    measured, pictures = data.get("measured"), data.get("pictures")
    return Concept(data["name"], tuple(int(latent) for latent in latents), _text(data.get("kind", "")),
                   _text(data.get("description", "")),
                   None if measured is None else {_text(what): float(share) for what, share in measured.items()},
                   None if pictures is None else int(pictures), tuple(map(_text, data.get("told_from", ()))))

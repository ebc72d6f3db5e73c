"""Open SAE files: the header in milliseconds, a concept by its rows, or everything.

A row is d_in numbers side by side. Where a library stores a matrix turned, it is a column of the file: only its numbers
get into memory, but they lie a row apart, so the disk reads most of that matrix. For one latent of 20480 of width 1280
(210 MB, fp32): 1 ms by row, 20 ms by column, 26 and 104 ms when the file was not in the system's cache.
"""
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..concepts import Concept, Statistics
from ..errors import SaeError
from ..sae import Sae, SaeConfig
from . import ours
from .header import Header, Rows
from .layouts import OURS, Convention, Layout, Weights, convention_of, layout_of

LARGEST, FINITE = 65504.0, torch.finfo(torch.float32).max
"""Of a weight in an edit's rows, which half precision must hold (they are of the order of 1); and of a threshold."""
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
LOOKED_FOR = (".safetensors", ".pt", ".pth")
"""What a host lists of a model folder."""
CONVERT = Path(__file__).resolve().parents[2] / "convert.py"


def offered(names: Iterable[str]) -> list[str]:
    """The files that can be chosen, in order; last what has to be converted first, so that it can be said of it."""
    ready, *pickles = LOOKED_FOR
    listed = list(names)
    waiting = [name for name in listed if name.lower().endswith(tuple(pickles))
               and name.rpartition(".")[0] + ready not in listed]
    return [name for name in listed if name.lower().endswith(ready)] + waiting


def pickle_advice(path: Path) -> str:
    """What to do about a pickle: a command to copy, with the Python that runs this."""
    return (f"{path.name} is a pickle, which can run code when it is opened, so it is not opened here: make a "
            f'.safetensors of it once, in a terminal, with: "{sys.executable}" "{CONVERT}" "{path}"')


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A safetensors file, or one sentence about why it is none."""
    if path.suffix.lower() in PICKLES:
        raise SaeError(pickle_advice(path))
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise SaeError(f"there is no file {path.name} in {path.parent}") from error
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{path.name} cannot be read as safetensors ({error}): "
                       f"it is damaged or not fully downloaded, so download it again") from error
    except (RuntimeError, MemoryError) as error:
        raise SaeError(f"{path.name} cannot be read: it is damaged, or larger than this computer's memory") from error


class _Described(NamedTuple):
    """The SAE of one place: its header, and how its weights are to be read.

    start: its first row in the tensors; centre: its row of b_dec, None where that is no table; statistics: its first
    row in the statistics, None where it has none.
    """
    header: Header
    layout: Layout
    convention: Convention
    start: int = 0
    centre: int | None = None
    statistics: int | None = None


def _describe(file: Any, path: Path) -> list[_Described]:
    """The SAEs of all places of a file, at least one."""
    text = (file.metadata() or {}).get(ours.METADATA_KEY)
    data = ours.load(text, path.name) if text else None
    if data and data["format"] == ours.SEVERAL_PLACES:
        return _describe_places(file, data, path)
    layout = layout_of(file.keys(), path.name)
    d_sae, d_in = _checked_shapes(file, path, layout)
    if data and layout is OURS:
        header = ours.parse(data, d_sae, d_in, path.name)
        _check_statistics(file, [header], path)
        return [_Described(header, layout, Convention(header.config.k), statistics=0 if header.concepts else None)]
    said = convention_of(layout, path)
    try:
        config = SaeConfig(d_in, d_sae, said.k)
    except SaeError as error:
        raise SaeError(f"{layout.sidecar} in {path.parent} does not fit {path.name}: {error}") from error
    return [_Described(Header(config, said.hookpoint, said.base, said.residual), layout, said)]


def _describe_places(file: Any, data: Mapping[str, Any], path: Path) -> list[_Described]:
    headers = ours.parse_places(data, path.name)
    for width in {header.config.d_in for header in headers}:
        _check_places(file, [header.config for header in headers if header.config.d_in == width], path)
    _check_statistics(file, headers, path)
    described, starts, places, statistics = [], Counter(), Counter(), 0
    for header in headers:
        d_in, d_sae = header.config.d_in, header.config.d_sae
        described.append(_Described(header, ours.layout_at(d_in), Convention(header.config.k), starts[d_in],
                                    places[d_in], statistics if header.concepts else None))
        starts[d_in] += d_sae
        places[d_in] += 1
        statistics += len(header.latents)
    return described


def _check_places(file: Any, configs: Sequence[SaeConfig], path: Path) -> None:
    """Raise SaeError unless the tensors have the rows of all places of one width."""
    rows, width = sum(config.d_sae for config in configs), configs[0].d_in
    W_enc, b_enc, W_dec, b_dec = ours.layout_at(width).names
    shapes = {W_enc: (rows, width), b_enc: (rows,), W_dec: (rows, width)}
    shapes |= {b_dec: (len(configs), width)} if b_dec in file.keys() else {}  # noqa: SIM118
    for name, wanted in shapes.items():
        _check_shape(file, path, name, wanted)


def _check_shape(file: Any, path: Path, name: str, wanted: tuple[int, ...]) -> None:
    found = list(file.get_slice(name).get_shape()) if name in file.keys() else None  # noqa: SIM118
    if found != list(wanted):
        raise SaeError(f"{path.name} is damaged: expected {name} of shape {list(wanted)}, got {found or 'none'}")
    _check_kind(file, path, [name])


def _check_kind(file: Any, path: Path, names: Iterable[str]) -> None:
    """Raise SaeError unless these tensors are of plain floating-point numbers."""
    for name in names:
        kind = file.get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise SaeError(f"{path.name} has {name} as {kind}, and only floating-point numbers of 8 bits or more can "
                           f"be read: download it in another precision")


def _checked_shapes(file: Any, path: Path, layout: Layout) -> tuple[int, int]:
    """(d_sae, d_in), when all four tensors agree."""
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in layout.names}
    _, b_enc, _, b_dec = layout.names
    d_sae, d_in = (shapes[name][0] if len(shapes[name]) == 1 else 0 for name in (b_enc, b_dec))
    for name, wanted in layout.shapes(d_sae, d_in).items():
        if shapes[name] != wanted:
            raise SaeError(f"{path.name} is damaged: expected {name} of shape {list(wanted)}, got {list(shapes[name])}")
    _check_kind(file, path, layout.names)
    return d_sae, d_in


def _check_statistics(file: Any, headers: Sequence[Header], path: Path) -> None:
    count = sum(len(header.latents) for header in headers)
    if not count:
        return
    for header in headers:
        if max(header.latents, default=0) >= header.config.d_sae:
            raise SaeError(f"{path.name} is damaged: a concept has latent {max(header.latents)} of "
                           f"{header.config.d_sae}")
    for name in ours.STATISTICS:
        if name not in file.keys():  # noqa: SIM118
            raise SaeError(f"{path.name} is damaged: it names concepts but has no {name}")
    sigmas, *tables = (tuple(file.get_slice(name).get_shape()) for name in ours.STATISTICS)
    if len(sigmas) != 1 or not sigmas[0] or any(table != (count, *sigmas) for table in tables):
        raise SaeError(f"{path.name} is damaged: its statistics are not of {count} latents")
    _check_kind(file, path, ours.STATISTICS)


def read_headers(path: str | Path) -> tuple[Header, ...]:
    """Read what a file says of itself, one header a place: milliseconds, whatever its size.

    Raises SaeError for a missing, damaged or foreign file, a pickle, and a format newer than this code.
    """
    path = Path(path)
    with _open(path) as file:
        return tuple(described.header for described in _describe(file, path))


def read_header(path: str | Path) -> Header:
    """The header of a file of one place.

    Raises SaeError as `read_headers` does, and for a file of several places.
    """
    return only(read_headers(path), Path(path).name)


def only(found: Sequence[Any], name: str) -> Any:
    """The one element; `name` names the file in the error.

    Raises SaeError when there are several.
    """
    if len(found) > 1:
        raise SaeError(f"{name} has concepts at {len(found)} places of the model, and here an SAE of one block is "
                       f"needed: choose another file")
    return found[0]


def read_rows(path: str | Path, header: Header, concepts: list[Concept]) -> Rows:
    """Read the rows of some concepts' latents at the header's place as fp32: a few kilobytes of the file.

    Raises SaeError when a number in them is not finite.
    """
    return read_rows_at(path, [(header, concepts)])[0]


def read_rows_at(path: str | Path, wanted: Sequence[tuple[Header, list[Concept]]]) -> list[Rows]:
    """The same for several places, with the file opened once."""
    path = Path(path)
    with _open(path) as file:
        described = _describe(file, path)
        return [_read_rows(file, _at(described, header, path.name), header, concepts, path.name)
                for header, concepts in wanted]


def _at(described: Sequence[_Described], header: Header, name: str) -> _Described:
    """The SAE of the header's place, which a file of one place need not say.

    Raises SaeError where it is another than when its header was read: its rows are those of other concepts.
    """
    found = next((one for one in described if one.header.hookpoint in (header.hookpoint, "")), None)
    if found is None or _meaning(found.header) != _meaning(header):
        raise SaeError(f"{name} has changed since it was loaded: another file is there now, so load it again")
    return found


def _meaning(header: Header) -> tuple:
    """What decides which rows of a file are whose."""
    concepts = tuple((concept.name, concept.latents) for concept in header.concepts)
    return header.config, header.base, header.residual, concepts


def _read_rows(file: Any, described: _Described, header: Header, concepts: list[Concept], name: str) -> Rows:
    weights = _weights(file, described, [latent for concept in concepts for latent in concept.latents])
    statistics = _read_statistics(file, described, header, concepts, name)
    bias = weights.b_enc - weights.W_enc @ weights.b_dec
    for what, tensor, most in (("weights", weights.W_enc, LARGEST), ("weights", weights.W_dec, LARGEST),
                               ("biases", bias, LARGEST), ("thresholds", statistics.thresholds, FINITE),
                               ("means", statistics.means, FINITE)):
        if not (tensor.abs() <= most).all():
            raise SaeError(f"{name} has {what} that are not finite{' in half precision' if most == LARGEST else ''} "
                           f"(NaN, infinite or above {most:.5g}): download or train it again")
    return Rows(weights.W_enc, bias, weights.W_dec, statistics)


def _weights(file: Any, described: _Described, latents: list[int] | None = None) -> Weights:
    """Weights of some latents, or of all, as fp32 in our convention."""
    start = described.start
    ranges = [(start, start + described.header.config.d_sae)] if latents is None else [
        (start + latent, start + latent + 1) for latent in latents]

    def of_latents(name: str) -> Tensor:
        part, turned = file.get_slice(name), name in described.layout.turned
        pieces = [part[:, low:high].mT if turned else part[low:high] for low, high in ranges]
        return torch.cat(pieces)  # a copy: Windows replaces no file that is mapped
    W_enc, b_enc, W_dec, _ = described.layout.names
    parts = (*map(of_latents, (W_enc, b_enc, W_dec)), _centre(file, described))
    return Weights(*(part.float() for part in parts)).folded(described.convention)


def _centre(file: Any, described: _Described) -> Tensor:
    """b_dec [d_in]."""
    name = described.layout.names[3]
    if described.centre is None:
        return file.get_tensor(name).clone()
    at = slice(described.centre, described.centre + 1)  # no number: older safetensors slice only
    return (file.get_slice(name)[at][0].clone() if name in file.keys()  # noqa: SIM118
            else torch.zeros(described.header.config.d_in))


def _read_statistics(file: Any, described: _Described, header: Header, concepts: list[Concept],
                     name: str) -> Statistics:
    """The statistics of `concepts` in their order; a latent chosen by number fires wherever it is positive."""
    known = [(concept, latent) for concept in header.concepts for latent in concept.latents]
    if not known or described.statistics is None:
        return Statistics.unknown(sum(len(concept.latents) for concept in concepts))
    rows = slice(described.statistics, described.statistics + len(known))
    sigmas, *tables = (file.get_tensor(ours.STATISTICS[0]).float(),
                       *(file.get_slice(table)[rows].float() for table in ours.STATISTICS[1:]))
    if not (sigmas.isfinite() & (sigmas > 0)).all() or not (sigmas.diff() > 0).all():
        raise SaeError(f"{name} is damaged: its noise levels do not rise from above 0")
    tables[0] = torch.cat([tables[0], torch.zeros(1, len(sigmas))])
    tables[1] = torch.cat([tables[1], torch.ones(1, len(sigmas))])
    row = {one: number for number, one in enumerate(known)}
    return Statistics(tuple(sigmas.tolist()), *tables).select(
        [row.get((concept, latent), len(known)) for concept in concepts for latent in concept.latents])


def read_sae(path: str | Path, hookpoint: str = "") -> tuple[Sae, Header]:
    """Read a whole SAE of one place as fp32, for training and scoring; hookpoint: which, where there are several.

    Raises SaeError as `read_header` does, for a place that is not among several, and for weights that are not finite.
    """
    path = Path(path)
    with _open(path) as file:
        places = _describe(file, path)
        if len(places) > 1 and hookpoint:
            places = [place for place in places if place.header.hookpoint == hookpoint]
        if not places:
            raise SaeError(f"{path.name} has no SAE of block {hookpoint}: choose one of its own, or another file")
        described = only(places, path.name)
        weights = _weights(file, described)
        if not all(part.isfinite().all() for part in weights):
            raise SaeError(f"{path.name} has weights that are not finite (NaN or infinite): download or train it again")
        sae = Sae(described.header.config)
        sae.load_state_dict(dict(zip(OURS.names, weights, strict=True)))
    return sae, described.header


def read_statistics(path: str | Path, header: Header) -> Statistics:
    """The statistics of all concepts at the header's place, one row a latent."""
    path = Path(path)
    with _open(path) as file:
        described = _at(_describe(file, path), header, path.name)
        return _read_statistics(file, described, header, list(header.concepts), path.name)

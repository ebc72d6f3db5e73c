"""Open SAE files: the header in milliseconds, a concept by its rows, or everything.

A row is d_in numbers side by side. Where a library stores a matrix turned, it is a column of the file: only its numbers
get into memory, but they lie a row apart, so the disk reads most of that matrix. For one latent of 20480 of width 1280
(210 MB, fp32): 1 ms by row, 20 ms by column, 26 and 104 ms when the file was not in the system's cache.
"""
from collections.abc import Iterator
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

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A safetensors file, or one sentence about why it is none."""
    if path.suffix.lower() in PICKLES:
        raise SaeError(f"{path.name} is a pickle, which can run code when it is opened: make it a .safetensors first, "
                       f"with 'python -m sae_models.convert' in a clone of this extension's repository")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise SaeError(f"there is no file {path.name} in {path.parent}") from error
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{path.name} cannot be read as safetensors ({error}): "
                       f"it is damaged or not fully downloaded, so download it again") from error


class _Described(NamedTuple):
    """A file's header, and how its weights are to be read."""
    header: Header
    layout: Layout
    convention: Convention


def _describe(file: Any, path: Path) -> _Described:
    metadata = (file.metadata() or {}).get(ours.METADATA_KEY)
    layout = layout_of(file.keys(), path.name)
    d_sae, d_in = _checked_shapes(file, path, layout)
    if metadata and layout is OURS:
        header = ours.parse(metadata, d_sae, d_in, path.name)
        _check_statistics(file, header, path)
        return _Described(header, layout, Convention(header.config.k))
    said = convention_of(layout, path)
    try:
        config = SaeConfig(d_in, d_sae, said.k)
    except SaeError as error:
        raise SaeError(f"{layout.sidecar} in {path.parent} does not fit {path.name}: {error}") from error
    return _Described(Header(config, said.hookpoint, said.base, said.residual), layout, said)


def _checked_shapes(file: Any, path: Path, layout: Layout) -> tuple[int, int]:
    """(d_sae, d_in), when all four tensors agree."""
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in layout.names}
    _, b_enc, _, b_dec = layout.names
    d_sae, d_in = (shapes[name][0] if len(shapes[name]) == 1 else 0 for name in (b_enc, b_dec))
    for name, wanted in layout.shapes(d_sae, d_in).items():
        if shapes[name] != wanted:
            raise SaeError(f"{path.name} is damaged: expected {name} of shape {list(wanted)}, got {list(shapes[name])}")
    return d_sae, d_in


def _check_statistics(file: Any, header: Header, path: Path) -> None:
    latents = [latent for concept in header.concepts for latent in concept.latents]
    if not latents:
        return
    if max(latents) >= header.config.d_sae:
        raise SaeError(f"{path.name} is damaged: a concept has latent {max(latents)} of {header.config.d_sae}")
    for name in ours.STATISTICS:
        if name not in file.keys():  # noqa: SIM118
            raise SaeError(f"{path.name} is damaged: it names concepts but has no {name}")
    sigmas, *tables = (tuple(file.get_slice(name).get_shape()) for name in ours.STATISTICS)
    if len(sigmas) != 1 or not sigmas[0] or any(table != (len(latents), *sigmas) for table in tables):
        raise SaeError(f"{path.name} is damaged: its statistics are not of {len(latents)} latents")


def read_header(path: str | Path) -> Header:
    """Read what a file says of itself: milliseconds, whatever its size.

    Raises SaeError for a missing, damaged or foreign file, a pickle, and a format newer than this code.
    """
    path = Path(path)
    with _open(path) as file:
        return _describe(file, path).header


def read_rows(path: str | Path, header: Header, concepts: list[Concept]) -> Rows:
    """Read the rows of some concepts' latents as fp32: a few kilobytes of the file.

    Raises SaeError when a number in them is not finite.
    """
    path = Path(path)
    latents = [latent for concept in concepts for latent in concept.latents]
    with _open(path) as file:
        weights = _weights(file, _describe(file, path), latents)
        statistics = _read_statistics(file, header, concepts, path.name)
    bias = weights.b_enc - weights.W_enc @ weights.b_dec
    for name, tensor in (("weights", weights.W_enc), ("weights", weights.W_dec), ("biases", bias),
                         ("thresholds", statistics.thresholds), ("means", statistics.means)):
        if not tensor.isfinite().all():
            raise SaeError(f"{path.name} has {name} that are not finite (NaN or infinite): download or train it again")
    return Rows(weights.W_enc, bias, weights.W_dec, statistics)


def _weights(file: Any, described: _Described, latents: list[int] | None = None) -> Weights:
    """Weights of some latents, or of all, as fp32 in our convention."""
    def of_latents(name: str) -> Tensor:
        turned = name in described.layout.turned
        if latents is None:
            return file.get_tensor(name).mT.contiguous() if turned else file.get_tensor(name)
        part = file.get_slice(name)
        return torch.cat([part[:, i:i + 1].mT if turned else part[i:i + 1] for i in latents])
    W_enc, b_enc, W_dec, b_dec = described.layout.names
    parts = (of_latents(W_enc), of_latents(b_enc), of_latents(W_dec), file.get_tensor(b_dec))
    return Weights(*(part.float() for part in parts)).folded(described.convention)


def _read_statistics(file: Any, header: Header, concepts: list[Concept], name: str) -> Statistics:
    """The statistics of `concepts` in their order; a latent chosen by number fires wherever it is positive."""
    known = [(concept, latent) for concept in header.concepts for latent in concept.latents]
    if not known:
        return Statistics.unknown(sum(len(concept.latents) for concept in concepts))
    sigmas, *tables = (file.get_tensor(table).float() for table in ours.STATISTICS)
    if not (sigmas.isfinite() & (sigmas > 0)).all() or not (sigmas.diff() > 0).all():
        raise SaeError(f"{name} is damaged: its noise levels do not rise from above 0")
    tables[0] = torch.cat([tables[0], torch.zeros(1, len(sigmas))])
    tables[1] = torch.cat([tables[1], torch.ones(1, len(sigmas))])
    wanted = [(concept, latent) for concept in concepts for latent in concept.latents]
    return Statistics(tuple(sigmas.tolist()), *tables).select(
        [known.index(w) if w in known else len(known) for w in wanted])


def read_sae(path: str | Path) -> tuple[Sae, Header]:
    """Read a whole SAE as fp32, for training and scoring.

    Raises SaeError as `read_header` does, and for weights that are not finite.
    """
    path = Path(path)
    with _open(path) as file:
        described = _describe(file, path)
        weights = _weights(file, described)
    if not all(part.isfinite().all() for part in weights):
        raise SaeError(f"{path.name} has weights that are not finite (NaN or infinite): download or train it again")
    sae = Sae(described.header.config)
    sae.load_state_dict(dict(zip(OURS.names, weights, strict=True)))
    return sae, described.header


def read_statistics(path: str | Path, header: Header) -> Statistics:
    """The statistics of all concepts of a file, one row a latent."""
    with _open(Path(path)) as file:
        return _read_statistics(file, header, list(header.concepts), Path(path).name)

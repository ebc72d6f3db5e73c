"""SAE files: ours, and the folders that SAEmnesia, SAeUron and sparsify publish. Only safetensors and JSON are read.

Ours is one `.safetensors` with sparsify's tensors (`encoder.weight`, `encoder.bias`, `W_dec`, `b_dec`), the concepts'
statistics (`concept_sigmas` [T], `concept_thresholds` and `concept_means` [F, T], one row a concept latent in the order
of the concepts) and JSON under the metadata key `saemnesia`. A published folder is `sae.safetensors` beside `cfg.json`.
Which one a file is, its keys tell. A concept is read by its rows: the big matrices stay on disk.
"""
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .concepts import Concept, Statistics
from .errors import SaeError
from .hookpoint import normalise
from .sae import Sae, SaeConfig

FORMAT_VERSION = 1
METADATA_KEY = "saemnesia"
TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


@dataclass(frozen=True)
class Header:
    """What a file says of itself without its big tensors being read.

    base: family of the base model ("sd15", "sdxl", ...; "" = not said); hookpoint: diffusers name ("" = not said);
    residual: encodes output minus input of the block; training: a summary to show.
    """
    config: SaeConfig
    hookpoint: str = ""
    base: str = ""
    residual: bool = False
    concepts: tuple[Concept, ...] = ()
    training: dict[str, Any] | None = None


@dataclass(frozen=True)
class Rows:
    """All that is needed to find and edit F latents: W_enc, W_dec [F, d_in], bias [F], and their statistics.

    bias is b_enc - W_enc b_dec, so that a pre-activation is W_enc x + bias.
    """
    W_enc: Tensor
    bias: Tensor
    W_dec: Tensor
    statistics: Statistics


@contextmanager
def _open(path: Path):
    """A safetensors file, or one sentence about why it is none."""
    if path.suffix.lower() in PICKLES:
        raise SaeError(f"{path.name} is a pickle, which can run code when it is opened: "
                       f"convert it to .safetensors first")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise SaeError(f"there is no file {path.name} in {path.parent}") from error
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{path.name} cannot be read as safetensors ({error}): "
                       f"it is damaged or not fully downloaded, so download it again") from error


def _checked_shapes(file: Any, path: Path) -> tuple[int, int]:
    """(d_sae, d_in), when all four tensors are there and agree."""
    keys = set(file.keys())
    missing = [name for name in TENSORS if name not in keys]
    if missing:
        raise SaeError(f"{path.name} is no SAE that can be read here: it has no {', '.join(missing)}")
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in TENSORS}
    d_sae, d_in = shapes["encoder.weight"] if len(shapes["encoder.weight"]) == 2 else (0, 0)
    wanted = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name, shape in shapes.items():
        if shape != wanted[name]:
            raise SaeError(f"{path.name} is damaged: expected {name} of shape {list(wanted[name])}, got {list(shape)}")
    return d_sae, d_in


def read_header(path: str | Path) -> Header:
    """Read what a file says of itself: milliseconds, whatever its size.

    Raises SaeError for a missing, damaged or foreign file, a pickle, and a format newer than this code.
    """
    path = Path(path)
    with _open(path) as file:
        d_sae, d_in = _checked_shapes(file, path)
        metadata = (file.metadata() or {}).get(METADATA_KEY)
        header = _ours(metadata, d_sae, d_in, path) if metadata else _published(path, d_sae, d_in)
        _check_statistics(file, header, path)
    return header


def _ours(text: str, d_sae: int, d_in: int, path: Path) -> Header:
    try:
        data = json.loads(text)
        version = int(data["format"])
        if version > FORMAT_VERSION:
            raise SaeError(f"{path.name} has format {version}, newer than {FORMAT_VERSION}: update this extension")
        concepts = tuple(Concept(c["name"], tuple(c["latents"]), c.get("kind", ""), c.get("description", ""))
                         for c in data.get("concepts", []))
        config = SaeConfig(d_in, d_sae, int(data["k"]))
        return Header(config, normalise(data["hookpoint"]), data["base"], bool(data["residual"]), concepts,
                      data.get("training"))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise SaeError(f"{path.name} is damaged: its description is incomplete ({error!r})") from error


def _published(path: Path, d_sae: int, d_in: int) -> Header:
    """sparsify's layout; the hookpoint is the name of the folder, where that names a block."""
    sidecar = path.with_name("cfg.json")
    if not sidecar.is_file():
        raise SaeError(f"{path.name} has neither our description nor a cfg.json beside it: "
                       f"put the published cfg.json into {path.parent}")
    try:
        k = int(json.loads(sidecar.read_text("utf-8"))["k"])
    except (KeyError, TypeError, ValueError) as error:
        raise SaeError(f"cfg.json in {path.parent} is damaged: expected JSON with a number 'k'") from error
    folder = normalise(path.parent.name)
    return Header(SaeConfig(d_in, d_sae, k), folder if "attentions" in folder else "")


def _check_statistics(file: Any, header: Header, path: Path) -> None:
    latents = [latent for concept in header.concepts for latent in concept.latents]
    if not latents:
        return
    if max(latents) >= header.config.d_sae:
        raise SaeError(f"{path.name} is damaged: a concept has latent {max(latents)} of {header.config.d_sae}")
    keys = set(file.keys())
    for name in ("concept_sigmas", "concept_thresholds", "concept_means"):
        if name not in keys:
            raise SaeError(f"{path.name} is damaged: it names concepts but has no {name}")


def read_rows(path: str | Path, header: Header, concepts: list[Concept]) -> Rows:
    """Read the rows of some concepts' latents as fp32: a few kilobytes of the file.

    Raises SaeError when a number in them is not finite.
    """
    path = Path(path)
    latents = [latent for concept in concepts for latent in concept.latents]
    with _open(path) as file:
        def rows(name: str) -> Tensor:
            part = file.get_slice(name)
            return torch.cat([part[i:i + 1] for i in latents]).float()
        W_enc, W_dec, b_enc = rows("encoder.weight"), rows("W_dec"), rows("encoder.bias")
        b_dec = file.get_tensor("b_dec").float()
        statistics = _read_statistics(file, header, concepts)
    bias = b_enc - W_enc @ b_dec
    for name, tensor in (("weights", W_enc), ("weights", W_dec), ("biases", bias),
                         ("thresholds", statistics.thresholds), ("means", statistics.means)):
        if not tensor.isfinite().all():
            raise SaeError(f"{path.name} has {name} that are not finite (NaN or infinite): download or train it again")
    return Rows(W_enc, bias, W_dec, statistics)


def _read_statistics(file: Any, header: Header, concepts: list[Concept]) -> Statistics:
    """The statistics of `concepts` in their order; a latent chosen by number fires wherever it is positive."""
    known = [(concept, latent) for concept in header.concepts for latent in concept.latents]
    if not known:
        return Statistics.unknown(sum(len(concept.latents) for concept in concepts))
    sigmas = tuple(file.get_tensor("concept_sigmas").tolist())
    tables = [file.get_tensor(name).float() for name in ("concept_thresholds", "concept_means")]
    tables[0] = torch.cat([tables[0], torch.zeros(1, len(sigmas))])
    tables[1] = torch.cat([tables[1], torch.ones(1, len(sigmas))])
    wanted = [(concept, latent) for concept in concepts for latent in concept.latents]
    return Statistics(sigmas, *tables).select([known.index(w) if w in known else len(known) for w in wanted])


def read_sae(path: str | Path) -> tuple[Sae, Header]:
    """Read a whole SAE as fp32, for training and scoring.

    Raises SaeError as `read_header` does, and for weights that are not finite.
    """
    header = read_header(path)
    sae = Sae(header.config)
    with _open(Path(path)) as file:
        sae.load_state_dict({name: file.get_tensor(name).float() for name in TENSORS})
    if not all(p.isfinite().all() for p in sae.parameters()):
        raise SaeError(f"{Path(path).name} has weights that are not finite (NaN or infinite): "
                       f"download or train it again")
    return sae, header


def read_statistics(path: str | Path, header: Header) -> Statistics:
    """The statistics of all concepts of a file, one row a latent."""
    with _open(Path(path)) as file:
        return _read_statistics(file, header, list(header.concepts))


def write(path: str | Path, sae: Sae, header: Header, statistics: Statistics,
          dtype: torch.dtype = torch.float32) -> None:
    """Write our format under a temporary name, then rename it: an interrupted write leaves the old file.

    Raises SaeError when the header is not of this SAE.
    """
    path = Path(path)
    if header.config != sae.config:
        raise SaeError(f"expected a header for {sae.config}, got {header.config}")
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in sae.state_dict().items()}
    if header.concepts:
        tensors |= {"concept_sigmas": torch.tensor(statistics.sigmas), "concept_thresholds": statistics.thresholds,
                    "concept_means": statistics.means}
    part = path.with_name(path.name + ".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, part, {METADATA_KEY: _describe(header)})
    os.replace(part, path)


def _describe(header: Header) -> str:
    data = asdict(replace(header, hookpoint=normalise(header.hookpoint)))
    data |= {"format": FORMAT_VERSION, "k": header.config.k}
    del data["config"]
    return json.dumps(data)

"""Our own format: one `.safetensors` that says everything of itself.

sparsify's tensors (`encoder.weight`, `encoder.bias`, `W_dec`, `b_dec`), the concepts' statistics (`concept_sigmas` [T],
`concept_thresholds` and `concept_means` [F, T], one row a concept latent in the order of the concepts) and JSON under
the metadata key `saemnesia`.
"""
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..concepts import Concept, Statistics
from ..errors import SaeError
from ..hookpoint import normalise
from ..sae import Sae, SaeConfig
from ..storage import write_tensors
from .header import Header

FORMAT_VERSION = 1
METADATA_KEY = "saemnesia"
STATISTICS = ("concept_sigmas", "concept_thresholds", "concept_means")


def write(path: str | Path, sae: Sae, header: Header, statistics: Statistics,
          dtype: torch.dtype = torch.float32) -> None:
    """Write our format; an interrupted write leaves the old file.

    Raises SaeError when the header is not of this SAE, and when the disk is full.
    """
    path = Path(path)
    if header.config != sae.config:
        raise SaeError(f"expected a header for {sae.config}, got {header.config}")
    tensors = {name: value.detach().to("cpu", dtype) for name, value in sae.state_dict().items()}
    if header.concepts:
        tables = (torch.tensor(statistics.sigmas), statistics.thresholds, statistics.means)
        tensors |= dict(zip(STATISTICS, tables, strict=True))
    write_tensors(path, tensors, {METADATA_KEY: _describe(header)})


def _describe(header: Header) -> str:
    data = asdict(replace(header, hookpoint=normalise(header.hookpoint)))
    data |= {"format": FORMAT_VERSION, "k": header.config.k}
    del data["config"]
    return json.dumps(data)


def parse(text: str, d_sae: int, d_in: int, name: str) -> Header:
    """The header that `text` describes; `name` names the file in errors.

    Raises SaeError for a description that is damaged or newer than this code.
    """
    try:
        data = json.loads(text)
        version = int(data["format"])
        if version <= FORMAT_VERSION:
            concepts = tuple(_concept(c) for c in data.get("concepts", []))
            return Header(SaeConfig(d_in, d_sae, int(data["k"])), normalise(data["hookpoint"]), str(data["base"]),
                          bool(data["residual"]), concepts, data.get("training"))
    except SaeError as error:
        raise SaeError(f"{name} is damaged: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise SaeError(f"{name} is damaged: its description is incomplete ({error!r})") from error
    raise SaeError(f"{name} has format {version}, newer than {FORMAT_VERSION}: update this extension")


def _concept(data: Mapping[str, Any]) -> Concept:
    return Concept(data["name"], tuple(int(latent) for latent in data["latents"]), str(data.get("kind", "")),
                   str(data.get("description", "")))

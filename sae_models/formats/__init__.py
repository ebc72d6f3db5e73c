"""SAE files: ours, and those of SAEmnesia, SAeUron, sparsify, SAELens, dictionary_learning and sdxl-unbox.

`layouts` knows how each library names, turns and means its tensors, `ours` our own description, `reading` opens files.
Only safetensors and JSON are read here; what is published as a pickle is made one by `python -m sae_models.convert`.
"""
from .header import Header, Rows
from .layouts import Weights
from .ours import Part, note_measured, write, write_places
from .reading import (
    LOOKED_FOR,
    PICKLES,
    offered,
    only,
    pickle_advice,
    read_header,
    read_headers,
    read_rows,
    read_rows_at,
    read_sae,
    read_statistics,
)

__all__ = ["LOOKED_FOR", "PICKLES", "Header", "Part", "Rows", "Weights", "note_measured", "offered", "only",
           "pickle_advice", "read_header", "read_headers", "read_rows", "read_rows_at", "read_sae", "read_statistics",
           "write", "write_places"]

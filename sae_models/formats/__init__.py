"""SAE files: ours, and those of SAEmnesia, SAeUron, sparsify, SAELens, dictionary_learning and sdxl-unbox.

`layouts` knows how each library names, turns and means its tensors, `ours` our own description, `reading` opens files.
Only safetensors and JSON are read here; what is published as a pickle is made one by `python -m sae_models.convert`.
"""
from .header import Header, Rows
from .ours import write
from .reading import read_header, read_rows, read_sae, read_statistics

__all__ = ["Header", "Rows", "read_header", "read_rows", "read_sae", "read_statistics", "write"]

"""Published SAEs: which there are (`entries`), how one gets into a model folder (`fetching`), how to share (`sharing`).

    python -m sae_models.hub list
    python -m sae_models.hub get "SAeUron objects" models/sae
    python -m sae_models.hub get somebody/cats models/sae
    python -m sae_models.hub push models/sae/cats.safetensors somebody/cats

To list them makes no request; only `get` and `push` do, and a download that a person chose in a page.
"""
from .entries import Entry, File, catalogue, entry_called, size_in_words

__all__ = ["Entry", "File", "catalogue", "entry_called", "size_in_words"]

"""The folder `models/sae` of the host."""
import os
import re
from pathlib import Path

from sae_models import SaeError
from sae_models.adapter import LoadedSae
from sae_models.errors import plain
from sae_models.formats import LOOKED_FOR, offered

FOLDER = "sae"


def names(models: Path) -> list[str]:
    """Every file below `models`/sae that can be chosen, as a path with / from there, pickles last; links to folders are
    followed. What *Train* keeps in ComfyUI to learn from is none."""
    root = models / FOLDER
    found = (Path(folder, name).relative_to(root) for folder, _, files in os.walk(root, followlinks=True)
             for name in files if name.lower().endswith(LOOKED_FOR) and plain(name) == name)
    return offered(sorted((path.as_posix() for path in found if not path.parts[0].endswith(".activations")),
                          key=str.casefold))


def split(text: str) -> list[str]:
    """The files that a text names, each once. A name may hold a comma, and ends with .safetensors.

    >>> split("red, white.safetensors, cat.safetensors")
    ['red, white.safetensors', 'cat.safetensors']
    """
    return list(dict.fromkeys(name.strip() for name in re.split(r"(?<=\.safetensors),", text) if name.strip()))


def load(models: Path, name: str) -> LoadedSae:
    """The SAE of that name, its header read.

    Raises SaeError when there is none below the folder, or its file cannot be read.
    """
    if not name:
        raise SaeError("no file is chosen: choose one; or find a word, which makes one; or download one; or put one "
                       "into models/sae and press the refresh button")
    if name not in names(models):
        raise SaeError(f"there is no SAE '{name}' in models/{FOLDER}: put the file there and press the refresh "
                       f"button")
    return LoadedSae.read(name, models / FOLDER / name)

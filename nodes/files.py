"""The model folder `models/sae` and the SAE that travels between nodes: a path and its header, no weights."""
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..sae_models.adapter import LoadedSae
from ..sae_models.concepts import refuse_unseen
from ..sae_models.errors import SaeError
from ..sae_models.formats import LOOKED_FOR, Header, offered
from ..sae_models.made_on import made_of
from .family import original_weights

FOLDER = "sae"
NONE = "(no file in models/sae yet)"
ACTIVATIONS = ".activations"
"""How the name of a folder ends that keeps what *Train* learned from."""
LONGEST = 200
"""Bytes of a file's name, so that there is room for what is written beside it."""
SaeType = io.Custom("SAEMNESIA_SAE")


def register_folder() -> None:
    """Let ComfyUI list `models/sae`, beside any folder the user's extra_model_paths.yaml names so."""
    paths = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))[0]
    default = str(Path(folder_paths.models_dir) / FOLDER)
    merged = [*paths, *(path for path in [default] if path not in paths)]
    folder_paths.folder_names_and_paths[FOLDER] = (merged, set(LOOKED_FOR))


def choices() -> list[str]:
    """What can be chosen: the files, or words that say that there is none."""
    names = offered(folder_paths.get_filename_list(FOLDER))
    return [name for name in names if not Path(name).parts[0].endswith(ACTIVATIONS)] or [NONE]


def there(name: str) -> bool:
    """Whether a model folder has a file of that name."""
    return folder_paths.get_full_path(FOLDER, name) is not None


def path_of(name: str) -> Path:
    """The file of that name inside the model folders.

    Raises SaeError when there is none.
    """
    if name == NONE:
        raise SaeError(f"there is no file in models/{FOLDER} yet: use SAEmnesia Erase Words, which needs none: write "
                       f"a word and queue; or press Download..., or copy a file there and press R; or make one with "
                       f"SAEmnesia Find Concept or Train")
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise SaeError(f"there is no SAE '{name}' in models/{FOLDER}: put the file there and press R to refresh, or "
                       f"choose another")
    return Path(path)


def without_folders(text: str) -> str:
    """`text` for the page, which says models/sae in place of where that is on the server's disk."""
    for folder in sorted(folder_paths.get_folder_paths(FOLDER), key=len, reverse=True):
        text = text.replace(folder.rstrip("/\\"), f"models/{FOLDER}")
    return text


def folder() -> Path:
    """Where files are written to."""
    return Path(folder_paths.models_dir) / FOLDER


def new_path(name: str) -> Path:
    """Where an SAE of that name is to be written: models/sae/NAME.safetensors.

    Raises SaeError for a name that is none of a file, and where there can be no such folder.
    """
    plain = name.strip().removesuffix(".safetensors")
    refuse_unseen(plain)
    if not plain or any(c in plain for c in '/\\:*?"<>|') or plain.startswith("."):
        raise SaeError(f"'{name[:80]}' is no file name: write a name without / \\ : * ? \" < > |")
    fits = len(plain.encode()[:LONGEST].decode(errors="ignore"))
    if fits < len(plain):
        raise SaeError(f"'{plain[:40]}...' is too long for a file name: write at most {fits} letters")
    out = folder()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaeError(f"there is no folder {out} and none can be made ({error.strerror})") from error
    return out / f"{plain}.safetensors"


_written: dict[Path, tuple[int | None, int]] = {}
"""{file: (when it was written last, as far as we know; how often somebody else has changed it)}"""


def changed(name: str | None) -> int:
    """What a node that writes a file of that name has for a fingerprint: another when somebody else has changed or
    removed the file since, so that what was made once is not made again with every queue. None: a name that is linked
    in, which the host does not know yet."""
    if name is None:
        return 0
    path = new_path(name)
    now = _when(path)
    before, times = _written.setdefault(path, (now, 0))
    _written[path] = now, times + (now != before)
    return _written[path][1]


def made(path: Path) -> LoadedSae:
    """The file that a node has just written."""
    _written[path] = _when(path), _written.get(path, (None, 0))[1]
    return LoadedSae.read(path.name, path)


def _when(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def load(name: str) -> LoadedSae:
    return LoadedSae.read(name, path_of(name))


def checkpoint(hidden: Any) -> str:
    """The checkpoint that a node's model comes from, without folder and ending, where the graph tells it, else ""."""
    names = _checkpoints(hidden.prompt or {}, str(hidden.unique_id))
    return Path(names[0].replace("\\", "/")).stem if names else ""


def _checkpoints(prompt: dict, node: str) -> list[str]:
    """The files that loaders upstream of a node's model were told to load."""
    inputs = prompt.get(node, {}).get("inputs", {})
    named = [inputs[key] for key in ("ckpt_name", "unet_name") if isinstance(inputs.get(key), str)]
    link = inputs.get("model")
    return named or (_checkpoints(prompt, str(link[0])) if isinstance(link, list) else [])


def made_on(headers: Sequence[Header], model: ModelPatcher, hidden: Any) -> list[Header]:
    """The headers, saying which model they were made on."""
    return [replace(header, made_on=checkpoint(hidden), made_of=made_of(original_weights(model)))
            for header in headers]


def elsewhere(sae: LoadedSae, model: ModelPatcher, hidden: Any) -> str:
    """What to say where the file was made on another model; "" where it was not, or that is not known."""
    return sae.elsewhere(checkpoint(hidden), made_of(original_weights(model)))

"""Files that are whole or not there: written under a temporary name, then renamed, with the mode that any file gets
here (safetensors gives its own to the owner alone). A full disk is one sentence."""
import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import SaeError


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; an interrupted write leaves the old one.

    Raises SaeError when the disk is full or the folder cannot be written to.
    """
    def save(part: Path) -> None:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata)
    write_file(path, save)


def write_json(path: Path, data: Any) -> None:
    """Write JSON in the same way."""
    write_text(path, json.dumps(data, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write text in the same way."""
    write_file(path, lambda part: part.write_text(text, "utf-8"))


def check_writable(path: Path) -> None:
    """Notice before long work that a file could not be written after it: its folder is made, and a file in it tried.

    Raises SaeError when it could not.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise SaeError(f"{path.name[:80]} cannot be written to {path.parent} ({error.strerror}): choose another name "
                       f"or folder") from error
    finally:
        _remove(part)


def write_file(path: Path, save: Callable[[Path], Any]) -> None:
    """Write in the same way whatever `save` writes to the path that it is given."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        part.touch()
        mode = part.stat().st_mode
        save(part)
        part.chmod(mode)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        _remove(part)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise SaeError(f"the disk is full: {path.name} could not be written to {path.parent}; free some space and "
                           f"run again, what was finished before is kept") from error
        raise SaeError(f"{path.name} could not be written to {path.parent} ({error})") from error


def _remove(part: Path) -> None:
    with suppress(OSError):
        part.unlink(missing_ok=True)

"""Files that are whole or not there: written in a folder beside them, then renamed, with the mode that any file gets
here (safetensors gives its own to the owner alone). A full disk is one sentence.

The folder is called as the file with `.part` behind, and holds what safetensors writes first (`.tmpXXXXXX`) too. A kill
leaves it; the next file that is written beside it takes it away, once it is a day old.
"""
import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import SaeError

PART = ".part"
HALF_WRITTEN = r"\.tmp\w{6}"
DAY = 86_400.0


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
    """Notice before long work that a file could not be written after it: its folder is made, and one in that tried.

    Raises SaeError when it could not.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
        os.rmdir(tempfile.mkdtemp(PART, f"{path.name}.", path.parent))
    except (OSError, ValueError) as error:
        raise SaeError(f"{path.name[:80]} cannot be written to {path.parent} "
                       f"({getattr(error, 'strerror', error)}): choose another name or folder") from error


def write_file(path: Path, save: Callable[[Path], Any]) -> None:
    """Write in the same way whatever `save` writes to the path that it is given."""
    try:
        part = _empty_part(path)
        part.touch()
        mode = part.stat().st_mode
        save(part)
        part.chmod(mode)
        os.replace(part, path)
    except (OSError, SafetensorError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise SaeError(f"the disk is full: {path.name} could not be written to {path.parent}; free some space and "
                           f"run again, what was finished before is kept") from error
        raise SaeError(f"{path.name} could not be written to {path.parent} ({error})") from error
    finally:
        remove(path.with_name(path.name + PART))


def _empty_part(path: Path) -> Path:
    """Where `path` is written first: in a new folder beside it. Those that a kill left there long ago are removed."""
    folder = path.with_name(path.name + PART)
    remove(folder)
    folder.mkdir(parents=True)
    for other in path.parent.glob(f"*{PART}"):
        if _is_left_over(other):
            remove(other)
    return folder / path.name


def remove(path: Path) -> None:
    """A file or a folder with all in it, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _is_left_over(folder: Path) -> bool:
    """Whether it is a folder of ours, with nothing in it but what we would have written, and a day old."""
    with suppress(OSError):
        own = f"{HALF_WRITTEN}|{re.escape(folder.name.removesuffix(PART))}"
        return (folder.is_dir() and not folder.is_symlink() and time.time() - folder.stat().st_mtime > DAY
                and all(re.fullmatch(own, inside.name) for inside in folder.iterdir()))
    return False

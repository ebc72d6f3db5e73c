"""By what a file can be told from another of its name."""
import hashlib
from functools import lru_cache
from pathlib import Path
from threading import Lock

DIGITS = 10
_HASHING = Lock()
"""Whoever asks for a file that is being read waits for that, and does not read it too."""


def short_hash(path: Path) -> str:
    """The first digits of the file's SHA-256, as A1111 names checkpoints; computed anew when the file has changed."""
    status = path.stat()
    with _HASHING:
        return _hash(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _hash(path: Path, changed: int, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:DIGITS]

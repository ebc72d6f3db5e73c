"""Bring an SAE of the catalogue into a model folder: resumed, checked, and there whole or not at all.

The client is huggingface_hub's, by the parts that its versions share (0.23 to 2): so its mirror (HF_ENDPOINT), its
proxies, its token and its offline switch (HF_HUB_OFFLINE) hold here too. Its own `hf_hub_download` throws away what an
ended process had; here a `.part` file named by the server's version of the file stays, and is gone on with.
"""
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, http_get
from huggingface_hub.utils import HfHubHTTPError, HFValidationError, build_hf_headers

from ..errors import SaeError
from ..formats.layouts import ORIGIN
from ..storage import write_json
from .entries import Entry, File, size_in_words

Progress = Callable[[int, int], None]
"""(bytes that are there, bytes in all) of the file that is coming; what it raises ends the download."""
SIDECARS = ("cfg.json", "config.json")
SHA256 = r"[0-9a-f]{64}"


class Stopped(SaeError):
    """Someone ended the download."""

    def __init__(self) -> None:
        super().__init__("stopped: asked for again, the download goes on where it was")


def download(entry: Entry, folder: Path, progress: Progress = lambda done, total: None) -> Path:
    """Bring the files of an entry into its place below a model folder; those that are there are kept. The weights.

    Raises SaeError, one sentence, when there is no network or no room, for a file that is gated, moved or not what it
    should be, and when the download broke off: what is there so far is kept and gone on with the next time.
    """
    place = folder / entry.into
    with _disk(place):
        place.mkdir(parents=True, exist_ok=True)
    if entry.base:
        write_json(place / ORIGIN, entry.origin())
    for file in entry.files:
        if not (place / file.name).is_file():
            _fetch(entry, file, place, progress)
    return folder / entry.weights


def shared(repository: str) -> Entry:
    """What someone shared: the weights at the top of a repository, with the configuration beside them, if any.

    Raises SaeError, one sentence, where there is no such repository or nothing in it can be read.
    """
    _check_online(repository)
    with _sentences(repository, "README.md"):
        found = HfApi().model_info(repository, files_metadata=True)
    files = [File(one.rfilename, one.size, getattr(one.lfs, "sha256", None)) for one in found.siblings or []
             if one.rfilename in SIDECARS or re.fullmatch(r"[^/\\]+\.safetensors", one.rfilename)]
    weights = [file for file in files if file.path not in SIDECARS]
    if len(weights) != 1:
        raise SaeError(f"{repository} has {len(weights)} .safetensors files, and one is needed: download the right one "
                       f"by hand from {constants.ENDPOINT}/{repository}")
    return Entry(repository, "", "", (), "", 0, 0, 0, None, repository, found.sha or "main", repository,
                 (*(file for file in files if file.path in SIDECARS), *weights))


def _check_online(what: str) -> None:
    if constants.HF_HUB_OFFLINE:
        raise SaeError(f"HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or put {what} into models/sae by "
                       f"hand")


def _fetch(entry: Entry, file: File, place: Path, progress: Progress) -> None:
    _check_online(file.name)
    url = hf_hub_url(entry.repository, file.path, revision=entry.revision)
    with _sentences(entry.repository, file.path, place):
        found = get_hf_file_metadata(url)
    part = place / f"{file.name}.{re.sub('[^0-9A-Za-z]', '', found.etag or '')[:16]}.part"
    _make_room(file, part, found.size)
    with _sentences(entry.repository, file.path, place, part):
        _get(url, part, found, progress)
    _check(part, file, found)
    with _disk(place):
        os.replace(part, place / file.name)


def _make_room(file: File, part: Path, size: int | None) -> None:
    """Forget what is longer than it can be, and what is left of other versions of the file.

    Raises SaeError where the rest would not fit onto the disk.
    """
    for other in part.parent.glob(f"{file.name}.*.part"):
        if other != part:
            other.unlink()
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    free = shutil.disk_usage(part.parent).free
    if size is not None and size - have > free:
        raise SaeError(f"there is no room for {file.name} in {part.parent}: it needs {size_in_words(size - have)} and "
                       f"{size_in_words(free)} are free")


def _get(url: str, part: Path, found: HfFileMetadata, progress: Progress) -> None:
    with _disk(part.parent):
        opened = part.open("ab", buffering=0)
    with opened as file:
        writer = _Writer(file, lambda done: progress(done, found.size or done))
        writer.tell_progress()
        http_get(url, writer, resume_size=file.tell(), expected_size=found.size,
                 headers=build_hf_headers() | {"Accept-Encoding": "identity"})


class _Writer:
    """The file that the client writes to: says how much is there, and tells errors of the disk from the network's."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self.file, self.progress = file, progress

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        with _disk(Path(self.file.name).parent):
            while left:
                left = left[self.file.write(left):]
        self.tell_progress()
        return len(data)

    def tell_progress(self) -> None:
        self.progress(self.file.tell())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def _check(part: Path, file: File, found: HfFileMetadata) -> None:
    """Raises SaeError for another checksum than the catalogue's, or than the server's where that is none of ours."""
    wanted = file.sha256 or (found.etag if re.fullmatch(SHA256, found.etag or "") else None)
    if wanted and sha256(part) != wanted:
        part.unlink()
        raise SaeError(f"{file.name} is not what it should be (its checksum is wrong), so it was thrown away: download "
                       f"it again; if that does not help, it was changed where it comes from")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaeError(f"cannot write into {folder} ({error.strerror}): free some space or choose another folder, and "
                       f"ask again; what is there so far is kept") from error


@contextmanager
def _sentences(repository: str, path: str, place: Path | None = None, part: Path | None = None) -> Iterator[None]:
    """One sentence for whatever the network does; part: what is there so far, once the file itself is asked for."""
    try:
        yield
    except SaeError:
        raise
    except HfHubHTTPError as error:
        raise SaeError(refusal(error.response.status_code, repository, path, place)) from error
    except HFValidationError as error:
        raise SaeError(f"'{repository[:80]}' is no repository: write it as a name, a slash, and a name") from error
    except Exception as error:  # which ones: that changes with the client's own HTTP library
        have = part.stat().st_size if part and part.exists() else 0
        broke = f"the download of {path} broke off at {size_in_words(have)}: ask again, and it goes on from there"
        raise SaeError(broke if have else (
            f"{constants.ENDPOINT} cannot be reached ({_first_line(error)}): check the network, or set HF_ENDPOINT to "
            f"a mirror; or put {path} into {place or 'models/sae'} by hand")) from error


def refusal(status: int, repository: str, path: str, place: Path | None = None) -> str:
    """What to do about an answer that is an error."""
    page = f"{constants.ENDPOINT}/{repository}"
    if status in (401, 403):
        return (f"{repository} is gated, private or gone: look at {page}; if it asks for that, agree to its terms "
                f"there and log in with 'hf auth login' or HF_TOKEN")
    if status == 404:
        return (f"{path} is not in {repository} any more, it was moved or taken down: look at {page}"
                f"{f' and put the file into {place} by hand' if place else ''}")
    if status == 429 or status >= 500:
        return f"{constants.ENDPOINT} is busy or broken (it answered {status}): ask again later"
    return f"{constants.ENDPOINT} refused {path} of {repository} (it answered {status}): look at {page}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__

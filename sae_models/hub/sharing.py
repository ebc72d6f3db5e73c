"""Put a concept file with its card into a repository of the hub, as one commit. The token is huggingface_hub's own."""
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.utils import HfHubHTTPError, HFValidationError

from ..adapter import LoadedSae
from ..errors import SaeError
from .card import card, picture_name
from .fetching import refusal, sha256


def push(path: Path, repository: str, picture: Path | None, licence: str, private: bool,
         agreed: Callable[[str], bool]) -> str:
    """Share a file; agreed: asked with the whole card before any request. The address of the repository.

    Raises SaeError for a file without concepts, where nobody agreed, without a token, and for what the hub refuses.
    """
    if picture and not picture.is_file():
        raise SaeError(f"there is no picture {picture}")
    shown = picture_name(picture) if picture else ""
    text = card(LoadedSae.read(path.name, path), sha256(path), shown, licence)
    if not agreed(text):
        raise SaeError("nothing was shared")
    if constants.HF_HUB_OFFLINE:
        raise SaeError("HF_HUB_OFFLINE is set, so nothing is shared: unset it first")
    if not get_token():
        raise SaeError("there is no token to share with: log in with 'hf auth login', or set HF_TOKEN")
    files = {path.name: str(path), "README.md": text.encode()} | ({shown: str(picture)} if picture else {})
    _commit(repository, files, private)
    return f"{constants.ENDPOINT}/{repository}"


def _commit(repository: str, files: dict[str, str | bytes], private: bool) -> None:
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, [CommitOperationAdd(name, content) for name, content in files.items()],
                          commit_message="Share a concept file")
    except HFValidationError as error:
        raise SaeError(f"'{repository[:80]}' is no repository: write it as your name, a slash, and a name") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise SaeError(f"your token may not write to {repository}: log in again with one that may, or choose a "
                       f"repository of your own" if status in (401, 403) else
                       refusal(status, repository, "README.md")) from error
    except Exception as error:  # which ones: that changes with the client's own HTTP library
        raise SaeError(f"{constants.ENDPOINT} cannot be reached, or broke off ({type(error).__name__}): check the "
                       f"network and run it again; what was shared before is as it was") from error

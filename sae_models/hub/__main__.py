"""The command; see the package."""
import argparse
import sys
from pathlib import Path

from ..errors import SaeError
from ..formats import pickle_advice
from . import catalogue, entry_called


def show() -> None:
    for entry in catalogue():
        print(f"{entry.name}: {entry.size}, {entry.base} ({entry.model}), {', '.join(entry.blocks)}; {entry.knows}; "
              f"{entry.licence or 'licence not said'}; {entry.repository}")


def get(wanted: argparse.Namespace) -> None:
    from .fetching import download, shared  # the client takes a while to be loaded, and `list` does not need it
    entry = shared(wanted.name) if "/" in wanted.name else entry_called(wanted.name)
    print(f"downloading {entry.name}, {entry.size}, from {entry.repository} into {wanted.folder / entry.into}")
    path = download(entry, wanted.folder)
    print(f"wrote {path}")
    if entry.pickled:
        print(pickle_advice(path))


def push(wanted: argparse.Namespace) -> None:
    from .sharing import push

    def agreed(card: str) -> bool:
        print(f"{card}\nThis card and {wanted.file.name} will be shared as {wanted.repository}"
              f"{', which only you can see' if wanted.private else ', for all to see'}.")
        return wanted.yes or input("Share it? [y/N] ").strip().lower() in ("y", "yes")
    print(f"shared: {push(wanted.file, wanted.repository, wanted.picture, wanted.licence, wanted.private, agreed)}")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sae_models.hub", description="Published SAEs: get and share.")
    does = parser.add_subparsers(dest="does", required=True)
    does.add_parser("list", help="what there is to download; asks no server")
    getting = does.add_parser("get", help="download an SAE of the list")
    getting.add_argument("name", help="as the list says it; or a repository that someone shared")
    getting.add_argument("folder", type=Path, help="the model folder, for example ComfyUI/models/sae")
    pushing = does.add_parser("push", help="share a concept file with a card that says what it does")
    pushing.add_argument("file", type=Path, help="a .safetensors with named concepts")
    pushing.add_argument("repository", help="where to: your name, a slash, and a name")
    pushing.add_argument("--picture", type=Path, help="a picture before and after, for the card")
    pushing.add_argument("--licence", default="", help="for the card, for example cc-by-4.0")
    pushing.add_argument("--private", action="store_true", help="for nobody but you to see")
    pushing.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def main() -> None:
    wanted = options().parse_args()
    try:
        {"list": lambda _: show(), "get": get, "push": push}[wanted.does](wanted)
    except SaeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

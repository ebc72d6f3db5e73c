"""The picture beside an SAE's file that says what it does: NAME.png or NAME.preview.png, as ComfyUI and sites of models
have it."""
from pathlib import Path

ENDINGS = tuple(f"{middle}.{kind}" for middle in ("", ".preview") for kind in ("png", "jpg", "jpeg", "webp"))
OURS = ".preview.png"


def beside(path: Path) -> Path | None:
    """The picture of a file, where it has one."""
    return next((picture for ending in ENDINGS if (picture := path.with_name(path.stem + ending)).is_file()), None)

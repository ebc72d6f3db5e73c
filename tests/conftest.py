"""Several workers (pytest-xdist) test beside each other: each has a ComfyUI folder of its own, a copy with links."""
import os
import shutil
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
LONGEST = ("test_examples", "test_minicanvas", "test_train_in_comfyui", "test_webui_find", "test_words_in_comfyui",
           "test_train_page", "test_widget", "test_first_day", "test_find_in_comfyui", "test_webui_page", "test_soak")
"""Files that take minutes begin first, so that no worker ends long after the others."""
MADE = REPO / ".host" / "ComfyUI"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [*LONGEST, item.path.stem].index(item.path.stem))


def own_comfyui(worker: str) -> Path:
    """What a worker's tests may write to lies in its copy: models, custom nodes, settings."""
    folder = REPO / ".host" / "workers" / worker
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(MADE, folder, symlinks=True, ignore=lambda path, names: [
        name for name in names if Path(path).name == "checkpoints" or Path(path, name).is_symlink()])
    for path in (MADE / "models" / "checkpoints").iterdir():
        (folder / path.relative_to(MADE)).symlink_to(path)
    (folder / "custom_nodes" / "comfyui-saemnesia").symlink_to(REPO)
    return folder


if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["COMFYUI_PATH"] = str(own_comfyui(worker))  # before anything imports tools.comfy_host

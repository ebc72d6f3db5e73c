"""Several workers (pytest-xdist) test beside each other: each has a ComfyUI folder of its own, a copy with links."""
import os
import shutil
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MADE = REPO / ".host" / "ComfyUI"


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

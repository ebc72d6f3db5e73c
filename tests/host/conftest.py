"""What every test may ask for: a running ComfyUI with this repository linked into it."""
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_model
from playwright.sync_api import Browser, sync_playwright

from tools.comfy_host import COMFY, ComfyHost

HOST_NODES = Path(__file__).parents[1] / "host_nodes"


@pytest.fixture(scope="session")
def host() -> Iterator[ComfyHost]:
    """One host for the whole session; a test that needs other options starts its own."""
    link = COMFY / "custom_nodes" / "saemnesia-tests"
    if link.resolve() != HOST_NODES:
        link.unlink(missing_ok=True)
        link.symlink_to(HOST_NODES)
    small_model.write_checkpoint(COMFY / "models" / "checkpoints" / small_model.NAME)
    small_model.write_sae(COMFY / "models" / "sae" / small_model.NAME)
    with ComfyHost() as running:
        yield running


@pytest.fixture
def inpainting(host) -> Iterator[str]:
    """The name of a checkpoint with 9 channels in."""
    path = COMFY / "models" / "checkpoints" / "saemnesia-test-inpainting.safetensors"
    small_model.write_checkpoint(path, 9)
    yield path.name
    path.unlink()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()

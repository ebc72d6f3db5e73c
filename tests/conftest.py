"""What every test may ask for: a running ComfyUI with this repository linked into it."""
from collections.abc import Iterator

import pytest

from tools.comfy_host import ComfyHost


@pytest.fixture(scope="session")
def host() -> Iterator[ComfyHost]:
    """One host for the whole session; a test that needs other options starts its own."""
    with ComfyHost() as running:
        yield running

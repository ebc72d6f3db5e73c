"""Makes SAELens, sparsify and dictionary_learning importable: they lie in `.host/peers`, without all that they import.

What they import for data sets, tables, logging, language models and distributed training is not installed. A stand-in
lets those imports pass; what encodes, decodes and trains SAEs gets nowhere near it.
"""
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

from tools.setup_host import PEERS

ABSENT = ("accelerate", "datasets", "nnsight", "pandas", "wandb", "zstandard")


class StandIn(MetaPathFinder, Loader):
    """Lets `import pandas` pass."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in ABSENT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return MagicMock(name=spec.name, __path__=[])

    def exec_module(self, module: ModuleType) -> None:
        pass


def make_importable() -> None:
    """For this whole process: call it in a program of its own, not in a user's."""
    if not PEERS.exists():
        sys.exit(f"the libraries to compare with are missing in {PEERS}: run 'python tools/setup_host.py --peers'")
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.append(str(PEERS))
    sys.meta_path.insert(0, StandIn())

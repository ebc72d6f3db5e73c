"""Axes of the X/Y/Z plot: concepts, strength, actuator, SAE. A value is put on the plot's copy of `p`, and wins."""
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import files
from .settings import CHOICES

ATTRIBUTE = "saemnesia_axes"
LABEL = "[SAEmnesia] "
MODULES = ("xyz_grid.py", "scripts.xyz_grid")


def of(p: Any) -> dict[str, Any]:
    """{setting: value} that the plot wants for this picture."""
    return getattr(p, ATTRIBUTE, {})


def _setter(setting: str) -> Callable[[Any, Any, Any], None]:
    def put(p: Any, value: Any, values: Any) -> None:
        setattr(p, ATTRIBUTE, {**of(p), setting: value})
    return put


def add(scripts_data: Iterable[Any], models: Path) -> None:
    """Add what is not there yet to the plot's list, where the host has the plot; calling it again changes nothing."""
    for data in scripts_data:
        if data.script_class.__module__ in MODULES and hasattr(data.module, "axis_options"):
            option, listed = data.module.AxisOption, data.module.axis_options
            known = {axis.label for axis in listed}
            listed += [axis for axis in (
                option(LABEL + "concepts", str, _setter("concepts")),
                option(LABEL + "strength", float, _setter("strength")),
                option(LABEL + "actuator", str, _setter("actuator"), choices=lambda: CHOICES["actuator"]),
                option(LABEL + "SAE", str, _setter("sae"), choices=lambda: files.names(models)),
            ) if axis.label not in known]

"""Axes of the X/Y/Z plot: concepts, strength, actuator, SAE. A value is put on the plot's copy of `p`, and wins.

Values are checked before the plot starts: a cell that is refused later is a black square without a word.
"""
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from sae_models import Actuator, SaeError, parse
from sae_models.concepts import find

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
                option(LABEL + "concepts", str, _setter("concepts"), confirm=partial(_check_concepts, models)),
                option(LABEL + "strength", float, _setter("strength"), confirm=_check_strengths),
                option(LABEL + "actuator", str, _setter("actuator"), choices=lambda: CHOICES["actuator"],
                       confirm=_check_actuators),
                option(LABEL + "SAE", str, _setter("sae"), choices=lambda: files.names(models),
                       confirm=partial(_check_files, models)),
            ) if axis.label not in known]


def _check_concepts(models: Path, p: Any, values: list[str]) -> None:
    """Raise SaeError for what cannot be read, and for a name that no file has: another axis may choose the file."""
    names = [choice.name for text in values for choice in parse(text) if not choice.name.startswith("#")]
    known = _known(models) if names else ()
    for name in names:
        find(known, name, 0, str(models / files.FOLDER))


def _known(models: Path) -> tuple:
    found = []
    for name in files.names(models):
        try:
            found += files.load(models, name).concepts
        except SaeError:
            continue
    return tuple(found)


def _check_strengths(p: Any, values: list[float]) -> None:
    low, high = (end(actuator.strengths[i] for actuator in Actuator) for i, end in enumerate((min, max)))
    for value in values:
        if not low <= value <= high:
            raise SaeError(f"expected a strength of {low:g} to {high:g}, got {value:g}")


def _check_actuators(p: Any, values: list[str]) -> None:
    for value in values:
        if value not in CHOICES["actuator"]:
            raise SaeError(f"expected an actuator, one of {', '.join(CHOICES['actuator'])}, got '{value}'")


def _check_files(models: Path, p: Any, values: list[str]) -> None:
    """Put together what the plot took apart at a name's commas, in its own list, and raise SaeError for a file that is
    not there or cannot be read."""
    values[:] = _whole_names(values, set(files.names(models)))
    for value in values:
        files.load(models, value)


def _whole_names(pieces: list[str], known: set[str]) -> list[str]:
    found, start = [], 0
    while start < len(pieces):
        said = [(end, name) for end in range(len(pieces), start, -1) for mark in (", ", ",")
                for whole in [mark.join(pieces[start:end])] for name in (whole, whole.strip("\"'"))]
        end, name = next(((end, name) for end, name in said if name in known), said[-1])
        found.append(name)
        start = end
    return found

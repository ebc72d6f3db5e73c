"""What the sidebar, an API call or an axis of the X/Y/Z plot asks for."""
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sae_models import Actuator, SaeError, parse
from sae_models.adapter import BOTH, CONDITIONAL_ONLY
from sae_models.concepts import format_choices

CHOICES = {"actuator": [actuator.value for actuator in Actuator], "apply_to": [BOTH, CONDITIONAL_ONLY]}
KINDS = {bool: "true or false", float: "a number", int: "a whole number", str: "text"}


@dataclass(frozen=True)
class Settings:
    """In the order of the script's arguments; a new one comes last, because API users pass them by position.

    sae: a file of models/sae, or several with commas between; start, end: the part of sampling in which it acts, as
    shares; hires: also in the second pass; hookpoint: "" is the one the SAE's file says; map: show where the concepts
    are, whether they are erased or not.
    """
    enabled: bool = False
    sae: str = ""
    concepts: str = ""
    actuator: str = Actuator.AMOUNT.value
    start: float = 0.0
    end: float = 1.0
    apply_to: str = CONDITIONAL_ONLY
    hires: bool = True
    hookpoint: str = ""
    map: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise SaeError(f"expected {name} to be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        if not 0 <= self.start <= self.end <= 1:
            raise SaeError(f"expected 0 <= start <= end <= 1, got {self.start:g} and {self.end:g}")

    def with_strength(self, strength: float) -> "Settings":
        """The same concepts, all with this strength."""
        return replace(self, concepts=format_choices([replace(c, strength=strength) for c in parse(self.concepts)]))


DEFAULTS = asdict(Settings())


def read(arguments: Sequence[Any], axes: Mapping[str, Any] | None = None) -> Settings:
    """Settings from a script's arguments: by position, or all in one dict in the first place.

    Whoever sends a dict, or sets an axis ({field: value}, and "strength" for all concepts), wants to erase unless it
    says "enabled": false. Missing ones, and None, are the defaults. Raises SaeError for a name or value that makes no
    sense, but not where nothing is asked for.
    """
    given = _given(arguments, axes)
    strength = given.pop("strength") if axes and "strength" in axes else None
    if not _on(given, "enabled") and not _on(given, "map"):
        return Settings()
    settings = Settings(**checked(given, DEFAULTS))
    return settings if strength is None else settings.with_strength(strength)


def erases(arguments: Sequence[Any], axes: Mapping[str, Any] | None = None) -> bool:
    """Whether the arguments, right or wrong, are to erase."""
    return _on(_given(arguments, axes), "enabled")


def _on(given: Mapping[str, Any], name: str) -> bool:
    return given.get(name) not in (False, None)


def _given(arguments: Sequence[Any], axes: Mapping[str, Any] | None) -> dict[str, Any]:
    """By name, as they come; of axes the strength too."""
    if arguments and isinstance(arguments[0], Mapping):
        given = {"enabled": True, **arguments[0]}
    else:
        given = dict(zip(DEFAULTS, arguments, strict=False))
    files = given.get("sae")
    if isinstance(files, list | tuple) and all(isinstance(file, str) for file in files):
        given["sae"] = ", ".join(files)
    return {**given, **axes, "enabled": True} if axes else given


def checked(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, without None.

    Raises SaeError for a name that has no default, and for a value of another type.
    """
    return {name: _checked(name, value, defaults) for name, value in given.items() if value is not None}


def _checked(name: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    if name == "strength":
        raise SaeError("there is no setting 'strength': write it after each concept, for example 'cat:0.8'")
    if name not in defaults:
        near = difflib.get_close_matches(name, defaults, n=1, cutoff=0)[0]
        raise SaeError(f"there is no setting '{name}'; did you mean '{near}'? There are {', '.join(defaults)}")
    kind = type(defaults[name])
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise SaeError(f"expected {KINDS[kind]} for '{name}', got {value!r}")
    return value


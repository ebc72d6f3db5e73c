"""The versions of one picture that a comparison paints beside it: what is erased in each, and how it is called."""
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from .adapter import Block, LoadedSae, build_edits
from .concepts import Choice, format_choices, is_number, parse
from .erasure import Actuator, Edit
from .errors import SaeError

MOST = 50
"""Versions of one picture."""


class Across(str, Enum):  # noqa: UP042  (StrEnum needs Python 3.11; A1111 comes with 3.10)
    """What differs from version to version; for AFTER there is but one."""
    AFTER = "before and after"
    STRENGTHS = "strengths"
    CONCEPTS = "concepts"
    ACTUATORS = "actuators"


@dataclass(frozen=True)
class Version:
    """label: what is written over its picture; text: what is erased in it, as `build_edits` reads it."""
    label: str
    text: str
    actuator: Actuator

    def edits(self, sae: LoadedSae) -> list[tuple[Block, Edit]]:
        """None where it differs in nothing.

        Raises SaeError as `build_edits` does, saying which version it is.
        """
        try:
            return build_edits(sae, self.text, self.actuator, conditional_only=True)
        except SaeError as error:
            raise SaeError(f"'{self.label}' cannot be painted: {error}") from error


def versions(across: Across, text: str, actuator: Actuator, strengths: str, guided: bool = True) -> list[Version]:
    """Of what `text` (`cat, dog:0.5`) asks for with an actuator; strengths: `0.5, 1`, read for STRENGTHS only; guided:
    the model is asked for the negative prompt too, without which ACTUATORS leaves *thorough* out.

    Raises SaeError for a text or strengths that cannot be read, and for more than fit on a sheet.
    """
    choices = parse(text)
    if across is Across.AFTER:
        return [Version(f"after: {format_choices(choices)}", text, actuator)]
    if across is Across.ACTUATORS:
        return [_by(other, choices, actuator) for other in Actuator if guided or other is not Actuator.THOROUGH]
    if across is Across.STRENGTHS:
        texts = [format_choices(_with(choices, strength)) for strength in _numbers(strengths)]
    else:
        texts = [format_choices([choice]) for choice in choices]
    if len(texts) > MOST:
        raise SaeError(f"{len(texts)} {across.value} are asked for, and a sheet has room for {MOST}: ask for fewer")
    return [Version(one, one, actuator) for one in texts]


def _by(other: Actuator, choices: Sequence[Choice], actuator: Actuator) -> Version:
    """The same strengths, where *steer* counts downwards what the others count upwards."""
    turned = (other is Actuator.STEER) != (actuator is Actuator.STEER)
    texts = [replace(c, strength=-c.strength if turned and c.strength else c.strength) for c in choices]
    text = format_choices(texts)
    return Version(f"{other.value}: {text}", text, other)


def _with(choices: Sequence[Choice], strength: float) -> list[Choice]:
    """All of one strength, a whole number written without a point."""
    return [replace(choice, strength=int(strength) if strength.is_integer() else strength) for choice in choices]


def _numbers(text: str) -> list[float]:
    found = [part for part in re.split(r"[,;\s]+", text) if part]
    if not found:
        raise SaeError("no strengths are given to compare: write for example 0.25, 0.5, 0.75, 1")
    for part in found:
        if not is_number(part):
            raise SaeError(f"'{part}' in the strengths to compare is no number: write for example 0.25, 0.5, 0.75, 1")
    return [float(part) for part in found]

"""What is written into a PNG once the erasure ran, and read again when its text is pasted.

The keys are `SAEmnesia <setting>`. The SAE, concepts and actuator are always there, other settings when they are not
the default; each SAE's name is followed by the first digits of its file's SHA-256. `SAEmnesia fired` says in how many
steps each concept was there to be erased.
"""
import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from sae_models import Actuator, Choice, parse
from sae_models.concepts import format_choices
from sae_models.errors import plain
from sae_models.hashing import short_hash

from . import files
from .job import Job
from .settings import DEFAULTS, Settings

PREFIX = "SAEmnesia "
ALWAYS = ("sae", "concepts", "actuator")
log = logging.getLogger("saemnesia")


def key(setting: str) -> str:
    return PREFIX + setting.replace("_", " ")


FIRED = key("fired")
"""Is read by people only: what was erased may not have been there."""
UNSAID = ("enabled", "map")
"""A text that says what was erased was erased; and where concepts are changes no picture."""
KEYS = [*(key(name) for name in DEFAULTS if name not in UNSAID), FIRED]


def clear(params: MutableMapping[str, Any]) -> None:
    """Take back what an earlier run with the same object wrote."""
    for name in KEYS:
        params.pop(name, None)


def write(params: MutableMapping[str, Any], job: Job) -> None:
    """Say what was erased, where something was."""
    clear(params)
    if job.erased:
        params.update(said(job))


def promise(params: MutableMapping[str, Any], job: Job) -> None:
    """For a picture that the host saves before sampling is over, the one before the hires pass: it calls these when it
    writes that picture's text, and leaves out what is None."""
    def later(name: str) -> Callable[..., Any]:
        return lambda **_: said(job).get(name) if job.erased else None
    params.update({name: later(name) for name in KEYS})


def said(job: Job) -> dict[str, Any]:
    """What was erased, with every strength as a number."""
    saes = ", ".join(f"{sae.name} [{short_hash(sae.path)}]" for sae in job.saes)
    given = vars(job.settings) | {"sae": saes, "concepts": format_choices(_with_strengths(job))}
    written = {key(name): value for name, value in given.items()
               if name in ALWAYS or (name not in UNSAID and value != DEFAULTS[name])}
    return written | {FIRED: job.when()}


def _with_strengths(job: Job) -> list[Choice]:
    usual = Actuator(job.settings.actuator).default_strength
    return [replace(c, kind="", strength=usual if c.strength is None else c.strength)
            for c in parse(job.settings.concepts)]


@cache
def reader(setting: str, models: Path) -> Callable[[Mapping[str, Any]], Any]:
    """The function from pasted parameters to a component's value; None leaves the component alone.

    A text without an erasure switches erasing off. It is the same function in every tab: by that the hosts' "Send to
    img2img" knows which component belongs to which.
    """
    def read(params: Mapping[str, Any]) -> Any:
        erased = key("sae") in params
        if setting in UNSAID or not erased:
            return erased if setting == "enabled" else None
        value = params.get(key(setting), DEFAULTS[setting])
        if setting == "sae":
            return [_local_name(name, models) for name in re.split(r"(?<=\.safetensors),|(?<=\]),", str(value))]
        return _read(setting, str(value))
    return read


def _read(setting: str, text: str) -> Any:
    """The value of a setting other than the SAE; the usual one where the text is none, which the log says."""
    kind = type(DEFAULTS[setting])
    try:
        value = text == "True" if kind is bool else kind(text)
        return vars(replace(Settings(), **{setting: value}))[setting]
    except ValueError as error:
        log.warning("SAEmnesia: '%s' of the pasted text is left out: %s", key(setting), plain(str(error))[:200])
        return DEFAULTS[setting]


def _local_name(text: str, models: Path) -> str:
    """`name [hash]` without the hash; says so in the log when the file here is another one."""
    found = re.fullmatch(r"(.*?)(?: \[([0-9a-f]+)\])?", text.strip())
    name, wanted = found.group(1), found.group(2)
    here = short_hash(models / files.FOLDER / name) if name in files.names(models) else None
    if wanted and here and here != wanted:
        log.warning("SAEmnesia: the picture was made with another %s (%s) than the one here (%s)", name, wanted, here)
    return name

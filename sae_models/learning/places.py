"""Where in a UNet something is learned: at every cross-attention that hears the prompt, or where a user says."""
from collections.abc import Mapping, Sequence

from torch import nn

from .. import hookpoint
from ..adapter import LoadedSae
from ..concepts import refuse_twice
from ..errors import SaeError
from ..formats import Header
from ..sae import SaeConfig


def headers(unet: nn.Module, family: str, text: str = "") -> list[Header]:
    """A header for each place of `places`; family: of the model, as files name it.

    Raises SaeError as `places` does.
    """
    return [Header(SaeConfig(hookpoint.width(hookpoint.find(unet, name)), 1, 1), name, family)
            for name in places(unet, text)]


def places(unet: nn.Module, text: str = "", start: LoadedSae | None = None) -> list[str]:
    """The hookpoints that a user wrote, separated by commas or lines. Where there are none: those of the SAE to go on
    from, or else all cross-attentions that hear the prompt.

    Raises SaeError for a place that the model lacks, that is listed twice, or that hears no prompt.
    """
    hookpoint.check_unet(unet)
    wanted = [hookpoint.normalise(name) for line in text.splitlines() for name in line.split(",") if name.strip()]
    if start and not wanted:
        wanted = [header.hookpoint for header in start.at("").headers]
    attentions = hookpoint.cross_attentions(unet)
    names = _names(hookpoint.hookpoints(unet), attentions, wanted)
    refuse_twice(names, "block")
    hearing = [name for name, path in attentions.items() if hookpoint.hears(unet.get_submodule(path))]
    deaf = [name for name in names if name in attentions and name not in hearing]
    if deaf or not (names or hearing):
        raise SaeError(f"no words reach {', '.join(deaf) or 'this model'}: choose another block to learn")
    return names or hearing


def _names(blocks: Mapping[str, str], attentions: Mapping[str, str], wanted: Sequence[str]) -> list[str]:
    """The names that are meant by names or paths; blocks, attentions: {name: path} of what the model has."""
    names = {form: name for name, path in {**blocks, **attentions}.items() for form in (name, path)}
    for name in wanted:
        if name not in names:
            raise SaeError(f"this model has no block '{name}' to learn; it has {', '.join(blocks)}, and the "
                           f"cross-attentions in them, such as {next(iter(attentions), 'none')}: leave 'hookpoint' "
                           f"empty for all of those")
    return [names[name] for name in wanted]

"""A call of the host's UNet, to be made again for some of its rows: with other prompts, or at another noise level."""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sae_models import hookpoint
from sae_models.adapter import Block, Tap

from . import taps


@dataclass(frozen=True)
class Call:
    """With what the host calls its UNet."""
    unet: nn.Module
    args: tuple
    kwargs: dict

    def of(self, rows: Tensor) -> "Call":
        """The same for some of the rows, bool [rows], which are then all conditional."""
        def mine(value: Any) -> Any:
            is_rows = isinstance(value, Tensor) and value.ndim and len(value) == len(rows)
            return value[rows.to(value.device)] if is_rows else value
        own = {name: mine(value) for name, value in self.kwargs.items()}
        if own.get("transformer_options"):
            options = {name: mine(value) for name, value in own["transformer_options"].items()}
            sides = {"cond_indices": [*range(int(rows.sum()))], "uncond_indices": []}
            known = {name: value for name, value in sides.items() if name in options}
            own["transformer_options"] = options | {"cond_or_uncond": [0]} | known
        return Call(self.unet, tuple(mine(value) for value in self.args), own)

    @property
    def timestep(self) -> Tensor:
        """[rows]"""
        return self.kwargs["timesteps"] if "timesteps" in self.kwargs else self.args[1]

    @property
    def context(self) -> Tensor | None:
        """What the cross-attentions read, [rows, length, width]."""
        return self.kwargs.get("context", self.args[2] if len(self.args) > 2 else None)

    def at(self, x: Tensor, timestep: float, sigma: float) -> "Call":
        """The same with other pictures, at another noise level."""
        t, kwargs = self.timestep.new_full((len(x),), timestep), dict(self.kwargs)
        options = kwargs.get("transformer_options") or {}
        if "sigmas" in options:
            kwargs["transformer_options"] = options | {"sigmas": options["sigmas"].new_full((len(x),), sigma)}
        if "timesteps" in kwargs:
            return replace(self, args=(x, *self.args[1:]), kwargs=kwargs | {"timesteps": t})
        return replace(self, args=(x, t, *self.args[2:]), kwargs=kwargs)

    def again(self, wanted: Mapping[Block, Tap] | None = None) -> Tensor:
        """What the UNet makes of it while taps see, or change, what places put out. Hooks of the UNet itself, such as
        the eraser's, are not called."""
        def edit(block: Block, output: Tensor, x_in: Tensor | None = None) -> Tensor:
            with taps.full_precision(output.device):
                return wanted[block](output, x_in)
        bare = getattr(self.unet, "_orig_mod", self.unet)
        places = wanted or {}
        paths = dict(zip(places, hookpoint.paths(bare, [block.hookpoint for block in places]), strict=True))
        hooks, kwargs = taps.attach({block: bare.get_submodule(path) for block, path in paths.items()},
                                    taps.keys(paths), edit, self._kept())
        try:
            return self.unet.forward(*self.args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def _kept(self) -> dict:
        """The keywords, with a copy of what Forge's ControlNet hands to a call, which uses it up."""
        control = self.kwargs.get("control")
        copied = {name: [*parts] for name, parts in control.items()} if isinstance(control, dict) else control
        return self.kwargs | ({"control": copied} if control else {})

"""What an SAE needs to know of the host's loaded model, found by what the model has and not by the host's name."""
import sys
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from sae_models import SaeError, hookpoint
from sae_models.adapter import noise_level
from sae_models.erasure import NoiseLevel

PATCHERS = "ldm_patched.modules.model_management"
"""Where older Forge and its relatives list what is in memory, if they are the host."""
LATENT = 4
"""Channels of the picture in what the UNet gets; an inpainting model gets more."""
FAMILIES = {768: "sd15", 1024: "sd20", 2048: "sdxl", 1280: "sdxlrefiner"}
"""Width of the text that a UNet attends to, and the family it belongs to, as SAE files name it."""


def _holder(sd_model: Any) -> Any:
    """What has `diffusion_model`: Forge and its relatives keep it in `forge_objects`, A1111 in `model`."""
    forge = getattr(sd_model, "forge_objects", None)
    return forge.unet.model if forge is not None else getattr(sd_model, "model", None)


def unet_of(sd_model: Any) -> nn.Module:
    """The UNet that will paint. Raises SaeError when the host has no such model."""
    unet = getattr(_holder(sd_model), "diffusion_model", None)
    if not isinstance(unet, nn.Module):
        raise SaeError(f"cannot find the UNet of this model ({type(sd_model).__name__}): load a checkpoint of the "
                       f"SAE's base model")
    return unet


def family_of(module: nn.Module) -> str:
    """"sd15", "sd20", "sdxl" or "sdxlrefiner" by the text that a cross-attention or its block reads, "" when that is
    not known."""
    to_k = module.to_k if hasattr(module, "to_k") else module.transformer_blocks[0].attn2.to_k
    width = getattr(to_k, "in_features", None) or hookpoint.shape(to_k.weight)[-1]
    return FAMILIES.get(width, "")


@dataclass(frozen=True)
class NoiseLevels:
    """The model's noise levels (sigma, variance exploding) by timestep: log_sigmas [T]."""
    log_sigmas: Tensor
    _there: dict[torch.device, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def sigma(self, timestep: float) -> float:
        """Linear in log sigma between whole timesteps, as k-diffusion and ComfyUI do."""
        place = min(max(timestep, 0.0), len(self.log_sigmas) - 1)
        low = int(place)
        high = min(low + 1, len(self.log_sigmas) - 1)
        return float(torch.lerp(self.log_sigmas[low], self.log_sigmas[high], place - low).exp())

    def on_device(self, timestep: Tensor) -> Tensor:
        """The same of a timestep [] on a device, without waiting for it."""
        if timestep.device not in self._there:
            self._there[timestep.device] = self.log_sigmas.to(timestep.device)
        levels, last = self._there[timestep.device], len(self.log_sigmas) - 1
        place = timestep.float().clamp(0, last).view(1)
        low = place.long()
        below, above = (levels.index_select(0, i) for i in (low, (low + 1).clamp_max(last)))
        return torch.lerp(below, above, place - low).exp()[0]

    def at_share(self, share: float) -> float:
        """The noise level after a share of sampling: everything at 0, nothing at 1, timesteps evenly between."""
        if share <= 0:
            return float("inf")
        return 0.0 if share >= 1 else self.sigma(self.timestep_at(share))

    def timestep_at(self, share: float) -> float:
        return (1 - share) * (len(self.log_sigmas) - 1)


def noise_levels(sd_model: Any) -> NoiseLevels:
    """Read from Forge's `predictor`, old Forge's `model_sampling` or A1111's `alphas_cumprod`.

    Raises SaeError when the model has none of them.
    """
    holder = _holder(sd_model)
    for name in ("predictor", "model_sampling"):
        log_sigmas = getattr(getattr(holder, name, None), "log_sigmas", None)
        if log_sigmas is not None:
            return NoiseLevels(log_sigmas.detach().float().cpu())
    alphas = getattr(sd_model, "alphas_cumprod", None)
    if alphas is None:
        raise SaeError(f"cannot read the noise levels of this model ({type(sd_model).__name__}): load a checkpoint of "
                       f"the SAE's base model")
    alphas = alphas.detach().cpu().double().clamp(1e-12, 1 - 1e-12)
    return NoiseLevels(((1 - alphas) / alphas).sqrt().log().float())


def noise_of_call(levels: NoiseLevels, args: tuple, kwargs: dict) -> float | NoiseLevel:
    """The noise level of a call of the UNet, without waiting for a GPU: Forge says it, A1111 says the timestep."""
    noise = (kwargs.get("transformer_options") or {}).get("sigmas")
    if noise is not None:
        return noise_level(noise)
    timestep = kwargs.get("timesteps", args[1] if len(args) > 1 else None).max()
    if timestep.device.type == "cpu":
        return levels.sigma(float(timestep))
    return NoiseLevel(levels.on_device(timestep))


def sigma_of_call(levels: NoiseLevels, args: tuple, kwargs: dict) -> float:
    """The same as a number."""
    found = noise_of_call(levels, args, kwargs)
    return float(found.sigma) if isinstance(found, NoiseLevel) else found


def checkpoint_of(sd_model: Any) -> str:
    """The name of its file without folder and ending, "" where the host does not say it."""
    return PurePath(str(getattr(getattr(sd_model, "sd_checkpoint_info", None), "filename", "")).replace("\\", "/")).stem


def picture_share(sd_model: Any, sigma: float) -> float:
    """By how much the predicted picture moves when what the UNet puts out moves by -1: sigma where that is noise, less
    where it is v."""
    holder = _holder(sd_model)
    said = (getattr(sd_model, "parameterization", ""), getattr(getattr(holder, "model_type", None), "name", ""),
            getattr(getattr(holder, "predictor", None), "prediction_type", ""))
    is_v = any(str(name).lower() in ("v", "v_prediction") for name in said)
    return sigma / (1 + sigma * sigma) ** 0.5 if is_v else sigma


def original_weights(sd_model: Any) -> dict[str, Tensor]:
    """The UNet's weights as they come from the checkpoint, where a LoRA of the last picture still lies on them too.

    A1111 keeps them at each module, Forge and its relatives at their patcher or its loader, or at the patcher that the
    last picture was painted with.
    """
    unet = unet_of(sd_model)
    patcher = getattr(getattr(sd_model, "forge_objects", None), "unet", None)
    kept = {f"{name}.weight": module.network_weights_backup for name, module in unet.named_modules()
            if isinstance(getattr(module, "network_weights_backup", None), Tensor)}
    loaded = [entry.model for entry in getattr(sys.modules.get(PATCHERS), "current_loaded_models", ())]
    used = [other for other in loaded if patcher is not None and getattr(other, "model", None) is patcher.model]
    for holder in (*used, patcher, getattr(patcher, "lora_loader", None)):
        backup = getattr(holder, "backup", None)
        for name, value in (backup.items() if isinstance(backup, dict) else ()):
            kept[str(name).removeprefix("diffusion_model.")] = getattr(value, "weight", value)
    return {name: kept.get(name, value) for name, value in unet.state_dict().items()}

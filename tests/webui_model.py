"""A small SD 1.5 checkpoint with random weights that A1111 and Forge load, and SAEs for it.

A1111 learns from the .yaml beside a checkpoint how its UNet is built, Forge from the checkpoint's keys. The UNet is the
real one of `ldm`; the VAE has full size; the text encoder is MiniCanvas's.
"""
import json
import shutil
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / ".host" / "ldm"))

from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from small_model import NAME, write_sae
from torch import nn

from benchmarks.minicanvas import text
from benchmarks.minicanvas.harness import save_atomically

UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": 1,
        "attention_resolutions": [2], "channel_mult": [1, 1], "num_heads": 8, "use_spatial_transformer": True,
        "transformer_depth": 1, "context_dim": 768, "use_checkpoint": False, "legacy": False}
OTHER_UNET = UNET | {"channel_mult": [1, 2]}
"""Another build: 640 channels where the SAE wants 320."""
VAE = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
       "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
TEXT = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 768,
        "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408,
        "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768}
SAE = NAME


def write_models(models: Path, tokenizer: Path) -> None:
    """small.safetensors and other.safetensors with their .yaml, and the SAE; `tokenizer`: a folder of CLIP's files."""
    clip = models / "clip"
    shutil.copytree(tokenizer, clip)
    (clip / "config.json").write_text(json.dumps(TEXT))
    folder = models / "Stable-diffusion"
    folder.mkdir(parents=True)
    for name, config in (("small", UNET), ("other", OTHER_UNET)):
        write_checkpoint(folder / f"{name}.safetensors", config)
        (folder / f"{name}.yaml").write_text(json.dumps(_host_config(config, clip)))  # JSON is YAML
    write_sae(models / "sae" / SAE)


def write_checkpoint(path: Path, config: dict) -> None:
    torch.manual_seed(0)
    vae = nn.ModuleDict({"encoder": Encoder(**VAE), "decoder": Decoder(**VAE), "quant_conv": nn.Conv2d(8, 8, 1),
                         "post_quant_conv": nn.Conv2d(4, 4, 1)})
    tensors = {"model.diffusion_model." + name: value for name, value in random_unet(config).state_dict().items()}
    tensors |= {"first_stage_model." + name: value for name, value in vae.state_dict().items()}
    save_atomically({name: value.half() for name, value in tensors.items()} | text_encoder(), path)


def text_encoder() -> dict[str, torch.Tensor]:
    """MiniCanvas's, with a mean that is not zero: Forge divides by it."""
    state = text.state_dict()
    state[text.PREFIX + "final_layer_norm.bias"] += 0.1
    return state


def random_unet(config: dict) -> UNetModel:
    """ldm's UNet; what it starts at zero is random too, so that every block matters."""
    unet = UNetModel(**config)
    for module in unet.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
            module.reset_parameters()
    return unet.eval().requires_grad_(False)


def _host_config(unet: dict, clip: Path) -> dict:
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {
        "linear_start": 0.00085, "linear_end": 0.012, "num_timesteps_cond": 1, "timesteps": 1000,
        "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 64, "channels": 4,
        "cond_stage_trainable": False, "conditioning_key": "crossattn", "monitor": "none", "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {
            "embed_dim": 4, "monitor": "none", "ddconfig": VAE, "lossconfig": {"target": "torch.nn.Identity"}}},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                              "params": {"version": str(clip)}}}}}

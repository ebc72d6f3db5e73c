"""Small checkpoints with random weights that A1111 and Forge load (SDXL: A1111 alone), and SAEs for them.

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
DEEP_UNET = UNET | {"num_res_blocks": 2, "channel_mult": [1, 1, 1, 1], "attention_resolutions": [8]}
"""With as many blocks as SD 1.5 has: sd-webui-controlnet names them by number."""
SDXL_UNET = UNET | {"context_dim": 2048, "use_linear_in_transformer": True}
SDXL_VECTOR = 2816
SDXL_TEXT = "saemnesia-small"
"""Of SDXL's size in width, but of two layers: tests/webui_extension/open_clip tells open_clip of it."""
SAE, SDXL_SAE = NAME, "z-sdxl.safetensors"


def write_models(models: Path, tokenizer: Path) -> None:
    """small, other and sdxl.safetensors with their .yaml, and the SAEs; `tokenizer`: a folder of CLIP's files."""
    clip = models / "clip"
    shutil.copytree(tokenizer, clip)
    (clip / "config.json").write_text(json.dumps(TEXT))
    folder = models / "Stable-diffusion"
    folder.mkdir(parents=True)
    for name, config in (("small", UNET), ("other", OTHER_UNET)):
        write_checkpoint(models, name, config)
    write_sdxl(folder / "sdxl.safetensors")
    (folder / "sdxl.yaml").write_text(json.dumps(_sdxl_config(clip)))
    write_sae(models / "sae" / SAE)
    write_sae(models / "sae" / SDXL_SAE, base="sdxl")


def write_checkpoint(models: Path, name: str, config: dict) -> None:
    torch.manual_seed(0)
    path = models / "Stable-diffusion" / f"{name}.safetensors"
    save_atomically(_halves(_prefixed(config)) | text_encoder(), path)
    path.with_suffix(".yaml").write_text(json.dumps(_host_config(config, models / "clip")))  # JSON is YAML


def write_sdxl(path: Path) -> None:
    """With SDXL's names: two text encoders, and a vector beside the text."""
    torch.manual_seed(0)
    width = 4 * SDXL_UNET["model_channels"]
    label = nn.Sequential(nn.Linear(SDXL_VECTOR, width), nn.SiLU(), nn.Linear(width, width))
    tensors = _prefixed(SDXL_UNET) | {f"model.diffusion_model.label_emb.0.{name}": value
                                      for name, value in label.state_dict().items()}
    tensors |= {"conditioner.embedders.1.model." + name: value for name, value in open_clip_text().items()}
    first = {"conditioner.embedders.0." + name.removeprefix("cond_stage_model."): value
             for name, value in text_encoder().items()}
    save_atomically(_halves(tensors) | first, path)


def open_clip_text(width: int = 1280, layers: int = 2) -> dict[str, torch.Tensor]:
    """The text half of a CLIP of open_clip."""
    layer = nn.ModuleDict({
        "ln_1": nn.LayerNorm(width), "attn": nn.MultiheadAttention(width, 20), "ln_2": nn.LayerNorm(width),
        "mlp": nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})})
    state = {f"transformer.resblocks.{i}.{name}": value for i in range(layers)
             for name, value in layer.state_dict().items()}
    return state | {"token_embedding.weight": 0.02 * torch.randn(49408, width), "ln_final.weight": torch.ones(width),
                    "positional_embedding": 0.01 * torch.randn(77, width), "ln_final.bias": torch.zeros(width),
                    "text_projection": torch.randn(width, width) / width ** 0.5, "logit_scale": torch.tensor(1.0)}


def _prefixed(unet: dict) -> dict[str, torch.Tensor]:
    """A random UNet and VAE under the names of a checkpoint."""
    vae = nn.ModuleDict({"encoder": Encoder(**VAE), "decoder": Decoder(**VAE), "quant_conv": nn.Conv2d(8, 8, 1),
                         "post_quant_conv": nn.Conv2d(4, 4, 1)})
    parts = {"model.diffusion_model.": random_unet(unet), "first_stage_model.": vae}
    return {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}


def _halves(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.half().contiguous() for name, value in tensors.items()}


def text_encoder() -> dict[str, torch.Tensor]:
    """MiniCanvas's, with a mean that is not zero: Forge divides by it."""
    state = text.checkpoint_state()
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


def _sdxl_config(clip: Path) -> dict:
    sizes = [_part("sgm.modules.encoders.modules.ConcatTimestepEmbedderND", outdim=256) | {"input_key": name}
             for name in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")]
    texts = [_part("sgm.modules.encoders.modules.FrozenCLIPEmbedder", version=str(clip), layer="hidden", layer_idx=11),
             _part("sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2", arch=SDXL_TEXT, version="none", freeze=True,
                   layer="penultimate", always_return_pooled=True, legacy=False)]
    unet = {name: value for name, value in SDXL_UNET.items() if name != "image_size"}
    of = "sgm.modules.diffusionmodules."
    return {"model": _part(
        "sgm.models.diffusion.DiffusionEngine", scale_factor=0.13025, disable_first_stage_autocast=True,
        denoiser_config=_part(of + "denoiser.DiscreteDenoiser", num_idx=1000,
                              weighting_config={"target": of + "denoiser_weighting.EpsWeighting"},
                              scaling_config={"target": of + "denoiser_scaling.EpsScaling"},
                              discretization_config={"target": of + "discretizer.LegacyDDPMDiscretization"}),
        network_config=_part(of + "openaimodel.UNetModel", **unet, num_classes="sequential",
                             adm_in_channels=SDXL_VECTOR, spatial_transformer_attn_type="softmax"),
        conditioner_config=_part("sgm.modules.GeneralConditioner", emb_models=[
            *({"is_trainable": False, "input_key": "txt"} | text for text in texts), *sizes]),
        first_stage_config=_part("sgm.models.autoencoder.AutoencoderKLInferenceWrapper", embed_dim=4,
                                 monitor="val/rec_loss", ddconfig=VAE | {"attn_type": "vanilla"},
                                 lossconfig={"target": "torch.nn.Identity"}))}


def _part(target: str, **params: object) -> dict:
    return {"target": target, "params": params}

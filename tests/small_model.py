"""A small SD 1.5 checkpoint and SAE with random weights, for everything that does not depend on what they paint.

Text enters at three blocks. In the SAE "cat", "dog" and "noto style" fire on about half of all tokens, "rocket" and
"contrast style" never.
"""
from pathlib import Path

import torch

from benchmarks.minicanvas import models, text
from benchmarks.minicanvas.harness import save_atomically
from sae_models import Concept, Header, Rows, Sae, SaeConfig, Statistics, write
from sae_models.concepts import NEVER
from sae_models.table import Table, add

from comfy.cldm.cldm import ControlNet  # isort: skip  (models puts ComfyUI on the path)

NAME = "saemnesia-test.safetensors"
UNET_CONFIG = models.UNET_CONFIG | {"transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1],
                                    "transformer_depth_middle": -2}
HOOKPOINT = "up_blocks.0.attentions.1"
BLOCKS = ("down_blocks.1.attentions.0", "up_blocks.0.attentions.0", HOOKPOINT)
ATTENTIONS = tuple(f"{block}.transformer_blocks.0.attn2" for block in BLOCKS)
FIRING, SILENT = ("cat", "dog", "noto style"), ("rocket", "contrast style")


def write_checkpoint(path: Path, in_channels: int = 4, **changes: object) -> None:
    """About 310 MB, mostly MiniCanvas's text encoder; with 9 channels in, an inpainting model. changes: of the UNet."""
    torch.manual_seed(0)
    unet = models.initialised(models.UNetModel(**UNET_CONFIG | {"in_channels": in_channels} | changes,
                                               operations=models.comfy.ops.disable_weight_init))
    parts = {"model.diffusion_model.": unet, "first_stage_model.": models.new_vae()}
    tensors = {prefix + name: value.half() for prefix, model in parts.items()
               for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically(tensors | text.checkpoint_state(), path)


def write_controlnet(path: Path) -> None:
    """A ControlNet with random weights that fits the checkpoint, about 28 MB."""
    torch.manual_seed(1)
    config = {name: value for name, value in UNET_CONFIG.items()
              if name not in ("out_channels", "transformer_depth_output")}
    net = models.initialised(ControlNet(**config, hint_channels=3, operations=models.comfy.ops.disable_weight_init))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomically({name: value.half() for name, value in net.state_dict().items()}, path)


def write_sae(path: Path, d_in: int = 320, hookpoint: str = HOOKPOINT, base: str = "sd15", made_on: str = "",
              made_of: str = "") -> None:
    torch.manual_seed(0)
    config = SaeConfig(d_in, 64, 8)
    concepts = tuple(Concept(name, (3 + i,), "style" if "style" in name else "object")
                     for i, name in enumerate((*FIRING, *SILENT)))
    thresholds = torch.tensor([0.0] * len(FIRING) + [5e4] * len(SILENT))[:, None].expand(-1, 2)
    statistics = Statistics((0.1, 10.0), thresholds, torch.ones(len(concepts), 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, Sae(config), Header(config, hookpoint, base, False, concepts, made_on=made_on, made_of=made_of),
          statistics)


def write_places(path: Path, widths: dict[str, int] | None = None, base: str = "sd15",
                 usual: dict[str, float] | None = None) -> None:
    """A concept file with neurons at several places ({hookpoint: width}): at every cross-attention of the checkpoint's
    UNet unless they are given. "noto style" is only at the first. usual: how strongly concepts are said to fire where
    they are there, at two noise levels: then the places vote."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for number, (hookpoint, width) in enumerate((widths or dict.fromkeys(ATTENTIONS, 320)).items()):
        names = [name for name in (*FIRING, *SILENT) if number == 0 or name != "noto style"]
        count = len(names)
        thresholds = torch.tensor([[NEVER if name in SILENT else 0.0] for name in names])
        means, sigmas = torch.ones(count, 1), (1.0,)
        if usual:
            means, sigmas = torch.tensor([[usual.get(name, 1.0)] * 2 for name in names]), (0.1, 10.0)
        rows = Rows(torch.randn(count, width, generator=generator) / width ** 0.5, torch.zeros(count),
                    torch.randn(count, width, generator=generator) / width ** 0.5,
                    Statistics(sigmas, thresholds.expand(-1, len(sigmas)), means))
        concepts = tuple(Concept(name, (i,), "style" if "style" in name else "object")
                         for i, name in enumerate(names))
        parts.append((Header(SaeConfig(width, count, count), hookpoint, base), Table(concepts, rows)))
    path.unlink(missing_ok=True)
    add(path, parts)

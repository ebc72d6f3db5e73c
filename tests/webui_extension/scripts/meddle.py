"""For the tests in a real A1111 or Forge: what other extensions do to a generation. One argument says which."""
import sys
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gradio as gr
import numpy as np
import torch
from modules import processing, scripts, shared


class Detector:
    """Stands in for ADetailer's, whose weights are a download: finds one box in the middle of every picture."""

    def __init__(self, path):
        pass

    def __call__(self, image, **options):
        width, height = image.size
        box = torch.tensor([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
        return [SimpleNamespace(boxes=SimpleNamespace(xyxy=box, conf=torch.tensor([0.9])), masks=None,
                                plot=lambda: np.zeros((height, width, 3), np.uint8))]


sys.modules["ultralytics"] = ModuleType("ultralytics")
sys.modules["ultralytics"].YOLO = Detector

if find_spec("open_clip"):  # the second text encoder of the small SDXL checkpoint
    import open_clip
    open_clip.add_model_config(Path(__file__).resolve().parents[1] / "open_clip")


def unet():
    forge = getattr(shared.sd_model, "forge_objects", None)
    return (forge.unet.model if forge else shared.sd_model.model).diffusion_model


class Meddle(scripts.Script):
    restore = staticmethod(lambda: None)

    def title(self):
        return "meddle"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox("", label="How", visible=False)]

    def process(self, p, how, *args):
        """replace: run another UNet; sd unet: the host's own way of that; fail: break the model call."""
        self.restore()
        if how in ("replace", "fail"):
            model = unet()
            model.forward = (lambda x, *a, **k: x) if how == "replace" else (lambda *a, **k: 1 / 0)
            self.restore = lambda: model.__dict__.pop("forward", None)
        if how == "sd unet":
            from modules import sd_unet
            fake = sd_unet.SdUnet()
            fake.forward = lambda x, *a, **k: x
            before, sd_unet.current_unet = sd_unet.current_unet, fake
            self.restore = lambda: setattr(sd_unet, "current_unet", before)

    def postprocess_image(self, p, pp, how, *args):
        """inner: ADetailer's order of calls."""
        if how != "inner":
            return
        quiet = copy(p)
        p.scripts.postprocess(quiet, processing.Processed(p, [], p.seed, ""))
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[pp.image], sd_model=p.sd_model, prompt=p.prompt, negative_prompt=p.negative_prompt,
            width=p.width, height=p.height, steps=2, denoising_strength=0.5, seed=1, cfg_scale=p.cfg_scale,
            sampler_name=p.sampler_name, do_not_save_samples=True, do_not_save_grid=True)
        inner.scripts, inner.script_args = None, []
        pp.image = processing.process_images(inner).images[0]
        inner.close()
        again = copy(p)
        p.scripts.before_process(again)
        p.scripts.process(again)

    def postprocess(self, p, processed, how, *args):
        if processed.images:
            self.restore()

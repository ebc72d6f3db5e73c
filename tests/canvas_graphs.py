"""Graphs that sample the small test model in a running host, and the exact latents they give."""
import io
import json
from urllib.parse import urlencode

from host_graphs import node
from PIL import Image
from safetensors.torch import load
from small_model import NAME
from torch import Tensor

from tools.comfy_host import ComfyHost, Graph


def graph(prompt: str = "a cat, noto style", *, width: int = 96, height: int = 96, batch: int = 1, steps: int = 4,
          cfg: float = 4.0, sampler: str = "euler", seed: int = 1) -> Graph:
    """Text to latent with stock nodes; `erase` and `then` put nodes between checkpoint and sampler."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=NAME),
        "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text=prompt),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=width, height=height, batch_size=batch),
        "sampler": node("KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0],
                        latent_image=["latent", 0], seed=seed, steps=steps, cfg=cfg, sampler_name=sampler,
                        scheduler="normal", denoise=1.0),
        "save": node("SaveLatent", samples=["sampler", 0], filename_prefix="test"),
    }


def then(made: Graph, name: str, class_type: str, **inputs: object) -> Graph:
    """`made` with one more model node before the sampler."""
    before = made["sampler"]["inputs"]["model"]
    made[name] = node(class_type, model=before, **inputs)
    made["sampler"]["inputs"]["model"] = [name, 0]
    return made


def erase(made: Graph, concepts: str, actuator: str = "ablate", *, name: str = "erase", sae: str = NAME,
          hookpoint: str = "", **options: object) -> Graph:
    made["sae " + name] = node("SAEmnesiaLoadSAE", sae_name=sae, hookpoint=hookpoint)
    inputs = {"start": 0.0, "end": 1.0, "apply_to": "both"} | options
    return then(made, name, "SAEmnesiaErase", sae=["sae " + name, 0], concepts=concepts, actuator=actuator, **inputs)


def with_picture(made: Graph) -> Graph:
    """The same with a picture saved in place of latents."""
    made["decode"] = node("VAEDecode", samples=made["save"]["inputs"]["samples"], vae=["checkpoint", 2])
    made["save"] = node("SaveImage", images=["decode", 0], filename_prefix="test")
    return made


def written(png: bytes) -> list[dict] | None:
    """What is written into a picture's file of what was erased."""
    text = Image.open(io.BytesIO(png)).text.get("saemnesia")
    return json.loads(text) if text else None


def latents(host: ComfyHost, made: Graph) -> Tensor:
    """The sampled latents, exactly as the host has them."""
    files = host.run(made).history["outputs"]["save"]["latents"]
    return load(host.get("/view?" + urlencode(files[0])))["latent_tensor"]

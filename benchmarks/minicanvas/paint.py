"""Pictures of a task by a real ComfyUI over its HTTP API, with one way to erase or none."""
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from tools.comfy_host import COMFY, ComfyHost, Graph

from .canvas import CANVAS_PX
from .checkpoint import NAME
from .table import Shot, Task

BENCH_NODES = Path(__file__).with_name("bench_nodes")
STEPS, CFG, BATCH = 12, 2.5, 24


@dataclass(frozen=True)
class Method:
    """A way to erase: a title, what it adds to a graph, and what its prompts say."""
    title: str
    add: Callable[[Graph, Task], None] = lambda graph, task: None
    text: Callable[[Task, Shot], str] = lambda task, shot: shot.text


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def base_graph(prompts: Sequence[str], seed: int, cfg: float = CFG, steps: int = STEPS) -> Graph:
    """Prompts as one batch; "model" and "negative" are what methods change."""
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=NAME),
        "positive": node("MiniCanvasPrompts", clip=["checkpoint", 1], prompts="\n".join(prompts)),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=CANVAS_PX, height=CANVAS_PX, batch_size=len(prompts)),
        "sampler": node("KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0],
                        latent_image=["latent", 0], seed=seed, steps=steps, cfg=cfg, sampler_name="euler",
                        scheduler="normal", denoise=1.0),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="minicanvas"),
    }


def ours(file: str = NAME, actuator: str = "ablate", strength: float | None = None) -> Callable[[Graph, Task], None]:
    """*SAEmnesia Erase* with one setting for all concepts."""
    def add(graph: Graph, task: Task) -> None:
        suffix = "" if strength is None else f":{strength:g}"
        graph["sae"] = node("SAEmnesiaLoadSAE", sae_name=file, hookpoint="")
        graph["erase"] = node("SAEmnesiaErase", model=["checkpoint", 0], sae=["sae", 0], actuator=actuator, start=0.0,
                              end=1.0, concepts=", ".join(name + suffix for name in task.names),
                              apply_to="conditional only")
        graph["sampler"]["inputs"]["model"] = ["erase", 0]
    return add


def paint(host: ComfyHost, method: Method, task: Task, seed: int, cfg: float = CFG, steps: int = STEPS) -> torch.Tensor:
    """The task's pictures [n, 3, px, px] in 0..1."""
    pictures, prompts = [], [method.text(task, shot) for shot in task.shots]
    for start in range(0, len(prompts), BATCH):
        graph = base_graph(prompts[start:start + BATCH], seed + start, cfg, steps)
        method.add(graph, task)
        pictures += [decode_png(png) for png in host.run(graph, timeout=3600).images]
    return torch.stack(pictures)


def decode_png(png: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3) \
        .permute(2, 0, 1).float() / 255


def link_bench_nodes() -> None:
    link = COMFY / "custom_nodes" / "minicanvas-bench"
    if link.resolve() != BENCH_NODES:
        link.unlink(missing_ok=True)
        link.symlink_to(BENCH_NODES)

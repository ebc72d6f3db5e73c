"""*Erase Words* on SD 1.5 and SDXL at full size (random weights): model calls, time and memory, beside plain painting.

    make bench-full-size                                    SD 1.5 at 128 px
    make bench-full-size ARGS="--model sdxl --side 64 --bf16"      SDXL's weights alone are 7 GB, in fp32 14

What such a model paints is noise; that the whole of it runs, how often the model is called and what that takes is as
with any weights. Pictures are small so that a CPU gets through: calls do not depend on their size, and the seconds are
given beside those of plain painting.
"""
import argparse
import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.minicanvas import models
from benchmarks.minicanvas.harness import save_atomically
from benchmarks.minicanvas.paint import link_bench_nodes, node
from benchmarks.overhead import SD15, SDXL, new_unet
from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost, Graph

RESULTS = Path(__file__).with_name("results") / "full-size.json"
STEPS, AT_ONCE = 20, 4


class Size(NamedTuple):
    """A model: its UNet, the text encoders it is loaded with, and how."""
    unet: dict
    encoders: tuple[str, ...]
    loader: str
    kind: str


SIZES = {"sd15": Size(SD15, ("l",), "CLIPLoader", "stable_diffusion"),
         "sdxl": Size(SDXL, ("l", "g"), "DualCLIPLoader", "sdxl")}


def text_encoder(which: str) -> torch.nn.Module:
    """CLIP-L, or the larger one that SDXL has beside it."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    kind = {"l": comfy.sd1_clip.SDClipModel, "g": comfy.sdxl_clip.SDXLClipG}[which]
    model = models.initialised(kind(device="cpu", dtype=torch.float32).transformer)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            torch.nn.Embedding.reset_parameters(module)
    return model


def write(model: torch.nn.Module, path: Path) -> Path:
    save_atomically({name: value.half() for name, value in model.state_dict().items()}, path)
    return path


@contextmanager
def files(name: str) -> Iterator[None]:
    """The model's files in the host's folders while the block runs."""
    folder = COMFY / "models"
    torch.manual_seed(0)
    made = [write(text_encoder(which), folder / "text_encoders" / f"full-size-{which}.safetensors")
            for which in SIZES[name].encoders]
    made.append(write(new_unet(SIZES[name].unet), folder / "diffusion_models" / "full-size.safetensors"))
    gc.collect()  # the models' modules refer to each other, and the host needs the memory
    try:
        yield
    finally:
        for path in made:
            path.unlink()
        for path in (folder / "sae").glob("full-size*"):
            path.unlink()


def graph(name: str, side: int, seed: int, words: str = "") -> Graph:
    """Paints four pictures, and says how often the model was called; words: what is found and erased before that."""
    size = SIZES[name]
    clips = {f"clip_name{'' if len(size.encoders) == 1 else i + 1}": f"full-size-{which}.safetensors"
             for i, which in enumerate(size.encoders)}
    made = {
        "unet": node("UNETLoader", unet_name="full-size.safetensors", weight_dtype="default"),
        "clip": node(size.loader, **clips, type=size.kind),
        "counted": node("MiniCanvasCount", model=["unet", 0]),
        "prompt": node("CLIPTextEncode", clip=["clip", 0], text="a photo of a cat"),
        "latent": node("EmptyLatentImage", width=side, height=side, batch_size=AT_ONCE),
        "sampler": node("KSampler", model=["counted", 0], positive=["prompt", 0], negative=["prompt", 0],
                        latent_image=["latent", 0], seed=seed, steps=STEPS, cfg=7.0, sampler_name="euler",
                        scheduler="normal", denoise=1.0),
        "save": node("SaveLatent", samples=["sampler", 0], filename_prefix="full-size"),
        "calls": node("MiniCanvasCalls", latent=["sampler", 0]),
    }
    if words:
        made["erase"] = node("SAEmnesiaEraseWords", model=["counted", 0], clip=["clip", 0], words=words, told_from="",
                             pictures=32, side=side, cfg=7.0)
        made["sampler"]["inputs"]["model"] = ["erase", 0]
    return made


def measured(host: ComfyHost, name: str, side: int, seed: int, words: str = "") -> dict[str, float]:
    """{"seconds", "calls", "rows", "peak GB"}: rows: pictures in all calls, two for one with guidance."""
    Path(f"/proc/{host.process.pid}/clear_refs").write_text("5")  # the peak so far is forgotten
    began = time.monotonic()
    outputs = host.run(graph(name, side, seed, words), timeout=36_000).history["outputs"]
    peak = next(line for line in Path(f"/proc/{host.process.pid}/status").read_text().splitlines() if "VmHWM" in line)
    counts = json.loads(outputs["calls"]["text"][0])
    if words:
        print(outputs["erase"]["text"][0], flush=True)
    return {"seconds": round(time.monotonic() - began, 1)} | counts | {"peak GB": round(int(peak.split()[1]) / 1e6, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="sd15")
    parser.add_argument("--side", type=int, default=128, help="of a picture in pixels")
    parser.add_argument("--bf16", action="store_true", help="the UNet in bfloat16: half the memory")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    link_bench_nodes()
    rows, flags = {}, ["--bf16-unet"] * options.bf16
    with files(options.model), ComfyHost(*flags, threads=options.threads, bf16=options.bf16) as host:
        ways = (("loading and painting", ""), ("painting", ""), ("Erase Words, and painting", "cat"))
        for seed, (way, words) in enumerate(ways):
            rows[way] = measured(host, options.model, options.side, seed, words)
            print(way, rows[way], flush=True)
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, done | {f"{options.model}, {options.side} px{', bf16' * options.bf16}": rows})


if __name__ == "__main__":
    main()

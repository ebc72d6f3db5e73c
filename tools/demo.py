"""`make demo`: the same prompts without and with erasure, through ComfyUI's HTTP API, in one labelled picture.

`--erase "cat"` and `--actuator` choose what is erased and how.
"""
import argparse
import io
import time
from pathlib import Path

from PIL import Image

from tools.comfy_host import ComfyHost, Graph
from tools.sheet import ERASED, Row, sheet

OUTPUT = Path(__file__).resolve().parents[1] / "output"
MODEL = "minicanvas.safetensors"
PROMPTS = ("a cat and a castle, noto style, on a blue ground", "a rose and a cat, contrast style, on a white ground",
           "a cat, mono style, on a yellow ground", "a dog and a key, fluent style, on a dotted ground",
           "a penguin, twemoji style, on a striped ground")
SIDE, ZOOM = 96, 2


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def graph(prompt: str, erase: str, actuator: str, seed: int) -> Graph:
    """`Tick-concepts` of example_workflows in the API format: one picture without and one with erasure."""
    def sampler(model: str) -> dict:
        return node("KSampler", model=[model, 0], positive=["positive", 0], negative=["negative", 0],
                    latent_image=["latent", 0], seed=seed, steps=20, cfg=2.5, sampler_name="euler",
                    scheduler="normal", denoise=1.0)

    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=MODEL),
        "sae": node("SAEmnesiaLoadSAE", sae_name=MODEL, hookpoint=""),
        "erase": node("SAEmnesiaErase", model=["checkpoint", 0], sae=["sae", 0], concepts=erase, actuator=actuator,
                      start=0.0, end=1.0, apply_to="conditional only"),
        "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text=prompt),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        "before": sampler("checkpoint"), "after": sampler("erase"),
        "picture before": node("VAEDecode", samples=["before", 0], vae=["checkpoint", 2]),
        "picture after": node("VAEDecode", samples=["after", 0], vae=["checkpoint", 2]),
        "save before": node("SaveImage", images=["picture before", 0], filename_prefix="before"),
        "save after": node("SaveImage", images=["picture after", 0], filename_prefix="after"),
    }


def comparison(columns: list[tuple[str, Image.Image, Image.Image]], erase: str) -> Image.Image:
    """A picture with a column a prompt: above as the model paints it, below with the concepts erased."""
    prompts, before, after = (list(part) for part in zip(*columns, strict=True))
    return sheet(prompts, [Row("without erasure", before), Row(f"erased: {erase}", after, ERASED)], SIDE * ZOOM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--erase", default="cat", help='for example "cat" or "cat, noto style:0.5"')
    parser.add_argument("--actuator", default="ablate", choices=("ablate", "steer", "replace", "amount"))
    parser.add_argument("--seed", type=int, default=40)
    options = parser.parse_args()
    began, columns = time.monotonic(), []
    with ComfyHost(threads=2) as host:
        for number, prompt in enumerate(PROMPTS):
            pngs = host.run(graph(prompt, options.erase, options.actuator, options.seed + number)).images
            columns.append((prompt, *(Image.open(io.BytesIO(png)) for png in pngs)))
            print(f"painted {number + 1}/{len(PROMPTS)}: {prompt}", flush=True)
        said = [line for line in host.log.splitlines() if "SAEmnesia:" in line]
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / "demo.png"
    comparison(columns, options.erase).save(path)
    print("\n".join(dict.fromkeys(said[:2])))
    print(f"{path}\nEvery prompt was painted twice from the same noise, without and with '{options.erase}' erased "
          f"({time.monotonic() - began:.0f} s).")


if __name__ == "__main__":
    main()

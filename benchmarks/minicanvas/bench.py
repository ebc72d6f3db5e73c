"""How well concepts are erased from MiniCanvas, and what else changes: the table of UA, IRA, CRA and artefacts.

    make bench-minicanvas                  every object and style, alone and several at once, every method
    make bench-minicanvas ARGS=--quick     a fixed subset, some minutes on a CPU

Every picture is made by a real ComfyUI over its HTTP API; each method draws the same prompts from the same noise.
Finished tasks are kept in benchmarks/results/, so a run that was stopped goes on from there.
"""
import argparse
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost, Graph
from tools.sheet import ERASED, PLAIN, Row, sheet

from . import table
from .canvas import CANVAS_PX
from .checkpoint import NAME, WEIGHTS
from .icons import OBJECTS, STYLES
from .judge import Judge, load_judge
from .text import prompt

RESULTS = Path(__file__).resolve().parents[1] / "results"
BENCH_NODES = Path(__file__).with_name("bench_nodes")
STEPS, CFG, BATCH = 20, 2.5, 51
BLOCK = "input_blocks.3.1"


@dataclass(frozen=True)
class Method:
    """A way to erase: a title, and what it adds to a graph."""
    title: str
    add: Callable[[Graph, table.Task], None]


def node(class_type: str, **inputs: object) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def base_graph(pairs: tuple[tuple[int, int], ...], seed: int, steps: int = STEPS) -> Graph:
    """Prompts of `pairs` as one batch; "model" and "negative" are what methods change."""
    prompts = "\n".join(prompt(OBJECTS[o], STYLES[s]) for o, s in pairs)
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=NAME),
        "positive": node("MiniCanvasPrompts", clip=["checkpoint", 1], prompts=prompts),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "latent": node("EmptyLatentImage", width=CANVAS_PX, height=CANVAS_PX, batch_size=len(pairs)),
        "sampler": node("KSampler", model=["checkpoint", 0], positive=["positive", 0], negative=["negative", 0],
                        latent_image=["latent", 0], seed=seed, steps=steps, cfg=CFG, sampler_name="euler",
                        scheduler="normal", denoise=1.0),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["checkpoint", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="minicanvas"),
    }


def ours(actuator: str, strength: float | None = None, **options: object) -> Callable[[Graph, table.Task], None]:
    """*SAEmnesia Erase* with one setting for all concepts."""
    def add(graph: Graph, task: table.Task) -> None:
        suffix = "" if strength is None else f":{strength:g}"
        inputs = {"start": 0.0, "end": 1.0, "apply_to": "both"} | options
        graph["sae"] = node("SAEmnesiaLoadSAE", sae_name=NAME, hookpoint="")
        graph["erase"] = node("SAEmnesiaErase", model=["checkpoint", 0], sae=["sae", 0], actuator=actuator,
                              concepts=", ".join(name + suffix for name in task.names), **inputs)
        graph["sampler"]["inputs"]["model"] = ["erase", 0]
    return add


def papers(gamma: float, sign_error: bool) -> Callable[[Graph, table.Task], None]:
    def add(graph: Graph, task: table.Task) -> None:
        graph["erase"] = node("MiniCanvasPapersHook", model=["checkpoint", 0], block=BLOCK, gamma=gamma,
                              sae_path=str(WEIGHTS / "sae.safetensors"), concepts=", ".join(task.names),
                              sign_error=sign_error)
        graph["sampler"]["inputs"]["model"] = ["erase", 0]
    return add


def negative_prompt(graph: Graph, task: table.Task) -> None:
    graph["negative"]["inputs"]["text"] = ", ".join(task.names)


METHODS = {
    "none": Method("no erasure", lambda graph, task: None),
    "ablate": Method("ablate (recommended)", ours("ablate")),
    "replace": Method("replace", ours("replace")),
    "steer": Method("steer -2", ours("steer", -2.0)),
    "papers": Method("the papers' hook, gamma -1", papers(-1.0, True)),
    "papers-fixed": Method("the papers' hook, sign of the error mended", papers(-1.0, False)),
    "negative": Method("negative prompt", negative_prompt),
}
QUICK_METHODS = ("none", "ablate", "replace")


def tasks(quick: bool) -> dict[str, list[table.Task]]:
    """{group: tasks}; the quick subset keeps near neighbours (cat, dog, bear; sunflower, rose)."""
    if quick:
        return {"objects": [table.object_task([OBJECTS.index(o)]) for o in ("cat", "bear", "rose", "key")],
                "styles": [table.style_task([s]) for s in (0, 3)]}
    return {
        "objects": [table.object_task([o]) for o in range(len(OBJECTS))],
        "styles": [table.style_task([s]) for s in range(len(STYLES))],
        "3 objects": table.several("object", 3, 3), "9 objects": table.several("object", 9, 2),
        "3 styles": table.several("style", 3, 2),
    }


def draw(host: ComfyHost, method: Method, task: table.Task, seed: int, steps: int = STEPS) -> torch.Tensor:
    """The task's pictures [n, 3, px, px] in 0..1."""
    pictures = []
    for start in range(0, len(task.pairs), BATCH):
        graph = base_graph(task.pairs[start:start + BATCH], seed + start, steps)
        method.add(graph, task)
        pictures += [decode_png(png) for png in host.run(graph, timeout=3600).images]
    return torch.stack(pictures)


def decode_png(png: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3) \
        .permute(2, 0, 1).float() / 255


def fingerprint() -> str:
    """Changes when the weights do: results of other weights are not reused."""
    digest = hashlib.sha256()
    for name in ("unet", "vae", "sae", "judge"):
        digest.update((WEIGHTS / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """Scores by method and task, written after every task."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = json.loads(path.read_text()) if path.exists() else {}
        if self.data.get("weights") != fingerprint():
            self.data = {"weights": fingerprint(), "scores": {}}

    def get(self, method: str, group: str, task: table.Task, make: Callable[[], table.Score]) -> table.Score:
        key = f"{method} | {group} | {', '.join(task.names)}"
        if key not in self.data["scores"]:
            self.data["scores"][key] = {k: round(v, 2) for k, v in asdict(make()).items()}
            self.write()
        return table.Score(**self.data["scores"][key])

    def write(self) -> None:
        write_json(self.path, self.data)


def link_bench_nodes() -> None:
    link = COMFY / "custom_nodes" / "minicanvas-bench"
    if link.resolve() != BENCH_NODES:
        link.unlink(missing_ok=True)
        link.symlink_to(BENCH_NODES)


def base_accuracy(host: ComfyHost, judge: Judge, seeds: int = 2) -> tuple[float, float]:
    """(objects, styles) drawn right over all pairs without erasure, in per cent."""
    pairs = tuple((o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES)))
    task = table.Task("object", (), pairs)
    verdicts = [judge.verdict(draw(host, METHODS["none"], task, 500_000 * (i + 1))) for i in range(seeds)]
    obj, style = (torch.tensor(side) for side in zip(*pairs, strict=True))
    right = [[float((v.object == obj).float().mean()), float((v.style == style).float().mean())] for v in verdicts]
    return tuple((100 * torch.tensor(right).mean(0)).tolist())


def run(host: ComfyHost, judge: Judge, results: Results, groups: dict[str, list[table.Task]],
        methods: list[str]) -> dict[str, dict[str, table.Score]]:
    """{group: {method: mean score}}, printing each row as it is done."""
    means: dict[str, dict[str, table.Score]] = {}
    for group, members in groups.items():
        print(f"\n{group} ({len(members)} tasks)\n{'':44}   UA    IRA    CRA     AR", flush=True)
        for name in methods:
            def make(task: table.Task, seed: int, name: str = name) -> Callable[[], table.Score]:
                return lambda: table.score(task, judge.verdict(draw(host, METHODS[name], task, seed)))
            scores = [results.get(name, group, task, make(task, 1000 * (i + 1))) for i, task in enumerate(members)]
            mean = means.setdefault(group, {})[name] = table.mean(scores)
            print(f"{METHODS[name].title:42} {mean.UA:6.1f} {mean.IRA:6.1f} {mean.CRA:6.1f} {mean.AR:6.1f}", flush=True)
    return means


GRID_PAIRS = (("cat", "noto"), ("dog", "noto"), ("rose", "fluent"), ("castle", "contrast"), ("rocket", "emojione"))
GRID_ERASED = (("object", "cat"), ("object", "rose"), ("style", "contrast"))
GRID_PX = 144


def picture_grid(host: ComfyHost, methods: list[str], path: Path) -> None:
    """The same five prompts without erasure and with each of a few concepts erased, a row each, for each method."""
    pairs = tuple((OBJECTS.index(o), STYLES.index(s)) for o, s in GRID_PAIRS)

    def row(name: str, label: str, kind: str, concept: str, color: str) -> Row:
        index = (OBJECTS if kind == "object" else STYLES).index(concept)
        drawn = draw(host, METHODS[name], table.Task(kind, (index,), pairs), 77)
        pixels = (drawn * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return Row(label, [Image.fromarray(picture) for picture in pixels], color)

    rows = [row("none", "no erasure", *GRID_ERASED[0], PLAIN)]
    rows += [row(name, f"{concept} erased: {METHODS[name].title}", kind, concept, ERASED)
             for kind, concept in GRID_ERASED for name in methods if name != "none"]
    sheet([prompt(*pair) for pair in GRID_PAIRS], rows, GRID_PX).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fixed subset of tasks and methods")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="only these")
    parser.add_argument("--bf16", action="store_true", help="let the CPU multiply in bfloat16: faster, less exact")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    link_bench_nodes()
    results = Results(RESULTS / ("minicanvas-quick.json" if options.quick else "minicanvas.json"))
    methods = options.methods or list(QUICK_METHODS if options.quick else METHODS)
    judge = load_judge()
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host:
        if "base" not in results.data and not options.quick:
            results.data["base"] = dict(zip(("objects", "styles"), base_accuracy(host, judge), strict=True))
            results.write()
        if "base" in results.data:
            print("drawn right without erasure: {objects:.1f} % of objects, {styles:.1f} % of styles".format(
                **results.data["base"]))
        means = run(host, judge, results, tasks(options.quick), methods)
        results.data["means"] = {g: {m: asdict(s) for m, s in row.items()} for g, row in means.items()}
        results.write()
        picture_grid(host, methods, results.path.with_suffix(".png"))
    print(f"\nwritten: {results.path} and {results.path.with_suffix('.png')}")


if __name__ == "__main__":
    main()

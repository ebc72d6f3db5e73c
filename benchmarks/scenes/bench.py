"""How well concepts are erased from MiniCanvas, and what else changes: the table.

    python -m benchmarks.scenes.bench              every object, style and ground, alone and several, every method
    python -m benchmarks.scenes.bench --quick      a fixed subset

Every picture is made by a real ComfyUI over its HTTP API; each method paints the same prompts from the same noise.
Finished tasks are kept in benchmarks/results/, so a run that was stopped goes on from there. It needs `weights/` to be
whole, which it is not yet (README).
"""
import argparse
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost, Graph
from tools.sheet import ERASED, PLAIN, Row, sheet

from . import rivals, table
from .canvas import CANVAS_PX, Scene, random_scene
from .checkpoint import NAME, WEIGHTS, unpacked
from .icons import OBJECTS, STYLES
from .judge import Judge, load_judge
from .models import new_unet
from .table import Shot, Task
from .text import TEMPLATES

RESULTS = Path(__file__).resolve().parents[1] / "results"
BENCH_NODES = Path(__file__).with_name("bench_nodes")
MADE = COMFY / "models" / "minicanvas-bench"
STEPS, CFG, BATCH = 12, 2.5, 24
GUIDANCES = (1.0, 2.5, 5.0)


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
                              end=1.0, concepts=", ".join(name + suffix for name in task.names), apply_to="both")
        graph["sampler"]["inputs"]["model"] = ["erase", 0]
    return add


def negative_prompt(graph: Graph, task: Task) -> None:
    graph["negative"]["inputs"]["text"] = ", ".join(task.names)


def nag(graph: Graph, task: Task) -> None:
    graph["unwanted"] = node("CLIPTextEncode", clip=["checkpoint", 1], text=", ".join(task.names))
    graph["nag"] = node("MiniCanvasNAG", model=["checkpoint", 0], negative=["unwanted", 0], scale=4.0, tau=2.5,
                        alpha=0.38)
    graph["sampler"]["inputs"]["model"] = ["nag", 0]


def edited(make: Callable[[torch.nn.Module, list[str]], rivals.Deltas]) -> Callable[[Graph, Task], None]:
    """Weights changed for a task's concepts, made when they are first asked for."""
    def add(graph: Graph, task: Task) -> None:
        key = hashlib.sha256(f"{fingerprint()} {task.names}".encode()).hexdigest()[:12]
        path = MADE / f"{make.__name__}-{key}.safetensors"
        if not path.exists():
            rivals.ship(lambda: make(rivals_unet(), task.names), path)
        graph["weights"] = node("MiniCanvasWeights", model=["checkpoint", 0], path=str(path))
        graph["sampler"]["inputs"]["model"] = ["weights", 0]
    return add


@cache
def rivals_unet() -> torch.nn.Module:
    unet = new_unet()
    unet.load_state_dict({name: value.float() for name, value in
                          unpacked(load_file(WEIGHTS / "unet.safetensors")).items()})
    return unet.eval()


def uce(unet: torch.nn.Module, names: list[str]) -> rivals.Deltas:
    return rivals.uce(unet, [rivals.word(name) for name in names], rivals.others(names))


def esd_x(unet: torch.nn.Module, names: list[str]) -> rivals.Deltas:
    return rivals.esd_x(unet, [text for name in names for text in rivals.prompts(name)])


METHODS = {
    "none": Method("no erasure"),
    "without": Method("the prompt without the word (the reference)",
                      text=lambda task, shot: shot.without(task.kind, task.erased).text),
    "ours": Method("ours, every cross-attention", ours()),
    "negative": Method("negative prompt", negative_prompt),
    "nag": Method("NAG", nag),
    "uce": Method("UCE", edited(uce)),
    "esd-x": Method("ESD-x", edited(esd_x)),
}
QUICK_METHODS = ("none", "without", "ours")


def single(kind: str, names: Sequence[int]) -> list[Task]:
    return [table.task(kind, [i]) for i in names]


def groups(quick: bool) -> dict[str, list[Task]]:
    """{group: tasks}; the quick subset keeps near neighbours (cat, bear; rose)."""
    if quick:
        some = [OBJECTS.index(name) for name in ("cat", "bear", "rose", "key")]
        return {"objects": single("object", some), "styles": single("style", (0, 3)), "grounds": single("ground", (1,))}
    singles = {f"{kind}s": single(kind, range(len(names))) for kind, names in table.KINDS.items()}
    return singles | {
        "neighbours": table.neighbours(), "3 objects": table.several("object", 3, 6),
        "9 objects": table.several("object", 9, 12), "3 styles": table.several("style", 3, 4),
        "other words": table.held_out([*singles["objects"][::4], *singles["styles"][::2]]),
    }


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


def fingerprint() -> str:
    """Changes when the weights do: results of other weights are not reused."""
    digest = hashlib.sha256()
    for name in ("unet", "vae", "concepts", "judge"):
        digest.update((WEIGHTS / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """Scores by method, guidance and task, written after every task."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = json.loads(path.read_text()) if path.exists() else {}
        if self.data.get("weights") != fingerprint():
            self.data = {"weights": fingerprint(), "scores": {}}

    def get(self, key: str, make: Callable[[], table.Score]) -> table.Score:
        if key not in self.data["scores"]:
            self.data["scores"][key] = {k: v if v is None else round(v, 2) for k, v in asdict(make()).items()}
            self.write()
        return table.Score(**self.data["scores"][key])

    def write(self) -> None:
        write_json(self.path, self.data)


def link_bench_nodes() -> None:
    link = COMFY / "custom_nodes" / "minicanvas-bench"
    if link.resolve() != BENCH_NODES:
        link.unlink(missing_ok=True)
        link.symlink_to(BENCH_NODES)


def any_scenes(count: int = 240, seed: int = 5) -> Task:
    """Scenes of all kinds, in all words of training."""
    generator = torch.Generator().manual_seed(seed)
    return Task("object", (), tuple(Shot(random_scene(generator), TEMPLATES[i % len(TEMPLATES)]) for i in range(count)))


def base_accuracy(host: ComfyHost, judge: Judge, seeds: int = 2) -> dict[str, float]:
    """{kind: share of any scenes that show all that is said of it, without erasure}, in per cent."""
    task = any_scenes()
    rights = [table.rights(task.shots, judge.verdict(paint(host, METHODS["none"], task, 500_000 * (i + 1), steps=20)))
              for i in range(seeds)]
    return {kind: round(100 * sum(float(right[kind].float().mean()) for right in rights) / seeds, 1)
            for kind in table.KINDS}


HEADS = {"UA": "UA", "IRA": "IRA", "CRA": "CRA", "in_scene": "in-scene", "nothing_alone": "nothing: alone",
         "nothing_in_scene": "in scenes"}


def line(score: table.Score) -> str:
    return "  ".join(f"{'' if (value := getattr(score, name)) is None else f'{value:.1f}':>{max(6, len(head))}}"
                     for name, head in HEADS.items())


def run(host: ComfyHost, judge: Judge, results: Results, cfg: float, members: dict[str, list[Task]],
        methods: Sequence[str]) -> dict[str, dict[str, table.Score]]:
    """{group: {method: mean score}}, printing each row as it is done."""
    means: dict[str, dict[str, table.Score]] = {}
    for group, tasks in members.items():
        print(f"\n{group} ({len(tasks)} tasks), guidance {cfg:g}\n{'':44}"
              + "  ".join(f"{head:>6}" for head in HEADS.values()), flush=True)
        for name in methods:
            def make(task: Task, seed: int, name: str = name) -> Callable[[], table.Score]:
                return lambda: table.score(task, judge.verdict(paint(host, METHODS[name], task, seed, cfg)))
            scores = [results.get(f"{name} | {cfg:g} | {group} | {', '.join(task.names)}", make(task, 1000 * (i + 1)))
                      for i, task in enumerate(tasks)]
            means.setdefault(group, {})[name] = table.mean(scores)
            print(f"{METHODS[name].title:44}{line(means[group][name])}", flush=True)
    return means


GRID = ((("cat", "castle"), "noto", "blue"), (("dog", "rose"), "noto", "dotted"), (("key", "cat"), "mono", "yellow"),
        (("frog", "guitar"), "contrast", "white"), (("penguin",), "fluent", "striped"))
GRID_ERASED = (("object", "cat"), ("object", "castle"), ("style", "contrast"), ("ground", "dotted"))
GRID_PX = 144


def grid_shots() -> tuple[Shot, ...]:
    return tuple(Shot(Scene(tuple(OBJECTS.index(name) for name in names), STYLES.index(style),
                            table.BACKGROUNDS.index(ground)), TEMPLATES[0]) for names, style, ground in GRID)


def picture_grid(host: ComfyHost, methods: Sequence[str], path: Path) -> None:
    """The same five scenes without erasure and with each of a few concepts erased, a row each, for each method."""
    shots = grid_shots()

    def row(name: str, label: str, kind: str, concept: str, color: str) -> Row:
        task = Task(kind, (table.KINDS[kind].index(concept),), shots)
        pixels = (paint(host, METHODS[name], task, 77) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return Row(label, [Image.fromarray(picture) for picture in pixels], color)

    rows = [row("none", "no erasure", *GRID_ERASED[0], PLAIN)]
    rows += [row(name, f"{concept} erased: {METHODS[name].title}", kind, concept, ERASED)
             for kind, concept in GRID_ERASED for name in methods if name != "none"]
    sheet([shot.text for shot in shots], rows, GRID_PX).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fixed subset of tasks and methods")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="only these")
    parser.add_argument("--groups", nargs="*", help="only these groups of tasks")
    parser.add_argument("--guidance", nargs="*", type=float, help="1, 2.5 and 5 unless given (--quick: 2.5)")
    parser.add_argument("--bf16", action="store_true", help="let the CPU multiply in bfloat16: faster, less exact")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    link_bench_nodes()
    results = Results(RESULTS / ("scenes-quick.json" if options.quick else "scenes.json"))
    methods = options.methods or list(QUICK_METHODS if options.quick else METHODS)
    members = {name: of for name, of in groups(options.quick).items() if name in (options.groups or [name])}
    judge = load_judge()
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host:
        if "base" not in results.data and not options.quick:
            results.data["base"] = base_accuracy(host, judge)
            results.write()
        if "base" in results.data:
            print("painted right without erasure: {object:.1f} % of objects, {style:.1f} % of styles, "
                  "{ground:.1f} % of grounds".format(**results.data["base"]))
        for cfg in options.guidance or ((CFG,) if options.quick else GUIDANCES):
            means = run(host, judge, results, cfg, members, methods)
            results.data.setdefault("means", {})[f"{cfg:g}"] = {
                group: {name: asdict(score) for name, score in row.items()} for group, row in means.items()}
            results.write()
        picture_grid(host, methods, results.path.with_suffix(".png"))
    print(f"\nwritten: {results.path} and {results.path.with_suffix('.png')}")


if __name__ == "__main__":
    main()

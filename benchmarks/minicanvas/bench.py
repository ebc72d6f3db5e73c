"""How well concepts are erased from MiniCanvas's scenes, and what else changes: the table.

    python -m benchmarks.minicanvas.bench           what the concept file has, alone and several; 3 guidances
    python -m benchmarks.minicanvas.bench --quick   a fixed subset, some minutes on a CPU

Every picture is made by a real ComfyUI over its HTTP API; each method paints the same prompts from the same noise.
Finished tasks are kept in benchmarks/results/, so a run that was stopped goes on from there. The papers' hook wants an
SAE, which `methods` trains; ESD-x takes minutes of training for each task, and is run where it is asked for.
"""
import argparse
import filecmp
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from sae_models.formats import read_headers
from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost, Graph
from tools.sheet import ERASED, PLAIN, Row, sheet

from . import find, rivals, table
from .canvas import Scene, random_scene
from .checkpoint import NAME, WEIGHTS, unpacked
from .icons import OBJECTS, STYLES
from .judge import Judge, load_judge
from .models import new_unet
from .paint import CFG, Method, link_bench_nodes, node, ours, paint
from .table import Shot, Task
from .text import TEMPLATES

RESULTS = Path(__file__).resolve().parents[1] / "results"
MADE = COMFY / "models" / "minicanvas-bench"
BLOCK, BLOCK_PATH = "up_blocks.0.attentions.0", "output_blocks.0.1"
"""One block's output, as the papers hook it, by its two names; which one is best was not measured yet (places.py)."""
PAPERS_SAE = COMFY / "models" / "sae" / "minicanvas-methods" / "published-0.safetensors"
"""Made by methods.py."""
BLOCKS = ", ".join(("down_blocks.0.attentions.0", "down_blocks.1.attentions.0", "mid_block.attentions.0",
                    "up_blocks.0.attentions.0", "up_blocks.0.attentions.1", "up_blocks.1.attentions.1"))
GUIDANCES = (1.0, 2.5, 5.0)


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


def found(hookpoint: str) -> str:
    """The concept file of all concepts with rows at these places only, in the host's folder."""
    return f"minicanvas-bench-{hashlib.sha256(f'{fingerprint()} {hookpoint}'.encode()).hexdigest()[:12]}"


def ours_at(hookpoint: str) -> Callable[[Graph, Task], None]:
    return lambda graph, task: ours(f"{found(hookpoint)}.safetensors")(graph, task)


def find_missing(host: ComfyHost, methods: Sequence[str], names: Sequence[str]) -> None:
    """Find the concepts at the places that some methods erase at."""
    for name, hookpoint in (("block", BLOCK), ("blocks", BLOCKS)):
        if name in methods and not find.path_of(found(hookpoint)).exists():
            seconds = find.find(host, names, file=found(hookpoint), hookpoint=hookpoint)
            print(f"{METHODS[name].title}: found in {seconds:.0f} s", flush=True)


def papers(graph: Graph, task: Task) -> None:
    graph["erase"] = node("MiniCanvasPapersHook", model=["checkpoint", 0], block=BLOCK_PATH, gamma=-1.0,
                          sae_path=str(PAPERS_SAE), concepts=", ".join(task.names), sign_error=True)
    graph["sampler"]["inputs"]["model"] = ["erase", 0]


METHODS = {
    "none": Method("no erasure"),
    "without": Method("the prompt without the word (the reference)",
                      text=lambda task, shot: shot.without(task.kind, task.erased).text),
    "ours": Method("ours, every cross-attention", ours()),
    "thorough": Method("ours, every cross-attention, thorough", ours(actuator="thorough")),
    "block": Method("ours, one block's output", ours_at(BLOCK)),
    "blocks": Method("ours, every block's output", ours_at(BLOCKS)),
    "papers": Method("the papers' hook", papers),
    "negative": Method("negative prompt", negative_prompt),
    "nag": Method("NAG", nag),
    "uce": Method("UCE", edited(uce)),
    "esd-x": Method("ESD-x", edited(esd_x)),
}
QUICK_METHODS = ("none", "without", "ours", "negative", "uce")
USUAL_METHODS = tuple(name for name in METHODS if name not in ("esd-x", "papers"))


def known() -> dict[str, list[int]]:
    """{kind: concepts of the committed file}, in MiniCanvas's order; the file need not have all."""
    names = {concept.name for concept in read_headers(WEIGHTS / "concepts.safetensors")[0].concepts}
    return {kind: [i for i, word in enumerate(words) if table.NAMES[kind].format(word) in names]
            for kind, words in table.KINDS.items()}


def known_names() -> list[str]:
    return [table.NAMES[kind].format(table.KINDS[kind][i]) for kind, indices in known().items() for i in indices]


def groups(quick: bool) -> dict[str, list[Task]]:
    """{group: tasks}; the quick subset erases what is in the committed concept file."""
    if quick:
        tasks = [table.task_of(name) for name in find.SOME]
        return {f"{kind}s": [task for task in tasks if task.kind == kind] for kind in table.KINDS}
    have = known()
    singles = {f"{kind}s": [table.task(kind, [i]) for i in indices] for kind, indices in have.items()}
    return singles | {
        "neighbours": [task for task in table.neighbours() if set(task.erased) <= set(have["object"])],
        "3 objects": table.several("object", 3, 6, have["object"]),
        "9 objects": table.several("object", 9, 12, have["object"]),
        "3 styles": table.several("style", 3, 4, have["style"]),
        "other words": table.held_out([*singles["objects"][::4], *singles["styles"][::2]]),
    }


def fingerprint(names: Sequence[str] = ("unet", "vae", "judge")) -> str:
    """Changes when these weights do: results of other weights are not reused."""
    digest = hashlib.sha256()
    for name in names:
        digest.update((WEIGHTS / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()[:16]


class Results:
    """Scores by method, guidance and task, written after every task."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = json.loads(path.read_text()) if path.exists() else {}
        made_with = {"weights": fingerprint(), "concepts": fingerprint(["concepts"])}
        scores = data.get("scores", {}) if data.get("weights") == made_with["weights"] else {}
        if data.get("concepts") != made_with["concepts"]:
            scores = {key: score for key, score in scores.items() if not key.startswith("ours |")}
        self.data = data | made_with | {"scores": scores} if scores else made_with | {"scores": {}}

    def get(self, key: str, make: Callable[[], table.Score]) -> table.Score:
        if key not in self.data["scores"]:
            self.data["scores"][key] = {k: v if v is None else round(v, 2) for k, v in asdict(make()).items()}
            self.write()
        return table.Score(**self.data["scores"][key])

    def write(self) -> None:
        write_json(self.path, self.data)


def any_scenes(count: int = 240, seed: int = 5) -> Task:
    """Scenes of all kinds, in all words of training."""
    generator = torch.Generator().manual_seed(seed)
    return Task("object", (), tuple(Shot(random_scene(generator), TEMPLATES[i % len(TEMPLATES)]) for i in range(count)))


def base_accuracy(host: ComfyHost, judge: Judge, seeds: int) -> dict[str, float]:
    """{kind: share of any scenes that show all that is said of it, without erasure}, in per cent."""
    task = any_scenes()
    rights = [table.rights(task.shots, judge.verdict(paint(host, METHODS["none"], task, 500_000 * (i + 1), steps=20)))
              for i in range(seeds)]
    return {kind: round(100 * sum(float(right[kind].float().mean()) for right in rights) / seeds, 1)
            for kind in table.KINDS}


def told(results: Results, cfg: float, figure: str) -> float | None:
    """The rank correlation of *removed*, as the concept file has it, with a figure of ours; over the concepts that were
    erased one at a time. None where that figure is the same for all."""
    removed = {concept.name: concept.measured.get("removed")
               for concept in read_headers(WEIGHTS / "concepts.safetensors")[0].concepts}
    pairs = [(removed[name], score[figure]) for kind in table.KINDS for name in known_names()
             if (score := results.data["scores"].get(f"ours | {cfg:g} | {kind}s | {name}"))]
    correlation = table.rank_correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else float("nan")
    return None if correlation != correlation else round(correlation, 2)


HEADS = {"UA": "UA", "IRA": "IRA", "CRA": "CRA", "in_scene": "in-scene", "nothing_alone": "nothing: alone",
         "nothing_in_scene": "in scenes"}


def line(score: table.Score) -> str:
    return "  ".join(f"{'' if (value := getattr(score, name)) is None else f'{value:.1f}':>{max(6, len(head))}}"
                     for name, head in HEADS.items())


def run(host: ComfyHost, judge: Judge, results: Results, cfg: float, members: dict[str, list[Task]],
        methods: Sequence[str]) -> dict[str, dict[str, table.Score]]:
    """{group: {method: mean score}}, printing each row as it is done."""
    means: dict[str, dict[str, table.Score]] = {}
    for group, tasks in ((group, tasks) for group, tasks in members.items() if tasks):
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
GRID_ERASED = ("cat", "castle", "contrast style", "dotted ground")
GRID_PX = 144


def grid_shots() -> tuple[Shot, ...]:
    return tuple(Shot(Scene(tuple(OBJECTS.index(name) for name in names), STYLES.index(style),
                            table.BACKGROUNDS.index(ground)), TEMPLATES[0]) for names, style, ground in GRID)


def picture_grid(host: ComfyHost, methods: Sequence[str], erased: Sequence[str], path: Path) -> None:
    """The same five scenes without erasure and with each of a few concepts erased, a row each, for each method."""
    shots = grid_shots()

    def row(name: str, label: str, concept: str, color: str) -> Row:
        task = replace(table.task_of(concept), shots=shots)
        pixels = (paint(host, METHODS[name], task, 77) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return Row(label, [Image.fromarray(picture) for picture in pixels], color)

    rows = [row("none", "no erasure", erased[0], PLAIN)]
    rows += [row(name, f"{concept} erased: {METHODS[name].title}", concept, ERASED)
             for concept in erased for name in methods if name != "none"]
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
    if not filecmp.cmp(WEIGHTS / "concepts.safetensors", COMFY / "models" / "sae" / NAME, shallow=False):
        parser.error("the host has the concepts of before: run `make checkpoint`")
    link_bench_nodes()
    results = Results(RESULTS / ("minicanvas-quick.json" if options.quick else "minicanvas.json"))
    methods = options.methods or list(QUICK_METHODS if options.quick else USUAL_METHODS)
    members = {name: of for name, of in groups(options.quick).items() if name in (options.groups or [name])}
    judge = load_judge()
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host:
        find_missing(host, methods, find.SOME if options.quick else known_names())
        for cfg in options.guidance or ((CFG,) if options.quick else GUIDANCES):
            means = run(host, judge, results, cfg, members, methods)
            for group, row in means.items():
                results.data.setdefault("means", {}).setdefault(f"{cfg:g}", {}).setdefault(group, {}).update(
                    {name: asdict(score) for name, score in row.items()})
            results.data.setdefault("removed tells", {})[f"{cfg:g}"] = {
                figure: told(results, cfg, figure) for figure in ("UA", "in_scene")}
            results.write()
        if "base" not in results.data:
            results.data["base"] = base_accuracy(host, judge, 1 if options.quick else 2)
            results.write()
        print("painted right without erasure: {object:.1f} % of scenes in all their objects, {style:.1f} % in style, "
              "{ground:.1f} % in ground".format(**results.data["base"]), flush=True)
        picture_grid(host, methods, find.SOME if options.quick else GRID_ERASED, results.path.with_suffix(".png"))
    print(f"\nwritten: {results.path} and {results.path.with_suffix('.png')}")


if __name__ == "__main__":
    main()

"""How training and selection methods compare on MiniCanvas: our loss, SAEmnesia's as published, SAeUron's selection.

    python -m benchmarks.minicanvas.methods

Pictures are painted once by the training command and kept; on what they show, for each of three seeds, SAEs are
trained with our loss in one run, at every cross-attention and at the papers' place, one block's output; and there one
without concepts, in which SAeUron's score selects the top 1, 2 or 3 latents; from the latter the published loss goes
on, as its authors did. A method that has a strength to choose tries `STRENGTHS` on two concepts with the first seed and
keeps the best mean of UA, IRA, CRA and in-scene; then all are judged on the quick tasks of `bench` and on near
neighbours. Every step that is done is kept, so a run that was stopped goes on.
"""
import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from queue import Queue
from statistics import pstdev
from threading import Lock

from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost

from . import bench, table
from .checkpoint import NAME
from .find import CONCEPTS, TEMPLATES
from .judge import Judge, load_judge
from .paint import CFG, Method, link_bench_nodes, ours, paint

ROOT = Path(__file__).resolve().parents[2]
SAES = COMFY / "models" / "sae" / "minicanvas-methods"
ACTIVATIONS = ROOT / ".host" / "minicanvas-activations"
RESULTS = ROOT / "benchmarks" / "results" / "minicanvas-methods.json"
SEEDS = (0, 1, 2)
STRENGTHS = (-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0)
PLACES = ",".join([*(f"{block}.transformer_blocks.0.attn2" for block in bench.BLOCKS.split(", ")), bench.BLOCK])
SIZES = {"attentions": ("--batch", "32"), "block": ("--latents", "2560", "--k", "48", "--batch", "64", "--lr", "0.002")}
PUSH = {"attentions": (), "block": ("--push", "1.5")}
PAINTED = ("--width", "96", "--height", "96", "--cfg", CFG, "--at-once", "32", "--pictures", "1088")


@dataclass(frozen=True)
class Way:
    """A way to get a concept's neurons. at: where; sae: which training it takes; neurons: how many SAeUron selects, 0
    for the trained one; chooses: whether a strength has to be found."""
    title: str
    sae: str
    at: str = "block"
    neurons: int = 0
    chooses: bool = True


METHODS = {
    "ours": Way("ours, every cross-attention", "ours", "attentions", chooses=False),
    "ours-block": Way("ours, one block's output", "ours-block", chooses=False),
    "published": Way("SAEmnesia's loss as published", "published"),
    **{f"top-{n}": Way(f"SAeUron's selection, top {n}", "plain", neurons=n) for n in (1, 2, 3)},
}


# --- training ------------------------------------------------------------------------------------------


class Trainings:
    """Makes the SAEs that are not there, each on `threads` threads."""

    def __init__(self, threads: int) -> None:
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}

    def _python(self, *arguments: object, cwd: Path = ROOT) -> None:
        subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, check=True, env=self.environment)

    def paint(self) -> None:
        """What all of them learn from, each kind of place in a folder of its own."""
        if not (ACTIVATIONS / "block").exists():
            self._python("custom_nodes/comfyui-saemnesia/train.py", "--checkpoint", f"models/checkpoints/{NAME}",
                         "--concepts", CONCEPTS, "--prompts", TEMPLATES, "--keep", ACTIVATIONS / "attentions",
                         "--hookpoint", PLACES, *PAINTED, cwd=COMFY)
            (ACTIVATIONS / "attentions" / bench.BLOCK).rename(ACTIVATIONS / "block")

    def train(self, sae: str, at: str, seed: int, *options: object) -> None:
        if not (path := sae_file(sae, seed)).exists():
            self._python("-m", "sae_models.learning.train", ACTIVATIONS / at, "--out", path, "--seed", seed,
                         *SIZES[at], *options)

    def of_seed(self, seed: int) -> None:
        """What the methods need of one seed but for our own SAEs."""
        self.train("plain", "block", seed, "--supervised-steps", 0)
        self.train("published", "block", seed, "--start", sae_file("plain", seed), "--loss", "published")
        for way in METHODS.values():
            if way.neurons and not (found := file_of(way, seed)).exists():
                self._python("-m", "sae_models.learning.find", sae_file("plain", seed), ACTIVATIONS / "block", "--out",
                             found, "--neurons", way.neurons)


def sae_file(sae: str, seed: int) -> Path:
    return SAES / f"{sae}-{seed}.safetensors"


def file_of(way: Way, seed: int) -> Path:
    """The SAE of a way, or the concept file of the latents that were selected for it."""
    return sae_file(f"top{way.neurons}" if way.neurons else way.sae, seed)


def make_all(at_once: int, threads: int, seeds: Sequence[int]) -> None:
    SAES.mkdir(parents=True, exist_ok=True)
    trainings = Trainings(threads)
    own = [(way.sae, way.at) for way in METHODS.values() if not way.chooses]
    trainings.paint()
    with ThreadPoolExecutor(at_once) as pool:
        work = [pool.submit(trainings.of_seed, seed) for seed in seeds]
        work += [pool.submit(trainings.train, sae, at, seed, *PUSH[at]) for sae, at in own for seed in seeds]
        for one in work:
            one.result()


def figures(seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """{sae: FVU, dead latents and scores, averaged over the seeds}, from the reports beside the files.

    score: of the concepts' best latents; centralisation: how many times that of the plain SAE of the same seed.
    """
    rows = {}
    for sae in ("ours", "ours-block", "published", "plain"):
        reports, plain = ([json.loads((SAES / f"{name}-{seed}.report.json").read_text()) for seed in seeds]
                          for name in (sae, "plain"))
        score, before = ([average(concept["score"] for concept in report["concepts"]) for report in of]
                         for of in (reports, plain))
        rows[sae] = {"fvu": average(report["fvu"] for report in reports),
                     "dead": average(report["dead"] for report in reports), "score": average(score),
                     "centralisation": average(a / b for a, b in zip(score, before, strict=True))}
    return rows


def average(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


# --- erasing -------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def tasks() -> dict[str, list[table.Task]]:
    return bench.groups(quick=True) | {"neighbours": table.neighbours()}


class Scores:
    """{"SAE's digest | method and seed | strength | task": score}, written after every task; several hosts draw."""

    def __init__(self, hosts: Iterable[ComfyHost], judge: Judge) -> None:
        self.judge, self.lock, self.hosts = judge, Lock(), Queue()
        for host in hosts:
            self.hosts.put(host)
        self.data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"scores": {}}

    @contextmanager
    def host(self) -> Iterator[ComfyHost]:
        host = self.hosts.get()
        try:
            yield host
        finally:
            self.hosts.put(host)

    def get(self, seed: int, name: str, strength: float, task: table.Task) -> table.Score:
        path = file_of(METHODS[name], seed)
        key = f"{digest(path)} | {name} {seed} | {strength:g} | {', '.join(task.names)} of {len(task.shots)}"
        if key not in self.data["scores"]:
            with self.host() as host:
                painted = paint(host, Method(name, self._erase(path, strength)), task, 1000)
            with self.lock:
                score = table.score(task, self.judge.verdict(painted))
                self.data["scores"][key] = {k: v if v is None else round(v, 2) for k, v in asdict(score).items()}
                write_json(RESULTS, self.data)
                print(key, self.data["scores"][key], flush=True)
        return table.Score(**self.data["scores"][key])

    @staticmethod
    def _erase(path: Path, strength: float) -> Callable[[dict, table.Task], None]:
        actuator = ("ablate",) if strength == -1.0 else ("steer", strength)

        def add(graph: dict, task: table.Task) -> None:
            ours(f"minicanvas-methods/{path.name}", *actuator)(graph, task)
        return add

    def mean(self, seed: int, name: str, strength: float, tasks: list[table.Task]) -> table.Score:
        return table.mean([self.get(seed, name, strength, task) for task in tasks])

    def plain(self) -> dict[str, dict]:
        """The same pictures without erasure."""
        def of(task: table.Task) -> table.Score:
            with self.host() as host:
                return table.score(task, self.judge.verdict(paint(host, bench.METHODS["none"], task, 1000)))
        return {group: asdict(table.mean([of(task) for task in listed])) for group, listed in tasks().items()}

    def row(self, name: str, seeds: Sequence[int]) -> dict:
        """A method's figures over all seeds, at the strength that did best with the first; spread: the standard
        deviation over seeds of the mean of UA, IRA, CRA and in-scene."""
        method, groups = METHODS[name], tasks()
        tuned_on = [groups["objects"][0], groups["styles"][0]]
        tried = STRENGTHS if method.chooses else STRENGTHS[:1]
        best = max(tried, key=lambda s: quality(self.mean(seeds[0], name, s, tuned_on))) if method.chooses else tried[0]
        by_seed = {group: [self.mean(seed, name, best, of) for seed in seeds] for group, of in groups.items()}
        return {"title": method.title, "strength": best, "evaluations": len(tried)} | {
            group: asdict(table.mean(scores)) | {"spread": round(pstdev(map(quality, scores)), 2)}
            for group, scores in by_seed.items()}


def quality(score: table.Score) -> float:
    """The mean of what was painted for."""
    return average(value for value in (score.UA, score.IRA, score.CRA, score.in_scene) if value is not None)


def show(data: dict) -> None:
    for name, row in data["trainings"].items():
        print(f"{name:12} FVU {row['fvu']:.3f}  dead {row['dead']:.1%}  score {row['score']:.4f}  "
              f"centralisation {row['centralisation']:.2f}x")
    heads = "".join(f" | {group:10} UA    IRA    CRA  scene   mean" for group in tasks())
    print(f"\n{'':32}{'strength':>9}{'tried':>6}{heads}")
    nothing = {"title": "no erasure", "strength": 0, "evaluations": 0} | data["plain"]
    for row in (nothing, *data["methods"].values()):
        scores = [table.Score(**{field.name: row[group][field.name] for field in fields(table.Score)})
                  for group in tasks()]
        cells = [(score.UA, score.IRA, score.CRA, score.in_scene, quality(score)) for score in scores]
        print(f"{row['title']:32}{row['strength']:9g}{row['evaluations']:6}" + "".join(
            " |        " + " ".join("      " if number is None else f"{number:6.1f}" for number in group)
            for group in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", action="store_true", help="let the CPU multiply in bfloat16: faster, less exact")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--at-once", type=int, default=2, help="how many trainings, and hosts, run beside each other")
    parser.add_argument("--threads", type=int, default=1, help="of each of them")
    options = parser.parse_args()
    make_all(options.at_once, options.threads, options.seeds)
    link_bench_nodes()
    with ExitStack() as stack:
        hosts = [stack.enter_context(ComfyHost(threads=options.threads, bf16=options.bf16))
                 for _ in range(options.at_once)]
        scores = Scores(hosts, load_judge())
        with ThreadPoolExecutor(options.at_once) as pool:
            rows = dict(zip(METHODS, pool.map(lambda name: scores.row(name, options.seeds), METHODS), strict=True))
        scores.data |= {"plain": scores.plain(), "methods": rows, "trainings": figures(options.seeds)}
    write_json(RESULTS, scores.data)
    show(scores.data)


if __name__ == "__main__":
    main()

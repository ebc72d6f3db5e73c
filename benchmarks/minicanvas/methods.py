"""How training and selection methods compare on MiniCanvas: our loss, SAEmnesia's as published, SAeUron's selection.

    make bench-methods

Pictures are painted once by the training command of the README and kept; on what they show, for each of three seeds, an
SAE is trained with our loss, one with the published loss, and one without concepts, in which SAeUron's score selects
the top 1, 2 or 3 latents. A method that has a strength to choose tries `STRENGTHS` on two concepts with the first seed
and keeps the best mean of UA, IRA and CRA; then all are judged on the quick tasks of `bench`. Every step that is done
is kept, so a run that was stopped goes on from there.
"""
import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost

from . import bench, table
from .checkpoint import NAME
from .judge import Judge, load_judge

ROOT = Path(__file__).resolve().parents[2]
SAES = COMFY / "models" / "sae" / "methods"
ACTIVATIONS = ROOT / ".host" / "methods-activations"
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
SEEDS = (0, 1, 2)
STRENGTHS = (-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0)
SIZE = ("--latents", "2560", "--k", "48", "--batch", "64")
PAINTED = ("--hookpoint", "down_blocks.1.attentions.0", "--width", "96", "--height", "96", "--cfg", "2.5", "--at-once",
           "51", "--pictures", "1224")


@dataclass(frozen=True)
class Method:
    """sae: which training it takes; options: of that training; neurons: how many SAeUron selects, 0 for the trained
    one; chooses: whether a strength has to be found."""
    title: str
    sae: str
    options: tuple[str, ...] = ()
    neurons: int = 0
    chooses: bool = True


PLAIN = ("--unsupervised-steps", "3500", "--supervised-steps", "0")
METHODS = {
    "ours": Method("ours, the neuron off", "ours", chooses=False),
    "published": Method("SAEmnesia's loss as published", "published", ("--loss", "published")),
    **{f"top-{n}": Method(f"SAeUron's selection, top {n}", "plain", PLAIN, n) for n in (1, 2, 3)},
}


def python(*arguments: object, cwd: Path = ROOT) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, check=True)


def trained(method: Method, seed: int) -> Path:
    """The SAE of a method and seed, made when it is not there."""
    path = SAES / f"{method.sae}-{seed}.safetensors"
    if not path.exists():
        python("-m", "sae_models.command", ACTIVATIONS, "--out", path, "--seed", seed, *SIZE, *method.options)
    if not method.neurons:
        return path
    found = SAES / f"top{method.neurons}-{seed}.safetensors"
    if not found.exists():
        python("-m", "sae_models.find", path, ACTIVATIONS, "--out", found, "--neurons", method.neurons)
    return found


def paint_and_train() -> None:
    """The first SAE by the README's command, which keeps what it painted; the others on that."""
    SAES.mkdir(parents=True, exist_ok=True)
    if not (first := SAES / "ours-0.safetensors").exists():
        python("custom_nodes/comfyui-saemnesia/train.py", "--checkpoint", f"models/checkpoints/{NAME}", "--concepts",
               ROOT / "benchmarks" / "minicanvas" / "concepts.txt", "--prompts", "{object}, {style}", "--out", first,
               "--keep", ACTIVATIONS, "--seed", 0, *PAINTED, *SIZE, cwd=COMFY)
    for method in METHODS.values():
        for seed in SEEDS:
            trained(method, seed)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


class Scores:
    """{"SAE's digest | method | strength | task": score}, written after every task."""

    def __init__(self, host: ComfyHost, judge: Judge) -> None:
        self.host, self.judge = host, judge
        self.data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"scores": {}}

    def get(self, seed: int, name: str, strength: float, task: table.Task) -> table.Score:
        path = trained(METHODS[name], seed)
        key = f"{digest(path)} | {name} {seed} | {strength:g} | {', '.join(task.names)}"
        if key not in self.data["scores"]:
            add = self._erase(path, strength)
            verdict = self.judge.verdict(bench.draw(self.host, bench.Method(name, add), task, 1000))
            self.data["scores"][key] = {k: round(v, 2) for k, v in asdict(table.score(task, verdict)).items()}
            write_json(RESULTS, self.data)
            print(key, self.data["scores"][key], flush=True)
        return table.Score(**self.data["scores"][key])

    @staticmethod
    def _erase(path: Path, strength: float):
        actuator = ("ablate",) if strength == -1.0 else ("steer", strength)

        def add(graph: dict, task: table.Task) -> None:
            bench.ours(*actuator)(graph, task)
            graph["sae"]["inputs"]["sae_name"] = f"methods/{path.name}"
        return add

    def mean(self, seed: int, name: str, strength: float, tasks: list[table.Task]) -> table.Score:
        return table.mean([self.get(seed, name, strength, task) for task in tasks])


def quality(score: table.Score) -> float:
    return (score.UA + score.IRA + score.CRA) / 3


def compare(scores: Scores) -> dict[str, dict]:
    """{method: its figures, averaged over the seeds}."""
    objects, styles = bench.tasks(quick=True).values()
    rows = {}
    for name, method in METHODS.items():
        tried = STRENGTHS if method.chooses else (-1.0,)
        best = max(tried, key=lambda s, name=name: quality(scores.mean(0, name, s, [objects[0], styles[1]]))) \
            if method.chooses else -1.0
        by_kind = {kind: asdict(table.mean([scores.mean(seed, name, best, tasks) for seed in SEEDS]))
                   for kind, tasks in (("objects", objects), ("styles", styles))}
        rows[name] = {"title": method.title, "strength": best, "evaluations": len(tried)} | by_kind
    return rows


def trainings() -> dict[str, dict[str, float]]:
    """{sae: FVU, dead latents and centralisation, averaged over the seeds}, from the reports beside the files."""
    figures = {}
    for sae in dict.fromkeys(method.sae for method in METHODS.values()):
        reports = [json.loads((SAES / f"{sae}-{seed}.report.json").read_text()) for seed in SEEDS]
        figures[sae] = {name: sum(report[name] for report in reports) / len(SEEDS)
                        for name in ("fvu", "dead", "centralisation")}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bf16", action="store_true", help="let the CPU multiply in bfloat16: faster, less exact")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    paint_and_train()
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host:
        scores = Scores(host, load_judge())
        scores.data |= {"methods": compare(scores), "trainings": trainings()}
        write_json(RESULTS, scores.data)
    for name, figures in scores.data["trainings"].items():
        print(f"{name:12} FVU {figures['fvu']:.3f}  dead {figures['dead']:.1%}  "
              f"centralisation {figures['centralisation']:.2f}x")
    print(f"\n{'':32}{'strength':>9}{'tried':>6}   objects: UA    IRA    CRA   styles: UA    IRA    CRA")
    for row in scores.data["methods"].values():
        numbers = [row[kind][name] for kind in ("objects", "styles") for name in ("UA", "IRA", "CRA")]
        print(f"{row['title']:32}{row['strength']:9g}{row['evaluations']:6}        "
              + " ".join(f"{number:6.1f}" for number in numbers))


if __name__ == "__main__":
    main()

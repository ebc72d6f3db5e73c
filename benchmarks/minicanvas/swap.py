"""How well one concept is put in the place of another on scenes: `cat -> dog` in *SAEmnesia Erase*.

    python -m benchmarks.minicanvas.swap

For each swap, scenes that say what is taken out, two thirds of them beside another object, painted by a real ComfyUI.
In per cent of these: *new* is seen, *old* is still seen, and all the rest that the prompt says (the other object,
style, ground) is *kept*; beside it the same scenes, from the same noise, with the prompt *reworded* to say the new one,
which is what a swap that does exactly its job would paint. *Uninvited*: of as many scenes that say neither, those that
show the new one. The concepts are found first, each as `find` does, where a file of an earlier run does not have them.
A swap that benchmarks/results/swap.json has with the same settings is not painted again: delete it to begin anew.
"""
import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sae_models.concepts import mentioned, parse
from sae_models.formats import read_headers
from sae_models.storage import write_json
from tools.comfy_host import ComfyHost, Graph

from . import find
from .canvas import Scene
from .checkpoint import NAME
from .judge import Verdict, load_judge
from .paint import CFG, STEPS, Method, link_bench_nodes, node, paint
from .table import KINDS, Shot, Task, _Deck, rights
from .text import TEMPLATES

FILE = "minicanvas-swap"
SWAPS = ("cat -> dog", "dog -> castle", "cat -> rose", "rose -> cat", "noto style -> contrast style",
         "contrast style -> noto style", "cat -> dog, rose -> castle", "cat -> dog, noto style -> contrast style")
PICTURES = 24
OUT = find.RESULTS / "swap.json"


@dataclass(frozen=True)
class Swap:
    """{index of what is taken out: of what is put in its place} by kind, and how people write it."""
    text: str
    pairs: dict[str, dict[int, int]]

    @classmethod
    def read(cls, text: str) -> "Swap":
        pairs: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
        for choice in parse(text):
            (kind, old), (_, new) = map(_place, (choice.name, choice.into.name))
            pairs[kind][old] = new
        return cls(text, pairs)

    def reworded(self, shot: Shot) -> Shot:
        objects, style, ground = shot.scene
        pairs = self.pairs
        return Shot(Scene(tuple(pairs["object"].get(i, i) for i in objects), pairs["style"].get(style, style),
                          pairs["ground"].get(ground, ground)), shot.template)

    def scenes(self, pictures: int, said: bool) -> list[Shot]:
        """Scenes that say all that is taken out, or nothing of it and nothing of what is put."""
        deck = _Deck(4000 + sum(map(ord, self.text)) + said, TEMPLATES)
        old = {kind: list(pairs) for kind, pairs in self.pairs.items()}
        free = {kind: [i for i in range(len(names)) if i not in {*self.pairs[kind], *self.pairs[kind].values()}]
                for kind, names in KINDS.items()}
        styles, grounds = (deck.forever(old[kind] if said and old[kind] else free[kind] or range(len(KINDS[kind])))
                           for kind in ("style", "ground"))
        shots = []
        for i in range(pictures):
            own = old["object"] if said else []
            fill = deck.order(free["object"])[:max(0, (1 if i % 3 == 0 else 2) - len(own))]
            shots.append(deck.shot([*own, *fill], next(styles), next(grounds)))
        return shots


def _place(name: str) -> tuple[str, int]:
    word, _, kind = name.rpartition(" ") if name.endswith((" style", " ground")) else (name, "", "object")
    return kind, KINDS[kind].index(word)


def swapping(text: str, file: str = f"{FILE}.safetensors") -> Method:
    def add(graph: Graph, task: Task) -> None:
        graph["sae"] = node("SAEmnesiaLoadSAE", sae_name=file, hookpoint="")
        graph["erase"] = node("SAEmnesiaErase", model=["checkpoint", 0], sae=["sae", 0], actuator="ablate", start=0.0,
                              end=1.0, concepts=text, apply_to="conditional only")
        graph["sampler"]["inputs"]["model"] = ["erase", 0]
    return Method(text, add)


def figures(swap: Swap, shots: Sequence[Shot], verdict: Verdict) -> dict[str, int]:
    """{"new", "old", "kept"} in per cent of the pictures of these shots."""
    new, old = (_seen(verdict, [(kind, pair[which]) for kind, pairs in swap.pairs.items() for pair in pairs.items()])
                for which in (1, 0))
    rest = [Shot(_rest(swap, shot.scene), shot.template) for shot in shots]
    kept = torch.stack(list(rights(rest, verdict).values())).all(0)
    return {name: _percent(flags) for name, flags in (("new", new.all(0)), ("old", old.any(0)), ("kept", kept))}


def _rest(swap: Swap, scene: Scene) -> Scene:
    """What is said beside what is taken out."""
    return Scene(tuple(i for i in scene.objects if i not in swap.pairs["object"]),
                 -1 if swap.pairs["style"] else scene.style, -1 if swap.pairs["ground"] else scene.background)


def _seen(verdict: Verdict, things: Sequence[tuple[str, int]]) -> torch.Tensor:
    """bool [things, n]: which pictures show each."""
    own = {"style": verdict.style, "ground": verdict.background}
    return torch.stack([verdict.objects[:, i] if kind == "object" else own[kind] == i for kind, i in things])


def _percent(flags: torch.Tensor) -> int:
    return round(100 * float(flags.float().mean()))


def measured(host: ComfyHost, text: str, pictures: int, seed: int) -> dict[str, dict[str, int] | int]:
    """{"swapped", "reworded": figures, "uninvited": per cent}"""
    swap, judge = Swap.read(text), load_judge()
    said, other = (swap.scenes(pictures, said) for said in (True, False))

    def judged(method: Method, shots: Sequence[Shot]) -> Verdict:
        return judge.verdict(paint(host, method, Task("object", (), tuple(shots)), seed))
    reworded = Method("reworded", text=lambda task, shot: swap.reworded(shot).text)
    put = [(kind, new) for kind, pairs in swap.pairs.items() for new in pairs.values()]
    return {"swapped": figures(swap, said, judged(swapping(text), said)),
            "reworded": figures(swap, said, judged(reworded, said)),
            "uninvited": _percent(_seen(judged(swapping(text), other), put).any(0))}


def find_missing(host: ComfyHost, names: Sequence[str]) -> None:
    """A concept file with all of them; it begins as the one that comes along."""
    path = find.path_of(FILE)
    if not path.exists():
        shutil.copyfile(find.path_of(NAME.removesuffix(".safetensors")), path)
    known = {concept.name for header in read_headers(path) for concept in header.concepts}
    for name in names:
        if name not in known:
            print(f"finding {name}", flush=True)
            host.run(find.find_graph([name], find.PICTURES, FILE), timeout=3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", nargs="+", default=SWAPS, metavar="TEXT", help="for example 'cat -> dog'")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="scenes a swap")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--bf16", action="store_true", help="let the CPU multiply in bfloat16: faster, less exact")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    link_bench_nodes()
    how = {"pictures": options.pictures, "seed": options.seed, "bf16": options.bf16, "steps": STEPS, "cfg": CFG}
    before = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    rows = before["swaps"] if how.items() <= before.items() else {}
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host:
        find_missing(host, [one.name for text in options.swaps for one in mentioned(parse(text))])
        for text in options.swaps:
            rows[text] = rows.get(text) or measured(host, text, options.pictures, options.seed)
            print(f"{text:44}", rows[text], flush=True)
            write_json(OUT, how | {"swaps": rows})


if __name__ == "__main__":
    main()

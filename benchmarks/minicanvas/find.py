"""*SAEmnesia Find Concept* on scenes: the concept file that comes along, and how well single concepts are found.

    python -m benchmarks.minicanvas.find                                     some concepts, told from all the others
    python -m benchmarks.minicanvas.find --out FILE --concepts cat rose      only their concept file

The node paints some pictures with a concept and as many with others, fits neurons to them and writes a concept file;
with that file the concept is erased and judged as in `bench`.
"""
import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sae_models.formats import read_headers
from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost, Graph

from . import table
from .canvas import CANVAS_PX
from .checkpoint import NAME
from .judge import load_judge
from .paint import CFG, STEPS, Method, link_bench_nodes, node, ours, paint

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
CONCEPTS, TEMPLATES = HERE / "concepts.txt", (HERE / "prompts.txt").read_text("utf-8")
FILE = "bench find"
PICTURES = 32
SOME = ("cat", "noto style", "blue ground", "rose")
"""Those that are erased in the quick table of `bench`, too."""


def find_graph(wanted: Sequence[str], pictures: int, file: str = FILE, hookpoint: str = "") -> Graph:
    """Finds concepts of concepts.txt, told from each other and from all the rest."""
    lines = CONCEPTS.read_text("utf-8").splitlines()
    own = [line for line in lines if line.split(" (")[0] in wanted]
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=NAME),
        "find": node("SAEmnesiaFindConcept", model=["checkpoint", 0], clip=["checkpoint", 1], name=file,
                     concepts="\n".join(own), contrast="\n".join(line for line in lines if line not in own),
                     prompts=TEMPLATES, how="a neuron of its own", neurons=0, pictures=pictures, at_once=8,
                     width=CANVAS_PX, height=CANVAS_PX, steps=STEPS, cfg=CFG, seed=0,
                     hookpoint=hookpoint),
    }


def path_of(file: str) -> Path:
    return COMFY / "models" / "sae" / f"{file}.safetensors"


def find(host: ComfyHost, names: Sequence[str], pictures: int = PICTURES, file: str = FILE,
         hookpoint: str = "") -> float:
    """Make a concept file in the host's folder anew, one concept after the other; the seconds it took."""
    path_of(file).unlink(missing_ok=True)
    began = time.monotonic()
    for name in names:
        host.run(find_graph([name], pictures, file, hookpoint), timeout=3600)
    return time.monotonic() - began


def erasing(file: str) -> Method:
    return Method("found", ours(f"{file}.safetensors"))


def found_and_erased(host: ComfyHost, concept: str, pictures: int) -> dict[str, float | None]:
    """{"seconds": for finding, "kB": of the file, removed and touched as the file says, the figures of the erasure}"""
    try:
        seconds = find(host, [concept], pictures)
        known = read_headers(path_of(FILE))[0].concepts[0].measured
        task = table.task_of(concept)
        verdict = load_judge().verdict(paint(host, erasing(FILE), task, 1000))
        size = path_of(FILE).stat().st_size
    finally:
        path_of(FILE).unlink(missing_ok=True)
    figures = {"seconds": seconds, "kB": size / 1000} | {name: 100 * share for name, share in known.items()}
    return {name: value if value is None else round(value, 2)
            for name, value in (figures | asdict(table.score(task, verdict))).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", choices=table.all_names(), default=SOME, metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="only find them, and write them there")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="how many the node paints for one concept")
    parser.add_argument("--bf16", action="store_true", help="let the CPU multiply in bfloat16: faster, less exact")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    link_bench_nodes()
    rows = {}
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host:
        if options.out:
            print(f"found in {find(host, options.concepts):.0f} s")
            shutil.move(path_of(FILE), options.out)
            return
        for concept in options.concepts:
            rows[concept] = found_and_erased(host, concept, options.pictures)
            print(concept, json.dumps(rows[concept]), flush=True)
    write_json(RESULTS / "minicanvas-find.json", {"pictures": options.pictures, "concepts": rows})


if __name__ == "__main__":
    main()

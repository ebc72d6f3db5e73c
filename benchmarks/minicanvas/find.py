"""How well *SAEmnesia Find Concept* erases a concept nobody trained for, and how long it takes, on MiniCanvas.

    make bench-find

The node paints some pictures with each concept and as many with the other objects and styles, fits neurons to them at
every cross-attention and writes a concept file; with that file the concept is erased and judged as in `bench`.
"""
import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost, Graph

from . import bench, table
from .canvas import CANVAS_PX
from .checkpoint import NAME
from .icons import OBJECTS
from .judge import load_judge

CONCEPTS = Path(__file__).with_name("concepts.txt")
FILE = "bench find"


def find_graph(concept: str, pictures: int) -> Graph:
    lines = CONCEPTS.read_text("utf-8").splitlines()
    own = [line for line in lines if line.split(" = ")[0] == concept]
    return {
        "checkpoint": bench.node("CheckpointLoaderSimple", ckpt_name=NAME),
        "find": bench.node("SAEmnesiaFindConcept", model=["checkpoint", 0], clip=["checkpoint", 1],
                           name=FILE, concepts=own[0], contrast="\n".join(line for line in lines if line not in own),
                           prompts="{object}, {style}", how="a neuron of its own", neurons=0, pictures=pictures,
                           at_once=min(16, pictures), width=CANVAS_PX, height=CANVAS_PX, steps=bench.STEPS,
                           cfg=bench.CFG, seed=0, hookpoint=""),
    }


def erase_found(graph: Graph, task: table.Task) -> None:
    bench.ours("ablate")(graph, task)
    graph["sae"]["inputs"]["sae_name"] = f"{FILE}.safetensors"


def found_and_erased(host: ComfyHost, concept: str, pictures: int) -> dict[str, float]:
    """{"seconds": for finding, "kB": of the file, and the figures of the erasure}"""
    path = COMFY / "models" / "sae" / f"{FILE}.safetensors"
    path.unlink(missing_ok=True)
    try:
        began = time.monotonic()
        host.run(find_graph(concept, pictures), timeout=3600)
        seconds, size = time.monotonic() - began, path.stat().st_size
        task = table.object_task([OBJECTS.index(concept)])
        drawn = bench.draw(host, bench.Method("found", erase_found), task, 1000)
    finally:
        path.unlink(missing_ok=True)
    return {"seconds": round(seconds, 1), "kB": round(size / 1000, 1)} | {
        name: round(value, 1) for name, value in asdict(table.score(task, load_judge().verdict(drawn))).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", choices=OBJECTS, default=["cat", "bear", "rose", "key"])
    parser.add_argument("--pictures", type=int, default=32, help="how many the node paints")
    parser.add_argument("--bf16", action="store_true", help="let the CPU multiply in bfloat16: faster, less exact")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    bench.link_bench_nodes()
    rows = {}
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host:
        for concept in options.concepts:
            rows[concept] = found_and_erased(host, concept, options.pictures)
            print(concept, json.dumps(rows[concept]), flush=True)
    write_json(bench.RESULTS / "find.json", {"pictures": options.pictures, "concepts": rows})


if __name__ == "__main__":
    main()

"""What one word does on the first day: nothing chosen, nothing known, ten of MiniCanvas's concepts.

    python -m benchmarks.minicanvas.words            *Erase Words* in ComfyUI
    python -m benchmarks.minicanvas.words --webui    the sidebar's *Find a concept*; then erased in ComfyUI
    python -m benchmarks.minicanvas.words --pictures 8 16 32 64    what pictures buy

A word is told from the common ones that the nodes think of by themselves, most of which MiniCanvas never saw. The web
UI is the tests' stand-in for Forge, with the real model, Euler and our real extension. Only the pictures' size and
guidance are MiniCanvas's own.
"""
import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae_models.formats import read_headers
from sae_models.learning.words import PICTURES
from sae_models.storage import write_json
from tools.comfy_host import COMFY, ComfyHost

from . import (
    bench,
    models,  # noqa: F401  (puts ComfyUI on the path)
    table,
)
from .canvas import CANVAS_PX
from .checkpoint import NAME
from .find import erasing, path_of
from .icons import OBJECTS, STYLES
from .judge import load_judge
from .paint import CFG, Method, link_bench_nodes, node, paint

RESULTS = Path(__file__).parents[1] / "results"
FILE = "bench words"
TEN = (*OBJECTS[::3], *(f"{style} style" for style in STYLES[::3]))

DEALS = 3
"""Of scenes that a word is judged by, each from noise of its own."""

Found = Callable[[str, int], Path]
"""Finds a word from so many pictures on a model that knows none, and says where its file is."""


@contextmanager
def in_comfyui(host: ComfyHost) -> Iterator[Found]:
    made = f"{Path(NAME).stem} *.safetensors"

    def forget() -> None:
        for file in path_of(FILE).parent.glob(made):
            file.unlink()

    def found(word: str, pictures: int) -> Path:
        forget()
        host.run({"checkpoint": node("CheckpointLoaderSimple", ckpt_name=NAME),
                  "words": node("SAEmnesiaEraseWords", model=["checkpoint", 0], clip=["checkpoint", 1], words=word,
                                told_from="", pictures=pictures, side=CANVAS_PX, cfg=CFG)}, timeout=3600)
        return next(path_of(FILE).parent.glob(made))
    yield found
    forget()


@contextmanager
def in_the_webui(bf16: bool) -> Iterator[Found]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    import comfy.sd
    from fake_webui import Webui, sd_model
    model, clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(COMFY / "models" / "checkpoints" / NAME))

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.cat([clip.encode_from_tokens(clip.tokenize(text)) for text in texts]).float()
    loaded = sd_model(model.model.diffusion_model.float(), forge=True, encode=encode)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), \
            Webui(Path(folder), loaded, forge=True).installed() as host:
        from saemnesia_webui.find import Wish
        if bf16:
            host.autocast = sys.modules["modules.devices"].autocast = partial(torch.autocast, "cpu", torch.bfloat16)

        def found(word: str, pictures: int) -> Path:
            shutil.rmtree(Path(folder) / "sae", ignore_errors=True)
            return Path(folder) / "sae" / host.module.FINDER.find(
                Wish(word, pictures=pictures, side=CANVAS_PX, cfg=CFG)).file
        yield found


def figures(host: ComfyHost, find: Found, word: str, pictures: int) -> dict[str, float | None]:
    """{"seconds": for finding, "kB a place": of the file, what it says of itself and what is seen, in per cent}"""
    began = time.monotonic()
    made = find(word, pictures)
    seconds, headers = time.monotonic() - began, read_headers(made)
    [concept] = headers[0].concepts
    shutil.copy(made, path_of(FILE))
    erased = scored(host, erasing(FILE), word)
    said = {what: 100 * share for what, share in concept.measured.items()}
    row: dict[str, Any] = {"seconds": seconds, "kB a place": made.stat().st_size / 1000 / len(headers),
                           "neurons": len(concept.latents)} | said
    return _rounded(row | asdict(erased))


def without_erasure(host: ComfyHost, word: str) -> dict[str, float | None]:
    """What is seen in the same scenes as the model paints them, and where the word is not said."""
    plain, unsaid = (scored(host, method, word) for method in (Method("no erasure"), bench.METHODS["without"]))
    return _rounded({"UA unsaid": unsaid.UA, "IRA unerased": plain.IRA, "in_scene unerased": plain.in_scene})


def _rounded(row: dict[str, float | None]) -> dict[str, float | None]:
    return {what: value if value is None else round(value, 2) for what, value in row.items()}


def scored(host: ComfyHost, method: Method, word: str) -> table.Score:
    """Means over all deals."""
    tasks = [table.task_of(word, seed) for seed in range(DEALS)]
    return table.mean([table.score(task, load_judge().verdict(paint(host, method, task, 1000 * (seed + 1))))
                       for seed, task in enumerate(tasks)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", choices=table.all_names(), default=TEN, metavar="NAME")
    parser.add_argument("--pictures", nargs="+", type=int, default=[PICTURES], help=f"to find it from ({PICTURES})")
    parser.add_argument("--webui", action="store_true",
                        help="find them in the web UI's stand-in (without erasure they are as without this)")
    parser.add_argument("--bf16", action="store_true", help="multiply in bfloat16: faster, less exact")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    link_bench_nodes()
    torch.set_num_threads(options.threads)
    out = RESULTS / f"words{'-webui' if options.webui else ''}.json"
    rows = json.loads(out.read_text())["concepts"] if out.exists() else {}
    with ComfyHost(threads=options.threads, bf16=options.bf16) as host, \
            (in_the_webui(options.bf16) if options.webui else in_comfyui(host)) as find:
        try:
            for word, pictures in itertools.product(options.concepts, options.pictures):
                name = word if pictures == PICTURES else f"{word}, {pictures} pictures"
                rows[name] = figures(host, find, word, pictures)
                if not options.webui:
                    rows[name] |= without_erasure(host, word)
                print(name, json.dumps(rows[name]), flush=True)
                write_json(out, {"concepts": rows})
        finally:
            path_of(FILE).unlink(missing_ok=True)


if __name__ == "__main__":
    main()

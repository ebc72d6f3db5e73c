"""What erasing costs at the size of SD 1.5 and SDXL (random weights): time, memory, loading.

    make bench-overhead                     all of it (SDXL's weights alone are 10 GB)
    make bench-overhead ARGS="--parts step"

Parts: `loading`, of an SAE (d_in 1280, d_sae 20480) and of a concept file with 20 concepts at SD 1.5's 16
cross-attentions; `block`, the hooked block alone at 64x64 tokens (the step of a 2048 px picture, of which the block is
a small part); `step`, a whole step of the SD 1.5 UNet at 512 px with guidance (2 rows), with one block hooked (its map
has 16x16 tokens) or all 16 cross-attentions; `sdxl`, the same of the SDXL UNet with its 70 cross-attentions. All ways
take turns in one run and are given as the median of the ratios to the unpatched call beside them.
"""
import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.minicanvas import models
from benchmarks.minicanvas.bench_nodes import DenseHook
from sae_models import (
    Actuator,
    Concept,
    Edit,
    Erasure,
    Header,
    Rows,
    Sae,
    SaeConfig,
    Statistics,
    hookpoint,
    read_header,
    read_headers,
    read_rows,
    table,
    write,
)
from sae_models.adapter import Block
from sae_models.concepts import UNKNOWN
from sae_models.formats import read_rows_at
from sae_models.voting import Voting

RESULTS = Path(__file__).with_name("results") / "overhead.json"
D_IN, D_SAE, K = 1280, 20480, 32
COUNTS = (1, 10, 100)
SD15 = {"num_res_blocks": [2] * 4, "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}
SDXL = {"num_res_blocks": [2] * 3, "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10, "context_dim": 2048,
        "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64, "adm_in_channels": 2816,
        "num_classes": "sequential"}
PARTS = ("loading", "block", "step", "sdxl")
Hook = Callable[[torch.nn.Module, tuple, torch.Tensor], torch.Tensor]
Hooks = list[tuple[torch.nn.Module, Hook]]


def erasure(sae: Sae, count: int, mean: float = UNKNOWN) -> Erasure:
    """An erasure of `count` concepts that fire on about half of all tokens; mean: how strongly, as the file says."""
    W_enc, rows = sae.encoder.weight[:count].detach(), slice(count)
    bias = sae.encoder.bias[rows].detach() - W_enc @ sae.b_dec.detach()
    rows = Rows(W_enc, bias, sae.W_dec[rows].detach(),
                Statistics((0.1, 10.0), torch.zeros(count, 2), torch.full((count, 2), mean)))
    return Erasure([Edit(tuple(f"c{i}" for i in range(count)), rows, torch.ones(count), Actuator.ABLATE)])


def ours(sae: Sae, count: int) -> Hook:
    erase = erasure(sae, count)
    return lambda module, inputs, output: erase(output, 1.0, None, inputs[0]).out


def papers(sae: Sae) -> Hook:
    weights = [t.detach() for t in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec)]
    return DenseHook(*weights, K, [0], torch.ones(1), torch.ones(1, 1), torch.zeros(1, 1), -1.0)


class EveryPlace:
    """`count` concepts with a neuron at every cross-attention, which vote in every call as the hosts let them."""

    def __init__(self, unet: torch.nn.Module, count: int, rows: int = 2) -> None:
        self.modules = {Block(name, False): unet.get_submodule(path)
                        for name, path in hookpoint.cross_attentions(unet).items()}
        self.erasures = {block: erasure(Sae(SaeConfig(hookpoint.width(module), max(COUNTS), 1)), count, 0.5)
                         for block, module in self.modules.items()}
        self.voting, self.strengths = Voting(self.erasures), {}
        self.voting.begins("run", rows, torch.device("cpu"))

    def hooks(self) -> Hooks:
        return [(module, partial(self.edit, block)) for block, module in self.modules.items()]

    def edit(self, block: Block, module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not self.strengths:
            self.may = self.voting.open("run")
        erased = self.erasures[block](output, 1.0, None, None, self.may[block])
        self.strengths[block] = erased.strengths
        if len(self.strengths) == len(self.erasures):
            self.voting.count("run", self.strengths, 1.0)
            self.strengths = {}
        return erased.out


def timed(call: Callable[[], object], hooks: Hooks) -> float:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    began = time.perf_counter()
    call()
    took = time.perf_counter() - began
    for handle in handles:
        handle.remove()
    return took


@torch.inference_mode()
def compare(call: Callable[[], object], hooks: dict[str, Hooks], rounds: int) -> dict[str, dict]:
    """{way: {"seconds", "ratio"}}: every way right after an unpatched call, `rounds` times, after one warm-up."""
    ratios, seconds = {name: [] for name in hooks}, {name: [] for name in ("unpatched", *hooks)}
    for number in range(rounds + 1):
        for name, hook in hooks.items():
            plain, patched = timed(call, []), timed(call, hook)
            if number:
                ratios[name].append(patched / plain)
                seconds[name].append(patched)
                seconds["unpatched"].append(plain)
        print(f"  round {number}/{rounds}", flush=True)
    return {name: {"seconds": round(median(taken), 4), "ratio": round(median(ratios.get(name, [1.0])), 4)}
            for name, taken in seconds.items()}


def new_unet(config: dict) -> torch.nn.Module:
    return models.initialised(models.UNetModel(**{**models.UNET_CONFIG, **config},
                                               operations=models.comfy.ops.disable_weight_init)).eval()


def everywhere(unet: torch.nn.Module) -> dict[str, Hooks]:
    return {f"all cross-attentions, {n} concept{'s' * (n > 1)}": EveryPlace(unet, n).hooks() for n in COUNTS}


def whole_step(hooks: dict[str, Hook], rounds: int) -> dict[str, dict]:
    unet = new_unet(SD15)
    x, t, context = torch.randn(2, 4, 64, 64), torch.full((2,), 500.0), torch.randn(2, 77, 768)
    ways = {name: [(unet.output_blocks[4][1], hook)] for name, hook in hooks.items()} | everywhere(unet)
    return compare(lambda: unet(x, t, context), ways, rounds)


def whole_step_sdxl(rounds: int) -> dict[str, dict]:
    unet = new_unet(SDXL)
    x, t, context = torch.randn(2, 4, 64, 64), torch.full((2,), 500.0), torch.randn(2, 77, 2048)
    pooled = torch.randn(2, 2816)
    return compare(lambda: unet(x, t, context, pooled), everywhere(unet), rounds)


def block_alone(hooks: dict[str, Hook], rounds: int) -> dict[str, dict]:
    block = models.initialised(models.SpatialTransformer(1280, 8, 160, context_dim=768, use_checkpoint=False,
                                                         operations=models.comfy.ops.disable_weight_init)).eval()
    x, context = torch.randn(2, 1280, 64, 64), torch.randn(2, 77, 768)
    return compare(lambda: block(x, context), {name: [(block, hook)] for name, hook in hooks.items()}, rounds)


def kept(rows: Rows) -> int:
    """Bytes of what stays in memory."""
    return sum(t.nbytes for t in (rows.W_enc, rows.bias, rows.W_dec, rows.statistics.thresholds,
                                  rows.statistics.means))


def loading(folder: Path) -> dict[str, float]:
    """Milliseconds to open a 210 MB SAE and read one concept, and bytes kept for 20."""
    path, sae = folder / "sae.safetensors", Sae(SaeConfig(D_IN, D_SAE, K))
    concepts = tuple(Concept(f"c{i}", (i * 1000,)) for i in range(20))
    statistics = Statistics(tuple(float(i + 1) for i in range(50)), torch.zeros(20, 50), torch.ones(20, 50))
    write(path, sae, Header(sae.config, "up_blocks.1.attentions.1", "sd15", False, concepts), statistics)
    began = time.perf_counter()
    read_rows(path, read_header(path), [concepts[7]])
    took = time.perf_counter() - began
    rows = read_rows(path, read_header(path), list(concepts))
    return {"file MB": round(path.stat().st_size / 1e6, 1), "load one concept, ms": round(1000 * took, 1),
            "memory of 20 concepts, MB": round(kept(rows) / 1e6, 3)}


def loading_places(folder: Path, concepts: int = 20, sigmas: int = 12) -> dict[str, float]:
    """The same of a concept file with one neuron a concept at every cross-attention of SD 1.5."""
    path = folder / "concepts.safetensors"
    with torch.device("meta"):
        unet = models.UNetModel(**{**models.UNET_CONFIG, **SD15}, operations=models.comfy.ops.disable_weight_init)
    levels = tuple(float(i + 1) for i in range(sigmas))
    own = tuple(Concept(f"c{i}", (i,)) for i in range(concepts))

    def part(name: str, place: str) -> table.At:
        d_in = hookpoint.width(unet.get_submodule(place))
        rows = Rows(torch.randn(concepts, d_in), torch.zeros(concepts), torch.randn(concepts, d_in),
                    Statistics(levels, torch.zeros(concepts, sigmas), torch.ones(concepts, sigmas)))
        return Header(SaeConfig(d_in, concepts, 1), name, "sd15"), table.Table(own, rows)
    table.add(path, [part(name, place) for name, place in hookpoint.cross_attentions(unet).items()])
    began = time.perf_counter()
    read_rows_at(path, [(header, [header.concepts[7]]) for header in read_headers(path)])
    took = time.perf_counter() - began
    every = read_rows_at(path, [(header, list(header.concepts)) for header in read_headers(path)])
    return {"file kB a concept": round(path.stat().st_size / 1e3 / concepts, 1),
            "load one concept, ms": round(1000 * took, 1),
            "memory of 20 concepts, MB": round(sum(map(kept, every)) / 1e6, 3)}


def show(title: str, rows: dict[str, dict]) -> None:
    print(f"\n{title}\n" + "\n".join(f"  {name:36} {row['seconds']:9.4f} s   {row['ratio']:.3f}x"
                                     for name, row in rows.items()), flush=True)


def measured(part: str, rounds: int, hooks: Callable[[], dict[str, Hook]]) -> dict[str, dict]:
    """{title: rows} of one part."""
    if part == "loading":
        with tempfile.TemporaryDirectory() as folder:
            return {"loading": loading(Path(folder)), "loading, 16 places": loading_places(Path(folder))}
    if part == "block":
        return {"block alone, 64x64 tokens": block_alone(hooks(), rounds)}
    if part == "step":
        return {"whole step": whole_step(hooks(), rounds)}
    return {"whole step, SDXL": whole_step_sdxl(rounds)}


def all_hooks() -> dict[str, Hook]:
    sae = Sae(SaeConfig(D_IN, D_SAE, K))
    return {f"ours, {n} concept{'s' * (n > 1)}": ours(sae, n) for n in COUNTS} | {"the papers' hook": papers(sae)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in options.parts:
        torch.manual_seed(0)
        for title, rows in measured(part, options.rounds, all_hooks).items():
            result[title] = rows
            show(title, rows) if part != "loading" else print(f"{title}: {rows}", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1))
    print(f"\nwritten: {RESULTS}")


if __name__ == "__main__":
    main()

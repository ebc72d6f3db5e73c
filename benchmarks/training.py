"""How fast SAEs train, and how well: our training step beside those of SAELens, sparsify and dictionary_learning.

    make bench-training

d_in 1280, d_sae 20480, k 32; 4096 tokens a step on a GPU, 1024 on a CPU. All learn from the same tokens in the same
order and take turns in one run, a few steps each; a ratio is the median over these rounds. FVU is on tokens that none
has seen, after the same number of tokens. Peak memory is that of a process of its own: on a GPU what torch allocated at
most, on a CPU how far the resident set rose above what it was before the SAE was made.

Tokens are sums of few directions out of many, drawn by a power law, around a mean; or, with --activations, those of a
folder that training stored.
"""
import argparse
import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from benchmarks.trainers import WAYS, Way, Work
from sae_models.learning.maps import Shards
from sae_models.sae import SaeConfig, fvu

RESULTS = Path(__file__).with_name("results") / "training.json"
HELD_OUT = 4096
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Batches = Callable[[int], Tensor]


# --- tokens --------------------------------------------------------------------------------------------


def synthetic(d_in: int, batch: int, directions: int = 4096, active: int = 24, seed: int = 0) -> Batches:
    """Batch by number, [batch, d_in]; always the same for the same number."""
    generator = torch.Generator().manual_seed(seed)
    world = normalize(torch.randn(directions, d_in, generator=generator), dim=1)
    mean = torch.randn(d_in, generator=generator) / d_in**0.5
    often = 1 / torch.arange(10, directions + 10)

    def make(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        which = torch.multinomial(often, batch * active, replacement=True, generator=generator).view(batch, active)
        strength = torch.rand(batch, active, generator=generator) + 0.5
        noise = torch.randn(batch, d_in, generator=generator) * 0.3 / d_in**0.5
        return embedding_bag(which, world, per_sample_weights=strength, mode="sum") + mean + noise
    return make


def stored(folder: Path, batch: int, seed: int = 0) -> Batches:
    """Batch by number of the tokens in a folder of shards, in random order, from the start again when they end.
    The last ones are held out: only negative numbers reach them."""
    shards = Shards(folder)
    tokens = torch.cat([shards.make(i).all_tokens() for i in range(len(list(folder.glob("maps-*.safetensors"))))])
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed)).split(batch)
    whole = [index for index in order if len(index) == batch]
    learnt = len(whole) - n_held_out(batch)
    return lambda number: tokens[whole[number if number < 0 else number % learnt]].float()


def n_held_out(batch: int) -> int:
    """How many batches nobody learns from."""
    return -(-HELD_OUT // batch)


# --- measuring -----------------------------------------------------------------------------------------


def timed(way: Way, batches: list[Tensor]) -> float:
    """Seconds for these steps."""
    torch.set_float32_matmul_precision(way.matmul)
    began = _now()
    for x in batches:
        way.step(x)
    return _now() - began


def _now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def unexplained(way: Way, x: Tensor) -> float:
    torch.set_float32_matmul_precision("highest")
    return float(fvu(x, torch.cat([way.rebuilt(part) for part in x.split(1024)])))


def compare(work: Work, batches: Batches, held_out: Tensor, per_round: int, names: list[str]) -> dict[str, dict]:
    """{way: {"tokens_per_s", "ours_is_faster", "fvu"}}. The first round, and those before latents can be dead, are not
    timed."""
    ways = {name: WAYS[name](work) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for first in range(0, work.steps, per_round):
        tokens = [batches(i).to(work.device) for i in range(first, min(first + per_round, work.steps))]
        took = {name: timed(way, tokens) / len(tokens) for name, way in ways.items()}
        if first >= max(per_round, (work.dead_steps or 0) + 2):
            for name, value in took.items():
                seconds[name].append(value)
        print(f"  {first + len(tokens):5}/{work.steps} steps  "
              + "  ".join(f"{name} {value:.3f} s" for name, value in took.items()), flush=True)
    ratios = {name: median(a / b for a, b in zip(taken, seconds["ours"], strict=True))
              for name, taken in seconds.items()}
    return {name: {"tokens_per_s": round(work.batch / median(seconds[name])), "ours_is_faster": round(ratios[name], 3),
                   "fvu": round(unexplained(way, held_out), 4)} for name, way in ways.items()}


def peak_memory(name: str, work: Work, x: Tensor, steps: int) -> float:
    """MB at most while a way makes its first steps, from when there was nothing of it; called in a new process."""
    before = _resident_mb("VmRSS")
    way, x = WAYS[name](work), x.to(work.device)
    timed(way, [x] * steps)
    if work.device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 1e6)
    return round(_resident_mb("VmHWM") - before)


def _resident_mb(which: str) -> float:
    """What Linux says of this process: resident now (VmRSS), or at most so far (VmHWM)."""
    return int(re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6


def peak_memories(work: Work, x: Tensor, names: list[str]) -> dict[str, float]:
    peaks = {}
    for name in names:
        with get_context("spawn").Pool(1, torch.set_num_threads, (torch.get_num_threads(),)) as pool:
            peaks[name] = pool.apply(peak_memory, (name, work, x, (work.dead_steps or 0) + 3))
    return peaks


# --- what is compared ----------------------------------------------------------------------------------


def works(base: Work, dead_steps: int) -> dict[str, Work]:
    """Each as it comes; all at one precision, with their AuxK idle and with it at work."""
    result = {"each at its defaults": base, "all in fp32, one learning rate": replace(base, precision="fp32"),
              f"the same, AuxK at work (dead after {dead_steps} steps)":
              replace(base, precision="fp32", dead_steps=dead_steps)}
    for precision in ("tf32", "bf16") if base.device == "cuda" else ():
        result[f"all in {precision}, one learning rate"] = replace(base, precision=precision)
    return result


def show(title: str, rows: dict[str, dict]) -> None:
    print(f"\n{title}\n  {'':20} {'tokens/s':>9} {'ours is':>10} {'peak MB':>9} {'FVU':>8}")
    for name, row in rows.items():
        print(f"  {name:20} {row['tokens_per_s']:9} {row['ours_is_faster']:9.2f}x {row['peak_mb']:9.0f} "
              f"{row['fvu']:8.4f}", flush=True)


def machine() -> str:
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{gpu}; torch {torch.__version__}, {platform.machine()}; " + ", ".join(
        f"{name} {version(name)}" for name in WAYS if name != "ours")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps: the speed is right, FVU says little")
    parser.add_argument("--steps", type=int, help="of each, for each table")
    parser.add_argument("--batch", type=int, default=4096 if DEVICE == "cuda" else 1024, help="tokens a step")
    parser.add_argument("--d-in", type=int, default=1280)
    parser.add_argument("--d-sae", type=int, default=20480)
    parser.add_argument("-k", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3, help="where all have the same")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--activations", type=Path, help="a folder of stored maps instead of made-up tokens")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write them")
    parser.add_argument("--only", help="only the tables whose title has this in it")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="who is compared, ours among them")
    options = parser.parse_args()
    usual = (200, 24) if DEVICE == "cuda" else (24, 8)
    options.steps = options.steps or usual[options.quick]
    return options


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    base = Work(SaeConfig(options.d_in, options.d_sae, options.k), options.batch, options.steps, DEVICE, lr=options.lr)
    batches = stored(options.activations, base.batch) if options.activations else synthetic(options.d_in, base.batch)
    held_out = torch.cat([batches(-1 - i) for i in range(n_held_out(base.batch))])[:HELD_OUT].to(DEVICE)
    result = {"machine": machine(), "work": {**asdict(base), "data": str(options.activations or "synthetic")}}
    print(result["machine"], flush=True)
    for title, work in works(base, dead_steps=min(10, options.steps // 3)).items():
        if options.only and options.only not in title:
            continue
        rows = compare(work, batches, held_out, max(1, options.steps // 20), options.ways)
        for name, peak in peak_memories(work, batches(0), options.ways).items():
            rows[name]["peak_mb"] = peak
        show(title, rows)
        result[title] = rows
    options.results.write_text(json.dumps(result, indent=1))
    print(f"\nwritten: {options.results}")


if __name__ == "__main__":
    main()

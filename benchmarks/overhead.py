"""What erasing costs at the width of SD 1.5 (random weights; d_in 1280, d_sae 20480): time, memory, loading.

    make bench-overhead

Time per step of the whole SD 1.5 UNet at 512 px with guidance (2 rows), with one block hooked (its map has 16x16
tokens) or all 16 cross-attentions; and of the hooked block alone at 64x64 tokens (the step of a 2048 px picture, of
which the block is a small part). All ways take turns in one run and are given as the median of the ratios to the
unpatched call beside them.
"""
import argparse
import json
import tempfile
import time
from collections.abc import Callable
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
    read_rows,
    write,
)

RESULTS = Path(__file__).with_name("results") / "overhead.json"
D_IN, D_SAE, K = 1280, 20480, 32
COUNTS = (1, 10, 100)
SD15 = {"num_res_blocks": [2] * 4, "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1}
Hook = Callable[[torch.nn.Module, tuple, torch.Tensor], torch.Tensor]
Hooks = list[tuple[torch.nn.Module, Hook]]


def erasure(sae: Sae, count: int) -> Erasure:
    """An erasure of `count` concepts that fire on about half of all tokens."""
    W_enc, rows = sae.encoder.weight[:count].detach(), slice(count)
    bias = sae.encoder.bias[rows].detach() - W_enc @ sae.b_dec.detach()
    rows = Rows(W_enc, bias, sae.W_dec[rows].detach(), Statistics.unknown(count))
    return Erasure([Edit(tuple(f"c{i}" for i in range(count)), rows, torch.ones(count), Actuator.ABLATE)])


def ours(sae: Sae, count: int) -> Hook:
    erase = erasure(sae, count)
    return lambda module, inputs, output: erase(output, 1.0, None, inputs[0]).out


def papers(sae: Sae) -> Hook:
    weights = [t.detach() for t in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec)]
    return DenseHook(*weights, K, [0], torch.ones(1), torch.ones(1, 1), torch.zeros(1, 1), -1.0)


def at_cross_attentions(unet: torch.nn.Module, count: int) -> Hooks:
    """`count` concepts with a neuron at every cross-attention."""
    modules = [unet.get_submodule(path) for path in hookpoint.cross_attentions(unet).values()]
    return [(module, ours(Sae(SaeConfig(hookpoint.width(module), max(COUNTS), 1)), count)) for module in modules]


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


def whole_step(hooks: dict[str, Hook], rounds: int) -> dict[str, dict]:
    unet = models.initialised(models.UNetModel(**{**models.UNET_CONFIG, **SD15},
                                               operations=models.comfy.ops.disable_weight_init)).eval()
    x, t, context = torch.randn(2, 4, 64, 64), torch.full((2,), 500.0), torch.randn(2, 77, 768)
    ways = {name: [(unet.output_blocks[4][1], hook)] for name, hook in hooks.items()} | {
        f"all cross-attentions, {n} concept{'s' * (n > 1)}": at_cross_attentions(unet, n) for n in COUNTS}
    return compare(lambda: unet(x, t, context), ways, rounds)


def block_alone(hooks: dict[str, Hook], rounds: int) -> dict[str, dict]:
    block = models.initialised(models.SpatialTransformer(1280, 8, 160, context_dim=768, use_checkpoint=False,
                                                         operations=models.comfy.ops.disable_weight_init)).eval()
    x, context = torch.randn(2, 1280, 64, 64), torch.randn(2, 77, 768)
    return compare(lambda: block(x, context), {name: [(block, hook)] for name, hook in hooks.items()}, rounds)


def loading(sae: Sae, folder: Path) -> dict[str, float]:
    """Milliseconds to open a 210 MB file and read one concept, and bytes kept for 20."""
    path = folder / "sae.safetensors"
    concepts = tuple(Concept(f"c{i}", (i * 1000,)) for i in range(20))
    statistics = Statistics(tuple(float(i + 1) for i in range(50)), torch.zeros(20, 50), torch.ones(20, 50))
    write(path, sae, Header(sae.config, "up_blocks.1.attentions.1", "sd15", False, concepts), statistics)
    began = time.perf_counter()
    read_rows(path, read_header(path), [concepts[7]])
    took = time.perf_counter() - began
    rows = read_rows(path, read_header(path), list(concepts))
    kept = sum(t.nbytes for t in (rows.W_enc, rows.bias, rows.W_dec, rows.statistics.thresholds,
                                  rows.statistics.means))
    return {"file MB": round(path.stat().st_size / 1e6, 1), "load one concept, ms": round(1000 * took, 1),
            "memory of 20 concepts, MB": round(kept / 1e6, 3)}


def show(title: str, rows: dict[str, dict]) -> None:
    print(f"\n{title}\n" + "\n".join(f"  {name:36} {row['seconds']:9.4f} s   {row['ratio']:.3f}x"
                                     for name, row in rows.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sae = Sae(SaeConfig(D_IN, D_SAE, K))
    with tempfile.TemporaryDirectory() as folder:
        result = {"loading": loading(sae, Path(folder))}
    print(result["loading"], flush=True)
    hooks = {f"ours, {n} concept{'s' * (n > 1)}": ours(sae, n) for n in COUNTS} | {"the papers' hook": papers(sae)}
    result["block alone, 64x64 tokens"] = block_alone(hooks, options.rounds)
    show("the hooked block alone, 64x64 tokens", result["block alone, 64x64 tokens"])
    result["whole step"] = whole_step(hooks, options.rounds)
    show("a whole step of the SD 1.5 UNet", result["whole step"])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1))
    print(f"\nwritten: {RESULTS}")


if __name__ == "__main__":
    main()

"""Train MiniCanvas's SAE: collect in ComfyUI, unsupervised stage, one latent a concept, supervised stage, statistics.

    python -m benchmarks.minicanvas.train_sae --checkpoint .host/ComfyUI/models/checkpoints/minicanvas.safetensors \
        --out benchmarks/minicanvas/weights/sae.safetensors --work run/sae

Collected activations and finished stages are kept in `--work`, so that a run that was stopped goes on from there.
"""
import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from sae_models.concepts import Concept, Statistics
from sae_models.formats import Header, write
from sae_models.sae import Sae, SaeConfig, fvu
from sae_models.scoring import assign, measure, scores
from sae_models.training import Maps, TrainSettings, train_supervised, train_unsupervised

from . import collect
from .harness import save_atomically
from .icons import OBJECTS
from .inprocess import MiniCanvas

FIELDS = ("tokens", "sigmas", "labels", "without", "unsaid")
HELD_OUT_SEED = 9_000


def load_or_collect(path: Path, canvas: MiniCanvas, seed: int, steps_kept: int, shuffled: bool) -> Maps:
    """The maps of one pass over all prompts, read from `path` where it exists."""
    if not path.exists():
        where = collect.trajectories(canvas, seed, steps_kept)
        maps = collect.maps(canvas, where, shuffle=seed if shuffled else None)
        save_atomically({name: getattr(maps, name) for name in FIELDS}, path)
    return Maps(**load_file(path))


def collected(canvas: MiniCanvas, work: Path, passes: int, steps_kept: int) -> tuple[Maps, Maps]:
    """(training maps of `passes` seeds, every second pass with latents and prompts mixed; held-out maps)."""
    began, parts = time.time(), []
    for number in range(passes):
        parts.append(load_or_collect(work / f"maps-{number}.safetensors", canvas, number, steps_kept, number % 2 == 1))
        print(f"collected pass {number + 1}/{passes}, {(time.time() - began) / 60:.1f} min", flush=True)
    held_out = load_or_collect(work / "maps-held-out.safetensors", canvas, HELD_OUT_SEED, steps_kept, False)
    return collect.joined(parts), held_out


def printer(stage: str, steps: int, every: int = 100):
    began = time.time()

    def progress(step: int, numbers: dict[str, float]) -> None:
        if step % every == 0 or step == steps - 1:
            text = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
            left = (time.time() - began) / (step + 1) * (steps - step - 1)
            print(f"{stage} {step}/{steps}  {text}  {left:.0f} s left", flush=True)
    return progress


@torch.no_grad()
def token_means(sae: Sae, maps: Maps) -> torch.Tensor:
    """Mean top-k activation over the tokens of each map, zeros included: [n, d_sae]."""
    def mean(tokens: torch.Tensor) -> torch.Tensor:
        latents = sae.encode(tokens.float())
        dense = torch.zeros(*tokens.shape[:2], sae.config.d_sae)
        return dense.scatter_(2, latents.top_indices, latents.top_acts).mean(1)
    return torch.cat([mean(part) for part in maps.tokens.split(64)])


@torch.no_grad()
def held_out_fvu(sae: Sae, maps: Maps) -> float:
    """FVU at inference (per-token top-k) over pictures of seeds that training never saw."""
    x = maps.tokens.flatten(0, 1).float()
    return float(fvu(x, torch.cat([sae(part) for part in x.split(4096)])))


def concepts_of(latents: list[int]) -> tuple[Concept, ...]:
    return tuple(Concept(name, (latent,), "object" if i < len(OBJECTS) else "style")
                 for i, (name, latent) in enumerate(zip(collect.CONCEPTS, latents, strict=True)))


def unsupervised(sae: Sae, maps: Maps, work: Path, settings: TrainSettings) -> None:
    """Stage one, or its result from an earlier run."""
    path = work / "unsupervised.safetensors"
    if path.exists():
        sae.load_state_dict(load_file(path))
        return
    train_unsupervised(sae, maps, settings, printer("unsupervised", settings.steps))
    save_atomically({k: v.detach() for k, v in sae.state_dict().items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=6, help="how often every prompt is sampled")
    parser.add_argument("--steps-kept", type=int, default=4, help="sampling steps kept of each picture")
    parser.add_argument("--d-sae", type=int, default=2560)
    parser.add_argument("--k", type=int, default=48)
    parser.add_argument("--unsupervised-steps", type=int, default=1500)
    parser.add_argument("--supervised-steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    maps, held_out = collected(MiniCanvas(options.checkpoint), options.work, options.passes, options.steps_kept)
    sae = Sae(SaeConfig(maps.tokens.shape[-1], options.d_sae, options.k))
    unsupervised(sae, maps, options.work, TrainSettings(options.unsupervised_steps, seed=options.seed))
    print(f"FVU on held-out seeds after stage one: {held_out_fvu(sae, held_out):.4f}")
    latents = assign(scores(token_means(sae, held_out), held_out.labels, held_out.sigmas))
    settings = TrainSettings(options.supervised_steps, seed=options.seed + 1)
    train_supervised(sae, maps, latents, settings, printer("supervised", settings.steps))
    statistics = measure(sae, maps.tokens, maps.sigmas, maps.labels, latents)
    summary = {"fvu": round(held_out_fvu(sae, held_out), 4), "maps": len(maps), "seed": options.seed}
    write(options.out, sae, Header(sae.config, collect.HOOKPOINT, "sd15", False, concepts_of(latents), summary),
          statistics)
    print(json.dumps(summary | detection(sae, held_out, latents, statistics)), options.out)


@torch.no_grad()
def detection(sae: Sae, maps: Maps, latents: list[int], statistics: Statistics) -> dict[str, float]:
    """On held-out maps: how often a concept's latent fires somewhere when it should, and when it should not."""
    rows = torch.tensor(latents)
    z = torch.cat([sae.pre_acts(part.float())[..., rows] for part in maps.tokens.split(256)])
    threshold = torch.stack([statistics.at(float(s), statistics.thresholds) for s in maps.sigmas])
    fires = (z > threshold[:, None].clamp_min(0)).any(1)
    return {"recall": round(float(fires[maps.labels].float().mean()), 4),
            "false_alarms": round(float(fires[~maps.labels].float().mean()), 4)}


if __name__ == "__main__":
    main()

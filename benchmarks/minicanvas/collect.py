"""Activations of MiniCanvas's hookpoint, collected in ComfyUI while it samples.

Every prompt is sampled as a user would; at a few random steps of each picture the block's output is kept, and the same
call is made again with the object unsaid and with the style unsaid: what differs is what the word contributes. A second
set of calls pairs the latents of one picture with the prompt of another, because an erased picture looks like that: the
prompt says cat and the canvas does not show one.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_models.training import Maps

from .icons import OBJECTS, STYLES
from .inprocess import STEPS, MiniCanvas
from .text import prompt

HOOKPOINT, BLOCK = "down_blocks.1.attentions.0", "input_blocks.3.1"
CONCEPTS = (*OBJECTS, *(f"{style} style" for style in STYLES))


@dataclass
class Trajectories:
    """Latents on their way: x [n, 4, h, w] at sigma [n], of the picture (obj, style) [n] each."""
    x: Tensor
    sigma: Tensor
    obj: Tensor
    style: Tensor


def trajectories(canvas: MiniCanvas, seed: int, steps_kept: int, batch: int = 51) -> Trajectories:
    """Sample every (object, style) once and keep `steps_kept` random steps of each picture."""
    pairs = torch.cartesian_prod(torch.arange(len(OBJECTS)), torch.arange(len(STYLES)))
    parts = [_sample_some(canvas, chunk, seed * 10_000 + i * batch, steps_kept)
             for i, chunk in enumerate(pairs.split(batch))]
    return Trajectories(*(torch.cat(field) for field in zip(*parts, strict=True)))


def _sample_some(canvas: MiniCanvas, pairs: Tensor, seed: int, steps_kept: int) -> tuple[Tensor, ...]:
    calls: list[tuple[Tensor, float]] = []
    model = canvas.model.clone()
    model.set_model_unet_function_wrapper(lambda apply, args: (
        calls.append((args["input"][-len(pairs):].clone(), float(args["timestep"][0]))),
        apply(args["input"], args["timestep"], **args["c"]))[1])
    prompts = [prompt(OBJECTS[obj], STYLES[style]) for obj, style in pairs.tolist()]
    canvas.sample(prompts, [seed + i for i in range(len(pairs))], model)
    assert len(calls) == STEPS
    generator = torch.Generator().manual_seed(seed)
    kept = torch.stack([torch.randperm(STEPS, generator=generator)[:steps_kept] for _ in pairs])
    x = torch.stack([calls[step][0][row] for row, steps in enumerate(kept.tolist()) for step in steps])
    sigma = torch.tensor([calls[step][1] for steps in kept.tolist() for step in steps])
    obj, style = pairs.repeat_interleave(steps_kept, 0).unbind(1)
    return x, sigma, obj, style


def maps(canvas: MiniCanvas, where: Trajectories, shuffle: int | None = None, batch: int = 128) -> Maps:
    """The hookpoint's tokens for each latent with its own prompt, or another's at random when `shuffle` is a seed."""
    order = torch.arange(len(where.x))
    if shuffle is not None:
        order = torch.randperm(len(where.x), generator=torch.Generator().manual_seed(shuffle))
    obj, style = where.obj[order], where.style[order]
    labels = torch.zeros(len(obj), len(CONCEPTS), dtype=torch.bool)
    labels.scatter_(1, obj[:, None], True).scatter_(1, style[:, None] + len(OBJECTS), True)

    def tokens(with_object: bool, with_style: bool) -> Tensor:
        prompts = [prompt(OBJECTS[o] if with_object else None, STYLES[s] if with_style else None)
                   for o, s in zip(obj.tolist(), style.tolist(), strict=True)]
        parts = [canvas.output_at(BLOCK, where.x[i:i + batch], where.sigma[i:i + batch],
                                  canvas.contexts(prompts[i:i + batch]))[0] for i in range(0, len(prompts), batch)]
        return torch.cat(parts).flatten(2).mT.half().clone()
    without = torch.stack([tokens(False, True), tokens(True, False)], 1)
    unsaid = torch.stack([obj, style + len(OBJECTS)], 1)
    return Maps(tokens(True, True), where.sigma, labels, without, unsaid)


def joined(parts: list[Maps]) -> Maps:
    return Maps(*(torch.cat([getattr(part, name) for part in parts])
                  for name in ("tokens", "sigmas", "labels", "without", "unsaid")))

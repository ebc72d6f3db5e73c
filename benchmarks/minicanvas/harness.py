"""A resumable training loop: bf16 autocast, AdamW, a moving average of the weights, a checkpoint every few minutes.

Every step draws its data from a generator seeded with the step number, so a run that was stopped and resumed sees
the same batches as one that was not.
"""
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sae_models.learning.sparse import bfloat16_is_fast


@dataclass
class TrainConfig:
    """folder: where checkpoints go; steps: in all; lr: peak, after `warmup` steps, cosine to lr/20 at the end;
    minutes: for a run that is to end by the clock, whatever its steps."""
    folder: Path
    steps: int
    lr: float = 3e-4
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 0.0
    save_seconds: float = 180.0
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}")
        self.folder.mkdir(parents=True, exist_ok=True)

    def done(self, step: int, seconds: float) -> float:
        """Share of the run, 0 to 1."""
        return min(1.0, seconds / 60 / self.minutes if self.minutes else step / self.steps)

    def lr_at(self, step: int, seconds: float) -> float:
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * self.done(step, seconds)))
        return self.lr * cosine * min(1.0, (step + 1) / self.warmup)


def save_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    part = path.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata)
    os.replace(part, path)


class Run:
    """One model in training; `model` is modified in place, `average` is the model to ship."""

    def __init__(self, model: nn.Module, config: TrainConfig, device: str) -> None:
        self.config, self.device = config, device
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.params = dict(self.model.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.params.items()}
        self.optimizer = torch.optim.AdamW(self.params.values(), lr=config.lr, betas=(0.9, 0.99),
                                           weight_decay=config.weight_decay, fused=True)
        self.step = 0
        if self.state_path.exists():
            self._resume()

    @property
    def state_path(self) -> Path:
        return self.config.folder / "state.safetensors"

    def _resume(self) -> None:
        state = load_file(self.state_path, device=self.device)
        self.step = int(state["step"])
        with torch.no_grad():
            for name, param in self.params.items():
                param.copy_(state[f"model.{name}"])
                self.average[name].copy_(state[f"average.{name}"])
                if f"exp_avg.{name}" in state:
                    moments = {kind: state[f"{kind}.{name}"] for kind in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[param] = {
                        "step": torch.tensor(float(self.step), device=param.device), **moments}
        print(f"resumed at step {self.step}", flush=True)

    def save(self) -> None:
        state = {"step": torch.tensor(self.step)}
        for name, param in self.params.items():
            state[f"model.{name}"] = param.detach()
            state[f"average.{name}"] = self.average[name]
            for moment in ("exp_avg", "exp_avg_sq"):
                if param in self.optimizer.state:
                    state[f"{moment}.{name}"] = self.optimizer.state[param][moment]
        save_atomically(state, self.state_path)

    def _update(self, loss: torch.Tensor, seconds: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(self.step, seconds)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.params.values()], 1 - decay)

    def train(self, loss_fn: Callable[[nn.Module, torch.Generator], torch.Tensor],
              report: Callable[["Run"], None] | None = None, report_every: int = 1000) -> None:
        """Step to the end; `loss_fn(model, generator)` draws a batch and returns its loss."""
        began, first, saved, losses = time.time(), self.step, time.time(), []
        ended = self.config.done(self.step, 0.0) >= 1
        while not ended:
            generator, seconds = torch.Generator().manual_seed(self.step), time.time() - began
            with torch.autocast(self.device, dtype=torch.bfloat16, enabled=bfloat16_is_fast(self.device)):
                loss = loss_fn(self.model, generator)
            self._update(loss, seconds)
            losses.append(loss.detach())
            self.step += 1
            ended = self.config.done(self.step, seconds) >= 1
            if self.step % 25 == 0:
                mean, pace = float(torch.stack(losses).mean()), (time.time() - began) / (self.step - first)
                print(f"step {self.step}  loss {mean:.4f}  {pace:.3f} s/step  "
                      f"{self.config.done(self.step, seconds):.1%}", flush=True)
                losses.clear()
            if time.time() - saved > self.config.save_seconds or ended:
                self.save()
                saved = time.time()
            if report and (self.step % report_every == 0 or ended):
                report(self)

    def averaged(self) -> nn.Module:
        """The model with its averaged weights swapped in; `swap_back` undoes it."""
        self._swap()
        return self.model.eval()

    def swap_back(self) -> None:
        self._swap()
        self.model.train()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, param in self.params.items():
            kept = param.detach().clone()
            param.copy_(self.average[name])
            self.average[name].copy_(kept)

"""Train an SAE on block outputs in two stages: rebuild the input; then one latent a concept carries that concept.

Stage one is SAeUron's (arXiv 2501.18052, appendix): FVU and AuxK. Then each concept gets one latent by score, as in
SAEmnesia (arXiv 2509.21379, section 3.2), and stage two goes on with the concepts' losses beside the first (`losses`).
The loop and its checkpoint are in `run`.
"""
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SaeError
from ..sae import Sae, SaeConfig
from . import losses, parallel, scoring
from .fitting import initialise_concepts
from .losses import Weights
from .maps import Maps, Window
from .prompts import Subject
from .run import Run
from .shard import SaeShard
from .sparse import Coded, bfloat16_is_fast, code, row_products

SCORED_MAPS = 2048
log = logging.getLogger("saemnesia")


@dataclass(frozen=True)
class TrainSettings:
    """Steps of the two stages (without the second, a concept only names its best latent; without the first, an SAE is
    gone on from); batch: maps a step; lr: peak, linear to 0 in each stage; dead_steps: a latent is dead after so many
    steps without firing; published: stage two as SAEmnesia's authors do it, to compare with; half: choose latents in
    bfloat16 (their activations stay fp32), where that is fast."""
    unsupervised_steps: int = 1500
    supervised_steps: int = 2000
    batch: int = 64
    lr: float = 3e-3
    dead_steps: int = 200
    published: bool = False
    half: bool = True
    seed: int = 0
    weights: Weights = field(default_factory=Weights)

    def __post_init__(self) -> None:
        for name, least in (("unsupervised_steps", 0), ("supervised_steps", 0), ("steps", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise SaeError(f"expected {name} >= {least}, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise SaeError(f"expected lr > 0, got {self.lr}")

    @property
    def steps(self) -> int:
        return self.unsupervised_steps + self.supervised_steps


class Trainer(Run):
    """The SAE of one place in training: a run of its own, unless it is one of `Several`. `about`: what the maps were
    made of (model, prompts, place); a checkpoint of anything else is refused. `start`: an SAE to go on from; without
    one there has to be a first stage."""

    def __init__(self, config: SaeConfig, subjects: Sequence[Subject], window: Window, settings: TrainSettings,
                 device: torch.device | str = "cpu", about: dict[str, Any] | None = None,
                 start: Sae | None = None) -> None:
        if start is None and settings.unsupervised_steps == 0:
            raise SaeError("expected unsupervised_steps >= 1, or an SAE to start from, got 0")
        self.subjects, self.window, self.settings, self.about = list(subjects), window, settings, about or {}
        self.device = torch.device(device)
        if parallel.shard()[1] > 1 and settings.published:
            raise SaeError("the published loss needs all latents in one process: leave out --shards")
        whole = _new_sae(config, settings.seed) if start is None else deepcopy(start)
        self.sae = (SaeShard(whole) if parallel.shard()[1] > 1 else whole).to(self.device)
        self.centred = start is not None
        self.step, self.batch = 0, settings.batch
        self.idle = torch.zeros(len(self.sae.W_dec), dtype=torch.long, device=self.device)
        self.latents: list[int] = []
        self.first_scores: list[list[float]] = []
        self.curve: list[dict[str, float]] = []
        self.optimizer = self._new_optimizer()

    # --- its part of a run -----------------------------------------------------------------------------

    @property
    def trainers(self) -> Mapping[str, "Trainer"]:
        return {"": self}

    def begin_stage(self) -> None:
        """Begin the second stage if it is its turn."""
        if self.step == self.settings.unsupervised_steps and not self.latents:
            self._begin_supervised()

    def end(self) -> None:
        """Without a second stage, choose the concepts' latents."""
        if not self.latents:
            self._choose_latents(self.window.sample(SCORED_MAPS))

    def noted(self, numbers: dict[str, Tensor]) -> dict[str, float]:
        """This step's numbers, for all processes, added to the curve.

        Raises SaeError when one is no number.
        """
        plain = {name: float(parallel.total(value)) for name, value in numbers.items()}
        if not all(math.isfinite(value) for value in plain.values()):
            raise SaeError(f"training broke down at step {self.step}: the loss is not a number; the last good "
                           f"checkpoint is kept, so run again with a lower learning rate than {self.settings.lr:g}")
        plain["dead"] = float(self.sae.summed(self._dead().sum()) / self.sae.config.d_sae)
        self.curve.append({"step": self.step} | {name: round(value, 5) for name, value in plain.items()})
        return plain

    def step_that_fits(self) -> dict[str, Tensor]:
        """One step; when memory runs out for the first time, with half the maps from then on."""
        try:
            return self.train_step()
        except RuntimeError as error:
            if not _out_of_memory(error) or self.batch < self.settings.batch or self.batch < 2:
                raise
            self.batch //= 2
            self._forget_half_made_moments()
            log.warning("SAEmnesia: out of memory with %d maps a step; going on with %d", self.settings.batch,
                        self.batch)
        return self.train_step()

    def _forget_half_made_moments(self) -> None:
        """Adam notes a parameter before it has made room for both of its moments."""
        state = self.optimizer.state
        for parameter in [parameter for parameter, own in state.items() if "exp_avg_sq" not in own]:
            del state[parameter]

    def train_step(self) -> dict[str, Tensor]:
        """One step on maps of the window; the losses it had."""
        if self.step == 0 and not self.centred:
            self._centre()
        seed = self.settings.seed * 1_000_003 + self.step
        maps = self.window.batch(self.batch, seed, parallel.part()).to(self.device)
        self.optimizer.zero_grad()
        numbers = self._losses(maps)
        sum(numbers.values()).backward()
        parallel.sum_gradients(self.sae.parameters())
        self._update()
        self.step += 1
        return numbers

    def _losses(self, maps: Maps) -> dict[str, Tensor]:
        weights, own = self.settings.weights, torch.tensor(self.latents, device=self.device)
        if self.latents and self.settings.published:
            kinds = sorted({subject.kind for subject in self.subjects})
            numbered = torch.tensor([kinds.index(subject.kind) for subject in self.subjects], device=self.device)
            return {"published": losses.as_published(self.sae, maps, own, numbered)}
        x = maps.all_tokens()
        dead = self._dead()
        coded = code(self.sae, x, self.settings.half and bfloat16_is_fast(x.device), dead.nonzero()[:, 0])
        self._note_fired(coded)
        any_dead = self.sae.summed(dead.sum()) > 0
        numbers = {"fvu": losses.fvu(x, coded.x_hat), "auxk": any_dead * weights.auxk * losses.auxk(x, coded)}
        if self.latents:
            carry, silence = losses.carry_and_silence(self.sae, maps, own, weights)
            numbers |= {"carry": weights.carry * carry, "silence": weights.silence * silence}
        return numbers

    def _dead(self) -> Tensor:
        """bool: latents that no process saw fire for `dead_steps` steps."""
        return self.idle > self.settings.dead_steps

    def _note_fired(self, coded: Coded) -> None:
        """Count for how many steps no process saw a latent fire."""
        fired = torch.zeros(len(self.idle), device=self.device)
        fired[coded.top_indices[coded.top_acts > 0]] = 1
        self.idle = torch.where(parallel.total(fired) > 0, 0, self.idle + 1)

    def _update(self) -> None:
        """One step of the optimiser; it keeps W_dec's rows at unit norm, and takes out the gradient along them."""
        unit_rows = not (self.latents and self.settings.published)
        grad, W_dec = self.sae.W_dec.grad, self.sae.W_dec.detach()
        if unit_rows:
            along = row_products(grad, W_dec, torch.arange(len(grad), device=grad.device)[:, None])
            grad.addcmul_(along, W_dec, value=-1)
        self._clip_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.optimizer.step()
        if unit_rows:
            self.sae.normalise_decoder()

    def _clip_gradients(self, most: float = 1.0) -> None:
        """Scale all gradients down where their norm is above `most`."""
        squares = {name: torch.linalg.vector_norm(parameter.grad) ** 2
                   for name, parameter in self.sae.named_parameters()}
        norm = (squares.pop("b_dec") + self.sae.summed(sum(squares.values()))).sqrt()
        for parameter in self.sae.parameters():
            parameter.grad.mul_((most / (norm + 1e-6)).clamp(max=1.0))

    def _lr(self) -> float:
        first = self.settings.unsupervised_steps if self.latents else 0
        steps = self.settings.supervised_steps if self.latents else self.settings.unsupervised_steps
        done = self.step - first
        return self.settings.lr * min(1.0, (done + 1) / max(1, steps // 50)) * (1 - done / steps)

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.sae.parameters(), lr=self.settings.lr, eps=6.25e-10, fused=_can_fuse())

    @torch.no_grad()
    def _centre(self) -> None:
        self.sae.b_dec.copy_(self.window.sample(256).all_tokens()[::7].float().median(0).values)

    def _choose_latents(self, maps: Maps) -> None:
        """Give each concept its latent."""
        scores = scoring.score_maps(self.sae, maps)
        self.latents = scoring.assign(scores)
        self.first_scores = scores.topk(2, dim=1).values.tolist()

    def _begin_supervised(self) -> None:
        """Choose the concepts' latents, start their rows where least squares puts them, and the optimiser anew."""
        maps = self.window.sample(SCORED_MAPS)
        self._choose_latents(maps)
        if not self.settings.published:
            initialise_concepts(self.sae, maps, [[latent] for latent in self.latents], self.settings.weights)
        self.optimizer = self._new_optimizer()

    # --- its part of a checkpoint ----------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments. Where latents are split, all of a team call this and get the whole."""
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()} | {"idle": self.idle}
        for name, parameter in self.sae.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:
                    tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        return {name: value if name.endswith("b_dec") else self.sae.stacked(value) for name, value in tensors.items()}

    def state(self) -> dict[str, Any]:
        """All else as JSON, with what the run is of."""
        return self._identity() | {
            "step": self.step, "batch": self.batch, "latents": self.latents, "first_scores": self.first_scores,
            "curve": self.curve, "window": self.window.length, "updates": self._updates()}

    def restore(self, state: Mapping[str, Any], slice_of: Callable[[str], Any]) -> None:
        """Take over a `state`; slice_of: of one of its tensors, by name."""
        self.step, self.batch, self.latents, self.first_scores, self.curve = (
            state[name] for name in ("step", "batch", "latents", "first_scores", "curve"))
        self.window.length = state["window"]
        own = self.sae.own if isinstance(self.sae, SaeShard) else slice(None)

        def tensor(name: str) -> Tensor:
            part = slice_of(name)[slice(None) if name.endswith("b_dec") else own]
            return part.to(self.device, copy=True)  # Windows replaces no file that is mapped
        self.sae.load_state_dict({name: tensor(f"sae.{name}") for name in self.sae.state_dict()})
        self.idle = tensor("idle")
        self.optimizer = self._new_optimizer()
        for name, parameter in self.sae.named_parameters() if state["updates"] else ():
            at = self.device if _can_fuse() else "cpu"  # where Adam keeps it
            self.optimizer.state[parameter] = {"step": torch.tensor(float(state["updates"]), device=at)} | {
                moment: tensor(f"{moment}.{name}") for moment in ("exp_avg", "exp_avg_sq")}

    def _updates(self) -> int:
        """How many steps the optimiser of this stage has made."""
        return self.step - (self.settings.unsupervised_steps if self.latents else 0)

    def _identity(self) -> dict[str, Any]:
        return {"config": asdict(self.sae.config), "settings": asdict(self.settings), "about": self.about,
                "concepts": [asdict(subject) for subject in self.subjects]}

    def refuse_other(self, state: Mapping[str, Any], path: Path) -> None:
        """Raise SaeError when a `state` is of another model, other prompts or settings; path: where it was read."""
        own = json.loads(json.dumps(self._identity()))
        changed = [name for part in own for name in _differences(part, own[part], state[part])]
        if changed:
            raise SaeError(f"the checkpoint {path.name} is of another run ({', '.join(changed)} changed): choose "
                           f"another name for this one, or delete the checkpoint to train from the start")


def _differences(part: str, own: Any, other: Any) -> list[str]:
    if own == other:
        return []
    if isinstance(own, dict) and isinstance(other, dict):
        return sorted(key for key in {*own, *other} if own.get(key) != other.get(key))
    return [part]


def _new_sae(config: SaeConfig, seed: int) -> Sae:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Sae(config)


def _can_fuse() -> bool:
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 4)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)

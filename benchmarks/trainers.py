"""One training step of a top-k SAE as four projects make it: ours, SAELens, sparsify and dictionary_learning.

Each is driven batch by batch with its own loss, AuxK, decoder normalisation, clipping and optimiser. SAELens and
dictionary_learning through their trainers' own methods for one batch, ours through `Trainer.train_step`. sparsify's
trainer wants a language model and a data set, so its `SparseCoder` is put through what its trainer does with a batch,
in the same order.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_models.learning.maps import Maps
from sae_models.learning.training import Trainer, TrainSettings
from sae_models.sae import SaeConfig
from tools.peers import make_importable

make_importable()

from dictionary_learning.trainers import TopKTrainer  # noqa: E402
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig  # noqa: E402
from sae_lens.config import SAETrainerConfig  # noqa: E402
from sae_lens.training.sae_trainer import SAETrainer  # noqa: E402
from schedulefree import ScheduleFreeWrapper  # noqa: E402
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig  # noqa: E402
from sparsify.sign_sgd import SignSGD  # noqa: E402
from transformers import get_linear_schedule_with_warmup  # noqa: E402

PRECISIONS = {"default": "highest", "fp32": "highest", "tf32": "high", "bf16": "highest"}
"""What fp32 matrix products are made in, `torch.set_float32_matmul_precision`."""


@dataclass(frozen=True)
class Work:
    """What all get to do: `steps` steps of `batch` tokens.

    precision: "default" leaves everything to each project: precision, optimiser, loss, learning rate. With "fp32",
    "tf32" and "bf16" (autocast) all use Adam with learning rate `lr` and have AuxK, for latents that did not fire for
    `dead_steps` steps (None: each project's own number). In both the rate rises for `warm_up` steps and falls to 0.
    """
    config: SaeConfig
    batch: int
    steps: int
    device: str
    precision: str = "default"
    lr: float = 1e-3
    dead_steps: int | None = None
    seed: int = 0

    @property
    def warm_up(self) -> int:
        return max(2, self.steps // 50)

    def given(self, **options: object) -> dict[str, object]:
        """The options, without those that are None or that are left to the project."""
        own = {"lr", "auxk_alpha"} if self.precision == "default" else set()
        return {name: value for name, value in options.items() if value is not None and name not in own}


class Way:
    """A project's SAE in training. `step` learns from tokens [batch, d_in]; `rebuilt` is x_hat for any tokens."""
    matmul = "highest"

    def __init__(self, work: Work) -> None:
        self.matmul = PRECISIONS[work.precision]

    def step(self, x: Tensor) -> None:
        raise NotImplementedError

    def rebuilt(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Given:
    """Stands in for a `Window` of maps: its next batch is the tokens it was given, half of them as counterfactuals."""

    def batch(self, *_: object) -> Maps:
        tokens, without = self.tokens[:, None].chunk(2)
        return Maps(tokens, without, torch.zeros(len(tokens), dtype=torch.long),
                    torch.zeros(len(tokens), 0, dtype=torch.bool), torch.zeros(len(tokens)))

    sample = batch


class Ours(Way):
    """Stage one of our trainer."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.window = Given()
        settings = TrainSettings(work.steps, 1, work.batch // 2, seed=work.seed,
                                 half=work.precision in ("default", "bf16"),
                                 **work.given(lr=work.lr, dead_steps=work.dead_steps))
        self.trainer = Trainer(work.config, [], self.window, settings, work.device)

    def step(self, x: Tensor) -> None:
        self.window.tokens = x
        self.trainer.train_step()

    def rebuilt(self, x: Tensor) -> Tensor:
        return self.trainer.sae(x)


class SaeLens(Way):
    def __init__(self, work: Work) -> None:
        super().__init__(work)
        torch.manual_seed(work.seed)
        config = work.config
        self.sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=config.d_in, d_sae=config.d_sae, k=config.k,
                                                         device=work.device))
        settings = SAETrainerConfig(work.steps * work.batch, work.batch, lr_warm_up_steps=work.warm_up,
                                    lr_decay_steps=work.steps - work.warm_up, device=work.device,
                                    autocast=work.precision == "bf16",
                                    **work.given(lr=work.lr, dead_feature_window=work.dead_steps))
        settings.lr_end = settings.lr
        self.trainer = SAETrainer(settings, self.sae, data_provider=iter(()))

    def step(self, x: Tensor) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def rebuilt(self, x: Tensor) -> Tensor:
        return self.sae(x)


class DictionaryLearning(Way):
    def __init__(self, work: Work) -> None:
        super().__init__(work)
        config = work.config
        self.autocast = torch.autocast(torch.device(work.device).type, torch.bfloat16,
                                       enabled=work.precision == "bf16")
        self.trainer = TopKTrainer(work.steps, config.d_in, config.d_sae, config.k, layer=0, lm_name="none",
                                   warmup_steps=work.warm_up, decay_start=work.warm_up + 1, seed=work.seed,
                                   device=work.device, **work.given(lr=work.lr))
        if work.dead_steps is not None:
            self.trainer.dead_feature_threshold = work.dead_steps * work.batch
        self.steps_done = 0

    def step(self, x: Tensor) -> None:
        with self.autocast:
            self.trainer.update(self.steps_done, x)
        self.steps_done += 1

    def rebuilt(self, x: Tensor) -> Tensor:
        return self.trainer.ae(x)


class Sparsify(Way):
    """`default`: signum and no AuxK, on a GPU bf16 autocast and TF32. Else Adam and the AuxK weight of the others."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        config, own = work.config, work.precision == "default"
        self.matmul = "high" if own else self.matmul
        self.config = TrainConfig(
            SparseCoderConfig(num_latents=config.d_sae, k=config.k), optimizer="signum" if own else "adam",
            **work.given(lr=work.lr, auxk_alpha=1 / 32,
                         dead_feature_threshold=work.dead_steps and work.dead_steps * work.batch))
        torch.manual_seed(work.seed)
        self.sae = SparseCoder(config.d_in, self.config.sae, work.device, torch.float32)
        self.forward = self.sae.forward if own or work.precision == "bf16" else self._without_autocast
        self.idle = torch.zeros(config.d_sae, dtype=torch.long, device=work.device)
        self.started = False
        self._set_up_optimizer(work)

    def _set_up_optimizer(self, work: Work) -> None:
        if self.config.optimizer == "signum":
            sign = SignSGD(self.sae.parameters(), lr=5e-3 / (work.config.d_sae / 2**14) ** 0.5)
            self.optimizer, self.schedule = ScheduleFreeWrapper(sign, momentum=0.95), None
            self.optimizer.train()
        else:
            self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=work.lr)
            self.schedule = get_linear_schedule_with_warmup(self.optimizer, work.warm_up, work.steps)

    def _without_autocast(self, *args: object, **options: object) -> object:
        return SparseCoder.forward.__wrapped__(self.sae, *args, **options)

    def step(self, x: Tensor) -> None:
        if not self.started:
            self.sae.b_dec.data, self.started = x.mean(0), True
        self.sae.set_decoder_norm_to_unit_norm()
        dead = self.idle > self.config.dead_feature_threshold if self.config.auxk_alpha else None
        out = self.forward(x, dead_mask=dead, total_variance=(x - x.mean(0)).pow(2).sum())
        float(out.fvu.detach())
        (out.fvu + self.config.auxk_alpha * out.auxk_loss).backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.schedule:
            self.schedule.step()
        self.idle += len(x)
        self.idle[out.latent_indices.flatten()] = 0

    def rebuilt(self, x: Tensor) -> Tensor:
        """As saved: with the averaged weights of the schedule-free optimiser."""
        if self.schedule is None:
            self.optimizer.eval()
        rebuilt = self._without_autocast(x).sae_out
        if self.schedule is None:
            self.optimizer.train()
        return rebuilt


WAYS = {"ours": Ours, "sae-lens": SaeLens, "eai-sparsify": Sparsify, "dictionary-learning": DictionaryLearning}

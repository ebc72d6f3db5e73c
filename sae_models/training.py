"""Train an SAE on block outputs: first unsupervised, then so that one latent a concept carries that concept.

Unsupervised (SAeUron, arXiv 2501.18052): fraction of variance unexplained (FVU) plus AuxK for dead latents.
Supervised (after SAEmnesia, arXiv 2509.21379): each concept's latent is trained to be silent where the concept is
absent and, where it is present, to carry it: z_c W_dec[c] shall equal the block's output minus the output of the very
same call with the concept left out of the prompt (a little more, see `push`). So that switching the latent off is
enough, which detecting alone does not give.
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .sae import Latents, Sae, fvu

Progress = Callable[[int, dict[str, float]], None]


@dataclass
class Maps:
    """Block outputs as tokens. n calls, N tokens each, C concepts.

    tokens [n, N, d_in]; sigmas [n]; labels bool [n, C]: concepts present; without [n, P, N, d_in]: the same call with
    one present concept unsaid; unsaid int [n, P]: which concept that is.
    """
    tokens: Tensor
    sigmas: Tensor
    labels: Tensor
    without: Tensor
    unsaid: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def pick(self, index: Tensor) -> "Maps":
        """The chosen calls, as fp32."""
        return Maps(self.tokens[index].float(), self.sigmas[index], self.labels[index], self.without[index].float(),
                    self.unsaid[index])


@dataclass(frozen=True)
class TrainSettings:
    """steps; batch: maps a step; lr: peak, linear to 0; auxk: weight of the dead latents' loss, a latent being dead
    after `dead_steps` steps without firing. Supervised stage: carry, silence: weights of its two losses; margin: how
    far below zero the logit of an absent concept shall lie; push: how much more than the difference a concept's latent
    shall carry, because a prompt without the concept still leads to it now and then."""
    steps: int = 3000
    batch: int = 64
    lr: float = 1e-3
    auxk: float = 1 / 32
    dead_steps: int = 200
    carry: float = 1.0
    silence: float = 1.0
    margin: float = 0.5
    push: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")


def batches(maps: Maps, settings: TrainSettings) -> Iterator[Maps]:
    """`settings.steps` random batches, the same for the same seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        yield maps.pick(torch.randint(len(maps), (settings.batch,), generator=generator))


def _optimizer(sae: Sae, settings: TrainSettings) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.Adam(sae.parameters(), lr=settings.lr, betas=(0.9, 0.999), eps=6.25e-10)
    warmup = max(1, settings.steps // 50)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * (1 - step / settings.steps))


def _step(sae: Sae, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
          loss: Tensor) -> None:
    """One step that keeps W_dec's rows at unit norm: the gradient along a row is taken out, then rows are rescaled."""
    optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():
        along = (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True)
        sae.W_dec.grad -= along * sae.W_dec
    nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    sae.normalise_decoder()


class DeadLatents:
    """Counts steps since a latent last fired, and the AuxK loss that brings dead ones back."""

    def __init__(self, sae: Sae, settings: TrainSettings) -> None:
        self.idle = torch.zeros(sae.config.d_sae, dtype=torch.long)
        self.settings = settings

    def loss(self, sae: Sae, x: Tensor, x_hat: Tensor, pre_acts: Tensor, latents: Latents) -> Tensor:
        """FVU of the residual x - x_hat rebuilt from the d_in / 2 strongest dead latents (Gao et al. 2024)."""
        self.idle += 1
        self.idle[latents.top_indices[latents.top_acts > 0]] = 0
        dead = self.idle > self.settings.dead_steps
        count = min(int(dead.sum()), sae.config.d_in // 2)
        if count == 0:
            return x.new_zeros(())
        acts, indices = pre_acts.masked_fill(~dead, 0).topk(count, dim=-1, sorted=False)
        residual = (x - x_hat).detach()
        return (residual - (sae.decode(Latents(acts, indices)) - sae.b_dec)).pow(2).sum() / residual.pow(2).sum()


def _reconstruction(sae: Sae, x: Tensor, pre_acts: Tensor, dead: DeadLatents) -> tuple[Tensor, Tensor]:
    """(FVU + auxk, FVU) for tokens [n, d_in] with their pre-activations [n, d_sae]."""
    latents = sae.top(pre_acts)
    x_hat = sae.decode(latents)
    unexplained = fvu(x, x_hat)
    return unexplained + dead.settings.auxk * dead.loss(sae, x, x_hat, pre_acts, latents), unexplained


def train_unsupervised(sae: Sae, maps: Maps, settings: TrainSettings, progress: Progress) -> None:
    """Stage one; `sae` is trained in place. `progress(step, {"fvu": ..., "dead": ...})`."""
    with torch.no_grad():
        sae.b_dec.copy_(maps.tokens.flatten(0, 1)[::101].float().median(0).values)
    optimizer, schedule = _optimizer(sae, settings)
    dead = DeadLatents(sae, settings)
    for step, batch in enumerate(batches(maps, settings)):
        x = torch.cat([batch.tokens.flatten(0, 1), batch.without.flatten(0, 2)[::2]])
        loss, unexplained = _reconstruction(sae, x, sae.pre_acts(x), dead)
        _step(sae, optimizer, schedule, loss)
        progress(step, {"fvu": unexplained.item(), "dead": float((dead.idle > settings.dead_steps).float().mean())})


def concept_losses(sae: Sae, batch: Maps, latents: Tensor, settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """(carry, silence) for a batch: see the module's docstring. latents [C] are the concepts' own."""
    W_enc, bias, W_dec = sae.encoder.weight[latents], sae.encoder.bias[latents], sae.W_dec[latents]
    def logits(x: Tensor) -> Tensor:
        return nn.functional.linear(x - sae.b_dec, W_enc, bias)
    here, away = logits(batch.tokens), logits(batch.without)                     # [n, N, C], [n, P, N, C]
    n, parts = batch.unsaid.shape
    z = here.relu().gather(2, batch.unsaid[:, None].expand(n, here.shape[1], parts)).permute(0, 2, 1)
    difference = (1 + settings.push) * (batch.tokens[:, None] - batch.without)   # [n, P, N, d_in]
    left = (difference - z[..., None] * W_dec[batch.unsaid][:, :, None]).pow(2).sum()
    said = batch.labels[:, None].expand(-1, parts, -1).clone()
    said.scatter_(2, batch.unsaid[..., None], False)
    loud = [torch.relu(part + settings.margin).pow(2)[absent[..., None, :].expand(part.shape)].mean()
            for part, absent in ((here, ~batch.labels), (away, ~said))]
    return left / difference.pow(2).sum(), sum(loud)


@torch.no_grad()
def initialise_concepts(sae: Sae, maps: Maps, latents: list[int], settings: TrainSettings, ridge: float = 1e-2) -> None:
    """Start each concept's latent where least squares puts it.

    W_dec[c] is the direction of the mean difference that the concept makes; W_enc[c] and its bias predict, from a token
    alone, how far the token lies along that direction where the concept is present, and `-margin` where it is absent.
    """
    n_concepts, d_in = maps.labels.shape[1], maps.tokens.shape[-1]
    difference = torch.zeros(n_concepts, d_in)
    for part in torch.arange(len(maps)).split(256):
        batch = maps.pick(part)
        change = (batch.tokens[:, None] - batch.without).mean(2)
        difference.index_add_(0, batch.unsaid.flatten(), change.flatten(0, 1))
    rows = nn.functional.normalize(difference, dim=1)
    gram, target = torch.zeros(d_in + 1, d_in + 1), torch.zeros(d_in + 1, n_concepts)
    for part in torch.arange(len(maps)).split(256):
        x, y = _wanted_logits(maps.pick(part), rows, settings)
        gram += x.T @ x
        target += x.T @ y
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    solved = torch.linalg.solve(gram, target).T
    own = torch.tensor(latents)
    sae.W_dec[own], sae.encoder.weight[own] = rows, solved[:, :-1]
    sae.encoder.bias[own] = solved[:, -1] + solved[:, :-1] @ sae.b_dec


def _wanted_logits(batch: Maps, rows: Tensor, settings: TrainSettings) -> tuple[Tensor, Tensor]:
    """Tokens with a 1 appended [T, d_in + 1], and what each concept's logit should be for them [T, C]."""
    n, N, d_in = batch.tokens.shape
    here = torch.full((n, N, len(rows)), -settings.margin)
    along = (1 + settings.push) * torch.einsum("npkd,npd->nkp", batch.tokens[:, None] - batch.without,
                                               rows[batch.unsaid])
    here.scatter_(2, batch.unsaid[:, None].expand(-1, N, -1), along)
    x = torch.cat([batch.tokens, *batch.without.unbind(1)]).reshape(-1, d_in)
    away = [here.scatter(2, batch.unsaid[:, p, None, None].expand(-1, N, 1), -settings.margin)
            for p in range(batch.unsaid.shape[1])]
    return torch.cat([x, torch.ones(len(x), 1)], 1), torch.cat([here, *away]).reshape(-1, len(rows))


def train_supervised(sae: Sae, maps: Maps, latents: list[int], settings: TrainSettings, progress: Progress) -> None:
    """Stage two; `latents` are the concepts' own, in the order of `maps.labels`' columns."""
    own = torch.tensor(latents)
    initialise_concepts(sae, maps, latents, settings)
    optimizer, schedule = _optimizer(sae, settings)
    dead = DeadLatents(sae, settings)
    for step, batch in enumerate(batches(maps, settings)):
        x = torch.cat([batch.tokens.flatten(0, 1), batch.without.flatten(0, 2)[::2]])
        loss, unexplained = _reconstruction(sae, x, sae.pre_acts(x), dead)
        carry, silence = concept_losses(sae, batch, own, settings)
        _step(sae, optimizer, schedule, loss + settings.carry * carry + settings.silence * silence)
        progress(step, {"fvu": unexplained.item(), "carry": carry.item(), "silence": silence.item()})

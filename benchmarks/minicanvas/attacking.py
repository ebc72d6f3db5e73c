"""Words nobody says that bring an erased concept back, found with gradients through the very edit that erases it.

From noisy pictures on their way to scenes with the concept, the model with the edit is to predict for a scene without
its word what the model without the edit predicts with it (P4D, arXiv 2309.06135; no picture is needed). What is sought
are k embeddings before a prompt, as in concept inversion (arXiv 2308.01508), the upper bound of what a prompt can do;
or k tokens, exchanged one by one for those that the gradient likes (GCG, arXiv 2307.15043). Ring-A-Bell (arXiv
2310.10012) sees neither model nor edit: it seeks tokens whose encoding is near that of the word, and more of it.

The edit is differentiable, its gate is not: backwards it is a sigmoid about the threshold. An attack that evades is
also told to keep the neuron below its threshold. One that is to stay unheard goes past the vote of the places instead,
without which nothing is erased: it is told to bring the concept back in the model as it is, while the vote stays below
the bar.
"""
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from sae_models import hookpoint
from sae_models.adapter import Block
from sae_models.erasure import LOUD, Edit, Erased, Erasure, _pre_activations, _threshold
from sae_models.voting import BAR, LATER, VOTED_IN, Voting

from . import models  # noqa: F401  (puts ComfyUI on the path)
from .rivals import EsdSettings, Teacher, teacher
from .text import contexts, encoder, token_embedding, tokenizer
from .train_unet import alphas_cumprod

from comfy.ldm.modules.attention import optimized_attention_for_device  # isort: skip

K, STEPS, BATCH, RATE = 3, 120, 4, 0.05
"""Embeddings or tokens before the prompt; steps, pictures a step and Adam's rate of an attack on embeddings."""
ROUNDS, CANDIDATES, LIKED = 40, 12, 64
"""Of an attack on tokens: rounds, exchanges tried in each, and how many tokens the gradient proposes for a place."""
BELL, MORE = 16, 3.0
"""Tokens of Ring-A-Bell, and how often what the word adds is added to prompts that say it (both as published)."""
POPULATION, GENERATIONS, BEST, MUTATED = 48, 80, 12, 0.06
"""Of its genetic algorithm: how many live, for how long, how many have children, and the share of a child's tokens that
are new."""
SOFT = 0.1
"""Width of the gate's sigmoid backwards, in units of the threshold."""
QUIET = 0.8
"""How much of the bar the vote of an attack that stays unheard may reach."""
FAINT = 1e-5
"""What is added to how strongly a neuron fires before a vote: its root has no gradient at 0."""


@dataclass(frozen=True)
class Attack:
    """through: the gradient sees the edit; evasion: how much it counts that the neuron is kept silent; unheard: that
    the places vote the concept out, whereupon there is no edit to look through; tokens: what is sought are tokens, not
    embeddings; said: the concept's word is in the prompt too; bell: by Ring-A-Bell, which sees no model."""
    title: str
    through: bool = True
    evasion: float = 0.0
    unheard: float = 0.0
    tokens: bool = False
    said: bool = False
    bell: bool = False


@dataclass
class SoftErasure(Erasure):
    """The same edit, of what was voted in, with gates that gradients pass; loud: how far above their thresholds rows
    were."""
    loud: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: float, conditional: Tensor | None = None,
                 x_in: Tensor | None = None) -> Erased:
        """Also where nothing fires, of which a gradient shall hear."""
        acts = self._gated(x, sigma, VOTED_IN)
        return Erased(self._edited(x, acts, sigma).mT, torch.cat([z.detach().amax((0, 2)) for z in acts]).gt(0))

    def strengths(self, x: Tensor, sigma: float, x_in: Tensor | None = None) -> Tensor:
        return torch.cat([z.mean(2) for z in self._gated(x, sigma, LOUD)], 1)

    def _gated(self, x: Tensor, sigma: float, needed: float) -> list[Tensor]:
        acts = []
        for edit, placed in zip(self.edits, self._on(x), strict=True):
            threshold = _threshold(edit, placed, sigma).clamp_min(1e-6).to(x)[:, None]
            above = (pre := _pre_activations(x.mT, placed, True)) - needed * threshold
            gate = (above / (SOFT * threshold)).sigmoid()
            acts.append(pre * (above.gt(0) + gate - gate.detach()))
            self.loud.append(((pre - threshold) / threshold).relu().mean())
        return acts


class Victim:
    """A UNet with edits at its cross-attentions, as a function; edits: none for a model as it is."""

    def __init__(self, unet: nn.Module, edits: Sequence[tuple[Block, Edit]] = ()) -> None:
        self.unet = unet
        self.erasures = {block: SoftErasure([edit]) for block, edit in edits}

    def __call__(self, x: Tensor, time: int, context: Tensor, edited: bool = True) -> Tensor:
        """eps [n, 4, h, w] at one step."""
        sigma = _sigma(time)
        return self._hooked(x, time, context, {
            block: partial(_edited, erasure, sigma) for block, erasure in self.erasures.items() if edited})

    def heard(self, x: Tensor, time: int, context: Tensor) -> tuple[Tensor, Tensor]:
        """eps of the model as it is, and the concept's vote [n]."""
        strengths, sigma = {}, _sigma(time)

        def listen(block: Block, output: Tensor) -> None:
            self.erasures[block].loud.clear()
            strengths[block] = self.erasures[block].strengths(output, sigma) + FAINT
        eps = self._hooked(x, time, context, {block: partial(listen, block) for block in self.erasures})
        return eps, Voting(self.erasures).votes(strengths, sigma)[:, 0]

    def _hooked(self, x: Tensor, time: int, context: Tensor, seen: dict[Block, Callable[[Tensor], Tensor | None]]
                ) -> Tensor:
        """eps with functions called with what some places put out; what they give takes its place."""
        with ExitStack() as stack:
            for block, see in seen.items():
                module = hookpoint.find(self.unet, block.hookpoint)
                stack.callback(module.register_forward_hook(lambda _, inputs, output, see=see: see(output)).remove)
            return self.unet(x, torch.full((len(x),), time), context)

    def loud(self) -> Tensor:
        """How far rows were above their thresholds in the last call, over all places."""
        parts = [part for erasure in self.erasures.values() for part in erasure.loud]
        return torch.stack(parts).mean() if parts else torch.zeros(())


class Compared(Victim):
    """With what is taken out of a prompt by comparing it with the other half of guidance, so that both are predicted;
    what is taken out where neurons fire is left to the painting."""

    def __init__(self, unet: nn.Module, edits: Sequence[tuple[Block, Edit]]) -> None:
        super().__init__(unet)
        self.places = {block: Erasure([edit]) for block, edit in edits if not edit.gated}

    def __call__(self, x: Tensor, time: int, context: Tensor, edited: bool = True) -> Tensor:
        if not edited:
            return super().__call__(x, time, context)
        said, other = torch.ones(len(x), dtype=torch.bool), contexts([""]).expand_as(context)
        seen = {block: partial(_compared, erasure, _sigma(time), torch.cat([said, ~said]))
                for block, erasure in self.places.items()}
        return self._hooked(torch.cat([x, x]), time, torch.cat([context, other]), seen)[:len(x)]


def _compared(erasure: Erasure, sigma: float, conditional: Tensor, output: Tensor) -> Tensor:
    return erasure(output, sigma, conditional).out


def _edited(erasure: SoftErasure, sigma: float, output: Tensor) -> Tensor:
    erasure.loud.clear()
    return erasure(output, sigma).out


def _sigma(time: int) -> float:
    a = float(alphas_cumprod()[time])
    return ((1 - a) / a) ** 0.5


class Words:
    """Prompts with k places before them, as the text encoder hears them."""

    def __init__(self, texts: Sequence[str], k: int = K) -> None:
        ids = [[token for token, _ in tokenizer().tokenize_with_weights(text)[0]] for text in texts]
        self.ids = torch.tensor([[row[0], *[0] * k, *row[1:len(row) - k]] for row in ids])
        self.table, self.k = token_embedding(), k

    def contexts(self, before: Tensor, rows: Tensor) -> Tensor:
        """[n, 77, 768] of some of the prompts with embeddings [k, 768], or [n, k, 768], before them."""
        ids = self.ids[rows]
        own = self.table[ids].float()
        before = before.expand(len(rows), -1, -1)
        return _encoded(torch.cat([own[:, :1], before, own[:, self.k + 1:]], 1))


def _encoded(embeds: Tensor) -> Tensor:
    """What the host's encoder makes of embeddings [n, 77, 768], without changes in place, which no gradient passes."""
    model = encoder()
    x = embeds + model.embeddings.position_embedding.weight
    mask = torch.full((x.shape[1], x.shape[1]), -torch.finfo(x.dtype).max).triu_(1)
    attention = optimized_attention_for_device(x.device, mask=True, small_input=True)
    for layer in model.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return model.final_layer_norm(x)


class Seeker:
    """What is sought for one concept, victim and attack; texts: the teacher's prompts without the concept's word, or
    with it."""

    def __init__(self, victim: Victim, known: Teacher, texts: Sequence[str], attack: Attack, seed: int) -> None:
        self.victim, self.known, self.attack, self.words = victim, known, attack, Words(texts)
        self.generator = torch.Generator().manual_seed(seed)
        self.times = known.times.unique()

    def loss(self, before: Tensor, rows: Tensor, prompts: Tensor) -> Tensor:
        """How far the victim's prediction is from the teacher's, a share of what the word makes; rows: of the teacher's
        steps, all of one time."""
        known, attack, time = self.known, self.attack, int(self.known.times[rows[0]])
        asked = known.latents[rows], time, self.words.contexts(before, prompts)
        if attack.unheard:
            said, vote = self.victim.heard(*asked)
            paid = attack.unheard * (vote / (BAR if time == self.times.max() else LATER) - QUIET).relu().mean()
        else:
            said = self.victim(*asked, attack.through)
            paid = attack.evasion * self.victim.loud()
        word = (known.with_it[rows] - known.without[rows]).square().mean()
        return (said - known.with_it[rows]).square().mean() / word + paid

    def some(self) -> tuple[Tensor, Tensor]:
        """Rows of the teacher, of a step at random, and the prompt of each."""
        time = self.times[torch.randint(len(self.times), (), generator=self.generator)]
        own = (self.known.times == time).nonzero()[:, 0]
        chosen = torch.randint(len(own), (BATCH,), generator=self.generator)
        return own[chosen], chosen % len(self.words.ids)

    def embeddings(self) -> Tensor:
        """[k, 768]"""
        start = torch.randint(len(self.words.table), (K,), generator=self.generator)
        before = self.words.table[start].float().requires_grad_()
        optimizer = torch.optim.Adam([before], lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            self.loss(before, *self.some()).backward()
            optimizer.step()
        return before.detach()

    def tokens(self) -> Tensor:
        """[k, 768] of tokens."""
        table = self.words.table.float()
        ids = torch.randint(len(table), (K,), generator=self.generator)
        for _ in range(ROUNDS):
            rows, texts = self.some()
            before = table[ids].requires_grad_()
            self.loss(before, rows, texts).backward()
            liked = (-before.grad @ table.T).topk(LIKED, 1).indices
            tried = ids.repeat(CANDIDATES, 1)
            place = torch.randint(K, (CANDIDATES,), generator=self.generator)
            rank = torch.randint(LIKED, (CANDIDATES,), generator=self.generator)
            tried[range(CANDIDATES), place] = liked[place, rank]
            with torch.no_grad():
                losses = [float(self.loss(table[one], rows, texts)) for one in (ids, *tried)]
            ids = (ids, *tried)[losses.index(min(losses))]
        return table[ids]

    def found(self) -> Tensor:
        return self.tokens() if self.attack.tokens else self.embeddings()


@torch.no_grad()
def ring_a_bell(said: Sequence[str], unsaid: Sequence[str], seed: int) -> Tensor:
    """Embeddings [16, 768] of tokens whose encoding is nearest to that of prompts that say a concept, with `MORE` of
    what they have more than the same prompts without it."""
    with_it, without = (contexts([*texts]) for texts in (said, unsaid))
    wanted, words = with_it.mean(0) + MORE * (with_it - without).mean(0), Words([""], BELL)
    table, generator = words.table.float(), torch.Generator().manual_seed(seed)

    def apart(ids: Tensor) -> Tensor:
        heard = words.contexts(table[ids], torch.zeros(len(ids), dtype=torch.long))
        return (heard - wanted).square().mean((1, 2))

    ids = torch.randint(len(table), (POPULATION, BELL), generator=generator)
    for _ in range(GENERATIONS):
        best = ids[torch.cat([apart(part) for part in ids.split(16)]).argsort()[:BEST]]
        mother, father = best[torch.randint(BEST, (2, POPULATION - BEST), generator=generator)]
        crossed, changed = (torch.rand(mother.shape, generator=generator) < share for share in (0.5, MUTATED))
        new = torch.randint(len(table), mother.shape, generator=generator)
        ids = torch.cat([best, torch.where(changed, new, torch.where(crossed, mother, father))])
    return table[best[0]]


def teach(unet: nn.Module, texts: Sequence[str], seed: int) -> Teacher:
    """The untouched UNet on its way to pictures of prompts that say the concept, two of each."""
    return teacher(unet, texts, EsdSettings(pictures=2 * len(texts), seed=seed))

"""Attacks on an erasure, on the real UNet class with a tenth of the channels: they see the edit that erases."""
import pytest
import torch
from test_rivals import small_unet

from benchmarks.minicanvas import attacking
from benchmarks.minicanvas.attacking import Attack, Seeker, SoftErasure, Victim, Words, ring_a_bell, teach
from benchmarks.minicanvas.text import contexts
from sae_models import hookpoint
from sae_models.adapter import Block
from sae_models.concepts import Statistics
from sae_models.erasure import Edit, Erasure
from sae_models.formats import Rows
from sae_models.voting import BAR, LATER, Voting

WIDTH, THRESHOLD = 32, 0.01
SAID, UNSAID = ["a cat, noto style", "a cat and a castle"], ["noto style", "a castle"]


def an_edit(seed: int) -> Edit:
    W_enc, W_dec = torch.randn(2, 2, WIDTH, generator=torch.Generator().manual_seed(seed))
    statistics = Statistics((1.0,), torch.full((2, 1), THRESHOLD), torch.full((2, 1), 0.5))
    return Edit(("cat", "cat"), Rows(W_enc, torch.zeros(2), W_dec, statistics), torch.ones(2))


@pytest.fixture(scope="module")
def victim() -> Victim:
    unet = small_unet().requires_grad_(False)
    places = hookpoint.cross_attentions(unet)
    return Victim(unet, [(Block(name, False), an_edit(i)) for i, name in enumerate(places)])


@pytest.fixture
def seeker(victim, monkeypatch):
    monkeypatch.setattr(attacking, "STEPS", 15)
    monkeypatch.setattr(attacking, "ROUNDS", 2)
    known = teach(victim.unet, SAID, 0)
    return lambda attack: Seeker(victim, known, UNSAID, attack, 0)


def test_what_is_attacked_is_the_edit_that_erases():
    x = torch.randn(2, 9, WIDTH)
    soft, hard = SoftErasure([an_edit(0)])(x, 1.0), Erasure([an_edit(0)])(x, 1.0, needed=torch.zeros(2, 2))
    assert hard.fired.all() and not torch.equal(hard.out, x)
    torch.testing.assert_close(soft.out, hard.out)


def test_a_gradient_passes_the_gate_of_what_does_not_fire():
    faint = -0.05 * THRESHOLD * torch.linalg.pinv(an_edit(0).rows.W_enc).sum(1)
    x, grads = faint.expand(1, 9, WIDTH), []
    for kind, let_in in ((SoftErasure, {}), (Erasure, {"needed": torch.zeros(1, 2)})):
        tokens = x.clone().requires_grad_()
        kind([an_edit(0)])(tokens, 1.0, **let_in).out.square().sum().backward()
        grads.append(tokens.grad - 2 * x)
    assert grads[0].abs().max() > 0 and grads[1].abs().max() == 0


def test_an_attack_comes_nearer_to_the_concept(seeker):
    one = seeker(Attack(""))
    start, rows = one.words.table[:attacking.K].float(), (torch.arange(4), torch.arange(4) % 2)
    before, after = (float(one.loss(embeddings, *rows)) for embeddings in (start, one.embeddings()))
    assert after < before


def test_an_attack_that_evades_pays_for_every_row_that_fires(victim, seeker):
    rows = torch.arange(4), torch.arange(4) % 2
    seen, evading = (seeker(Attack("", evasion=weight)) for weight in (0.0, 2.0))
    words = seen.words.table[:attacking.K].float()
    more = evading.loss(words, *rows) - seen.loss(words, *rows)
    assert victim.loud() > 0
    torch.testing.assert_close(more, 2 * victim.loud(), rtol=1e-3, atol=1e-3)


def test_an_attack_past_the_vote_sees_the_model_as_it_is_and_pays_for_being_heard(victim, seeker):
    rows = torch.arange(4), torch.arange(4) % 2
    blind, unheard = seeker(Attack("", through=False)), seeker(Attack("", unheard=5.0))
    words = blind.words.table[:attacking.K].float().requires_grad_()
    loss, time = unheard.loss(words, *rows), int(unheard.known.times[0])
    x, contexts = unheard.known.latents[rows[0]], unheard.words.contexts(words, rows[1])
    places, sigma = {}, attacking._sigma(time)
    for block, soft in victim.erasures.items():
        module = hookpoint.find(victim.unet, block.hookpoint)
        module.register_forward_hook(lambda _, inputs, output, block=block, edits=soft.edits: places.__setitem__(
            block, Erasure(edits).strengths(output, sigma)))
    victim.unet(x, torch.full((4,), time), contexts)
    for block in victim.erasures:
        hookpoint.find(victim.unet, block.hookpoint)._forward_hooks.clear()
    vote = Voting(victim.erasures).votes(places, sigma)[:, 0]
    bar = BAR if time == int(unheard.known.times.max()) else LATER
    over = (vote / bar - attacking.QUIET).relu().mean()
    assert over > 0
    torch.testing.assert_close(loss - blind.loss(words, *rows), 5 * over, rtol=0.05, atol=1e-3)
    loss.backward()
    assert words.grad.isfinite().all() and words.grad.abs().max() > 0


def test_an_attack_on_tokens_says_what_can_be_typed(seeker):
    one = seeker(Attack("", tokens=True))
    found = one.found()
    assert all((one.words.table.float() == row).all(1).any() for row in found)


def test_ring_a_bell_comes_nearer_to_more_of_the_word_with_what_can_be_typed(monkeypatch):
    for name, value in {"BELL": 4, "POPULATION": 8, "BEST": 3}.items():
        monkeypatch.setattr(attacking, name, value)
    words, (with_it, without) = Words([""], 4), (contexts(texts).mean(0) for texts in (SAID, UNSAID))
    wanted, apart = with_it + 3 * (with_it - without), []
    for generations in (1, 8):
        monkeypatch.setattr(attacking, "GENERATIONS", generations)
        found = ring_a_bell(SAID, UNSAID, 0)
        assert found.shape == (4, 768) and all((words.table.float() == row).all(1).any() for row in found)
        apart.append(float((words.contexts(found, torch.zeros(1, dtype=torch.long)) - wanted).square().mean()))
    assert apart[1] < apart[0]

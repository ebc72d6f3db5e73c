"""Finding a concept, on tokens made from known directions."""
from dataclasses import replace

import pytest
import torch
from made_maps import CONCEPTS, D_IN, SUBJECTS, directions, make_maps
from test_training import trainer

from sae_models import Header, SaeError, read_headers, table
from sae_models.learning import fitting
from sae_models.learning.finding import best_neurons, own_neurons
from sae_models.learning.fitting import Tokens, fit_concepts, initialise_concepts, learn_together
from sae_models.learning.losses import Weights
from sae_models.learning.maps import Maps, joined
from sae_models.sae import Sae, SaeConfig


@pytest.fixture(scope="module")
def learned():
    run = trainer()
    run.run(lambda *_: None)
    return run


def scaled(seed: int, size: float) -> Maps:
    maps = make_maps(seed)
    return replace(maps, tokens=maps.tokens * size, without=maps.without * size)


@pytest.mark.parametrize("size", [1.0, 1 / 32, 1 / 128, 16.0])
def test_its_own_neuron_carries_the_concept_and_is_silent_elsewhere_whatever_a_places_numbers(size):
    found = own_neurons(scaled(1, size), SUBJECTS[:2], Weights(push=0.0))
    rows, maps = found.rows, scaled(2, size).to("cpu")
    assert [c.name for c in found.concepts] == ["cat", "dog"]
    assert float((rows.W_dec * directions()[:2]).sum(1).min()) > 0.95
    shown = maps.unsaid == 0
    z = maps.tokens @ rows.W_enc.T + rows.bias
    z = torch.where(z > rows.statistics.at(1.0, rows.statistics.thresholds).clamp_min(0), z, 0)
    erased = maps.tokens - z[..., :1] * rows.W_dec[0]
    left = (erased - maps.without)[shown].pow(2).sum() / (maps.tokens - maps.without)[shown].pow(2).sum()
    assert float(left) < 0.15
    assert float(z[~maps.labels[:, 0]][..., 0].gt(0).float().mean()) < 0.01


def two_faced(seed: int) -> Maps:
    """The cat adds one direction to tokens that have the last direction, and another to those that have it not."""
    world, maps = directions(), make_maps(seed)
    own = (maps.unsaid == 0)[:, None, None]
    face = torch.rand(*maps.tokens.shape[:2], 1, generator=torch.Generator().manual_seed(seed)) < 0.5
    base = maps.without.float() - (maps.without.float() @ world[-1])[..., None] * world[-1] + 4.0 * face * world[-1]
    added = torch.where(face, world[-2], world[-3]) * 3.0
    return Maps((base + own * added).half(), base.half(), maps.unsaid * ~own[:, 0, 0] , maps.labels, maps.sigmas)


@pytest.mark.parametrize(("neurons", "least", "most"), [(1, 0.2, 0.6), (2, 0.9, 1.0)])
def test_what_one_direction_cannot_carry_several_neurons_do(neurons, least, most):
    found, maps = own_neurons(two_faced(1), SUBJECTS[:1], Weights(push=0.0), neurons).rows, two_faced(2).to("cpu")
    shown = maps.unsaid == 0
    pre = maps.tokens @ found.W_enc.T + found.bias
    z = torch.where(pre > found.statistics.at(1.0, found.statistics.thresholds).clamp_min(0), pre, 0)
    left = (maps.tokens - z @ found.W_dec - maps.without)[shown].square().sum()
    assert least <= 1 - float(left / (maps.tokens - maps.without)[shown].square().sum()) <= most


def only_where(seed: int) -> Maps:
    """The cat adds something to tokens that have the last direction, as much as they have of it, else nothing."""
    world, maps = directions(), make_maps(seed)
    base, own = maps.without.float(), (maps.unsaid == 0)[:, None, None]
    amount = 3 * (base @ world[-1]).relu()[..., None]
    return Maps((base + own * amount * world[-2]).half(), base.half(), maps.unsaid, maps.labels, maps.sigmas)


@pytest.mark.parametrize("neurons", [1, 2])
def test_neurons_that_learn_together_carry_what_least_squares_leaves(neurons):
    latents, maps = list(range(neurons)), only_where(2).to("cpu")
    sae = Sae(SaeConfig(D_IN, neurons, neurons))

    def left() -> float:
        shown = maps.unsaid == 0
        z = (maps.tokens[shown] @ sae.encoder.weight.T + sae.encoder.bias - sae.encoder.weight @ sae.b_dec).relu()
        difference = (maps.tokens - maps.without)[shown]
        return float((difference - z @ sae.W_dec).square().sum() / difference.square().sum())
    with torch.no_grad():
        initialise_concepts(sae, only_where(1), [latents], Weights(push=0.0))
        before = left()
        learn_together(sae, only_where(1), 0, latents, Weights(push=0.0, silence=5.0))
        assert left() < 0.6 * before
        assert torch.allclose(sae.W_dec[latents].norm(dim=1), torch.ones(neurons), atol=1e-4)


def test_a_concept_that_the_maps_never_leave_out_keeps_its_neurons():
    """A window of few pictures need not have all concepts."""
    maps, sae = make_maps(1), Sae(SaeConfig(D_IN, CONCEPTS, 1))
    some, before = maps.pick((maps.unsaid != 1).nonzero()[:, 0]), [p.detach().clone() for p in sae.parameters()]
    with torch.no_grad():
        fit_concepts(sae, some, [[i] for i in range(CONCEPTS)], Weights())
        both = [(p, old) for p, old in zip(sae.parameters(), before, strict=True) if len(p) == CONCEPTS]
        kept = [[torch.equal(p[i], old[i]) for p, old in both] for i in range(CONCEPTS)]
    assert all(kept[1]) and not any(kept[0] + kept[2] + kept[3])


def test_maps_of_many_tokens_are_taken_in_parts(monkeypatch):
    maps, found = make_maps(1), []
    for at_once in (2 ** 15, 13):
        monkeypatch.setattr(fitting, "AT_ONCE", at_once)
        sae = Sae(SaeConfig(D_IN, CONCEPTS, 1))
        initialise_concepts(sae, maps, [[i] for i in range(CONCEPTS)], Weights())
        found.append(sae)
    assert torch.allclose(found[0].encoder.weight, found[1].encoder.weight, atol=1e-4)
    assert torch.allclose(found[0].W_dec, found[1].W_dec, atol=1e-5)


def wide(seed: int, d_in: int = 640) -> Maps:
    """Tokens of a wide place, which have much in common: the concept adds a direction to every other one."""
    generator = torch.Generator().manual_seed(seed)
    base = 1 + 0.3 * torch.randn(64, 32, d_in, generator=generator)
    unsaid = torch.arange(64) % 2
    added = 0.3 * torch.randn(d_in, generator=torch.Generator().manual_seed(9))
    labels = torch.stack([unsaid == 0, unsaid == 1], 1)
    return Maps((base + (unsaid == 0)[:, None, None] * added).half(), base.half(), unsaid, labels, torch.ones(64))


def test_a_neuron_of_a_wide_place_does_not_die_while_it_learns():
    found, maps = own_neurons(wide(1), SUBJECTS[:1], Weights(push=0.0)).rows, wide(2)
    z = (maps.tokens.float() @ found.W_enc.T + found.bias).relu()
    difference = (maps.tokens.float() - maps.without.float())
    left = (difference - z @ found.W_dec)[maps.unsaid == 0].square().sum() / difference.square().sum()
    assert float(left) < 0.1


def test_a_push_carries_more_than_the_words_add():
    amounts = []
    for push in (0.0, 0.2):
        found, maps = own_neurons(wide(1), SUBJECTS[:1], Weights(push=push)).rows, wide(2)
        amounts.append(float((maps.tokens[maps.unsaid == 0].float() @ found.W_enc.T + found.bias).relu().mean()))
    assert 1.15 < amounts[1] / amounts[0] < 1.25


def test_every_noise_level_counts_alike():
    maps = make_maps(1).to("cpu")
    high = torch.arange(len(maps)) % 4 < 2
    tokens = torch.where(high[:, None, None], maps.without + 5 * (maps.tokens - maps.without), maps.tokens)
    counts = Tokens(Maps(tokens, maps.without, maps.unsaid, maps.labels, torch.where(high, 5.0, 1.0)), 0).counts
    size = ((tokens - maps.without) * counts[:, None]).square().sum(2).mean(1)
    shown = maps.unsaid == 0
    assert float(size[shown & high].mean()) == pytest.approx(float(size[shown & ~high].mean()), rel=1e-4)
    assert float(counts[high].mean()) == pytest.approx(float(counts[~high].mean()) / 5, rel=0.3)


def test_a_place_that_does_not_hear_the_concept_gets_rows_that_are_numbers():
    maps = make_maps(1)
    deaf = Maps(maps.without, maps.without, maps.unsaid, maps.labels, maps.sigmas)
    rows = own_neurons(deaf, SUBJECTS[:1], Weights(push=0.0), 1).rows
    assert all(part.isfinite().all() for part in (rows.W_enc, rows.bias, rows.W_dec))


def test_a_concept_may_be_left_out_in_a_few_of_very_many_maps():
    maps = joined([make_maps(seed) for seed in range(1 + 300 // len(make_maps(0)))])
    maps = maps.pick(maps.unsaid.argsort())  # whole batches of 256 that leave only one concept out
    found = own_neurons(maps, SUBJECTS[:2], Weights(push=0.0), 2)
    assert len(maps) > 256 and [len(concept.latents) for concept in found.concepts] == [2, 2]


def test_the_best_neuron_of_a_trained_sae_is_the_concepts_own(learned):
    found = best_neurons(learned.sae, make_maps(1), SUBJECTS[:2], 1, at_each_level=False)
    own = learned.latents[:2]
    assert torch.equal(found.rows.W_dec, learned.sae.W_dec[own])
    assert [c.latents for c in found.concepts] == [(0,), (1,)]
    x = make_maps(3).tokens[0].float()
    z = (x @ found.rows.W_enc.T + found.rows.bias).relu()
    assert torch.allclose(z, learned.sae.pre_acts(x)[:, own], atol=1e-5)


def test_more_neurons_are_taken_when_asked(learned):
    found = best_neurons(learned.sae, make_maps(1), SUBJECTS[:2], 3, at_each_level=False)
    assert [c.latents for c in found.concepts] == [(0, 1, 2), (3, 4, 5)]
    assert found.rows.statistics.thresholds.shape == (6, 1)


def moved(maps: Maps) -> Maps:
    """At twice the noise the cat lies along the dog's direction, and the dog along the cat's."""
    world = directions()
    swap = torch.eye(D_IN) + sum((world[j] - world[i])[:, None] @ world[i][None] for i, j in ((0, 1), (1, 0)))
    return Maps((maps.tokens.float() @ swap.T).half(), (maps.without.float() @ swap.T).half(), maps.unsaid,
                maps.labels, maps.sigmas * 2)


def test_at_each_level_another_neuron_may_stand_for_the_concept(learned):
    low, high = make_maps(1), moved(make_maps(2))
    both = Maps(*(torch.cat([getattr(low, f), getattr(high, f)]) for f in low.__dataclass_fields__))
    found = best_neurons(learned.sae, both, SUBJECTS[:1], 1, at_each_level=True)
    latents = [learned.sae.W_dec.eq(row).all(1).nonzero().item() for row in found.rows.W_dec]
    assert latents == sorted(learned.latents[:2])
    own = latents.index(learned.latents[0])
    at = {sigma: found.rows.statistics.at(sigma, found.rows.statistics.thresholds) for sigma in (0.5, 1.0, 2.0, 9.0)}
    assert all(at[sigma][own] < 10 < 1000 < at[sigma][1 - own] for sigma in (0.5, 1.0))
    assert all(at[sigma][1 - own] < 10 < 1000 < at[sigma][own] for sigma in (2.0, 9.0))


def test_more_can_be_added_to_a_file_of_the_best_neurons_at_each_level(learned, tmp_path):
    low, high = make_maps(1), moved(make_maps(2))
    both = Maps(*(torch.cat([getattr(low, f), getattr(high, f)]) for f in low.__dataclass_fields__))
    found, path = best_neurons(learned.sae, both, SUBJECTS[:2], 1, at_each_level=True), tmp_path / "best.safetensors"
    like = Header(SaeConfig(D_IN, 1, 1), "up_blocks.0.attentions.0", "sd15")
    for name in ("cat", "dog", "cat"):
        table.add(path, [(like, table.only(found, name))])
    [(header, read)] = table.read_tables(path, [(header, list(header.concepts)) for header in read_headers(path)])
    assert sorted(concept.name for concept in header.concepts) == ["cat", "dog"]
    own = table.only(read, "cat").rows.statistics
    wanted = table.only(found, "cat").rows.statistics
    for sigma in (0.5, 1.0, 2.0, 9.0):
        torch.testing.assert_close(own.at(sigma, own.thresholds), wanted.at(sigma, wanted.thresholds))


def test_what_is_never_or_always_shown_cannot_be_found(learned):
    maps = make_maps(1)
    maps.labels[:, 0] = False
    maps.unsaid[:] = 1
    with pytest.raises(SaeError, match="the pictures never show 'cat'"):
        own_neurons(maps, SUBJECTS[:1])
    maps.labels[:, 0] = True
    with pytest.raises(SaeError, match="the pictures always show 'cat'"):
        best_neurons(learned.sae, maps, SUBJECTS[:1], 1, at_each_level=False)
    with pytest.raises(SaeError, match="expected a number of neurons in 1..48"):
        best_neurons(learned.sae, make_maps(1), SUBJECTS[:CONCEPTS], 49, at_each_level=False)

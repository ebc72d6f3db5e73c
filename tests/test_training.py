"""Scores, assignment, statistics and training, on tokens made from known directions."""
import pytest
import torch

from sae_models.sae import Sae, SaeConfig, fvu
from sae_models.scoring import assign, measure, scores
from sae_models.training import Maps, TrainSettings, concept_losses, train_supervised, train_unsupervised

D_IN, N, CONCEPTS, DIRECTIONS = 24, 6, 4, 20


@pytest.fixture(scope="module")
def world() -> torch.Tensor:
    """Unit directions [DIRECTIONS, D_IN]; the first CONCEPTS of them are the concepts'."""
    generator = torch.Generator().manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(DIRECTIONS, D_IN, generator=generator), dim=1)


def make_maps(world: torch.Tensor, n: int, seed: int) -> Maps:
    """Maps that show two concepts each on half of their tokens, over three other directions a token."""
    generator = torch.Generator().manual_seed(seed)
    said = torch.stack([torch.randperm(CONCEPTS, generator=generator)[:2] for _ in range(n)])
    labels = torch.zeros(n, CONCEPTS, dtype=torch.bool).scatter_(1, said, True)
    others = torch.rand(n, N, DIRECTIONS, generator=generator)
    others[..., :CONCEPTS] = 0
    others = others.where(others >= others.topk(3).values[..., -1:], 0)
    where = torch.rand(n, 2, N, 1, generator=generator) < 0.5
    parts = where * 3.0 * world[said][:, :, None]
    tokens = others @ world + parts.sum(1)
    return Maps(tokens, torch.ones(n), labels, tokens[:, None] - parts, said)


@pytest.fixture(scope="module")
def trained(world) -> tuple[Sae, list[int]]:
    torch.manual_seed(0)
    sae, maps = Sae(SaeConfig(D_IN, 48, 6)), make_maps(world, 400, 2)
    train_unsupervised(sae, maps, TrainSettings(steps=250, batch=32, lr=3e-3), lambda *_: None)
    latents = [40, 41, 42, 43]
    train_supervised(sae, maps, latents, TrainSettings(steps=250, batch=32, lr=3e-3, push=0.0), lambda *_: None)
    return sae, latents


def test_unsupervised_training_explains_what_it_has_not_seen(world):
    torch.manual_seed(0)
    sae, seen = Sae(SaeConfig(D_IN, 48, 6)), []
    train_unsupervised(sae, make_maps(world, 400, 2), TrainSettings(steps=300, batch=32, lr=3e-3),
                       lambda step, numbers: seen.append(numbers["fvu"]))
    x = make_maps(world, 100, 3).tokens.flatten(0, 1)
    assert float(fvu(x, sae(x)).detach()) < 0.1 < seen[0]
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-5)


def test_a_concepts_latent_carries_it_and_is_silent_elsewhere(world, trained):
    sae, latents = trained
    held_out = make_maps(world, 100, 4)
    carry, silence = concept_losses(sae, held_out, torch.tensor(latents), TrainSettings(push=0.0))
    assert float(carry) < 0.1 and float(silence) < 0.02
    alignment = (sae.W_dec[latents] * world[:CONCEPTS]).sum(1)
    assert float(alignment.min()) > 0.95


def test_switching_the_latent_off_gives_the_map_without_the_concept(world, trained):
    sae, latents = trained
    maps = make_maps(world, 50, 5)
    own = torch.tensor(latents)[maps.unsaid[:, 0]]
    z = sae.pre_acts(maps.tokens).gather(2, own[:, None, None].expand(-1, N, 1))
    erased = maps.tokens - z * sae.W_dec[own][:, None]
    left = (erased - maps.without[:, 0]).pow(2).sum() / (maps.tokens - maps.without[:, 0]).pow(2).sum()
    assert float(left) < 0.1


def test_thresholds_part_tokens_with_and_without_the_concept(world, trained):
    sae, latents = trained
    maps = make_maps(world, 200, 6)
    statistics = measure(sae, maps.tokens, maps.sigmas, maps.labels, latents)
    z = sae.pre_acts(maps.tokens)[..., latents]
    fires = (z > statistics.thresholds[:, 0]).any(1)
    assert float(fires[~maps.labels].float().mean()) < 0.05
    assert float(fires[maps.labels].float().mean()) > 0.9
    assert torch.allclose(statistics.means[0, 0], z[maps.labels[:, 0]][..., 0].mean())


def test_a_level_that_never_shows_a_concept_still_has_finite_statistics(world, trained):
    sae, latents = trained
    maps = make_maps(world, 40, 7)
    maps.sigmas[~maps.labels[:, 0]] = 2.0
    statistics = measure(sae, maps.tokens, maps.sigmas, maps.labels, latents)
    assert statistics.sigmas == (1.0, 2.0)
    assert statistics.means.isfinite().all() and statistics.thresholds.isfinite().all()


def test_scores_are_the_papers_formula():
    generator = torch.Generator().manual_seed(0)
    means, labels = torch.rand(30, 7, generator=generator), torch.rand(30, 2, generator=generator) < 0.5
    levels = torch.arange(30) % 3
    wanted = torch.zeros(2, 7, dtype=torch.float64)
    for concept in range(2):
        for level in range(3):
            inside = means[(levels == level) & labels[:, concept]].double().mean(0)
            outside = means[(levels == level) & ~labels[:, concept]].double().mean(0)
            wanted[concept] += (inside / inside.sum() - outside / outside.sum()) / 3
    assert torch.allclose(scores(means, labels, levels).double(), wanted, atol=1e-6)


def test_levels_that_tell_nothing_of_a_concept_are_left_out():
    means = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[True], [False]] * 2 + [[True]] * 4)
    levels = torch.tensor([0] * 4 + [1] * 4)
    assert torch.allclose(scores(means, labels, levels), scores(means[:4], labels[:4], levels[:4]))


def test_assignment_is_unique_and_takes_the_best_first():
    assert assign(torch.tensor([[0.9, 0.8, 0.1], [0.95, 0.2, 0.1], [0.3, 0.7, 0.6]])) == [1, 0, 2]


def test_the_same_seed_trains_the_same_sae(world):
    def run() -> torch.Tensor:
        torch.manual_seed(0)
        sae = Sae(SaeConfig(D_IN, 32, 4))
        train_unsupervised(sae, make_maps(world, 50, 2), TrainSettings(steps=5, batch=8), lambda *_: None)
        return sae.W_dec.detach()
    assert torch.equal(run(), run())

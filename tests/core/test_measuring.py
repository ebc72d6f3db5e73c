"""Removed and touched, on predictions whose answer is known."""
import pytest
import torch

from sae_models.learning.measuring import Effect, fewest_neurons

SAID, WITHOUT = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).split(1)


def effect(share: float, noise: float = 0.0) -> Effect:
    """An eraser that goes `share` of the way, and disturbs other prompts by `noise` of the concept's effect."""
    measured = Effect()
    for size in (0.1, 3.0):
        said, without = SAID * size, WITHOUT * size
        measured.add(said, without, torch.lerp(said, without, share), without, without + noise * (said - without))
    return measured


@pytest.mark.parametrize(("share", "removed"), [
    (0.0, 0.0), (0.5, 0.75), (1.0, 1.0), (1.5, 0.75), (2.0, 0.0), (3.0, -3.0)])
def test_removed_is_one_where_the_word_is_gone_and_falls_beyond(share, removed):
    assert effect(share).removed == pytest.approx(removed, abs=1e-5)
    assert effect(share).touched == 0


def test_touched_is_in_the_same_unit():
    assert effect(1.0, noise=0.1).touched == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(("removed", "chosen"), [
    ({1: 0.95, 2: 0.955}, 1), ({1: 0.5, 2: 0.8, 4: 0.96, 8: 0.965}, 4), ({1: 0.85, 2: 0.86, 4: 0.95}, 4),
    ({1: 0.85, 2: 0.86, 4: 0.865}, 1), ({1: 0.98, 2: 0.99, 4: 0.995}, 4), ({1: 1.0, 2: 1.0}, 1)])
def test_no_more_neurons_are_taken_than_help(removed, chosen):
    assert fewest_neurons({n: effect(1 - (1 - share) ** 0.5) for n, share in removed.items()}) == chosen


def test_neurons_that_touch_more_than_they_remove_are_left_out():
    assert fewest_neurons({1: effect(0.6), 2: effect(0.65, noise=0.3), 4: effect(1.0, noise=0.5)}) == 1


def test_what_touches_a_little_less_is_worth_more_than_what_removes_a_little_more():
    gentle, rough = effect(0.5), effect(0.6, noise=0.25)
    assert rough.removed > gentle.removed + 0.05 and gentle.amiss < rough.amiss

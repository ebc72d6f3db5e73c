"""Whether a concept is there: places that err one by one do not have it erased, all of them together do."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in_device import Devices

from sae_models.adapter import Block, noise_level
from sae_models.concepts import Statistics
from sae_models.erasure import Actuator, Edit, Erasure
from sae_models.formats import Rows
from sae_models.voting import BAR, LATER, OUT, QUORUM, UNASKED, VOTED_IN, Voting, rows_of

LEVELS, D_IN, N = (0.1, 5.0), 8, 6
PLACES = [Block(f"up_blocks.0.attentions.{i}.transformer_blocks.0.attn2", False) for i in range(6)]


def edit(names: tuple[str, ...], seed: int, levels: tuple[float, ...] = LEVELS) -> Edit:
    """Each neuron reads one channel; its mean is 1 at the first noise level and 2 at the last."""
    rows = torch.eye(D_IN)[:len(names)]
    means = torch.linspace(1, 2, len(levels)).repeat(len(names), 1)
    return Edit(names, Rows(rows, torch.zeros(len(names)), rows, Statistics(levels, torch.zeros_like(means), means)),
                torch.ones(len(names)))


def erasures(names: tuple[str, ...] = ("cat", "dog"), count: int = len(PLACES), **options) -> dict[Block, Erasure]:
    return {block: Erasure([edit(names, i, **options)]) for i, block in enumerate(PLACES[:count])}


def vote(voting: Voting, strengths: dict[Block, torch.Tensor], sigma: float = 5.0, key: str = "run") -> torch.Tensor:
    """Which rows of the first place may fire after a first call with these activations."""
    rows = len(next(iter(strengths.values())))
    assert voting.begins(key, rows, torch.device("cpu"))
    voting.count(key, strengths, sigma, look=True)
    return may_fire(voting.open(key)[PLACES[0]])


def may_fire(needed: torch.Tensor) -> torch.Tensor:
    return needed < OUT


def fired(*by_place: tuple[float, float]) -> dict[Block, torch.Tensor]:
    """Of one row: how strongly cat and dog fire at each place."""
    return {block: torch.tensor([list(z)]) for block, z in zip(PLACES, by_place, strict=True)}


def test_one_place_that_fires_strongly_does_not_make_a_concept_but_all_that_fire_weakly_do():
    found = vote(Voting(erasures()), fired((9.0, 0.2), *[(0.0, 0.2)] * 5))
    assert found.tolist() == [[False, True]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0, 3), min_size=6, max_size=6), min_size=3, max_size=3), st.sampled_from([0.1, 5.0]))
def test_the_vote_is_the_mean_cube_root_of_each_places_share(rows, sigma):
    usual = 1.0 if sigma == 0.1 else 2.0
    wanted = [[sum(min(z / usual, 1) ** (1 / 3) for z in row) / len(row)] for row in rows]
    strengths = {block: torch.tensor([[row[i]] for row in rows]) for i, block in enumerate(PLACES)}
    found = vote(Voting(erasures(("cat",))), strengths, sigma)
    for one, share in zip(found.tolist(), wanted, strict=True):
        if abs(share[0] - BAR) > 1e-4:
            assert one == [share[0] >= BAR]


def test_a_concepts_neurons_at_a_place_count_together():
    both = {block: Erasure([edit(("cat", "cat"), i)]) for i, block in enumerate(PLACES)}
    strengths = {block: torch.tensor([[0.0, 4 * (0.9 * BAR) ** 3], [0.0, 4 * (1.1 * BAR) ** 3]]) for block in PLACES}
    assert vote(Voting(both), strengths).tolist() == [[False, False], [True, True]]


def test_later_calls_let_in_what_is_louder_only():
    voting = Voting(erasures())
    vote(voting, fired(*[(0.0, 0.0)] * 6))
    between, above = (2 * share ** 3 for share in ((BAR + LATER) / 2, 1.1 * LATER))
    voting.count("run", fired(*[(between, between)] * 6), 5.0)
    assert may_fire(voting.open("run")[PLACES[0]]).tolist() == [[False, False]]
    voting.count("run", fired(*[(above, between)] * 6), 5.0)
    assert may_fire(voting.open("run")[PLACES[0]]).tolist() == [[True, False]]


def test_who_is_at_too_few_places_or_does_not_say_how_strongly_it_fires_acts_wherever_it_does():
    assert Voting(erasures(count=QUORUM - 1)).open("run") is None
    for mean in (0.0, 1.0):
        unknown = erasures()
        for one in unknown.values():
            one.edits[0].rows.statistics.means[:] = mean
        assert Voting(unknown).open("run") is None
    assert not Voting(erasures(count=1)).begins("run", 2, torch.device("cpu"))
    mixed = erasures()
    mixed[PLACES[0]] = Erasure([*mixed[PLACES[0]].edits, edit(("rose",), 9)])
    voting = Voting(mixed)
    assert vote(voting, {block: torch.zeros(2, len(e.labels())) for block, e in mixed.items()}).tolist() == \
        [[False, False, True]] * 2
    assert not voting.idle("run")


def test_pictures_that_are_painted_too_far_are_late():
    voting = Voting(erasures(), noisy=4.0)
    assert voting.late(3.9) and not voting.late(4.0)
    with Devices() as devices:
        assert voting.late(noise_level(devices.put(torch.full((3,), 3.9))))


def test_a_later_call_lets_in_and_none_puts_out_and_the_next_run_begins_anew():
    voting, silent = Voting(erasures()), fired(*[(0.0, 0.0)] * 6)
    assert vote(voting, silent).tolist() == [[False, False]] and voting.idle("run")
    for z, wanted in ((2 * 0.9 * LATER ** 3, False), (2 * 1.1 * LATER ** 3, True), (0.0, True)):
        voting.count("run", fired(*[(z, 0.0)] * 6), 5.0)  # a look would have let all but the last in
        assert may_fire(voting.open("run")[PLACES[3]]).tolist() == [[wanted, False]]
        assert voting.idle("run") is not wanted
    voting.forget()
    assert vote(voting, silent).tolist() == [[False, False]]


def test_places_that_did_not_run_vote_against():
    strengths = dict(list(fired(*[(2.0, 0.0)] * 6).items())[:1])
    assert vote(Voting(erasures()), strengths).tolist() == [[False, False]]


def test_where_a_place_has_other_rows_than_the_call_nothing_is_voted_out():
    voting = Voting(erasures())
    strengths = {block: torch.zeros(4 if block is PLACES[2] else 2, 2) for block in PLACES}
    assert voting.begins("run", 2, torch.device("cpu"))
    voting.count("run", strengths, 5.0)
    opened = voting.open("run")
    assert all(part.eq(UNASKED).all() for part in opened.values())
    assert rows_of(opened, PLACES[2], torch.zeros(4, N, D_IN)) is None
    assert rows_of(opened, PLACES[1], torch.zeros(2, N, D_IN)) is opened[PLACES[1]]
    assert rows_of(None, PLACES[1], torch.zeros(2, N, D_IN)) is None


def test_files_with_other_noise_levels_vote_by_their_own():
    mixed = erasures(("cat",))
    other = {block: edit(("rose",), 1, levels=(0.1, 0.7, 5.0)) for block in PLACES}
    mixed = {block: Erasure([*erasure.edits, other[block]]) for block, erasure in mixed.items()}
    edge = 1.5 * BAR ** 3  # at 0.7 rose's mean is 1.5, and cat's 1.5 about halfway in log sigma
    for share, wanted in ((0.9, False), (1.1, True)):
        strengths = {block: torch.tensor([[0.0, share * edge]]) for block in PLACES}
        assert vote(Voting(mixed), strengths, 0.7).tolist() == [[False, wanted]]


def test_what_may_not_fire_changes_nothing_and_its_strength_is_told_all_the_same():
    x, erasure = torch.rand(2, N, D_IN) + 0.5, Erasure([edit(("cat", "dog"), 0)])
    needed = torch.tensor([[OUT, UNASKED], [UNASKED, UNASKED]])
    out = erasure(x, 5.0, needed=needed)
    assert torch.equal(out.out[1], erasure(x, 5.0).out[1])
    assert torch.equal(out.out[0, :, 0], x[0, :, 0]) and not torch.equal(out.out[0, :, 1], x[0, :, 1])
    assert torch.allclose(out.strengths, x[:, :, :2].mean(1))
    none = erasure(x, 5.0, needed=torch.full_like(needed, OUT))
    assert none.out is x and not none.fired.any()
    late = Erasure([replace(edit(("cat",), 0), start_sigma=1.0)])
    assert torch.allclose(late.strengths(x, 5.0), x[:, :, :1].mean(1))


@pytest.mark.parametrize("needed, left", [(UNASKED, [0.0, 0.4, -1.0]), (VOTED_IN, [0.0, 0.0, -1.0]),
                                          (OUT, [2.0, 0.4, -1.0])])
def test_what_is_voted_in_is_erased_below_its_threshold_too_and_counts_as_it_did(needed, left):
    rows = replace(edit(("cat",), 0).rows, statistics=Statistics(LEVELS, torch.full((1, 2), 0.5), torch.ones(1, 2)))
    x = torch.zeros(1, 3, D_IN)
    x[0, :, 0] = torch.tensor([2.0, 0.4, -1.0])
    erased = Erasure([Edit(("cat",), rows, torch.ones(1))])(x, 5.0, needed=torch.tensor([[needed]]))
    assert torch.allclose(erased.out[0, :, 0], torch.tensor(left))
    assert torch.allclose(erased.strengths, torch.tensor([[2 / 3]]))


@pytest.mark.parametrize("actuator, strength, left", [
    (Actuator.STEER, -1.0, [0.0, 0.0, -1.0]), (Actuator.AMOUNT, 0.75, [1.0, 0.2, -1.0]),
    (Actuator.STEER, 1.0, [4.0, 0.4, -1.0]), (Actuator.AMOUNT, -0.5, [3.0, 0.4, -1.0]),
    (Actuator.REPLACE, 1.0, [-0.3, 0.4, -1.0])])
def test_only_what_is_taken_away_is_so_below_its_threshold(actuator, strength, left):
    rows = replace(edit(("cat",), 0).rows, statistics=Statistics(LEVELS, torch.full((1, 2), 0.5), torch.ones(1, 2)))
    x = torch.zeros(1, 3, D_IN)
    x[0, :, 0] = torch.tensor([2.0, 0.4, -1.0])
    erasure = Erasure([Edit(("cat",), rows, torch.tensor([strength]), actuator)])
    out = erasure(x, 5.0, needed=torch.tensor([[VOTED_IN]])).out
    assert torch.allclose(out[0, :, 0], torch.tensor(left))


def test_what_nobody_is_asked_about_has_to_pass_its_threshold():
    made = erasures(("cat",)) | {PLACES[0]: Erasure([edit(("cat", "rose"), 0)])}  # rose is at one place only
    voting = Voting(made)
    assert voting.begins("run", 1, torch.device("cpu"))
    strengths = {block: torch.full((1, len(erasure.labels())), 2.0) for block, erasure in made.items()}
    voting.count("run", strengths, 5.0, look=True)
    assert voting.open("run")[PLACES[0]].tolist() == [[VOTED_IN, UNASKED]]
    voting.let_in("run", True)
    assert voting.open("run")[PLACES[0]].tolist() == [[VOTED_IN, UNASKED]]


@pytest.mark.parametrize("sigma", [0.05, 1.0, 14.0])
def test_a_gpu_is_waited_for_once_and_finds_the_same(sigma):
    strengths = {block: torch.rand(3, 2, generator=torch.Generator().manual_seed(i)) * 0.15
                 for i, block in enumerate(PLACES)}
    voting, wanted = Voting(erasures()), vote(Voting(erasures()), strengths, sigma)
    with Devices() as devices:
        there, level = devices.put(torch.zeros(3)), noise_level(devices.put(torch.full((3,), sigma)))
        assert voting.begins("run", 3, there.device)
        voting.count("run", {block: devices.put(part) for block, part in strengths.items()}, level, look=True)
        voting.let_in("run", devices.put(torch.tensor(False)))
        devices.waits.clear()
        voting.count("run", {block: devices.put(part) for block, part in strengths.items()}, level)
        found = voting.open("run")[PLACES[0]]
        assert not voting.begins("run", 3, there.device) and devices.waits == []
        assert may_fire(found.held).tolist() == wanted.tolist()


def test_outside_of_its_window_an_edit_is_silent_and_not_unheard():
    """A window's end on a CPU: the call is counted as any other."""
    made = {block: Erasure([replace(one.edits[0], start_sigma=4.0)]) for block, one in erasures().items()}
    voting = Voting(made)
    vote(voting, fired(*[(2.0, 2.0)] * 6))
    needed, x = voting.open("run"), torch.rand(1, N, D_IN)
    strengths = {block: erasure(x, 5.0, needed=needed[block]).strengths for block, erasure in made.items()}
    assert all(part.tolist() == [[0.0, 0.0]] for part in strengths.values())
    voting.count("run", strengths, 5.0)
    assert made[PLACES[0]](x, 3.0, needed=needed[PLACES[0]]).strengths.max() > 0


def test_where_no_place_ran_nothing_is_let_in():
    voting = Voting(erasures())
    assert voting.begins("run", 1, torch.device("cpu"))
    voting.count("run", {}, 5.0, look=True)
    assert voting.idle("run")


def test_votes_counted_on_a_device_are_kept_there():
    voting = Voting(erasures())
    with Devices() as devices:
        assert voting.begins("run", 1, torch.device("cpu"))
        strengths = {block: devices.put(part) for block, part in fired(*[(2.0, 0.0)] * 6).items()}
        voting.count("run", strengths, 5.0, look=True)
        assert may_fire(voting.open("run")[PLACES[0]].held).tolist() == [[True, False]]

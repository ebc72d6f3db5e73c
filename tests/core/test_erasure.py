"""The edit of a block's output against a dense formula written here: full encode, full decode."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_models.concepts import NEVER, Statistics
from sae_models.erasure import Actuator, Edit, Erasure
from sae_models.errors import SaeError
from sae_models.formats import Rows
from sae_models.sae import Sae, SaeConfig

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def random_sae(seed: int, d_in: int, d_sae: int) -> Sae:
    torch.manual_seed(seed)
    sae = Sae(SaeConfig(d_in, d_sae, 1))
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.encoder.bias.normal_(std=0.1)
    return sae.requires_grad_(False)


def rows_of(sae: Sae, latents: list[int], threshold: float = 0.0) -> Rows:
    W_enc = sae.encoder.weight[latents]
    statistics = Statistics((1.0,), torch.full((len(latents), 1), threshold), torch.ones(len(latents), 1))
    return Rows(W_enc, sae.encoder.bias[latents] - W_enc @ sae.b_dec, sae.W_dec[latents], statistics)


def edit_of(sae: Sae, latents: list[int], actuator=Actuator.ABLATE, strength=None, threshold=0.0, **options) -> Edit:
    strengths = torch.full((len(latents),), actuator.default_strength if strength is None else strength)
    return Edit(tuple(f"c{i}" for i in latents), rows_of(sae, latents, threshold), strengths, actuator, **options)


def halves(x: torch.Tensor) -> torch.Tensor:
    """Every second row is conditional."""
    return torch.arange(len(x)) % 2 == 0


def dense(sae: Sae, x: torch.Tensor, latents: list[int], factor: float, threshold: float) -> torch.Tensor:
    """out = x + decode(z') - decode(z) in double precision, over all latents."""
    tokens = x.double().movedim(1, -1)
    W_enc, b_enc, W_dec, b_dec = (t.double() for t in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec))
    z = ((tokens - b_dec) @ W_enc.T + b_enc).relu()
    chosen = torch.zeros(len(b_enc), dtype=torch.bool)
    chosen[latents] = True
    edited = torch.where(chosen & (z > threshold), z * factor, z)
    return (tokens + (edited @ W_dec + b_dec) - (z @ W_dec + b_dec)).movedim(-1, 1)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 7),
       d_in=st.integers(2, 24), d_sae=st.integers(3, 40), chosen=st.integers(1, 3),
       dtype=st.sampled_from(list(TOLERANCE)), steer=st.floats(-20, 20), ablate=st.booleans())
def test_the_edit_equals_the_dense_formula(seed, rows, height, width, d_in, d_sae, chosen, dtype, steer, ablate):
    sae, latents = random_sae(seed, d_in, d_sae), list(range(0, d_sae, 2))[:chosen]
    x = torch.randn(rows, d_in, height, width).to(dtype)
    edit = edit_of(sae, latents) if ablate else edit_of(sae, latents, Actuator.STEER, steer)
    wanted = dense(sae, x, latents, 0.0 if ablate else 1 + steer, 0.0)
    scale = 1 + float((wanted - x).abs().max()) + float(x.abs().max())
    assert (Erasure([edit])(x, 1.0).out.double() - wanted).abs().max() <= TOLERANCE[dtype] * scale * (2 + abs(steer))


@pytest.fixture
def sae() -> Sae:
    return random_sae(0, 16, 32)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 16, 5, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("actuator", list(Actuator))
def test_tokens_and_maps_are_edited_alike(sae, x, actuator, contiguous):
    """On a map of one line, because tokens have no height for *replace* to know."""
    x = x.flatten(2)[:, :, None]
    edits = [edit_of(sae, [1, 2], actuator, strength=0.6, threshold=0.4), edit_of(sae, [3], conditional_only=True)]
    rows = torch.tensor([True, False, False, True])
    tokens = x[:, :, 0].mT.contiguous() if contiguous else x[:, :, 0].mT
    by_map, by_tokens = (Erasure(edits)(part, 1.0, rows) for part in (x, tokens))
    assert torch.allclose(by_map.out[:, :, 0].mT, by_tokens.out, atol=1e-6)
    assert torch.equal(by_map.fired, by_tokens.fired) and by_map.fired.any()
    assert by_tokens.out.stride() == tokens.stride() and not torch.equal(by_tokens.out, tokens)


def test_outside_the_window_and_in_silence_the_very_tokens_are_given_back(sae, x):
    tokens = x.flatten(2).mT.contiguous()
    assert Erasure([edit_of(sae, [1], start_sigma=2.0)])(tokens, 3.0).out is tokens
    assert Erasure([edit_of(sae, [1], threshold=1e6)])(tokens, 3.0).out is tokens


def test_a_threshold_leaves_weaker_tokens_alone(sae, x):
    strong = dense(sae, x, [4], 0.0, 0.5)
    assert torch.allclose(Erasure([edit_of(sae, [4], threshold=0.5)])(x, 1.0).out.double(), strong, atol=1e-5)
    assert not torch.allclose(strong, dense(sae, x, [4], 0.0, 0.0), atol=1e-3)


@pytest.mark.parametrize("actuator", list(Actuator))
def test_strength_zero_and_silence_are_bit_identical(sae, x, actuator):
    assert torch.equal(Erasure([edit_of(sae, [1, 2], actuator, strength=0.0)])(x, 1.0, halves(x)).out, x)
    if actuator is not Actuator.THOROUGH:
        assert torch.equal(Erasure([edit_of(sae, [1, 2], actuator, threshold=1e6)])(x, 1.0, halves(x)).out, x)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_result_lies_in_memory_as_the_input_does(sae, x, strength):
    """The layers that follow round differently for another memory format, and strength 0 would not be bit-identical."""
    for x_in in (x, x.contiguous(memory_format=torch.channels_last), x.flatten(2).mT, x.flatten(2).mT.contiguous()):
        assert Erasure([edit_of(sae, [1, 2], strength=strength)])(x_in, 1.0).out.stride() == x_in.stride()


def test_the_input_is_never_written_to(sae, x):
    before = x.clone()
    for actuator in Actuator:
        Erasure([edit_of(sae, [1, 2], actuator)])(x, 1.0, halves(x))
    assert torch.equal(x, before)


def test_the_window_is_in_sigma(sae, x):
    erasure = Erasure([edit_of(sae, [1, 2], start_sigma=5.0, end_sigma=1.0)])
    changed = [not torch.equal(erasure(x, sigma).out, x) for sigma in (0.5, 1.0, 3.0, 5.0, 6.0)]
    assert changed == [False, True, True, True, False]


def test_only_conditional_rows_are_edited_when_asked(sae, x):
    erasure = Erasure([edit_of(sae, [1, 2], conditional_only=True)])
    out = erasure(x, 1.0, torch.tensor([False, True, False, True])).out
    assert torch.equal(out[[0, 2]], x[[0, 2]])
    assert torch.allclose(out[[1, 3]], Erasure([edit_of(sae, [1, 2])])(x, 1.0).out[[1, 3]])


@pytest.mark.parametrize("second", list(Actuator))
@pytest.mark.parametrize("first", list(Actuator))
def test_two_edits_do_not_depend_on_their_order(sae, x, first, second):
    if first is second is Actuator.THOROUGH:
        pytest.skip("what two directions share is taken out by the first of them")
    a, b = edit_of(sae, [1], first, strength=0.5), edit_of(sae, [2], second, strength=0.7)
    one, other = (Erasure(edits)(x, 1.0, halves(x)).out for edits in ([a, b], [b, a]))
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("actuator", [actuator for actuator in Actuator if actuator is not Actuator.THOROUGH])
def test_two_edits_equal_one_with_both_concepts(sae, x, actuator):
    apart = Erasure([edit_of(sae, [1], actuator), edit_of(sae, [2], actuator)])(x, 1.0).out
    assert torch.allclose(apart, Erasure([edit_of(sae, [1, 2], actuator)])(x, 1.0).out, atol=1e-5)


def test_replace_fills_from_the_nearest_silent_tokens(sae):
    x = torch.zeros(1, 16, 1, 9)
    x[0, :, 0, 4] = 5 * sae.encoder.weight[3]
    x[0, 0, 0] += torch.arange(9.0)
    silent = torch.tensor([0.0, 1, 2, 3, 5, 6, 7, 8])
    z = sae.pre_acts(x[0, :, 0].T)[:, 3]
    threshold = float(z[silent.long()].max()) + 0.01
    assert z[4] > threshold
    out = Erasure([edit_of(sae, [3], Actuator.REPLACE, threshold=threshold)])(x, 1.0).out
    assert torch.equal(out[..., [0, 1, 2, 3, 5, 6, 7, 8]], x[..., [0, 1, 2, 3, 5, 6, 7, 8]])
    assert torch.allclose(out[0, :, 0, 4], x[0, :, 0, [2, 3, 5, 6]].mean(1))


def test_replace_ablates_where_every_token_fires(sae):
    x = (sae.b_dec + 8 * sae.encoder.weight[3]).view(1, 16, 1, 1).expand(1, 16, 2, 2).contiguous()
    replaced = Erasure([edit_of(sae, [3], Actuator.REPLACE)])(x, 1.0).out
    assert torch.allclose(replaced, Erasure([edit_of(sae, [3])])(x, 1.0).out)
    assert not torch.equal(replaced, x)


def test_a_residual_sae_reads_output_minus_input(sae, x):
    x_in = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    out = Erasure([edit_of(sae, [1, 2])], residual=True)(x, 1.0, None, x_in).out
    assert torch.allclose(out.double(), dense(sae, x - x_in, [1, 2], 0.0, 0.0) + x_in, atol=1e-5)


def test_fired_says_which_rows_did(sae, x):
    quiet = edit_of(sae, [1], threshold=1e6)
    assert Erasure([quiet, edit_of(sae, [2])])(x, 1.0).fired.tolist() == [False, True]


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.75, 1.0])
def test_an_amount_between_0_and_1_is_the_share_of_the_squared_change_that_goes(sae, x, strength):
    """As *removed* counts it: what is left of what the neuron adds, squared, against all of it."""
    rows = [1, 2]
    gone = Erasure([edit_of(sae, rows)])(x, 1.0).out
    left = Erasure([edit_of(sae, rows, Actuator.AMOUNT, strength)])(x, 1.0).out
    assert float((left - gone).square().sum() / (x - gone).square().sum()) == pytest.approx(1 - strength, abs=1e-4)


@pytest.mark.parametrize("strength", [-1.0, -0.5, 1.0, 1.5, 2.0])
def test_an_amount_beyond_0_and_1_is_steer_the_other_way_round(sae, x, strength):
    amount, steer = (Erasure([edit_of(sae, [1, 2], actuator, sign * strength)])(x, 1.0).out
                     for actuator, sign in ((Actuator.AMOUNT, 1), (Actuator.STEER, -1)))
    assert torch.equal(amount, steer)


@pytest.mark.parametrize(("actuator", "strength"), [
    (Actuator.ABLATE, 1.5), (Actuator.ABLATE, -0.1), (Actuator.REPLACE, 2.0), (Actuator.STEER, 101.0),
    (Actuator.AMOUNT, 2.1), (Actuator.AMOUNT, -1.1)])
def test_a_strength_out_of_range_is_one_sentence(sae, actuator, strength):
    with pytest.raises(SaeError, match="expected a strength of"):
        edit_of(sae, [1], actuator, strength)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), latents=st.sets(st.integers(0, 19), min_size=1, max_size=3), tokens=st.booleans(),
       strength=st.sampled_from([1.0, 0.5]))
def test_thorough_leaves_of_each_direction_no_more_than_there_is_where_the_prompt_is_not_heard(seed, latents, tokens,
                                                                                                strength):
    sae, x = random_sae(seed, 48, 20), torch.randn(5, 48, 3, 4)
    conditional = torch.tensor([True, False, True, False, True])
    along = sae.W_dec[sorted(latents)].double()
    along = along / along.norm(dim=1, keepdim=True)
    shown = x.flatten(2).mT if tokens else x
    out = Erasure([edit_of(sae, sorted(latents), Actuator.THOROUGH, strength)])(shown, 1.0, conditional).out
    out = out.double().mT if tokens else out.double().flatten(2)
    before, after = along @ x.double().flatten(2), along @ out
    usual = before[~conditional].mean((0, 2))[:, None]
    wanted = before - strength * (before - usual).relu()
    assert torch.equal(out[~conditional], x[~conditional].double().flatten(2))
    assert (after[conditional] - wanted[conditional]).abs().max() < 0.02
    across = torch.linalg.svd(along).Vh[len(along):]
    assert (across @ (out - x.double().flatten(2))).abs().max() < 1e-4


def test_thorough_goes_by_the_last_call_in_which_the_prompt_was_not_heard():
    sae, x = random_sae(3, 24, 8), torch.randn(4, 24, 3, 4)
    conditional = torch.tensor([True, True, False, False])
    whole = Erasure([edit_of(sae, [2, 5], Actuator.THOROUGH)])
    parts = Erasure([edit_of(sae, [2, 5], Actuator.THOROUGH)])
    wanted = whole(x, 1.0, conditional).out
    assert torch.equal(parts(x[2:], 1.0, conditional[2:]).out, x[2:])
    torch.testing.assert_close(parts(x[:2], 1.0, conditional[:2]).out, wanted[:2])


def test_thorough_leaves_rows_alone_that_are_not_for_a_noise_level(sae, x):
    edit = edit_of(sae, [1], Actuator.THOROUGH, threshold=NEVER)
    assert torch.equal(Erasure([edit])(x, 1.0, halves(x)).out, x)


def test_thorough_has_to_know_where_the_prompt_is_heard():
    sae = random_sae(3, 24, 8)
    with pytest.raises(SaeError, match="set cfg above 1"):
        Erasure([edit_of(sae, [2], Actuator.THOROUGH)])(torch.randn(2, 24, 3, 4), 1.0)


def test_thorough_takes_what_fires_and_then_what_is_left(sae, x):
    """Chosen by its name a concept is ablated first, by which more may go than there is over the other half."""
    def done(*actuators: Actuator) -> torch.Tensor:
        edits = [edit_of(sae, [1], actuator, threshold=1.0) for actuator in actuators]
        return Erasure(edits)(x, 1.0, halves(x)).out

    direction = torch.nn.functional.normalize(sae.W_dec[1], dim=0)
    thorough, ablated, both = (torch.tensordot(done(*which), direction, ([1], [0]))[halves(x)] for which in (
        [Actuator.THOROUGH], [Actuator.ABLATE], [Actuator.THOROUGH, Actuator.ABLATE]))
    assert torch.allclose(both, torch.minimum(thorough, ablated), atol=1e-2)
    assert (thorough - ablated).max() > 0.1 and (ablated - thorough).max() > 0.1

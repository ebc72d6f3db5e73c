"""`cat -> dog`: what is put where a concept fires, at the tensors and in the files."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_models.adapter import Block, LoadedSae, build_edits
from sae_models.concepts import Concept, Statistics
from sae_models.erasure import Actuator, Edit, Erasure
from sae_models.errors import SaeError
from sae_models.formats import Header, Part, Rows, Weights, write, write_places
from sae_models.sae import Sae, SaeConfig

DOWN, UP, MID = (f"{name}.transformer_blocks.0.attn2" for name in (
    "down_blocks.1.attentions.0", "up_blocks.1.attentions.1", "mid_block.attentions.0"))
SIGMAS = (0.1, 10.0)


def rows(count: int, d_in: int, threshold: float = 0.2) -> Rows:
    statistics = Statistics(SIGMAS, torch.full((count, 2), threshold), 0.5 + torch.rand(count, 2))
    return Rows(torch.randn(count, d_in), torch.randn(count), torch.randn(count, d_in), statistics)


def swap(cat: Rows, dog: Rows, strength: float = 1.0, **options) -> Edit:
    count = len(cat.bias)
    return Edit(("cat",) * count, cat, torch.full((count,), strength), into="dog", put=dog, **options)


def dense(x: torch.Tensor, cat: Rows, dog: Rows, strength: float) -> torch.Tensor:
    """Tokens [B, N, d] at sigma 1, halfway between the two in log sigma, in double precision: what cat's neurons carry
    is taken out, and dog's mean put in as often as cat's mean is there."""
    W_enc, bias, W_dec, D_dec = (t.double() for t in (cat.W_enc, cat.bias, cat.W_dec, dog.W_dec))
    z = x.double() @ W_enc.T + bias
    z = torch.where(z > 0.2, z, 0)
    cats = z.sum(-1, keepdim=True) / cat.statistics.means.double().mean(1).sum()
    return x.double() - strength * z @ W_dec + strength * cats * (dog.statistics.means.double().mean(1) @ D_dec)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), cats=st.integers(1, 3), dogs=st.integers(1, 3), d_in=st.integers(2, 24),
       strength=st.floats(0, 1), a_map=st.booleans())
def test_a_swap_equals_the_dense_formula(seed, cats, dogs, d_in, strength, a_map):
    torch.manual_seed(seed)
    x, cat, dog = torch.randn(2, 12, d_in), rows(cats, d_in), rows(dogs, d_in)
    given = x.mT.reshape(2, d_in, 3, 4) if a_map else x
    out = Erasure([swap(cat, dog, strength)])(given, 1.0).out
    wanted = dense(x, cat, dog, strength)
    assert torch.allclose((out.flatten(2).mT if a_map else out).double(), wanted, atol=1e-4 * (1 + wanted.abs().max()))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def both() -> tuple[Rows, Rows]:
    torch.manual_seed(4)
    return rows(1, 8, threshold=1.0), rows(2, 8, threshold=1.0)


def test_where_it_never_fires_nothing_changes_by_a_bit(x, both):
    cat, dog = both
    edited = Erasure([swap(cat, dog)])(x, 1.0)
    silent = (x @ cat.W_enc.T + cat.bias <= 1.0).all(-1)
    assert edited.fired.tolist() == [True] and silent.any() and not silent.all()
    assert torch.equal(edited.out[silent], x[silent]) and not torch.equal(edited.out[~silent], x[~silent])
    assert torch.equal(Erasure([swap(cat, dog, 0.0)])(x, 1.0).out, x)
    assert Erasure([swap(cat, dog, start_sigma=5.0)])(x, 9.0).out is x


def test_two_concepts_can_change_places(x, both):
    """All is read from what comes in, so neither swap meets what the other has put there."""
    there, back = swap(*both), replace(swap(*both[::-1]), names=("dog", "dog"), into="cat")
    apart = [Erasure([one])(x, 1.0).out - x for one in (there, back)]
    assert torch.allclose(Erasure([there, back])(x, 1.0).out, x + sum(apart), atol=1e-5)
    assert Erasure([there, back]).labels() == ["cat -> dog", "dog -> cat", "dog -> cat"]


@pytest.mark.parametrize("actuator", [Actuator.STEER, Actuator.REPLACE])
def test_another_actuator_than_amount_and_ablate_is_refused(both, actuator):
    sentence = f"'cat -> dog' is done by the actuators amount and ablate, not by {actuator.value}: .* write 'cat' alone"
    with pytest.raises(SaeError, match=sentence):
        swap(*both, strength=1.0, actuator=actuator)


def test_amount_swaps_as_much_as_it_takes_away(x, both):
    """Of the cat sqrt(1 - s) is left, and of the dog the rest is put there."""
    whole = Erasure([swap(*both)])(x, 1.0).out - x
    for strength, share in ((1.0, 1.0), (0.75, 0.5), (0.0, 0.0)):
        edited = Erasure([swap(*both, strength=strength, actuator=Actuator.AMOUNT)])(x, 1.0).out
        assert torch.allclose(edited, x + share * whole, atol=1e-5)
    for strength in (-0.5, 1.5):
        with pytest.raises(SaeError, match="strength of 0 to 1 for 'cat -> dog' with amount"):
            swap(*both, strength=strength, actuator=Actuator.AMOUNT)


def test_a_concept_that_is_never_said_to_fire_cannot_be_sized(both):
    cat, dog = both
    nothing = replace(dog, statistics=replace(dog.statistics, means=torch.zeros(2, 2)))
    with pytest.raises(SaeError, match="does not say how strongly they fire"):
        swap(cat, nothing)


# --- from a file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sae(tmp_path) -> LoadedSae:
    """cat and dog at two places, one of them with a castle; cat and rose at a third."""
    torch.manual_seed(0)
    parts = []
    for hookpoint, names in ((DOWN, ("cat", "dog")), (UP, ("dog", "castle", "cat")), (MID, ("cat", "rose"))):
        config, rest = SaeConfig(8, len(names), 1), Sae(SaeConfig(8, len(names), 1)).requires_grad_(False)
        header = Header(config, hookpoint, "sd15", False, tuple(Concept(n, (i,)) for i, n in enumerate(names)))
        weights = Weights(rest.encoder.weight, torch.randn(len(names)), rest.W_dec, torch.zeros(8))
        parts.append(Part(header, weights, Statistics(SIGMAS, torch.rand(len(names), 2), torch.rand(len(names), 2))))
    write_places(tmp_path / "many.safetensors", parts)
    return LoadedSae.read("many.safetensors", tmp_path / "many.safetensors")


def test_a_swap_is_done_at_every_place_beside_what_is_erased(sae):
    edits = build_edits(sae, "rose:0.5, CAT:0.25 -> Dog, castle", Actuator.ABLATE)
    said = {(block.hookpoint, edit.labels, tuple(edit.strengths.tolist())) for block, edit in edits}
    assert said == {(MID, ("rose",), (0.5,)), (UP, ("castle",), (1.0,)), (DOWN, ("cat -> dog",), (0.25,)),
                    (UP, ("cat -> dog",), (0.25,)), (MID, ("cat -> dog",), (0.25,))}
    swaps = {block: edit.put for block, edit in edits if edit.into}
    for hookpoint in (DOWN, UP):
        dog = dict(build_edits(sae, "dog", Actuator.ABLATE))[Block(hookpoint, False)].rows
        assert torch.equal(swaps[Block(hookpoint, False)].W_dec, dog.W_dec)
    assert swaps[Block(MID, False)] is None


def test_neurons_without_a_name_fire_alike(tmp_path):
    """By number: what one carries is carried on by the other, for every unit as much."""
    torch.manual_seed(1)
    sae = Sae(SaeConfig(8, 4, 1)).requires_grad_(False)
    write(tmp_path / "nameless.safetensors", sae, Header(sae.config, DOWN, "sd15"), Statistics.unknown(0))
    found = LoadedSae.read("nameless.safetensors", tmp_path / "nameless.safetensors")
    [(_, edit)] = build_edits(found, "#1 -> #3", Actuator.ABLATE)
    assert edit.labels == ("latent 1 -> latent 3",)
    x = torch.randn(1, 5, 8)
    z = (x @ edit.rows.W_enc.T + edit.rows.bias).relu()
    assert torch.allclose(Erasure([edit])(x, 0.7).out, x + z @ (sae.W_dec[3:4] - sae.W_dec[1:2]), atol=1e-5)


@pytest.mark.parametrize(("text", "says"), [
    ("cat -> dgo", "many.safetensors has no concept 'dgo'; nearest: dog"),
    ("ctt -> dog", "many.safetensors has no concept 'ctt'; nearest: cat"),
    ("rose -> castle", "'rose -> castle' cannot be done: many.safetensors has the two at no place in common"),
    ("cat:2 -> dog", "strength of 0 to 1 for 'cat'"),
])
def test_a_slip_in_a_swap_is_one_sentence(sae, text, says):
    with pytest.raises(SaeError, match=says):
        build_edits(sae, text, Actuator.ABLATE)

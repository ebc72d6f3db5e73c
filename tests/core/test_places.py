"""SAEs of several places: their file, and what one name and one strength do at all of them."""
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sae_models import Actuator, Concept, Header, Sae, SaeConfig, SaeError, Statistics, read_headers, read_rows, write
from sae_models.adapter import Block, LoadedSae, Tally, build_edits, with_attention_patch
from sae_models.concepts import NEVER
from sae_models.formats import Part, Weights, read_sae, read_statistics, write_places
from sae_models.hookpoint import hears

ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))
DOWN, UP, BLOCK = ("down_blocks.1.attentions.0.transformer_blocks.0.attn2",
                   "up_blocks.1.attentions.1.transformer_blocks.1.attn2", "up_blocks.1.attentions.1")
MEASURED = {"removed": 0.9, "touched": 0.05}
PLACES = {
    DOWN: (4, 3, [Concept("cat", (2,), "object", "a cat", MEASURED), Concept("dog", (0, 1), "object")]),
    UP: (8, 5, [Concept("noto style", (4,), "style"), Concept("Cat", (1, 3), "object", "a cat", MEASURED)]),
    BLOCK: (8, 6, [Concept("dog", (5,), "object")]),
    "mid_block.attentions.0": (8, 2, []),
}


def parts_of(places=PLACES, centred=True) -> list[Part]:
    torch.manual_seed(0)
    made = []
    for hookpoint, (d_in, d_sae, concepts) in places.items():
        sae = Sae(SaeConfig(d_in, d_sae, 2)).requires_grad_(False)
        rows = sum(len(c.latents) for c in concepts)
        header = Header(sae.config, hookpoint, "sd15", False, tuple(concepts), {"steps": 3})
        centre = torch.randn(d_in) if centred else torch.zeros(d_in)
        weights = Weights(sae.encoder.weight, torch.randn(d_sae), sae.W_dec, centre)
        made.append(Part(header, weights, Statistics((0.1, 1.0, 10.0), torch.rand(rows, 3), torch.rand(rows, 3))))
    return made


@pytest.fixture
def path(tmp_path):
    write_places(tmp_path / "many.safetensors", parts_of())
    return tmp_path / "many.safetensors"


def rows_equal(part: Part, path) -> None:
    """Every concept of a place is read as it was written."""
    start = 0
    for concept in part.header.concepts:
        latents, rows = list(concept.latents), read_rows(path, part.header, [concept])
        W_enc, b_enc, W_dec, b_dec = part.weights
        assert torch.equal(rows.W_enc, W_enc[latents]) and torch.equal(rows.W_dec, W_dec[latents])
        assert torch.allclose(rows.bias, (b_enc - W_enc @ b_dec)[latents], atol=1e-6)
        here = slice(start, start + len(latents))
        assert torch.equal(rows.statistics.thresholds, part.statistics.thresholds[here])
        assert torch.equal(rows.statistics.means, part.statistics.means[here])
        start += len(latents)


def test_every_place_is_read_back_as_it_was_written(path):
    headers = {header.hookpoint: header for header in read_headers(path)}
    assert list(headers) == list(PLACES)
    for part in parts_of():
        found = headers[part.header.hookpoint]
        assert replace(found, concepts=()) == replace(part.header, concepts=())
        assert {(c.name.casefold(), *c.latents, c.kind, c.description) for c in found.concepts} == {
            (c.name.casefold(), *c.latents, c.kind, c.description) for c in part.header.concepts}
        rows_equal(part._replace(header=found, statistics=read_statistics(path, found)), path)
    rows_equal(parts_of()[0], path)  # concepts in the order in which the file lists them
    assert not list(path.parent.glob("*.part"))


def test_a_place_whose_concepts_come_in_another_order_keeps_its_statistics(path):
    part, header = parts_of()[1], read_headers(path)[1]
    assert [c.name for c in header.concepts] == ["cat", "noto style"]
    thresholds = read_rows(path, header, list(header.concepts)).statistics.thresholds
    assert torch.equal(thresholds, part.statistics.thresholds[[1, 2, 0]])


def test_a_concept_file_has_few_tensors_and_keeps_thresholds_in_half_precision(tmp_path):
    concepts = [Concept("cat", (0,)), Concept("dog", (1,))]
    parts = parts_of({f"{BLOCK}.transformer_blocks.{i}.attn2": (64, 2, concepts) for i in range(70)}, centred=False)
    parts = [part._replace(statistics=Statistics((1.0, 2.0), torch.tensor([[0.1234567, NEVER]] * 2),
                                                 torch.ones(2, 2))) for part in parts]
    path = tmp_path / "concepts.safetensors"
    write_places(path, parts, torch.float16)
    assert len(load_file(path)) == 6 and path.stat().st_size < 70 * 2 * 64 * 2 * 2 + 25_000
    header = read_headers(path)[69]
    assert torch.equal(read_rows(path, header, list(header.concepts)).statistics.thresholds,
                       parts[69].statistics.thresholds)


def test_a_file_of_one_place_in_this_format_is_a_whole_sae(tmp_path):
    [part] = parts_of({UP: PLACES[UP]})
    write_places(tmp_path / "one.safetensors", [part])
    sae, header = read_sae(tmp_path / "one.safetensors")
    assert header.hookpoint == UP
    assert torch.equal(sae.encoder.weight, part.weights.W_enc) and torch.equal(sae.b_dec, part.weights.b_dec)


def test_the_whole_saes_of_several_places_are_not_taken_for_one(path):
    with pytest.raises(SaeError, match=r"many.safetensors has concepts at 4 places of the model"):
        read_sae(path)


@pytest.mark.parametrize(("change", "says"), [
    ({"base": "sdxl"}, "expected SAEs of one base model, got sd15, sdxl"),
    ({"hookpoint": UP}, "is listed twice"),
])
def test_saes_that_cannot_be_together_are_not_written(tmp_path, change, says):
    first, *others = parts_of()
    with pytest.raises(SaeError, match=says):
        write_places(tmp_path / "a.safetensors", [first._replace(header=replace(first.header, **change)), *others])


# --- damaged files ---------------------------------------------------------------------------------------------------


def described(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["saemnesia"])


def changed(path, data: dict, **tensors) -> None:
    save_file(load_file(path) | tensors, path, {"saemnesia": json.dumps(data)})


def read_or_one_sentence(path) -> bool:
    try:
        for header in read_headers(path):
            rows = read_rows(path, header, [*header.concepts, Concept("first", (0,))])
            assert rows.W_enc.shape == (len(rows.bias), header.config.d_in)
        return True
    except SaeError as error:
        assert str(error) and "\n" not in str(error)
        return False


@pytest.mark.parametrize(("place", "change", "says"), [
    (1, {"start": 1}, "the rows of up_blocks.1.attentions.1.transformer_blocks.1.attn2 start at 1, not at 0"),
    (2, {"start": 4}, "the rows of up_blocks.1.attentions.1 start at 4, not at 5"),
    (2, {"start": -5}, "start at -5, not at 5"), (2, {"d_sae": 7}, "start at 11, not at 12"),
    (3, {"d_sae": 3}, r"expected 8.encoder.weight of shape \[14, 8\], got \[13, 8\]"),
    (0, {"d_in": 5}, r"expected 5.encoder.weight of shape \[3, 5\], got none"),
    (0, {"k": 4}, "expected k in 1..3"), (0, {"hookpoint": UP}, "is listed twice"),
    (0, {"hookpoint": ""}, "does not say which block"), (0, {"hookpoint": None}, "description is incomplete"),
    (0, {"d_sae": 1e400}, "description is incomplete"),
])
def test_places_that_do_not_fit_the_tensors_are_one_sentence(path, place, change, says):
    data = described(path)
    data["places"][place] |= change
    changed(path, data)
    with pytest.raises(SaeError, match=f"many.safetensors is damaged: .*{says}"):
        read_headers(path)


@pytest.mark.parametrize(("change", "says"), [
    ({"latents": [[4, [0]]]}, r"concept 'cat' is at \[4\] of 4 places"), ({"latents": [[-1, [0]]]}, r"is at \[-1\]"),
    ({"latents": []}, r"is at \[\] of 4"), ({"latents": [[0, [2]], [0, [1]]]}, r"is at \[0, 0\]"),
    ({"latents": [[0, [3]], [1, [1, 3]]]}, "a concept has latent 3 of 3"), ({"latents": [[0, []]]}, "latents >= 0"),
    ({"latents": [[0, [2]]]}, "statistics are not of 5 latents"), ({"name": "DOG"}, "'DOG' is listed twice"),
    ({"measured": {"removed": float("nan")}}, "expected a number for 'removed' of concept 'cat', got nan"),
    ({"measured": {"removed": "much"}}, "description is incomplete"), ({"measured": [1]}, "description is incomplete"),
])
def test_concepts_that_do_not_fit_the_places_are_one_sentence(path, change, says):
    data = described(path)
    data["concepts"][0] |= change
    changed(path, data)
    with pytest.raises(SaeError, match=f"many.safetensors is damaged: .*{says}"):
        read_headers(path)


@ONE_FOLDER
@given(data=st.data())
def test_any_description_is_headers_or_one_sentence(tmp_path, data):
    path = tmp_path / "a.safetensors"
    write_places(path, parts_of())
    description = described(path)
    at = data.draw(st.sampled_from([description, *description["places"], *description["concepts"]]))
    at[data.draw(st.sampled_from(list(at)))] = data.draw(JSON)
    changed(path, description)
    read_or_one_sentence(path)


@ONE_FOLDER
@given(place=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_flipped_byte_is_read_or_one_sentence(tmp_path, place, byte):
    path = tmp_path / "a.safetensors"
    write_places(path, parts_of())
    data = bytearray(path.read_bytes())
    data[place] = byte
    path.write_bytes(data)
    read_or_one_sentence(path)


@ONE_FOLDER
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_one_sentence(tmp_path, share):
    path = tmp_path / "a.safetensors"
    write_places(path, parts_of())
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    assert not read_or_one_sentence(path)


@ONE_FOLDER
@given(name=st.sampled_from(["4.encoder.weight", "4.encoder.bias", "8.W_dec", "8.b_dec", "concept_sigmas",
                             "concept_thresholds", "concept_means"]), shape=st.lists(st.integers(0, 14), max_size=3))
def test_a_tensor_of_another_shape_is_one_sentence(tmp_path, name, shape):
    path = tmp_path / "a.safetensors"
    write_places(path, parts_of())
    fits = list(load_file(path)[name].shape) == shape
    changed(path, described(path), **{name: torch.ones(shape)})
    assert read_or_one_sentence(path) == (fits and name != "concept_sigmas")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["8.encoder.weight", "8.encoder.bias", "8.W_dec", "8.b_dec", "concept_thresholds",
                                  "concept_means"])
def test_what_is_not_finite_is_refused_where_it_is_used(path, name, bad):
    tensors = load_file(path)
    row = {"8.b_dec": 0, "concept_thresholds": 3, "concept_means": 3}.get(name, 1)
    tensors[name][row] = bad
    changed(path, described(path), **{name: tensors[name]})
    with pytest.raises(SaeError, match="not finite"):
        read_rows(path, read_headers(path)[1], [read_headers(path)[1].concepts[0]])
    assert read_rows(path, read_headers(path)[2], [PLACES[BLOCK][2][0]]).W_enc.isfinite().all() or name == "8.b_dec"


def test_a_newer_format_says_so(path):
    changed(path, described(path) | {"format": 3})
    with pytest.raises(SaeError, match="has format 3, newer than 2: update this extension"):
        read_headers(path)


# --- one name, one strength, every place -----------------------------------------------------------------------------


@pytest.fixture
def sae(path) -> LoadedSae:
    return LoadedSae.read("many.safetensors", path)


def test_a_concept_is_listed_once_with_what_was_measured(sae):
    assert sae.listed() == {"base": "sd15", "hookpoint": "", "places": 4, "concepts": [
        {"name": "cat", "kind": "object", "description": "a cat", "measured": MEASURED},
        {"name": "dog", "kind": "object", "description": "", "measured": None},
        {"name": "noto style", "kind": "style", "description": "", "measured": None}]}


def test_one_strength_is_applied_at_every_place_that_has_the_concept(sae, path):
    edits = dict(build_edits(sae, "CAT:0.5, noto style", Actuator.ABLATE))
    assert {block.hookpoint: list(zip(edit.names, edit.strengths.tolist(), strict=True))
            for block, edit in edits.items()} == {
        DOWN: [("cat", 0.5)], UP: [("cat", 0.5), ("cat", 0.5), ("noto style", 1.0)]}
    whole = read_rows(path, sae.headers[1], list(sae.headers[1].concepts))
    assert torch.equal(edits[Block(UP, False)].rows.W_enc, whole.W_enc)


@pytest.mark.parametrize(("text", "says"), [
    ("catt", "many.safetensors has no concept 'catt'; nearest: cat"),
    ("#3", "has neurons at 4 places of the model, so '#3' does not say which"),
    ("cat:2", "strength of 0 to 1 for 'cat'"),
])
def test_a_slip_in_a_file_of_several_places_is_one_sentence(sae, text, says):
    with pytest.raises(SaeError, match=says):
        build_edits(sae, text, Actuator.ABLATE)


TWO = (Concept("cat", (0,)), Concept("dog", (1,)))


@pytest.mark.parametrize(("names", "header", "says"), [
    ((DOWN, UP), {"concepts": TWO, "made_on": "dreams_8"},
     "SD 1.x, at 2 cross-attentions, with 2 concepts, made on dreams_8"),
    ((BLOCK, UP), {"concepts": TWO}, "SD 1.x, at 2 places, with 2 concepts"),
    ((BLOCK,), {"concepts": TWO[:1]}, f"SD 1.x, at one place: {BLOCK}, with 1 concept"),
    (("",), {"base": ""}, "base model not said, block not said, with 9 neurons without names"),
])
def test_what_a_file_is_for_is_said_in_a_line(sae, names, header, says):
    like = Header(SaeConfig(8, 9, 1), **{"base": "sd15", **header})
    assert replace(sae, headers=tuple(replace(like, hookpoint=name) for name in names)).about() == says


def test_the_checkpoint_a_file_was_made_on_is_kept_in_it(tmp_path):
    made = {"made_on": "dreams_8", "made_of": "fp16 0123"}
    parts = [part._replace(header=replace(part.header, **made)) for part in parts_of()]
    write_places(tmp_path / "many.safetensors", parts)
    assert {(header.made_on, header.made_of) for header in read_headers(tmp_path / "many.safetensors")} \
        == {("dreams_8", "fp16 0123")}
    header = replace(parts[0].header, concepts=())
    write(tmp_path / "one.safetensors", Sae(header.config), header, Statistics.unknown(0))
    [one] = read_headers(tmp_path / "one.safetensors")
    assert (one.made_on, one.made_of) == ("dreams_8", "fp16 0123")


@pytest.mark.parametrize(("hookpoints", "wanted", "found"), [
    (("",), "unet.up_blocks.1.attentions.1", ["up_blocks.1.attentions.1"]), (("",), "", "does not say which block"),
    ((BLOCK,), "", [BLOCK]), ((BLOCK,), f" unet.{BLOCK}", [BLOCK]),
    ((BLOCK,), DOWN, f"was trained on {BLOCK}, not on {DOWN}: leave 'hookpoint' empty"),
    ((DOWN, UP), "", [DOWN, UP]), ((DOWN, UP), DOWN, "leave 'hookpoint' empty"),
    ((DOWN, UP, BLOCK, "a", "b"), "c", f"trained on {DOWN}, {UP}, {BLOCK} and 2 more, not on c"),
])
def test_a_typed_hookpoint_is_only_for_files_that_do_not_say_one(sae, hookpoints, wanted, found):
    sae = replace(sae, headers=tuple(replace(sae.headers[0], hookpoint=name) for name in hookpoints))
    if isinstance(found, str):
        with pytest.raises(SaeError, match=found):
            sae.at(wanted)
    else:
        assert [header.hookpoint for header in sae.at(wanted).headers] == found


def test_steps_in_which_a_concept_fired_are_counted_once_for_all_places():
    tally, one, two, three = Tally(), Block(DOWN, False), Block(UP, False), Block(BLOCK, False)
    names = {one: ["cat"], two: ["cat", "dog"], three: ["dog"]}
    for sigma, cat, cat_or_dog in ((3.0, [True], [True, False]), (2.0, [False], [True, True]),
                                   (1.0, [False], [False, False]), (1.0, [False], [False, True])):
        tally.add(sigma, {one: torch.tensor(cat), two: torch.tensor(cat_or_dog)})
    assert tally.summary(names) == "SAEmnesia: steps in which a concept fired at any of 3 places, of 3: cat 2, dog 2"
    assert tally.missed(names) == BLOCK


def test_an_attention_patch_comes_last_and_changes_nothing_of_the_callers():
    mine, theirs = (lambda n, options: n), (lambda n, options: n)
    options = {"block": ("output", 4), "patches": {"attn2_output_patch": [theirs], "attn1_patch": [theirs]}}
    patched = with_attention_patch(options, mine)
    assert patched["patches"] == {"attn2_output_patch": [theirs, mine], "attn1_patch": [theirs]}
    assert options["patches"]["attn2_output_patch"] == [theirs]
    assert with_attention_patch({}, mine) == {"patches": {"attn2_output_patch": [mine]}}


def test_whether_words_come_through_is_asked_as_every_device_can(monkeypatch):
    """On a Mac a plain tensor has no dequantize()."""
    monkeypatch.setattr(torch.Tensor, "dequantize", None, raising=False)
    attention = torch.nn.Module()
    attention.to_v, attention.to_out = torch.nn.Linear(4, 4), torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    assert hears(attention)
    torch.nn.init.zeros_(attention.to_out[0].weight)
    assert not hears(attention)

"""The layouts other libraries publish: the same SAE whatever it is called and whichever way its matrices are turned."""
import json
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import BLOCK, FILES, as_safetensors, configuration, publish, random_sae
from safetensors.torch import load_file, save_file

from sae_models import Concept, Header, SaeError, Statistics, read_header, read_rows, read_sae, write

ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@pytest.mark.parametrize("library", FILES)
def test_every_layout_is_the_same_sae_told_by_its_keys(tmp_path, library):
    sae = random_sae()
    path = as_safetensors(tmp_path / BLOCK, library, sae)
    again, header = read_sae(path)
    assert header == read_header(path)
    assert header == Header(sae.config, BLOCK, residual=library == "sdxl-unbox")
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("library", FILES)
@pytest.mark.parametrize("latents", [(0,), (11, 3), (5, 5)])
def test_rows_are_those_of_the_whole_sae_in_every_layout(tmp_path, library, latents):
    sae = random_sae()
    path = as_safetensors(tmp_path, library, sae)
    rows = read_rows(path, read_header(path), [Concept("some", latents)])
    x = torch.randn(5, 8)
    assert torch.allclose(x @ rows.W_enc.T + rows.bias, sae.logits(x)[:, latents], atol=1e-5)
    assert torch.equal(rows.W_dec, sae.W_dec[list(latents)])


def saelens_reference(path, x, centred, scale, by_norm):
    """(activations, reconstruction) by SAELens' documented equations: scale, centre, rank, decode, unscale."""
    W_enc, b_enc, W_dec, b_dec = (load_file(path)[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    norm = W_dec.norm(dim=1) if by_norm else torch.ones(len(W_dec))
    ranked = ((x * scale - b_dec * centred) @ W_enc + b_enc) * norm
    top = ranked.topk(4)
    z = torch.zeros_like(ranked).scatter(1, top.indices, top.values.relu())
    return z, (z / norm @ W_dec + b_dec) / scale


@ONE_FOLDER
@given(centred=st.booleans(), scale=st.floats(0.1, 10), by_norm=st.booleans(), seed=st.integers(0, 99))
def test_what_saelens_does_to_input_and_ranking_is_folded_into_the_weights(tmp_path, centred, scale, by_norm, seed):
    sae = random_sae(seed)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(12, 1) + 0.5)
    path = publish(tmp_path, "saelens", sae, apply_b_dec_to_input=centred, rescale_acts_by_decoder_norm=by_norm,
                   normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
    x = torch.randn(16, 8) / scale
    z, x_hat = saelens_reference(path, x, centred, scale, by_norm)
    ours, header = read_sae(path)
    latents = ours.encode(x)
    dense = torch.zeros_like(z).scatter(1, latents.top_indices, latents.top_acts)
    assert torch.allclose(dense, z, atol=1e-4, rtol=1e-4)
    assert torch.allclose(ours(x) * scale, x_hat * scale, atol=1e-4, rtol=1e-4)
    rows = read_rows(path, header, [Concept("some", (2, 9))])
    assert torch.allclose(x @ rows.W_enc.T + rows.bias, ours.logits(x)[:, [2, 9]], atol=1e-4, rtol=1e-4)


@ONE_FOLDER
@given(a=st.lists(st.floats(-3, 3, width=32), min_size=12, max_size=12, unique=True))
def test_relu_before_or_after_top_k_decodes_alike(a):
    sae, a = random_sae(), torch.tensor([a])
    before = sae.top(a.relu())
    after = sae.top(a)
    assert torch.allclose(sae.decode(before), sae.decode(after._replace(top_acts=after.top_acts.relu())), atol=1e-6)


@pytest.mark.parametrize(("library", "changed", "says"), [
    ("sparsify", {"activation": "groupmax"}, "activation = 'groupmax'"),
    ("sparsify", {"transcode": True}, "transcode = True"),
    ("sparsify", {"skip_connection": True}, "skip_connection = True"),
    ("sparsify", {"signed": True}, "signed = True"),
    ("sparsify", {"input_unit_norm": True}, "input_unit_norm = True"),
    ("sparsify", {"k": "many"}, "cfg.json in .* is damaged, or not of sparsify"),
    ("sparsify", {"k": float("inf")}, "cfg.json in .* is damaged, or not of sparsify"),
    ("sparsify", {"k": 13}, r"cfg.json in .* does not fit .*k in 1..12"),
    ("saelens", {"architecture": "jumprelu"}, "architecture = 'jumprelu'"),
    ("saelens-flat", {"activation_fn_str": "relu"}, "architecture = 'standard'"),
    ("saelens", {"reshape_activations": "hook_z"}, "reshape_activations = 'hook_z'"),
    ("saelens", {"normalize_activations": "layer_norm"}, "normalize_activations = 'layer_norm'"),
    ("saelens", {"normalize_activations": "constant_norm_rescale"}, "normalize_activations = 'constant_norm_rescale'"),
    ("saelens", {"normalize_activations": "expected_average_only_in"}, "put its activation_scaler.json there"),
    ("saelens-flat", {"normalize_activations": True}, "put its activation_scaler.json there"),
    ("saelens-flat", {"finetuning_scaling_factor": True}, "finetuning_scaling_factor = True"),
    ("dictionary_learning", {"trainer": {"dict_class": "BatchTopKSAE", "k": 4}}, "dict_class = 'BatchTopKSAE'"),
    ("dictionary_learning", {"trainer": None}, "config.json in .* is damaged, or not of dictionary_learning"),
    ("sdxl-unbox", {"k": None}, "config.json in .* is damaged, or not of sdxl-unbox"),
])
def test_another_kind_of_sae_is_refused_with_what_it_is(tmp_path, library, changed, says):
    path = as_safetensors(tmp_path, library, random_sae(), **changed)
    with pytest.raises(SaeError, match=says):
        read_header(path)


@pytest.mark.parametrize("folder", [f"unet.{BLOCK}", f"unet.{BLOCK}_k10_hidden5120_auxk256/final", f"{BLOCK}/x"])
def test_the_hookpoint_is_found_in_the_name_of_a_folder(tmp_path, folder):
    assert read_header(as_safetensors(tmp_path / folder, "sdxl-unbox", random_sae())).hookpoint == BLOCK


@pytest.mark.parametrize("library", FILES)
def test_a_missing_tensor_is_named(tmp_path, library):
    path = as_safetensors(tmp_path, library, random_sae())
    tensors = load_file(path)
    gone = next(name for name in tensors if name not in ("k", "threshold", "stats_last_nonzero"))
    save_file({name: value for name, value in tensors.items() if name != gone}, path)
    with pytest.raises(SaeError, match=rf"no SAE that can be read here: it has no .*{gone}"):
        read_header(path)


@ONE_FOLDER
@given(library=st.sampled_from(list(FILES)), data=st.data())
def test_any_configuration_is_a_header_or_one_sentence(tmp_path, library, data):
    config = configuration(library)
    for _ in range(data.draw(st.integers(1, 2))):
        config[data.draw(st.sampled_from([*config, "saemnesia", "activation_fn_kwargs"]))] = data.draw(JSON)
    path = as_safetensors(tmp_path, library, random_sae())
    path.with_name(FILES[library][1]).write_text(json.dumps(data.draw(st.sampled_from([config, data.draw(JSON)]))))
    assert_read_or_one_sentence(path)


@ONE_FOLDER
@given(data=st.data())
def test_any_description_of_our_own_is_a_header_or_one_sentence(tmp_path, data):
    path = tmp_path / "a.safetensors"
    concepts = (Concept("cat", (3,)), Concept("noto style", (1, 6)))
    sae, statistics = random_sae(), Statistics((0.1, 1.0), torch.rand(3, 2), torch.rand(3, 2))
    write(path, sae, Header(sae.config, BLOCK, "sd15", False, concepts), statistics)
    described = {"hookpoint": BLOCK, "base": "sd15", "residual": False, "k": 4, "format": 1, "training": None,
                 "concepts": [{"name": "cat", "latents": [3]}]}
    at, name = data.draw(st.sampled_from([(described, name) for name in described]
                                         + [(described["concepts"][0], name) for name in ("name", "latents", "kind")]))
    at[name] = data.draw(JSON)
    save_file(load_file(path), path, {"saemnesia": json.dumps(described)})
    assert_read_or_one_sentence(path)


SHAPES = st.lists(st.integers(0, 12), max_size=3)


@ONE_FOLDER
@given(shapes=st.dictionaries(st.sampled_from(["encoder.weight", "encoder.bias", "W_enc", "b_enc", "decoder.weight",
                                               "latent_bias", "pre_bias", "W_dec", "b_dec"]), SHAPES),
       dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.int8, torch.bool]))
def test_any_tensors_are_a_header_or_one_sentence(tmp_path, shapes, dtype):
    path = as_safetensors(tmp_path, "sparsify", random_sae())
    save_file({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}, path)
    assert_read_or_one_sentence(path)


@ONE_FOLDER
@given(sigmas=st.lists(st.floats(width=32), max_size=3), rows=st.sampled_from([3, 3, 3, 0, 2]),
       excess=st.sampled_from([0, 0, 0, 1]))
def test_statistics_that_do_not_fit_are_one_sentence(tmp_path, sigmas, rows, excess):
    columns = len(sigmas) + excess
    path, sae = tmp_path / "a.safetensors", random_sae()
    header = Header(sae.config, concepts=(Concept("cat", (3,)), Concept("noto style", (1, 6))))
    write(path, sae, header, Statistics(tuple(sigmas), torch.rand(rows, columns), torch.rand(rows, columns)))
    rising = all(0 < low < high for low, high in pairwise([*sigmas, float("inf")]))
    try:
        rows_read = read_rows(path, read_header(path), list(header.concepts))
        assert rising and (rows, columns) == (3, len(sigmas)) and columns
        assert rows_read.statistics.thresholds.shape == (3, columns)
    except SaeError as error:
        assert "is damaged" in str(error)


def assert_read_or_one_sentence(path):
    try:
        header = read_header(path)
        rows = read_rows(path, header, [*header.concepts, Concept("first", (0,))])
        assert rows.W_enc.shape[1] == header.config.d_in
        sae, _ = read_sae(path)
        assert sae.config == header.config
    except SaeError as error:
        assert str(error) and "\n" not in str(error)

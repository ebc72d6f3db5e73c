"""Files: what is written is read back, a concept is read by its rows, and a bad file is one clear sentence."""
import json
import math
import pickle
import time
import unicodedata
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from sae_models import (
    Actuator,
    Concept,
    Header,
    Sae,
    SaeConfig,
    SaeError,
    Statistics,
    read_header,
    read_rows,
    read_sae,
    write,
)
from sae_models.adapter import LoadedSae, build_edits
from sae_models.formats import Part, Weights, offered, write_places

CONCEPTS = (Concept("cat", (3,), "object", "a small cat"), Concept("noto style", (1, 6), "style"))


def make(path, dtype=torch.float32, concepts=CONCEPTS, **header):
    torch.manual_seed(0)
    config = SaeConfig(8, 12, 4)
    sae = Sae(config)
    rows = sum(len(c.latents) for c in concepts)
    statistics = Statistics((0.1, 1.0, 10.0), torch.rand(rows, 3), torch.rand(rows, 3))
    described = Header(config, "unet.up_blocks.1.attentions.1", "sd15", False, concepts, {"fvu": 0.1})
    write(path, sae, described, statistics, dtype)
    return sae, statistics


def changed(path, to, describe=lambda about: about, **tensors):
    """Another file with other tensors, and another description."""
    with safe_open(path, "pt") as file:
        about = describe(json.loads(file.metadata()["saemnesia"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to, {"saemnesia": json.dumps(about)})
    return to


def test_what_was_measured_is_kept_and_left_out_where_there_is_nothing(tmp_path):
    path, measured = tmp_path / "a.safetensors", replace(CONCEPTS[0], measured={"removed": 0.75, "touched": 0.0})
    make(path, concepts=(measured, CONCEPTS[1]))
    first, second = read_header(path).concepts
    assert first.measured == {"removed": 0.75, "touched": 0.0} and first == measured and second.measured is None
    assert hash(first) == hash(CONCEPTS[0]) and first != CONCEPTS[0]
    assert path.read_bytes().count(b"measured") == 1


@pytest.mark.parametrize("several", [False, True])
def test_what_a_word_was_found_with_is_kept(tmp_path, several):
    path, own = tmp_path / "a.safetensors", replace(CONCEPTS[0], pictures=32, told_from=("dog", "fox"))
    sae, statistics = make(path, concepts=(own, CONCEPTS[1]))
    if several:
        weights = (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec)
        write_places(path, [Part(replace(read_header(path), hookpoint=f"up_blocks.{i}.attentions.0"),
                                 Weights(*(part.detach() for part in weights)), statistics) for i in range(2)])
    loaded = LoadedSae.read(path.name, path)
    assert [concept.pictures for header in loaded.headers for concept in header.concepts] == [32, None] * (1 + several)
    assert loaded.concepts[0].told_from == ("dog", "fox")


def published(folder, sae, k=4):
    """sparsify's layout, as SAEmnesia and SAeUron publish it."""
    folder.mkdir(parents=True)
    save_file({name: t.detach() for name, t in sae.state_dict().items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"expansion_factor": 16, "k": k, "d_in": 8, "num_latents": 0}))
    return folder / "sae.safetensors"


def test_what_is_written_is_read_back(tmp_path):
    sae, _ = make(tmp_path / "a.safetensors")
    again, header = read_sae(tmp_path / "a.safetensors")
    assert header.concepts == CONCEPTS
    assert (header.hookpoint, header.base, header.training) == ("up_blocks.1.attentions.1", "sd15", {"fvu": 0.1})
    assert all(torch.equal(a, b) for a, b in zip(sae.state_dict().values(), again.state_dict().values(), strict=True))
    assert not list(tmp_path.glob("*.part"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(order=st.lists(st.sampled_from(CONCEPTS), min_size=1, max_size=2, unique=True))
def test_rows_are_those_of_the_whole_sae(tmp_path, order):
    sae, statistics = make(tmp_path / "a.safetensors")
    rows = read_rows(tmp_path / "a.safetensors", read_header(tmp_path / "a.safetensors"), order)
    latents = [latent for concept in order for latent in concept.latents]
    x = torch.randn(5, 8)
    assert torch.allclose(x @ rows.W_enc.T + rows.bias, sae.logits(x)[:, latents], atol=1e-6)
    assert torch.equal(rows.W_dec, sae.W_dec[latents])
    places = [(3, 1, 6).index(latent) for latent in latents]
    assert torch.equal(rows.statistics.thresholds, statistics.thresholds[places])


def test_a_latent_chosen_by_number_fires_wherever_it_is_positive(tmp_path):
    make(tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    rows = read_rows(tmp_path / "a.safetensors", header, [Concept("latent 7", (7,)), CONCEPTS[0]])
    assert rows.statistics.thresholds[0].tolist() == [0, 0, 0]
    assert rows.statistics.thresholds[1].min() > 0


def test_published_folders_are_read(tmp_path):
    sae, _ = make(tmp_path / "a.safetensors")
    path = published(tmp_path / "unet.up_blocks.1.attentions.1", sae)
    again, header = read_sae(path)
    assert (header.config.k, header.hookpoint, header.concepts) == (4, "up_blocks.1.attentions.1", ())
    x = torch.randn(3, 8)
    assert torch.equal(again(x), sae(x))


def test_a_published_file_without_its_folder_name_has_no_hookpoint(tmp_path):
    sae, _ = make(tmp_path / "a.safetensors")
    assert read_header(published(tmp_path / "SAEmnesia", sae)).hookpoint == ""


def test_a_published_file_without_cfg_says_so(tmp_path):
    sae, _ = make(tmp_path / "a.safetensors")
    path = published(tmp_path / "x", sae)
    path.with_name("cfg.json").unlink()
    with pytest.raises(SaeError, match="cfg.json"):
        read_header(path)


def test_a_truncated_file_is_one_sentence(tmp_path):
    make(tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(SaeError, match="cut.safetensors"):
            read_header(tmp_path / "cut.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(place=st.integers(0, 900), byte=st.integers(0, 255))
def test_a_flipped_byte_in_the_header_is_read_or_one_sentence(tmp_path, place, byte):
    make(tmp_path / "a.safetensors")
    data = bytearray((tmp_path / "a.safetensors").read_bytes())
    data[place] = byte
    (tmp_path / "b.safetensors").write_bytes(data)
    try:
        header = read_header(tmp_path / "b.safetensors")
        if header.concepts:
            read_rows(tmp_path / "b.safetensors", header, list(header.concepts)[:1])
        assert header.config.d_in == 8
    except SaeError as error:
        assert str(error)


@pytest.mark.parametrize("name", ["sae.pt", "sae.ckpt", "sae.safetensors"])
def test_a_pickle_is_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"encoder.weight": [1.0]}))
    with pytest.raises(SaeError, match="pickle|cannot be read as safetensors"):
        read_header(tmp_path / name)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["encoder.weight", "W_dec", "encoder.bias", "b_dec"])
def test_weights_that_are_not_finite_are_refused(tmp_path, tensor, bad):
    sae, statistics = make(tmp_path / "a.safetensors")
    with torch.no_grad():
        sae.state_dict()[tensor][3 if tensor != "b_dec" else 0] = bad
    header = read_header(tmp_path / "a.safetensors")
    with pytest.raises(SaeError, match="not finite"):
        write(tmp_path / "b.safetensors", sae, header, statistics)
    changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **sae.state_dict())
    with pytest.raises(SaeError, match="not finite"):
        read_rows(tmp_path / "b.safetensors", header, [CONCEPTS[0]])
    with pytest.raises(SaeError, match="not finite"):
        read_sae(tmp_path / "b.safetensors")


def test_a_foreign_file_says_what_is_missing(tmp_path):
    save_file({"model.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(SaeError, match=r"lora.safetensors is no SAE .* encoder.weight"):
        read_header(tmp_path / "lora.safetensors")


def test_a_file_that_is_not_there_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(SaeError, match="no file none.safetensors in"):
        read_header(tmp_path / "none.safetensors")


@pytest.mark.parametrize("config", [(8, 12, 0), (8, 12, 13), (0, 12, 4)])
def test_a_config_validates_itself(config):
    with pytest.raises(SaeError, match="expected"):
        SaeConfig(*config)


@pytest.mark.parametrize("tensor", ["encoder.weight", "W_dec", "encoder.bias", "b_dec"])
def test_weights_that_half_precision_cannot_hold_are_refused_before_painting(tmp_path, tensor):
    """3e38 is a number, and what it makes of a picture is none."""
    sae, _ = make(tmp_path / "a.safetensors")
    with torch.no_grad():
        sae.state_dict()[tensor][3 if tensor != "b_dec" else 0] = 3e38
    path = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **sae.state_dict())
    with pytest.raises(SaeError, match="not finite in half precision .NaN, infinite or above 65504."):
        read_rows(path, read_header(path), [CONCEPTS[0]])


def test_a_file_that_was_replaced_since_it_was_loaded_is_not_read_for_another_concept(tmp_path):
    path = tmp_path / "a.safetensors"
    make(path)
    loaded = LoadedSae.read(path.name, path)
    make(path, concepts=(Concept("dog", (3,)), CONCEPTS[1]))
    with pytest.raises(SaeError, match="a.safetensors has changed since it was loaded: .* load it again"):
        build_edits(loaded, "cat", Actuator.ABLATE)
    make(path, concepts=(replace(CONCEPTS[0], measured={"removed": 0.5, "touched": 0.0}), CONCEPTS[1]))
    assert build_edits(loaded, "cat", Actuator.ABLATE)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.float4_e2m1fn_x2])
def test_weights_of_another_kind_than_plain_numbers_are_one_sentence(tmp_path, kind):
    make(tmp_path / "a.safetensors")
    weights = torch.zeros(12, 4, dtype=torch.uint8).view(kind) if kind is torch.float4_e2m1fn_x2 else torch.zeros(
        12, 8, dtype=kind)
    path = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", W_dec=weights)
    with pytest.raises(SaeError, match="b.safetensors has W_dec as .*download it in another precision"):
        read_rows(path, read_header(path), [CONCEPTS[0]])


def test_a_file_larger_than_memory_is_one_sentence(tmp_path):
    """Sparse, so that it takes no room on the disk."""
    shapes = {"encoder.weight": [10**9, 1000], "encoder.bias": [10**9], "W_dec": [10**9, 1000], "b_dec": [1000]}
    header, end = {"__metadata__": {"saemnesia": json.dumps({"format": 1, "k": 1, "hookpoint": "", "base": "",
                                                             "residual": False})}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "huge.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    with pytest.raises(SaeError, match="huge.safetensors cannot be read: it is damaged, or larger than"):
        read_sae(tmp_path / "huge.safetensors")


@pytest.mark.parametrize("name", [" cat", "cat ", "ca\u2028t", "ca\x07t", "cat\ud800", "cat (style)", "a; b",
                                  "x" * 201])
def test_a_name_that_nobody_can_choose_is_refused(tmp_path, name):
    """A lone surrogate was an HTTP 500 in A1111, and the others names in a list that no text could say."""
    make(tmp_path / "a.safetensors")

    def renamed(about):
        about["concepts"][0]["name"] = name
        return about
    with pytest.raises(SaeError, match="cannot be chosen|has a character|without , : #"):
        read_header(changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", renamed))


def test_what_is_only_shown_of_a_file_is_a_line_of_bounded_length(tmp_path):
    make(tmp_path / "a.safetensors")

    def longer(about):
        about["concepts"][0] |= {"description": "a\ud800\x07\nb" + "x" * 10**5, "kind": "\x1b[31m"}
        return about | {"base": "sd15\udfff", "made_on": "x" * 10**5}
    path = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", longer)
    said = json.dumps(LoadedSae.read("b", path).listed(), ensure_ascii=False).encode().decode()
    assert len(said) < 3000 and not any(unicodedata.category(c) in ("Cc", "Cs") for c in said)


@pytest.mark.parametrize("training", [[1], "x", 3])
def test_a_summary_of_training_that_is_none_is_one_sentence(tmp_path, training):
    make(tmp_path / "a.safetensors")
    path = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", lambda about: about | {"training": training})
    with pytest.raises(SaeError, match="b.safetensors is damaged: its description is incomplete .*training"):
        read_header(path)


def test_many_concepts_are_read_and_chosen_in_seconds_and_more_are_refused(tmp_path):
    make(tmp_path / "a.safetensors")
    many = [{"name": f"c{i}", "latents": [1]} for i in range(10_000)]
    tables = {name: torch.zeros(10_000, 3) for name in ("concept_thresholds", "concept_means")}
    path = changed(tmp_path / "a.safetensors", tmp_path / "b.safetensors", lambda about: about | {"concepts": many},
                   **tables)
    began = time.monotonic()
    sae = LoadedSae.read("b", path)
    assert len(build_edits(sae, ", ".join(f"c{i}" for i in range(2000)), Actuator.ABLATE)[0][1].names) == 2000
    with pytest.raises(SaeError, match="10000 concepts are listed, and at most 2000 can be chosen at once"):
        build_edits(sae, ", ".join(f"c{i}" for i in range(10_000)), Actuator.ABLATE)
    with pytest.raises(SaeError, match="has no concept 'dog'; nearest: "):
        build_edits(sae, "dog", Actuator.ABLATE)
    assert time.monotonic() - began < 5
    changed(tmp_path / "a.safetensors", path, lambda about: about | {"concepts": many * 11})
    with pytest.raises(SaeError, match="it has 110000 concepts, more than 100000"):
        read_header(path)


def test_a_pickle_is_offered_last_and_until_it_is_converted():
    names = ["a/state_dict.pth", "b/ae.pt", "b/sae.safetensors", "b/note.txt", "c/x.PTH", "c/x.safetensors"]
    assert offered(names) == ["b/sae.safetensors", "c/x.safetensors", "a/state_dict.pth", "b/ae.pt"]

"""Finding and exporting concepts in a real ComfyUI, on a small SD 1.5 model with random weights."""
import json
import re
import time

import pytest
import torch
from canvas_graphs import erase, graph, latents
from host_graphs import node
from small_model import HOOKPOINT, NAME, write_sae

from sae_models import read_header, read_headers
from tools.comfy_host import COMFY, HostError

SAES = COMFY / "models" / "sae"
OUT = SAES / "test concepts.safetensors"
CAT = "a cat, noto style"
PAINTING = "SAEmnesia: painting 24 pictures to learn from"
OWN, BEST, BEST_BY_LEVEL = "a neuron of its own", "the best neurons", "the best neurons at each noise level"


def find(**changes) -> dict:
    settings = {"name": "test concepts", "concepts": "parrot = a parrot | a bird", "contrast": "dog, castle\nred style",
                "prompts": "{object}, {style}", "how": OWN, "neurons": 2, "pictures": 8, "at_once": 4, "width": 64,
                "height": 64, "steps": 4, "cfg": 2.0, "seed": 0, "hookpoint": ""}
    return {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=NAME),
        "sae": node("SAEmnesiaLoadSAE", sae_name=NAME, hookpoint=""),
        "find": node("SAEmnesiaFindConcept", model=["checkpoint", 0], clip=["checkpoint", 1], sae=["sae", 0],
                     **(settings | changes)),
    }


def export(concepts: str, name: str = "test concepts") -> dict:
    return {"sae": node("SAEmnesiaLoadSAE", sae_name=NAME, hookpoint=""),
            "export": node("SAEmnesiaExportConcept", sae=["sae", 0], name=name, concepts=concepts)}


@pytest.fixture(autouse=True)
def no_file_left():
    yield
    OUT.unlink(missing_ok=True)


def test_a_concept_is_found_at_every_cross_attention_without_an_sae_and_says_what_it_removes(host):
    made = find(neurons=0)
    del made["find"]["inputs"]["sae"], made["sae"]
    outcome = host.run(made)
    headers = read_headers(OUT)
    assert [header.hookpoint for header in headers] == [
        f"{block}.transformer_blocks.0.attn2" for block in
        ("down_blocks.1.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1")]
    concepts = [concept for header in headers for concept in header.concepts]
    assert {(c.name, c.kind, c.description) for c in concepts} == {("parrot", "object", "a parrot")}
    assert len({len(c.latents) for c in concepts}) == 1 and len(concepts[0].latents) in (1, 2, 4)
    measured = concepts[0].measured
    assert measured.keys() == {"removed", "touched"}
    text = outcome.history["outputs"]["find"]["text"][0]
    assert f"{measured['removed']:.0%} removed, others {measured['touched']:.1%} touched" in text


def test_a_concept_is_found_where_one_says(host):
    host.run(find(hookpoint="up_blocks.0.attentions.1"))
    assert [header.hookpoint for header in read_headers(OUT)] == ["up_blocks.0.attentions.1"]
    painted = latents(host, erase(graph("a parrot, red style"), "parrot", sae=OUT.name))
    assert not torch.equal(painted, latents(host, graph("a parrot, red style")))


def test_several_concepts_are_told_from_each_other(host):
    made = find(concepts="parrot, dog, castle", contrast="", prompts="{object} by the sea\na photo of {object}")
    del made["find"]["inputs"]["sae"], made["sae"]
    host.run(made)
    assert [c.name for c in read_headers(OUT)[0].concepts] == ["parrot", "dog", "castle"]


def test_a_cancelled_search_goes_on_where_it_was_and_finds_what_it_would_have_found(host):
    made = find(pictures=24, at_once=2, neurons=1)
    del made["find"]["inputs"]["sae"], made["sae"]
    since = time.monotonic()
    host.run(made)
    took, whole = time.monotonic() - since, OUT.read_bytes()
    OUT.unlink()
    begun = host.log.count(PAINTING)
    prompt_id = host.submit(made)
    while host.log.count(PAINTING) == begun:
        time.sleep(0.05)
    time.sleep(0.3 * took)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=60)
    assert not OUT.exists()
    host.run(made)
    assert OUT.read_bytes() == whole and host.log.count(PAINTING) == begun + 1
    assert 1 < int(re.findall(r"going on at picture (\d+) of 24", host.log)[-1]) <= 24


@pytest.mark.parametrize(("how", "rows"), [(BEST, 2), (BEST_BY_LEVEL, None)])
def test_a_found_concept_is_listed_at_once_and_erases(host, how, rows):
    host.run(find(how=how))
    listed = host.get_json("/object_info/SAEmnesiaLoadSAE")["SAEmnesiaLoadSAE"]["input"]["required"]["sae_name"]
    assert OUT.name in json.dumps(listed)
    header = read_header(OUT)
    assert [(c.name, c.kind, c.description) for c in header.concepts] == [("parrot", "object", "a parrot")]
    assert (header.base, header.hookpoint) == ("sd15", HOOKPOINT)
    assert rows is None or header.config.d_sae == rows
    painted = latents(host, erase(graph("a parrot, red style"), "parrot:-5", "steer", sae=OUT.name))
    assert not torch.equal(painted, latents(host, graph("a parrot, red style")))


def test_found_concepts_gather_in_one_file_beside_exported_ones(host):
    host.run(export("cat"))
    host.run(find())
    headers = read_headers(OUT)
    assert headers[0].hookpoint == HOOKPOINT and len(headers) == 4
    assert [[c.name for c in header.concepts] for header in headers] == [["cat"], *[["parrot"]] * 3]
    both = latents(host, erase(graph(CAT), "cat, parrot", sae=OUT.name))
    assert not torch.equal(both, latents(host, graph(CAT)))


def test_an_exported_concept_erases_as_from_the_whole_sae(host):
    outcome = host.run(export("cat, noto style, #5"))
    assert "cat" in outcome.history["outputs"]["export"]["text"][0]
    assert [c.name for c in read_header(OUT).concepts] == ["cat", "noto style", "latent 5"]
    assert OUT.stat().st_size < 12_000
    whole, few = (latents(host, erase(graph(CAT), "cat:0.7", sae=name)) for name in (NAME, OUT.name))
    assert torch.equal(whole, few) and not torch.equal(few, latents(host, graph(CAT)))


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"concepts": ""}, "no concept to train"),
    ({"contrast": "parrot"}, "there is nothing to tell the concept from"),
    ({"name": "a/b"}, "is no file name"),
    ({"hookpoint": "up_blocks.7"}, "this model has no block 'up_blocks.7'"),
    ({"name": NAME}, "is a whole SAE"),
    ({"how": BEST, "hookpoint": "up_blocks.0.attentions.0"}, f"was trained on {HOOKPOINT}, not on up_blocks.0"),
    ({"concepts": "parrot; (dog:1.2)"}, "write 'dog'"),
    ({"name": "x" * 250}, "is too long for a file name"),
    ({"name": "猫" * 80}, "is too long for a file name: write at most 66 letters"),
])
def test_a_mistake_is_one_sentence_before_anything_is_painted(host, changes, sentence):
    with pytest.raises(HostError, match=sentence):
        host.run(find(**changes))


def test_a_model_that_paints_no_numbers_is_refused_and_nothing_is_written(host):
    made = find(neurons=1)
    made["broken"] = node("TestMeddle", model=["checkpoint", 0], how="nan")
    made["find"]["inputs"]["model"] = ["broken", 0]
    with pytest.raises(HostError, match="nothing can be learned from this model: it computes values that are no numb"):
        host.run(made)
    assert not OUT.exists()


def test_a_concept_is_found_on_an_inpainting_checkpoint_too(host, inpainting):
    made = find(neurons=1)
    del made["find"]["inputs"]["sae"], made["sae"]
    made["checkpoint"]["inputs"]["ckpt_name"] = inpainting
    assert "parrot: " in host.run(made).history["outputs"]["find"]["text"][0]
    assert len(read_headers(OUT)) == 3


def test_an_unknown_concept_cannot_be_exported(host):
    with pytest.raises(HostError, match="has no concept 'catt'; nearest: cat"):
        host.run(export("catt"))
    assert not OUT.exists()


def test_an_sae_of_another_model_finds_nothing(host):
    path = SAES / "test other.safetensors"
    write_sae(path, base="sdxl")
    made = find()
    made["sae"]["inputs"]["sae_name"] = path.name
    try:
        with pytest.raises(HostError, match="is for SDXL, and this model is"):
            host.run(made)
    finally:
        path.unlink()


def cached(outcome) -> list[str]:
    """The nodes that did not run again."""
    [[_, said]] = [message for message in outcome.history["status"]["messages"] if message[0] == "execution_cached"]
    return said["nodes"]


def test_what_was_found_is_not_found_again_with_every_queue_but_where_the_file_is_gone(host):
    made = find(neurons=1)
    assert "find" not in cached(host.run(made))
    written = OUT.stat().st_mtime_ns
    assert "find" in cached(host.run(made)) and OUT.stat().st_mtime_ns == written
    both = made | export("cat")
    assert "export" not in cached(host.run(both)) and OUT.stat().st_mtime_ns != written  # another node adds to it
    assert {"find", "export"} <= {*cached(host.run(both))}
    OUT.unlink()
    assert "find" not in cached(host.run(made)) and OUT.exists()


def test_what_an_earlier_node_handed_on_is_read_as_the_file_is_now(host):
    """Two nodes add to one file; the first is taken from the cache."""
    painted = graph(CAT) | find(neurons=1)
    painted["erase"] = node("SAEmnesiaErase", model=["checkpoint", 0], sae=["find", 0], actuator="ablate", start=0.0,
                            end=1.0, concepts="parrot", apply_to="both")
    painted["sampler"]["inputs"]["model"] = ["erase", 0]
    host.run(painted)
    painted |= {"export": export("cat")["export"]}
    host.run(painted)
    painted["erase"]["inputs"]["concepts"] = "parrot, cat"
    outcome = host.run(painted)
    assert "find" in cached(outcome) and "erase" not in cached(outcome)
    assert outcome.history["outputs"]["save"]["latents"]

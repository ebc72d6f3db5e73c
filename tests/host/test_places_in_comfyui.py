"""Erasing at every cross-attention in a real ComfyUI, from one file of several places; and beside other nodes."""
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from canvas_graphs import erase, graph, latents, then
from host_graphs import node
from safetensors import safe_open
from safetensors.torch import save_file
from small_model import ATTENTIONS, HOOKPOINT, NAME, write_checkpoint, write_controlnet, write_places, write_sae
from test_erase_in_comfyui import ACTUATORS, CAT, area, same_edit

from sae_models import read_header, read_headers
from tools.comfy_host import COMFY, HostError

SAES = COMFY / "models" / "sae"
PLACES = "test-places.safetensors"


@pytest.fixture(scope="module")
def plain(host):
    """What the model paints without us."""
    return latents(host, graph(CAT))


@pytest.fixture(autouse=True, scope="module")
def places():
    write_places(SAES / PLACES)
    yield SAES / PLACES
    (SAES / PLACES).unlink()


def everywhere(made, concepts: str, actuator: str = "ablate", **options):
    return erase(made, concepts, actuator, sae=PLACES, **options)


def reference(made, strength: float = 1.0):
    return then(made, "reference", "TestReference", file=PLACES, concept="cat", strength=strength)


@pytest.mark.parametrize("options", [
    {}, {"width": 128, "height": 64}, {"batch": 3}, {"cfg": 1.0}, {"sampler": "heun"}, {"sampler": "dpmpp_2m_sde"},
], ids=str)
def test_erasing_at_all_cross_attentions_is_the_formula_in_plain_hooks(host, options):
    without = latents(host, graph(CAT, **options))
    erased = latents(host, everywhere(graph(CAT, **options), "cat"))
    assert same_edit(erased, latents(host, reference(graph(CAT, **options))), without)
    assert not torch.equal(erased, without)
    assert torch.equal(latents(host, everywhere(graph(CAT, **options), "rocket")), without)


def test_one_strength_is_that_of_every_place(host, plain):
    assert same_edit(latents(host, everywhere(graph(CAT), "cat:0.3")), latents(host, reference(graph(CAT), 0.3)), plain)


@pytest.mark.parametrize("actuator", ACTUATORS)
def test_strength_zero_and_silence_are_bit_identical(host, plain, actuator):
    assert torch.equal(latents(host, everywhere(graph(CAT), "cat:0, noto style:0", actuator)), plain)
    assert torch.equal(latents(host, everywhere(graph(CAT), "rocket, contrast style", actuator)), plain)
    assert not torch.equal(latents(host, everywhere(graph(CAT), "cat", actuator)), plain)


def test_nothing_stays_on_the_model(host, plain):
    latents(host, everywhere(graph(CAT), "cat"))
    assert torch.equal(latents(host, graph(CAT, seed=2)), latents(host, everywhere(graph(CAT, seed=2), "cat:0")))
    with pytest.raises(HostError, match="failed on purpose"):
        host.run(then(everywhere(graph(CAT, seed=3), "cat"), "fail", "TestMeddle", how="fail"))
    assert torch.equal(latents(host, everywhere(graph(CAT), "cat:0.0")), plain)
    both = everywhere(graph(CAT), "cat")
    both["second"] = node("KSampler", **(both["sampler"]["inputs"] | {"model": ["checkpoint", 0]}))
    both["save"]["inputs"]["samples"] = ["second", 0]
    both["save erased"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="erased")
    assert torch.equal(latents(host, both), plain)


def test_nothing_stays_after_an_interrupt(host, plain):
    said = "SAEmnesia: ablate dog at 3 places"
    prompt_id = host.submit(everywhere(graph(CAT, steps=2000, seed=4), "dog"))
    deadline = time.monotonic() + 120
    while said not in host.log and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=60)
    assert torch.equal(latents(host, everywhere(graph(CAT), "cat:0.00")), plain)


def test_chained_nodes_equal_one(host, plain):
    one = latents(host, everywhere(graph(CAT), "cat, dog, noto style"))
    chained = everywhere(everywhere(graph(CAT), "dog", name="first"), "noto style, cat", name="second")
    assert same_edit(latents(host, chained), one, plain)
    with pytest.raises(HostError, match="concept 'cat' is erased by two chained nodes"):
        host.run(everywhere(everywhere(graph(CAT), "cat", name="first"), "cat", name="second"))


def test_a_file_of_a_block_and_one_of_cross_attentions_are_chained_in_either_order(host, plain):
    block, attentions = (latents(host, made) for made in (erase(graph(CAT), "cat"), everywhere(graph(CAT), "dog")))
    orders = [latents(host, made) for made in (
        everywhere(erase(graph(CAT), "cat", name="first"), "dog", name="second"),
        erase(everywhere(graph(CAT), "dog", name="first"), "cat", name="second"))]
    assert torch.equal(*orders)
    assert not same_edit(orders[0], block, plain) and not same_edit(orders[0], attentions, plain)


def test_a_cross_attention_that_another_node_replaces_is_erased(host, plain):
    def replaced(made):
        return then(made, "replace", "TestMeddle", how="attention")
    without = latents(host, replaced(graph(CAT)))
    assert not torch.equal(without, plain)
    wanted = latents(host, reference(replaced(graph(CAT))))
    assert same_edit(latents(host, everywhere(replaced(graph(CAT)), "cat")), wanted, without)
    assert same_edit(latents(host, replaced(everywhere(graph(CAT), "cat"))), wanted, without)
    assert torch.equal(latents(host, everywhere(replaced(graph(CAT)), "rocket")), without)


def test_another_nodes_patch_comes_before_ours_in_either_order(host):
    def halved(made):
        return then(made, "half", "TestMeddle", how="output")
    without = latents(host, halved(graph(CAT)))
    before, after = (latents(host, made) for made in (everywhere(halved(graph(CAT)), "cat"),
                                                      halved(everywhere(graph(CAT), "cat"))))
    assert torch.equal(before, after) and not torch.equal(before, without)


def test_split_and_reordered_calls_give_the_same_picture(host, plain):
    options = {"apply_to": "conditional only"}
    whole = latents(host, everywhere(graph(CAT), "cat", **options))
    split = latents(host, then(everywhere(graph(CAT), "cat", **options), "split", "TestMeddle", how="split"))
    assert same_edit(split, whole, plain)
    assert not same_edit(latents(host, everywhere(graph(CAT), "cat")), whole, plain)


def guided(made):
    made["net"] = node("ControlNetLoader", control_net_name="test-places.safetensors")
    made["hint"] = node("EmptyImage", width=96, height=96, batch_size=1, color=0xFF8800)
    made["guide"] = node("ControlNetApplyAdvanced", positive=["positive", 0], negative=["negative", 0],
                         control_net=["net", 0], image=["hint", 0], strength=1.0, start_percent=0.0, end_percent=1.0)
    made["sampler"]["inputs"] |= {"positive": ["guide", 0], "negative": ["guide", 1]}
    return made


def with_lora(made):
    return then(made, "lora", "LoraLoaderModelOnly", lora_name="test-places.safetensors", strength_model=1.0)


@pytest.fixture(scope="module")
def companions(places):
    net, lora = (COMFY / "models" / folder / "test-places.safetensors" for folder in ("controlnet", "loras"))
    write_controlnet(net)
    lora.parent.mkdir(parents=True, exist_ok=True)
    name = "lora_unet_output_blocks_1_1_transformer_blocks_0_attn2_to_out_0"
    save_file({f"{name}.lora_down.weight": torch.randn(4, 320, generator=torch.Generator().manual_seed(0)) * 0.1,
               f"{name}.lora_up.weight": torch.randn(320, 4, generator=torch.Generator().manual_seed(1)) * 0.1}, lora)
    yield
    net.unlink()
    lora.unlink()


BESIDE = pytest.mark.parametrize("beside", [
    guided, with_lora, area, lambda made: then(made, "pag", "PerturbedAttentionGuidance", scale=3.0),
], ids=["controlnet", "lora", "area", "PAG"])


@pytest.mark.usefixtures("companions")
@BESIDE
def test_beside_other_nodes_it_is_the_formula_too(host, beside):
    size = {"width": 192} if beside is area else {}
    without = latents(host, beside(graph(CAT, **size)))
    erased = latents(host, everywhere(beside(graph(CAT, **size)), "cat"))
    assert same_edit(erased, latents(host, reference(beside(graph(CAT, **size)))), without)
    assert torch.equal(latents(host, beside(everywhere(graph(CAT, **size), "cat"))), erased)
    assert torch.equal(latents(host, everywhere(beside(graph(CAT, **size)), "rocket")), without)
    assert not torch.equal(without, latents(host, graph(CAT, **size)))


@pytest.fixture(scope="module")
def voting():
    """A file whose concepts are at four places, which vote: a cat is there always, a dog never, though it fires."""
    name = "test-voting.safetensors"
    write_places(SAES / name, dict.fromkeys((*ATTENTIONS, HOOKPOINT), 320), usual={"cat": 1e-3, "dog": 1e6})
    yield name
    (SAES / name).unlink()


@pytest.mark.usefixtures("companions")
@BESIDE
def test_beside_other_nodes_the_places_vote_too(host, voting, beside):
    size = {"width": 192} if beside is area else {}
    without = latents(host, beside(graph(CAT, **size)))
    erased = latents(host, erase(beside(graph(CAT, **size)), "cat", "ablate", sae=voting))
    assert not torch.equal(erased, without)
    assert torch.equal(latents(host, beside(erase(graph(CAT, **size), "cat", "ablate", sae=voting))), erased)
    assert torch.equal(latents(host, erase(beside(graph(CAT, **size)), "dog", "ablate", sae=voting)), without)


def test_beside_freeu_which_changes_wider_blocks_it_is_the_formula_too(host):
    checkpoint, name = COMFY / "models" / "checkpoints" / "test-wide.safetensors", "test-wide.safetensors"
    write_checkpoint(checkpoint, channel_mult=(1, 2))
    write_places(SAES / name, dict.fromkeys(ATTENTIONS, 640))

    def made(*with_nodes) -> dict:
        one = graph(CAT)
        one["checkpoint"]["inputs"]["ckpt_name"] = name
        for add in with_nodes:
            add(one)
        return one

    def free(one):
        return then(one, "free", "FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2)

    def erased(one):
        return erase(one, "cat", "ablate", sae=name)
    try:
        without, wanted = latents(host, made(free)), then(made(free), "reference", "TestReference", file=name,
                                                          concept="cat", strength=1.0)
        assert not torch.equal(without, latents(host, made()))
        assert same_edit(latents(host, made(free, erased)), latents(host, wanted), without)
        assert torch.equal(latents(host, made(free, erased)), latents(host, made(erased, free)))
    finally:
        checkpoint.unlink()
        (SAES / name).unlink()


def test_a_compiled_model_is_erased_in_either_order(host, plain):
    wanted = latents(host, everywhere(graph(CAT), "cat"))
    orders = (everywhere(then(graph(CAT), "compile", "TestMeddle", how="compile"), "cat"),
              then(everywhere(graph(CAT), "cat"), "compile", "TestMeddle", how="compile"))
    assert all(same_edit(latents(host, made), wanted, plain) for made in orders)


def test_the_log_says_at_how_many_places(host):
    latents(host, everywhere(graph(CAT, seed=11), "cat, rocket"))
    said = host.log[host.log.rindex("SAEmnesia: ablate"):].splitlines()
    assert said[0] == f"SAEmnesia: ablate cat, rocket at 3 places ({PLACES})"
    assert "SAEmnesia: steps in which a concept fired at any of 3 places, of 4: cat 4, rocket 0" in said


def test_a_model_that_is_never_reached_fails_the_run(host):
    with pytest.raises(HostError, match=f"nothing was erased: the sampler never ran block {', '.join(ATTENTIONS)}, "):
        host.run(then(everywhere(graph(CAT), "cat"), "skip", "TestMeddle", how="skip"))


@pytest.mark.parametrize(("widths", "says"), [
    ({ATTENTIONS[0]: 320, ATTENTIONS[1]: 640}, "reads tokens of width 640, but block .*attn2 of this model has 320"),
    ({ATTENTIONS[0]: 320, "mid_block.attentions.0.transformer_blocks.0.attn2": 320},
     "this model has no block 'mid_block.attentions.0.transformer_blocks.0.attn2'.*blocks it has: .*attn2"),
])
def test_every_place_has_to_fit(host, widths, says):
    write_places(SAES / "test-other.safetensors", widths)
    try:
        with pytest.raises(HostError, match=says):
            host.run(erase(graph(CAT), "cat", sae="test-other.safetensors"))
    finally:
        (SAES / "test-other.safetensors").unlink()


@pytest.mark.parametrize("sae", [NAME, PLACES])
def test_another_hookpoint_than_the_files_is_refused(host, sae):
    with pytest.raises(HostError, match="was trained on .*, not on up_blocks.9.attentions.0: leave 'hookpoint' empty"):
        host.run(erase(graph(CAT), "cat", sae=sae, hookpoint="up_blocks.9.attentions.0"))


def test_the_picker_is_told_each_concept_once_and_at_how_many_places(host):
    told = host.get_json(f"/saemnesia/concepts?sae={PLACES}")
    assert (told["places"], told["hookpoint"], told["base"]) == (3, "", "sd15")
    assert [c["name"] for c in told["concepts"]] == ["cat", "dog", "noto style", "rocket", "contrast style"]
    assert told["concepts"][0]["measured"] is None
    one = host.get_json(f"/saemnesia/concepts?sae={NAME}")
    assert (one["places"], one["hookpoint"]) == (1, HOOKPOINT)


def test_while_a_large_file_is_read_the_server_answers_and_no_answer_says_where_files_are(host):
    path = SAES / "test-large.safetensors"
    write_sae(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["saemnesia"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about["concepts"] = [{"name": f"c{i}", "latents": [1]} for i in range(90_000)]
    tensors |= {name: torch.zeros(90_000, tensors[name].shape[1]) for name in ("concept_thresholds", "concept_means")}
    save_file(tensors, path, {"saemnesia": json.dumps(about)})
    with ThreadPoolExecutor(1) as pool:
        asked, began = pool.submit(host.get_json, f"/saemnesia/concepts?sae={path.name}"), time.monotonic()
        waits = []
        while not asked.done():
            at = time.monotonic()
            host.get_json("/queue")
            waits.append(time.monotonic() - at)
        took = time.monotonic() - began
    assert len(asked.result()["concepts"]) == 90_000
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(HostError) as raised:
        host.get(f"/saemnesia/concepts?sae={path.name}")
    path.unlink()
    assert "cannot be read as safetensors" in str(raised.value) and str(SAES) not in str(raised.value)
    assert max(waits) < took / 2, (waits, took)


def exported(host, concepts: str, sae: str, name: str = "test exported"):
    host.run({"sae": node("SAEmnesiaLoadSAE", sae_name=sae, hookpoint=""),
              "export": node("SAEmnesiaExportConcept", sae=["sae", 0], name=name, concepts=concepts)})
    return SAES / f"{name}.safetensors"


def test_exporting_a_concept_takes_all_its_places_along(host, plain):
    path = exported(host, "cat", PLACES)
    try:
        assert [header.hookpoint for header in read_headers(path)] == list(ATTENTIONS)
        assert torch.equal(latents(host, erase(graph(CAT), "cat", sae=path.name)),
                           latents(host, everywhere(graph(CAT), "cat")))
        exported(host, "cat", NAME)
        assert read_header(path).hookpoint == HOOKPOINT  # the concept of that name was replaced at all places
        exported(host, "dog", PLACES)
        assert [header.hookpoint for header in read_headers(path)] == [HOOKPOINT, *ATTENTIONS]
        mixed = latents(host, erase(graph(CAT), "cat, dog", sae=path.name))
        chained = everywhere(erase(graph(CAT), "cat", name="first"), "dog", name="second")
        assert same_edit(mixed, latents(host, chained), plain)
    finally:
        path.unlink()

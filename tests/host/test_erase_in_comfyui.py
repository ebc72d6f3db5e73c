"""Erasing in a real ComfyUI, through its HTTP API, on a small SD 1.5 model with random weights."""
import shutil
import time

import pytest
import torch
from canvas_graphs import erase, graph, latents, then, with_picture, written
from host_graphs import node
from safetensors.torch import load_file, save_file
from small_model import NAME, write_controlnet, write_sae

from sae_models import export, read_sae
from sae_models.made_on import made_of
from tools.comfy_host import COMFY, HostError

SAES = COMFY / "models" / "sae"
ACTUATORS = ("ablate", "steer", "replace", "amount")
CAT, ROCKET = "a cat, noto style", "a rocket, noto style"


@pytest.fixture(scope="module")
def plain(host):
    """What the model paints without us."""
    return latents(host, graph(CAT))


@pytest.fixture
def sae_file():
    """Makes SAE files in the host's model folder and takes them away again."""
    made = []

    def make(name: str, **options):
        path = SAES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sae(path, **options)
        made.append(path)
        return path
    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("actuator", ACTUATORS)
def test_erasing_changes_the_picture_of_the_concept(host, plain, actuator):
    assert not torch.equal(latents(host, erase(graph(CAT), "cat", actuator)), plain)


@pytest.mark.parametrize("actuator", [*ACTUATORS, "thorough"])
def test_strength_zero_is_bit_identical(host, plain, actuator):
    assert torch.equal(latents(host, erase(graph(CAT), "cat:0, noto style:0", actuator)), plain)


@pytest.mark.parametrize("actuator", ACTUATORS)
def test_a_picture_in_which_no_concept_fires_is_bit_identical(host, plain, actuator):
    assert torch.equal(latents(host, erase(graph(CAT), "rocket, contrast style", actuator)), plain)


def test_a_swap_paints_something_else_than_an_erasure_and_the_log_says_both_names(host, plain):
    swapped = latents(host, erase(graph(CAT), "cat -> rocket"))
    assert "SAEmnesia: ablate cat -> rocket at up_blocks.0.attentions.1" in host.log
    assert "SAEmnesia: steps in which a concept fired, of 4: cat -> rocket 4" in host.log
    assert not torch.equal(swapped, plain) and not torch.equal(swapped, latents(host, erase(graph(CAT), "cat")))
    for silent in ("cat:0 -> rocket", "rocket -> cat"):
        assert torch.equal(latents(host, erase(graph(CAT), silent)), plain)


def test_nothing_stays_after_the_node_is_bypassed(host, plain):
    latents(host, erase(graph(CAT), "cat"))
    assert torch.equal(latents(host, graph(CAT, seed=1)), plain)
    assert torch.equal(latents(host, graph(CAT, seed=2)), latents(host, erase(graph(CAT, seed=2), "cat:0")))


def test_nothing_stays_after_an_exception(host, plain):
    with pytest.raises(HostError, match="failed on purpose"):
        host.run(then(erase(graph(CAT, seed=3), "cat"), "fail", "TestMeddle", how="fail"))
    assert torch.equal(latents(host, erase(graph(CAT), "cat:0.0")), plain)


def test_nothing_stays_after_an_interrupt(host, plain):
    runs = host.log.count("SAEmnesia: ablate cat at")
    prompt_id = host.submit(erase(graph(CAT, steps=2000, seed=4), "cat"))
    deadline = time.monotonic() + 120
    while host.log.count("SAEmnesia: ablate cat at") == runs and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=60)
    assert torch.equal(latents(host, erase(graph(CAT), "cat:0.00")), plain)


def test_the_unpatched_model_is_untouched_beside_its_patched_clone(host, plain):
    both = erase(graph(CAT), "cat")
    both["second"] = node("KSampler", **(both["sampler"]["inputs"] | {"model": ["checkpoint", 0]}))
    both["save"]["inputs"]["samples"] = ["second", 0]
    both["save erased"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="erased")
    assert torch.equal(latents(host, both), plain)


def same_edit(erased: torch.Tensor, wanted: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether two erasures differ by less than 1 % of what the erasure changes."""
    return bool((erased - wanted).abs().max() < 0.01 * (wanted - plain).abs().max())


def test_two_chained_nodes_equal_one_with_both_concepts(host, plain):
    one = latents(host, erase(graph(CAT), "cat, noto style"))
    for first, second in (("cat", "noto style"), ("noto style", "cat")):
        chained = erase(erase(graph(CAT), first, name="first"), second, name="second")
        assert same_edit(latents(host, chained), one, plain)


def test_a_concept_that_is_swapped_and_erased_in_two_chained_nodes_is_refused(host):
    with pytest.raises(HostError, match="concept 'cat' is erased by two chained nodes"):
        host.run(erase(erase(graph(CAT), "cat -> rocket"), "cat", name="second"))


def test_a_concept_in_two_chained_nodes_is_refused(host):
    with pytest.raises(HostError, match="concept 'cat' is erased by two chained nodes"):
        host.run(erase(erase(graph(CAT), "cat", name="first"), "dog, cat", name="second"))


def test_split_and_reordered_calls_give_the_same_picture(host, plain):
    options = {"apply_to": "conditional only"}
    whole = latents(host, erase(graph(CAT), "cat", **options))
    split = latents(host, then(erase(graph(CAT), "cat", **options), "split", "TestMeddle", how="split"))
    assert same_edit(split, whole, plain)
    assert not same_edit(latents(host, erase(graph(CAT), "cat")), whole, plain)


def test_thorough_takes_what_no_neuron_fires_for_by_the_negative_prompt_wherever_that_is(host, plain):
    silent = erase(graph(CAT), "rocket", "thorough")
    whole, split = latents(host, silent), latents(host, then(silent, "split", "TestMeddle", how="apart"))
    assert not torch.equal(whole, plain) and same_edit(split, whole, plain)
    [png] = host.run(with_picture(erase(graph(CAT), "cat", "thorough"))).images
    assert [entry["actuator"] for entry in written(png)] == ["thorough"]


def test_thorough_without_a_negative_prompt_is_refused(host):
    with pytest.raises(HostError, match="set cfg above 1 "):
        host.run(erase(graph(CAT, cfg=1.0), "cat", "thorough"))


@pytest.mark.parametrize("options", [
    {"width": 128, "height": 64}, {"batch": 3}, {"cfg": 1.0}, {"sampler": "heun"}, {"sampler": "dpmpp_2m_sde"},
    {"sampler": "ddim", "steps": 7}, {"sampler": "dpm_2"},
], ids=str)
def test_any_size_batch_guidance_and_sampler(host, options):
    without = latents(host, graph(CAT, **options))
    assert not torch.equal(latents(host, erase(graph(CAT, **options), "cat")), without)
    assert torch.equal(latents(host, erase(graph(CAT, **options), "rocket")), without)


def test_every_row_of_a_batch_is_erased(host):
    without, erased = (latents(host, made) for made in (graph(CAT, batch=3), erase(graph(CAT, batch=3), "cat")))
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in zip(without, erased, strict=True))


def area(made):
    """Two prompts, each for one half of a wide picture."""
    made["right"] = node("CLIPTextEncode", clip=["checkpoint", 1], text=ROCKET)
    for name, x in (("positive", 0), ("right", 96)):
        made["area " + name] = node("ConditioningSetArea", conditioning=[name, 0], width=96, height=96, x=x, y=0,
                                    strength=1.0)
    made["combined"] = node("ConditioningCombine", conditioning_1=["area positive", 0],
                            conditioning_2=["area right", 0])
    made["sampler"]["inputs"]["positive"] = ["combined", 0]
    return made


def test_area_prompts_are_erased_in_their_own_calls(host):
    without = latents(host, area(graph(width=192)))
    change = (latents(host, erase(area(graph(width=192)), "cat")) - without).abs().mean((0, 1, 2))
    assert change[:12].mean() > 1e-3 and change[12:].mean() > 1e-3


def test_a_lora_before_or_after_gives_the_same_picture(host):
    block = "output_blocks_1_1_transformer_blocks_0_attn2_to_k"
    generator = torch.Generator().manual_seed(0)
    lora = COMFY / "models" / "loras" / "test-saemnesia.safetensors"
    lora.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"lora_unet_{block}.lora_down.weight": torch.randn(4, 768, generator=generator) * 0.1,
               f"lora_unet_{block}.lora_up.weight": torch.randn(320, 4, generator=generator) * 0.1}, lora)
    try:
        load = {"lora_name": lora.name, "strength_model": 1.0}
        before = latents(host, erase(then(graph(CAT), "lora", "LoraLoaderModelOnly", **load), "cat"))
        after = latents(host, then(erase(graph(CAT), "cat"), "lora", "LoraLoaderModelOnly", **load))
        assert torch.equal(before, after)
        assert not torch.equal(before, latents(host, erase(graph(CAT), "cat")))
    finally:
        lora.unlink()


def test_a_controlnet_beside_it(host, plain):
    path = COMFY / "models" / "controlnet" / "test-saemnesia.safetensors"
    write_controlnet(path)

    def guided(made):
        made["net"] = node("ControlNetLoader", control_net_name=path.name)
        made["hint"] = node("EmptyImage", width=96, height=96, batch_size=1, color=0xFF8800)
        made["guide"] = node("ControlNetApplyAdvanced", positive=["positive", 0], negative=["negative", 0],
                             control_net=["net", 0], image=["hint", 0], strength=1.0, start_percent=0.0,
                             end_percent=1.0)
        made["sampler"]["inputs"] |= {"positive": ["guide", 0], "negative": ["guide", 1]}
        return made
    try:
        without = latents(host, guided(graph(CAT)))
        assert not torch.equal(without, plain)
        assert not torch.equal(latents(host, erase(guided(graph(CAT)), "cat")), without)
        assert torch.equal(latents(host, erase(guided(graph(CAT)), "rocket")), without)
    finally:
        path.unlink()


def test_a_compiled_model_is_erased_in_either_order(host, plain):
    wanted = latents(host, erase(graph(CAT), "cat"))
    orders = (erase(then(graph(CAT), "compile", "TestMeddle", how="compile"), "cat"),
              then(erase(graph(CAT), "cat"), "compile", "TestMeddle", how="compile"))
    assert all(same_edit(latents(host, made), wanted, plain) for made in orders)
    assert torch.allclose(latents(host, then(graph(CAT), "compile", "TestMeddle", how="compile")), plain, atol=1e-4)


def test_the_window_limits_when_it_acts(host, plain):
    whole = latents(host, erase(graph(CAT), "cat"))
    early = latents(host, erase(graph(CAT), "cat", end=0.5))
    assert not torch.equal(early, whole) and not torch.equal(early, plain)


def test_the_log_says_what_was_patched_and_when_it_fired(host):
    latents(host, erase(graph(CAT, seed=11), "cat, rocket"))
    said = host.log[host.log.rindex("SAEmnesia: ablate"):].splitlines()
    assert said[0] == f"SAEmnesia: ablate cat, rocket at up_blocks.0.attentions.1 ({NAME})"
    assert "SAEmnesia: steps in which a concept fired, of 4: cat 4, rocket 0" in said


def test_a_block_that_is_never_reached_fails_the_run(host):
    with pytest.raises(HostError, match="nothing was erased: the sampler never ran block up_blocks.0.attentions.1"):
        host.run(then(erase(graph(CAT), "cat"), "skip", "TestMeddle", how="skip"))


@pytest.mark.parametrize(("concepts", "actuator", "says"), [
    ("catt", "ablate", "has no concept 'catt'; nearest: cat"), ("", "ablate", "no concept is chosen"),
    ("cat:1.5", "ablate", "expected a strength of 0 to 1 for 'cat'"), ("cat, cat", "ablate", "listed twice"),
    ("cat -> roket", "ablate", "has no concept 'roket'; nearest: rocket"),
    ("cat -> rocket", "steer", "'cat -> rocket' is done by the actuators amount and ablate, not by steer"),
    ("cat:-101", "steer", "expected a strength of -100 to 100"), ("cat:much", "ablate", "is not a strength"),
])
def test_a_slip_in_the_concepts_is_one_sentence_before_sampling(host, concepts, actuator, says):
    with pytest.raises(HostError, match=says):
        host.run(erase(graph(CAT), concepts, actuator))


@pytest.mark.parametrize(("options", "says"), [
    ({"d_in": 1280}, "reads tokens of width 1280, but block up_blocks.0.attentions.1 of this model has 320"),
    ({"hookpoint": "up_blocks.1.attentions.1"}, "this model has no block 'up_blocks.1.attentions.1'"),
    ({"base": "sdxl"}, "is for SDXL, and this model is SD 1.x"),
])
def test_an_sae_of_another_model_is_refused(host, sae_file, options, says):
    sae_file("other.safetensors", **options)
    with pytest.raises(HostError, match=says):
        host.run(erase(graph(CAT), "cat", sae="other.safetensors"))


def test_a_file_of_another_checkpoint_says_so_and_erases(host, plain, sae_file):
    sae_file("made.safetensors", made_on="another")
    own = NAME.removesuffix(".safetensors")
    sae_file("same.safetensors", made_on=own.upper())
    sae_file("renamed.safetensors", made_on="another", made_of=weights_of_the_checkpoint())
    sae_file("retrained.safetensors", made_on=own, made_of="fp32 0123")
    names = [f"{name}.safetensors" for name in ("made", "same", "renamed", "retrained")]
    erased = [latents(host, erase(graph(CAT), "cat", sae=name)) for name in names]
    assert all(torch.equal(one, erased[0]) for one in erased) and not torch.equal(erased[0], plain)
    assert "made.safetensors was made on another, and this is saemnesia-test: it may erase less here" in host.log
    assert "retrained.safetensors was made on a model with other weights than this one" in host.log
    assert "same.safetensors was made on" not in host.log and "renamed.safetensors was made on" not in host.log


def weights_of_the_checkpoint() -> str:
    prefix = "model.diffusion_model."
    loaded = load_file(COMFY / "models" / "checkpoints" / NAME)
    return made_of({name.removeprefix(prefix): value for name, value in loaded.items() if name.startswith(prefix)})


def test_the_window_is_measured_on_the_model_that_is_sampled(host):
    """A node behind ours that changes the noise levels is one before it."""
    window = {"start": 0.3, "end": 0.85}

    def other(made):
        return then(made, "edm", "ModelSamplingContinuousEDM", sampling="eps", sigma_max=120.0, sigma_min=0.002)
    before, after = (latents(host, made) for made in (erase(other(graph(CAT)), "cat", **window),
                                                      other(erase(graph(CAT), "cat", **window))))
    assert torch.equal(before, after)


def test_a_window_without_a_step_is_said(host, plain):
    assert torch.equal(latents(host, erase(graph(CAT), "cat", start=0.9, end=0.91)), plain)
    assert "cat: not erased, because none of the 4 steps of this run lies between start 0.9 and end 0.91" in host.log


def test_a_damaged_file_is_refused(host, sae_file):
    path = sae_file("cut.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(HostError, match="cut.safetensors cannot be read as safetensors"):
        host.run(erase(graph(CAT), "cat", sae="cut.safetensors"))


def test_weights_that_are_not_numbers_are_refused(host, sae_file):
    path = sae_file("nan.safetensors")
    from safetensors import safe_open
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["W_dec"][3, 0] = torch.nan
    save_file(tensors, path, metadata)
    with pytest.raises(HostError, match=r"nan.safetensors has weights that are not finite"):
        host.run(erase(graph(CAT), "cat", sae="nan.safetensors"))


@pytest.mark.parametrize(("library", "name"), [("saelens", "sae_weights.safetensors"), ("sparsify", "sae.safetensors")])
def test_a_folder_of_another_library_is_listed_and_erases_like_our_own_file(host, plain, sae_file, library, name):
    own = sae_file("own.safetensors")
    folder = SAES / f"from {library}"
    try:
        export.LIBRARIES[library](*read_sae(own), folder)
        theirs = latents(host, erase(graph(CAT), "#3", sae=f"{folder.name}/{name}"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert torch.equal(theirs, latents(host, erase(graph(CAT), "#3", sae="own.safetensors")))
    assert not torch.equal(theirs, plain)


def test_a_missing_file_is_refused(host):
    with pytest.raises(HostError, match=r"no SAE 'gone.safetensors'|value_not_in_list|not in list"):
        host.run(erase(graph(CAT), "cat", sae="gone.safetensors"))


def test_a_path_outside_the_model_folder_is_refused(host):
    with pytest.raises(HostError, match="no SAE|not in list"):
        host.run(erase(graph(CAT), "cat", sae="../checkpoints/minicanvas.safetensors"))

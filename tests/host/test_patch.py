"""The patch of a ComfyUI model in this process: compiled, on GPUs (a stand-in), and with other noise levels."""
import copy
import importlib
import logging
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from small_model import ATTENTIONS, FIRING, HOOKPOINT, UNET_CONFIG, write_places, write_sae
from stand_in_device import Devices

from benchmarks.minicanvas import models

import comfy.model_sampling  # isort: skip  (models puts ComfyUI on the path)
import comfy.supported_models  # isort: skip
from tools.comfy_host import COMFY  # isort: skip


def module(name: str):
    """Of the extension, as the host loads it."""
    if str(COMFY / "custom_nodes") not in sys.path:
        sys.path.insert(0, str(COMFY / "custom_nodes"))
    return importlib.import_module(f"comfyui-saemnesia.{name}")


patch, adapter, erasure = (module(name) for name in ("nodes.patch", "sae_models.adapter", "sae_models.erasure"))
SIGMAS = torch.linspace(14.0, 0.1, 12).tolist()


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    config = {**UNET_CONFIG, "model_channels": 32}
    return models.initialised(models.UNetModel(**config, operations=models.comfy.ops.disable_weight_init)).eval()


@pytest.fixture(scope="module")
def saes(unet, tmp_path_factory) -> list:
    folder, widths = tmp_path_factory.mktemp("sae"), {}
    for name in ATTENTIONS:
        widths[name] = adapter.hookpoint.width(adapter.hookpoint.find(unet, name))
    write_sae(folder / "block.safetensors", widths[ATTENTIONS[-1]])
    write_places(folder / "places.safetensors", widths)
    return [adapter.LoadedSae.read(path.name, path) for path in sorted(folder.iterdir())]


def patched(unet, saes, text: str = "cat", window=(0.0, 1.0), actuator: str = "ablate", **options):
    """A patch that erases `text` at a block and at every cross-attention."""
    edits = tuple(patch.SaeEdits(sae, adapter.build_edits(sae, text, erasure.Actuator(actuator), **options), window)
                  for sae in saes)
    paths = {block: path for sae in saes for block, path in adapter.fitting_blocks(unet, sae, "sd15").items()}
    return patch.Patch(edits, paths, comfy.model_sampling.ModelSamplingDiscrete())


class Executor:
    """What ComfyUI hands to a wrapper of `apply_model`."""

    def __init__(self, unet) -> None:
        self.class_obj = SimpleNamespace(diffusion_model=unet)

    def __call__(self, x, t, c_concat, c_crossattn, control, options, **kwargs):
        return self.class_obj.diffusion_model(x, t, context=c_crossattn, transformer_options=options)


@torch.no_grad()
def call(unet, made, sigma: float, context=None) -> torch.Tensor:
    x = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    context = torch.randn(2, 7, 768, generator=torch.Generator().manual_seed(2))
    t, options = torch.full((2,), sigma), {"cond_or_uncond": [0, 1]}
    if made is None:
        return Executor(unet)(x, t, None, context, None, options)
    return made.apply_model(Executor(unet), x, t, None, context, None, options)


def test_a_compiled_model_is_not_compiled_anew_for_every_noise_level(unet, saes):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    torch._dynamo.reset()
    compiled, made = torch.compile(unet, backend=backend), patched(unet, saes)
    plain = [call(compiled, None, sigma) for sigma in SIGMAS[:2]]
    counts = []
    for sigma in SIGMAS[:6]:
        erased = call(compiled, made, sigma)
        assert torch.allclose(erased, call(unet, made, sigma), atol=1e-4)
        counts.append(len(graphs))
    assert counts[2] == counts[-1]
    assert not torch.allclose(plain[1], call(compiled, made, SIGMAS[1]), atol=1e-3)
    assert torch.equal(call(compiled, None, SIGMAS[1]), plain[1])
    torch._dynamo.reset()


class Blocks(torch.nn.Module):
    """A UNet of nothing but what our places put out."""

    def __init__(self, made) -> None:
        super().__init__()
        self.made, self.block = made, torch.nn.Identity()

    def get_submodule(self, target: str) -> torch.nn.Module:
        return self.block

    def forward(self, x, t, context, transformer_options):
        outputs = [self.block(x)]
        for name, number, index in self.made.attentions:
            n = x.flatten(2).mT
            for one in transformer_options["patches"]["attn2_output_patch"]:
                n = one(n, {"block": (name, number), "block_index": index})
            outputs.append(n)
        return outputs


def call_on(device: str, devices: Devices, made, width: int, sigma: float) -> None:
    x, t = (devices.put(value, device) for value in (torch.randn(2, width, 6, 6), torch.full((2,), sigma)))
    made.apply_model(Executor(Blocks(made)), x, t, None, None, None, {"cond_or_uncond": [1, 0]})


@pytest.mark.parametrize("actuator", ["ablate", "steer", "replace", "amount"])
@pytest.mark.parametrize("conditional_only", [False, True])
def test_a_model_call_on_a_gpu_never_waits_and_copies_nothing(unet, saes, actuator, conditional_only):
    made = patched(unet, saes, "cat, dog", (0.1, 0.8), actuator, conditional_only=conditional_only)
    width = saes[0].headers[0].config.d_in
    with Devices() as devices:
        call_on("meta:0", devices, made, width, 5.0)  # the rows go there once
        devices.waits.clear()
        for sigma in SIGMAS:
            call_on("meta:0", devices, made, width, sigma)
        assert devices.waits == []
    assert len(made.tally.calls) == len(SIGMAS) + 1 and made.tally.missed(made.erasures) == ""


def test_gpus_that_share_a_step_are_counted_as_one(unet, saes):
    made, width, failed = patched(unet, saes, "cat"), saes[0].headers[0].config.d_in, []

    def paint(device: str) -> None:
        try:
            with Devices() as devices:
                for sigma in SIGMAS:
                    call_on(device, devices, made, width, sigma)
        except Exception as error:
            failed.append(error)
    threads = [threading.Thread(target=paint, args=(f"meta:{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(made.tally.calls) == 3 * len(SIGMAS) and not made._calls
    names = {block: one.labels() for block, one in made.erasures.items()}
    assert made.tally.summary(names).endswith(f"of {len(SIGMAS)}: cat {len(SIGMAS)}")


class Counted(Executor):
    """How often the model is called; it uses up what a ControlNet hands it, and draws from the random numbers."""
    calls = 0

    def __call__(self, x, t, c_concat, c_crossattn, control, options, **kwargs):
        self.calls += 1
        torch.rand(1)
        assert control["middle"].pop() == "hint"
        return super().__call__(x, t, c_concat, c_crossattn, control, options, **kwargs)


@pytest.fixture(scope="module")
def voters(unet, tmp_path_factory):
    """cat is there wherever it fires, dog never: it is said to fire a thousand times as strongly."""
    path = tmp_path_factory.mktemp("voters") / "voters.safetensors"
    widths = {name: adapter.hookpoint.width(adapter.hookpoint.find(unet, name)) for name in ATTENTIONS}
    write_places(path, widths, usual={"cat": 1e-3, "dog": 1e3})
    return adapter.LoadedSae.read(path.name, path)


@torch.no_grad()
def run_of(unet, made, sigmas, uuids=("one", "other")) -> tuple[list[torch.Tensor], int]:
    """The outputs of a run's calls, and how often the model was called."""
    executor, outs = Counted(unet), []
    x, context = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((2, 4, 12, 12),
                                                                                              (2, 7, 768)))
    for sigma in sigmas:
        t, options = torch.full((2,), sigma), {"cond_or_uncond": [0, 1], "uuids": [*uuids]}
        outs.append(made.apply_model(executor, x, t, None, context, {"middle": ["hint"]}, options))
    return outs, executor.calls


def test_what_is_not_there_is_not_erased_and_costs_no_call(unet, voters):
    plain, _ = run_of(unet, patched(unet, [voters], "rocket"), SIGMAS)
    outs, calls = run_of(unet, made := patched(unet, [voters], "dog"), SIGMAS)
    assert all(map(torch.equal, outs, plain)) and calls == len(SIGMAS)
    assert made.tally.missed(made.erasures) == "" and made.tally.in_words(
        {block: one.labels() for block, one in made.erasures.items()}) == "dog: in none"


def test_a_run_that_begins_with_a_picture_is_looked_at_in_noise(unet, voters):
    plain, _ = run_of(unet, patched(unet, [voters], "rocket"), SIGMAS)
    for text in ("dog", "cat"):
        made, levels = patched(unet, [voters], text), []
        votes = made.voting.votes
        made.voting.votes = lambda strengths, sigma, votes=votes, levels=levels: (
            levels.append(sigma), votes(strengths, sigma))[1]
        outs, calls = run_of(unet, made, SIGMAS[-2:])
        assert all(map(torch.equal, outs, plain[-2:])) == (text == "dog") and calls == 3
        assert levels == pytest.approx([14.6146, *SIGMAS[-2:]], rel=1e-4)


def test_what_is_there_costs_one_call_and_is_erased_in_all_of_them(unet, saes, voters):
    unasked = patched(unet, [saes[1]], "cat")  # the same neurons in a file that does not say how strongly they fire
    wanted, calls = run_of(unet, unasked, SIGMAS)
    assert calls == len(SIGMAS)
    torch.manual_seed(0)
    outs, calls = run_of(unet, made := patched(unet, [voters], "cat, dog"), SIGMAS)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(outs, wanted, strict=True)) and calls == len(SIGMAS) + 1
    drawn = torch.rand(1)
    torch.manual_seed(0)
    torch.rand(len(SIGMAS))
    assert torch.equal(drawn, torch.rand(1))  # a look leaves the random numbers where they were
    assert run_of(unet, made, SIGMAS[:1])[1] == 1  # in the same run
    assert run_of(unet, made, SIGMAS[:1], ("one", "third"))[1] == 2  # another prompt
    made.voting.forget()
    assert run_of(unet, made, SIGMAS[:1])[1] == 2


@pytest.mark.parametrize("window", [(0.3, 1.0), (0.0, 0.6)])
def test_steps_outside_of_the_window_paint_what_is_painted_without_erasure(unet, voters, window):
    made, (plain, _) = patched(unet, [voters], "cat", window), run_of(unet, patched(unet, [voters], "rocket"), SIGMAS)
    start, end = (made.sampling.percent_to_sigma(share) for share in window)
    outs, _ = run_of(unet, made, SIGMAS)
    same = [torch.equal(*pair) for pair in zip(outs, plain, strict=True)]
    assert same == [not end <= sigma <= start for sigma in SIGMAS] and True in same and False in same


def test_a_call_without_the_negative_prompt_late_in_a_run_erases_what_the_places_let_in(unet, voters):
    for text in ("dog", "cat"):
        made, plain = patched(unet, [voters], text), patched(unet, [voters], "rocket")
        late = []
        for one in (made, plain):
            run_of(unet, one, SIGMAS[:4])
            with torch.no_grad():
                x = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(3))
                context = torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(4))
                late.append(one.apply_model(Executor(unet), x, torch.full((1,), 0.5), None, context, None,
                                            {"cond_or_uncond": [0], "uuids": ["one"]}))
        assert torch.equal(*late) == (text == "dog")


@pytest.mark.parametrize(("prompts", "numbers"), [
    ({"positive": "one", "negative": "other"}, [0, 1]),
    ({"negative": "other", "middle": "third", "positive": "one"}, [2, 0]),  # DualCFG numbers them so
    ({"positive": "one", "negative": "third", "empty_negative_prompt": "other"}, [0, 2]),
    ({"positive": "one", "negative": "one"}, [0, 1]),  # a twin of an area's prompt, which the host puts there
    ({"positive": "one", "negative": "other"}, [0, 0]),  # each asked for alone, as Self-Attention Guidance does
])
def test_conditional_only_goes_by_what_the_guider_calls_its_prompts(unet, saes, prompts, numbers):
    made = patched(unet, saes[1:], "cat", conditional_only=True)
    guider = SimpleNamespace(original_conds={name: [{"uuid": uuid}] for name, uuid in prompts.items()},
                             model_patcher=patcher_of(unet))
    x, context = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in ((2, 4, 12, 12),
                                                                                              (2, 7, 768)))
    out = {}

    def sample():
        options = {"cond_or_uncond": numbers, "uuids": ["one", "other"]}
        with torch.no_grad():
            out["erased"] = made.apply_model(Executor(unet), x, torch.full((2,), 5.0), None, context, None, options)
            out["plain"] = Executor(unet)(x, torch.full((2,), 5.0), None, context, None, {})
    run = type("Run", (), {"class_obj": guider, "__call__": lambda self: sample()})()
    made.outer_sample(run)
    changed = [not torch.allclose(*rows, atol=1e-5) for rows in zip(out["erased"], out["plain"], strict=True)]
    assert changed == [True, False]


def test_a_gpu_is_waited_for_in_the_first_call_of_a_run_only(voters, unet):
    made, width = patched(unet, [voters], "cat, dog"), voters.headers[0].config.d_in
    with Devices() as devices:
        call_on("meta:0", devices, made, width, 14.0)
        devices.waits.clear()
        for sigma in SIGMAS:
            call_on("meta:0", devices, made, width, sigma)
        assert devices.waits == []


def patcher_of(unet, config=None):
    holder = torch.nn.Module()
    holder.diffusion_model, holder.model_sampling = unet, comfy.model_sampling.ModelSamplingDiscrete()
    holder.model_config = config or comfy.supported_models.SD15({})
    return models.comfy.model_patcher.ModelPatcher(holder, torch.device("cpu"), torch.device("cpu"))


def test_strength_zero_leaves_the_model_as_it_is(unet, saes, caplog):
    with caplog.at_level(logging.INFO, "saemnesia"):
        clone = patch.erase(patcher_of(unet), saes[1], adapter.build_edits(saes[1], "cat:0", erasure.Actuator.STEER))
    assert clone.get_attachment(patch.KEY) is None and clone.wrappers == patcher_of(unet).wrappers
    assert "every strength is 0, so nothing is erased" in caplog.text
    kept = adapter.build_edits(saes[0], "cat:0, dog", erasure.Actuator.ABLATE)
    assert [edit.names for _, edit in kept] == [("dog",)]


def sampled(model, sigmas, run=None) -> None:
    """A sampling run of a model, as the host wraps it."""
    def sample(*args):
        for sigma in sigmas:
            call(model.model.diffusion_model, model.get_attachment(patch.KEY), sigma)
    executor = SimpleNamespace(class_obj=SimpleNamespace(model_patcher=model))
    model.get_attachment(patch.KEY).outer_sample(type("Run", (), {"__call__": lambda self, *a: (run or sample)(*a),
                                                                  **vars(executor)})())


@pytest.mark.parametrize("half", [0.3, 0.5])
def test_the_window_is_that_of_the_model_that_is_sampled(unet, saes, half):
    """ModelSamplingDiscrete and the like stand after Erase as well as before it."""
    edits = adapter.build_edits(saes[1], "cat", erasure.Actuator.ABLATE)
    after = patch.erase(patcher_of(unet), saes[1], edits, (half, 1.0)).clone()
    other = comfy.model_sampling.ModelSamplingDiscrete(zsnr=True)
    after.add_object_patch("model_sampling", other)
    sampled(after, [5.0])
    starts = {edit.start_sigma for one in after.get_attachment(patch.KEY).erasures.values() for edit in one.edits}
    before = comfy.model_sampling.ModelSamplingDiscrete().percent_to_sigma(half)
    assert starts == {other.percent_to_sigma(half)} != {before}


def test_a_window_without_a_step_is_said(unet, saes, caplog):
    edits = adapter.build_edits(saes[1], "cat", erasure.Actuator.ABLATE)
    model = patch.erase(patcher_of(unet), saes[1], edits, (0.98, 0.99))
    sampled(model, [10.0, 5.0, 1.0])
    assert "cat: not erased, because none of the 3 steps of this run lies between start 0.98 and end" in caplog.text
    caplog.clear()
    sampled(patch.erase(patcher_of(unet), saes[1], edits, (0.1, 0.99)), [10.0, 5.0, 1.0])
    assert "not erased" not in caplog.text


@pytest.mark.parametrize(("kind", "family"), [
    ("SD15", "sd15"), ("SD15_instructpix2pix", "sd15"), ("SD20", "sd20"), ("SD21UnclipL", "sd20"),
    ("SD21UnclipH", "sd20"), ("LotusD", "sd20"), ("SDXL", "sdxl"), ("SDXL_instructpix2pix", "sdxl"), ("SSD1B", "sdxl"),
    ("Segmind_Vega", "sdxl"), ("KOALA_700M", "sdxl"), ("KOALA_1B", "sdxl"), ("SDXLRefiner", "sdxlrefiner"),
    ("SVD_img2vid", "svd_img2vid"), ("SV3D_p", "svd_img2vid"), ("Flux", "flux")])
def test_close_relatives_are_of_one_family(kind, family):
    assert module("nodes.family").family_of(getattr(comfy.supported_models, kind)({})) == family


def test_packed_weights_tell_a_model_where_its_state_dict_does_not_have_them(unet):
    """Those of a GGUF file: what stands in for them there has no numbers."""
    family, fingerprint = module("nodes.family"), module("sae_models.learning.fingerprint").fingerprint
    whole = fingerprint(family.original_weights(patcher_of(unet)))
    packed = copy.deepcopy(unet)
    layer = packed.out[2]
    layer._save_to_state_dict = lambda found, prefix, keep: found.update(
        {f"{prefix}{name}": value.to("meta") for name, value in layer.named_parameters()})
    assert fingerprint(family.original_weights(patcher_of(packed))) == whole


def test_a_lora_in_bypass_mode_makes_another_model_of_it(unet):
    fingerprint, model = module("nodes.painting").fingerprint, patcher_of(unet)
    other = model.clone()
    other.set_injections("bypass_lora", [])
    assert fingerprint(other) != fingerprint(model) == fingerprint(model.clone())


def test_a_relative_is_told_by_its_blocks_and_widths(unet, saes):
    paired = patcher_of(unet, comfy.supported_models.SD15_instructpix2pix({}))
    assert len(patch.check_base(paired, saes[1])) == len(ATTENTIONS)
    assert HOOKPOINT in str(patch.check_base(paired, saes[0])) and FIRING[0] == "cat"
    with pytest.raises(module("sae_models.errors").SaeError, match="is for SD 1.x, and this model is svd_img2vid"):
        patch.check_base(patcher_of(unet, comfy.supported_models.SVD_img2vid({})), saes[0])


def test_training_keeps_fewer_tokens_of_a_map_where_a_model_has_many_places():
    """So that the last pictures, which concepts are fitted to, are many: SDXL has 70 places."""
    kept = module("nodes.training").tokens_kept
    assert kept([1280] * 70) < 32 and kept([320, 640, 1280] * 5) == 128 and kept([1280]) is None

"""The extension for A1111 and Forge without a host: the real `ldm` UNet in a stand-in for the host (fake_webui.py).

One test a row of what was measured on the real hosts: the script's life cycle, how rows arrive, what moves and swaps
models, and the ways in which an extension silently does not erase.
"""
import logging
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_webui import Processing, Webui, hooks, sd_model, sigma_at, unet_in, unet_of
from small_model import UNET_CONFIG, write_places, write_sae
from stand_in_device import Devices
from webui_model import UNET, random_unet

from sae_models import Actuator, Concept, Erasure, Header, Rows, SaeConfig, SaeError, Statistics, hashing, hookpoint
from sae_models.adapter import LoadedSae, build_edits
from sae_models.hashing import short_hash
from sae_models.table import Table, add
from sae_models.voting import Voting

from benchmarks.minicanvas import models as comfy_models  # isort: skip  (puts ComfyUI on the path)
import comfy.model_sampling  # isort: skip
import comfy.ops  # isort: skip

SMALL = UNET | {"model_channels": 32, "channel_mult": [1, 2], "num_heads": 2}
SAE, BLOCK, PLACES = "animals.safetensors", "up_blocks.0.attentions.1", "places.safetensors"
VOTERS = "voters.safetensors"
"""The neurons of PLACES: cat is there wherever it fires, dog never: it is said to fire a thousand times as strongly."""
BOTH = ("ablate", 0.0, 1.0, "both")
CAT = (True, SAE, "cat", *BOTH)
CASES = {
    "default": {}, "batch": {"prompts": [[1], [2]]}, "AND": {"prompts": [[1, 3], [2, 4]]},
    "long prompt": {"tokens": (154, 77)}, "batch_cond_uncond off": {"batch_cond_uncond": False, "prompts": [[1], [2]]},
    "pad_cond_uncond": {"tokens": (154, 154)}, "NGMS": {"cond_only_above": 0.0}, "early": {"cond_only_above": 700.0},
    "NGMS late": {"cond_only_below": 700.0},
    "Heun": {"evaluations": 2}, "PLMS": {"timesteps": (999.0, 666.0, 666.0, 333.0)},
    "DDIM": {"timesteps": (999.0, 749.0, 499.0, 249.0)},
    "wide": {"size": (4, 12)}, "hires": {"hires": True}, "two batches": {"n_iter": 2},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_sae(folder / "sae" / SAE, d_in=64)
    write_sae(folder / "sae" / "folder" / "sdxl.safetensors", d_in=64, base="sdxl")
    unet = new_unet()
    widths = {name: hookpoint.width(hookpoint.find(unet, name)) for name in [*hookpoint.cross_attentions(unet), BLOCK]}
    write_places(folder / "sae" / PLACES, widths)
    write_places(folder / "sae" / VOTERS, widths, usual={"cat": 1e-3, "dog": 1e3})
    return folder


def new_unet(seed: int = 0, **changes) -> torch.nn.Module:
    torch.manual_seed(seed)
    return random_unet(SMALL | changes)


@pytest.fixture
def webui(models):
    with Webui(models, sd_model(new_unet())).installed() as host:
        yield host


@pytest.fixture
def forge(models):
    with Webui(models, sd_model(new_unet(), forge=True), forge=True).installed() as host:
        yield host


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))


def texts(processed) -> str:
    return str([key for text in processed.infotexts for key in text if "SAEmnesia" in key])


def edit_of(models: Path, **options):
    [(_, edit)] = build_edits(LoadedSae.read(SAE, models / "sae" / SAE), "cat", Actuator.ABLATE, **options)
    return edit


def by_hand(host: Webui, models: Path, conditional_only=False, up_to=100, edits=None, **options):
    """The same run without the script: the core's Erasure in a plain hook, told sigma and rows by the stand-in.

    up_to: higher maps are left alone; edits: instead of cat's.
    """
    erasure = Erasure(edits or [edit_of(models, conditional_only=conditional_only)])
    now = {}
    host.spy = lambda sigma, conditional: now.update(sigma=sigma, conditional=conditional)

    def hook(module, inputs, output):
        return erasure(output, now["sigma"], now["conditional"]).out if output.shape[2] <= up_to else output
    handle = hookpoint.find(unet_of(host), BLOCK).register_forward_hook(hook)
    try:
        return host.generate(use_script=False, **options)
    finally:
        handle.remove()
        host.spy = lambda sigma, conditional: None


def watch(host: Webui) -> list:
    """The UNet of every block's map that is edited from now on."""
    calls, editing = [], host.module.ERASER._editing

    def spy(job, sigma, conditional):
        calls.append(job.fitted.unet)
        return editing(job, sigma, conditional)
    host.module.ERASER._editing = spy
    return calls


def refused(host: Webui, *args, says: str, **options) -> None:
    """The run ends with the sentence, and the next one with the extension off is as if nothing had been."""
    plain = host.generate(use_script=False)
    model = host.shared.sd_model
    with pytest.raises(SaeError, match=says):
        host.generate(*args, **options)
    assert hooks(unet_of(host)) == 0
    host.shared.sd_model = model
    assert hooks(unet_of(host)) == 0
    after = host.generate(False)
    assert same(after, plain) and texts(after) == "[]"


# --- the edit, however rows arrive (2.5, 4) ------------------------------------------------------------------


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("apply_to", ["both", "conditional only"])
def test_erasure_is_that_of_the_core_in_every_arrangement_of_rows(webui, models, options, apply_to):
    wanted = by_hand(webui, models, apply_to != "both", **options)
    erased = webui.generate({"sae": SAE, "concepts": "cat", "apply_to": apply_to}, **options)
    assert same(erased, wanted) and webui.errors == []
    assert not same(erased, webui.generate(use_script=False, **options))


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("apply_to", ["both", "conditional only"])
def test_erasure_is_that_of_the_core_in_forge(forge, models, options, apply_to):
    wanted = by_hand(forge, models, apply_to != "both", **options)
    erased = forge.generate({"sae": SAE, "concepts": "cat", "apply_to": apply_to}, **options)
    assert same(erased, wanted) and forge.errors == []
    assert not same(erased, forge.generate(use_script=False, **options))


@pytest.mark.parametrize("options", [{}, {"prompts": [[1], [2]]}, {"tokens": (154, 154)}], ids=str)
@pytest.mark.parametrize("name", ["webui", "forge"])
def test_thorough_is_that_of_the_core(request, models, name, options):
    host, sae = request.getfixturevalue(name), LoadedSae.read(SAE, models / "sae" / SAE)
    edits = [edit for _, edit in build_edits(sae, "cat", Actuator.THOROUGH)]
    wanted = by_hand(host, models, edits=edits, **options)
    erased = host.generate({"sae": SAE, "concepts": "cat", "actuator": "thorough", "apply_to": "both"}, **options)
    assert same(erased, wanted) and not same(erased, by_hand(host, models, **options)) and host.errors == []


@pytest.mark.parametrize("options", [{"cond_only_above": 0.0}, {"tokens": (154, 77)}], ids=str)
def test_thorough_is_refused_where_the_prompt_is_painted_alone(webui, options):
    alone = {"sae": SAE, "concepts": "cat", "actuator": "thorough"}
    with pytest.raises(SaeError, match="set cfg above 1 "):
        webui.generate(alone, **options)
    assert hooks(unet_of(webui)) == 0


def forwards(host: Webui) -> list:
    """The batch of every call of the UNet from now on."""
    unet, calls = unet_of(host), []
    forward = unet.forward

    def counted(x, *args, **kwargs):
        calls.append(len(x))
        return forward(x, *args, **kwargs)
    unet.forward = counted
    return calls


@pytest.mark.parametrize("name", ["webui", "patched_forge"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_what_is_not_there_is_not_erased_and_what_is_costs_a_call_of_each_kind(request, name, options):
    host = request.getfixturevalue(name)
    calls = forwards(host)
    plain = host.generate(use_script=False, **options)
    once, calls[:] = len(calls), []
    assert same(host.generate(True, VOTERS, "dog", **options), plain)
    kinds, runs = len(calls) - once, options.get("n_iter", 1)
    assert runs <= kinds <= 3 * runs and host.errors == []
    calls.clear()
    assert same(host.generate(True, VOTERS, "cat", **options), host.generate(True, PLACES, "cat", **options))
    assert len(calls) == 2 * once + kinds


SCHEDULED = SimpleNamespace(batch=[[SimpleNamespace(schedules=[SimpleNamespace(end_at_step=1),
                                                               SimpleNamespace(end_at_step=3)])]])


@pytest.mark.parametrize(("name", "c"), [("webui", None), ("webui", SCHEDULED), ("patched_forge", None),
                                         ("patched_forge", SCHEDULED)])
def test_a_prompt_that_changes_on_the_way_is_voted_about_or_erased_wherever_it_fires(request, name, c, monkeypatch):
    """A1111 edits prompts, `[cat:dog:0.5]`: what was voted about was another prompt, which the host tells or not."""
    host = request.getfixturevalue(name)
    embed, steps = type(host)._embed, {"timesteps": (999.0, 666.0, 333.0), "c": c}

    def edited(change: bool):
        sigmas = []
        host.spy = lambda sigma, conditional: sigmas.append(sigma)
        monkeypatch.setattr(host, "_embed", lambda text, length: embed(
            host, 7 if change and text == 1 and len(set(sigmas)) > 1 else text, length))
    pictures = {}
    for change in (False, True):
        edited(change)
        plain = host.generate(use_script=False, **steps)
        edited(change)
        pictures[change] = plain, host.generate(True, VOTERS, "dog", **steps)
    host.spy = lambda sigma, conditional: None
    assert same(*pictures[False]) and not same(pictures[True][0], pictures[False][0])
    assert same(*pictures[True]) == (c is not None)


@pytest.mark.parametrize("name", ["webui", "patched_forge"])
def test_a_run_that_begins_with_a_picture_is_looked_at_in_noise(request, name):
    host, late = request.getfixturevalue(name), {"timesteps": (400.0, 200.0)}
    plain, votes = host.generate(use_script=False, **late), Voting.votes
    with pytest.MonkeyPatch.context() as patch:
        levels = []
        patch.setattr(Voting, "votes", lambda self, strengths, sigma: (
            levels.append(sigma), votes(self, strengths, sigma))[1])
        assert same(host.generate(True, VOTERS, "dog", **late), plain)
        assert max(levels) == levels[0] == pytest.approx(14.6146, rel=1e-4) and levels[-1] < 3
    assert not same(host.generate(True, VOTERS, "cat", **late), plain) and host.errors == []


def test_a_late_look_leaves_an_inpainting_models_mask_as_it_is(models, monkeypatch):
    unet, more, seen = new_unet(in_channels=9), torch.randn(1, 5, 8, 8), []
    call, forward = Webui._unet, unet.forward
    monkeypatch.setattr(Webui, "_unet", lambda self, x, *args: call(
        self, torch.cat([x, more.expand(len(x), -1, -1, -1)], 1), *args))
    monkeypatch.setattr(unet, "forward", lambda x, *args, **kwargs: (seen.append(x), forward(x, *args, **kwargs))[1])
    with Webui(models, sd_model(unet)).installed() as host:
        host.generate(True, VOTERS, "cat", timesteps=(400.0, 200.0))
    assert len(seen) > 2 and all(torch.equal(x[:, 4:], more.expand(len(x), -1, -1, -1)) for x in seen)


def test_a_refiner_does_not_let_in_what_is_not_there(webui):
    """It comes late, with a UNet of its own, and reads the same prompt in its own way."""
    options = {"timesteps": (999.0, 400.0, 200.0), "refiner": sd_model(new_unet(seed=5))}
    first, pictures = webui.shared.sd_model, []
    for args in ((), (True, VOTERS, "dog"), (True, VOTERS, "cat")):
        webui.shared.sd_model = first
        pictures.append(webui.generate(*args, use_script=bool(args), **options))
    assert same(*pictures[:2]) and not same(pictures[0], pictures[2]) and webui.errors == []


def test_a_concept_that_is_voted_in_later_is_erased_from_then_on(webui):
    job = webui.module.ERASER
    before, unet = type(job)._before, unet_of(webui)
    plain = webui.generate(use_script=False)

    def late(eraser, module, args, kwargs):
        seen = eraser.job.fitted.voting
        if not hasattr(seen, "asked"):
            seen.asked = seen.count
            seen.count = lambda key, strengths, level, look=False: look or seen.asked(key, strengths, level)
        return before(eraser, module, args, kwargs)
    job._before = lambda *args: late(job, *args)
    try:
        assert not same(webui.generate(True, VOTERS, "cat"), plain) and hooks(unet) == 0
        assert same(webui.generate(True, VOTERS, "dog"), plain)
    finally:
        del job._before


def test_and_of_two_texts_beside_one_is_erased(webui, models):
    uneven = {"prompts": [[1, 3], [2]]}
    assert same(webui.generate({"sae": SAE, "concepts": "cat", "apply_to": "conditional only"}, **uneven),
                by_hand(webui, models, conditional_only=True, **uneven))


def erased_in_both(host: Webui, *args, **options) -> None:
    """From the first call on of which it cannot be told, and that is said."""
    edited, editing = [], host.module.ERASER._editing
    host.module.ERASER._editing = lambda job, sigma, rows: (edited.append(rows), editing(job, sigma, rows))[1]
    erased = host.generate(*args, **options)
    first = next(i for i, rows in enumerate(edited) if rows is None)
    assert all(rows is None for rows in edited[first:]) and first < len(edited) / 2
    assert host.errors == [] and "SAEmnesia: erased in the negative prompt too" in " ".join(erased.comments)


def test_tiles_are_erased_but_cannot_be_split_into_conditional_rows(webui, models):
    tiled = {"tiles": 2, "batch_cond_uncond": False}
    erased = webui.generate(*CAT, **tiled)
    assert same(erased, by_hand(webui, models, **tiled)) and erased.comments == []
    erased_in_both(webui, True, SAE, "cat", **tiled)


@pytest.mark.parametrize("apply_to", ["both", "conditional only"])
def test_sdxl_calls_with_keywords_are_erased(webui, models, apply_to):
    """Its texts come in dicts."""
    webui.shared.sd_model = sd_model(unet_of(webui), sgm=True)
    erased = webui.generate({"sae": SAE, "concepts": "cat", "apply_to": apply_to}, prompts=[[1], [2]])
    assert same(erased, by_hand(webui, models, apply_to != "both", prompts=[[1], [2]])) and webui.errors == []


@pytest.mark.parametrize("apply_to", ["both", "conditional only"])
def test_a_controlnet_that_runs_a_reference_pass_inside_the_unet_is_met(webui, models, apply_to):
    """It replaces `forward` of the instance, and calls the blocks itself: twice in reference modes."""
    unet = unet_of(webui)
    forward = unet.forward

    def controlled(x, *args, **kwargs):
        return forward(x, *args, **kwargs) + 0.1 * forward(x.flip(2), *args, **kwargs)
    unet.forward = controlled
    wanted = by_hand(webui, models, apply_to != "both")
    erased = webui.generate({"sae": SAE, "concepts": "cat", "apply_to": apply_to})
    assert same(erased, wanted) and not same(erased, webui.generate(False))


def extra_passes(monkeypatch, host: Webui) -> None:
    """Guidance by perturbed or smeared attention (PAG, SAG): the conditional rows once more, unannounced."""
    call = host._call

    def once_more(parts, timestep, tiles):
        out = call(parts, timestep, tiles)
        extra = call([part for part in parts if part[2]], timestep, tiles)
        return [out[i] + extra.pop(0) if part[2] else out[i] for i, part in enumerate(parts)]
    monkeypatch.setattr(host, "_call", once_more)


@pytest.mark.parametrize("name", ["webui", "forge"])
def test_extra_passes_are_erased(request, monkeypatch, models, name):
    host = request.getfixturevalue(name)
    extra_passes(monkeypatch, host)
    assert same(host.generate(*CAT), by_hand(host, models))


def test_extra_passes_are_split_into_rows_where_the_host_says_which_they_are(forge, webui, monkeypatch, models):
    only = {"sae": SAE, "concepts": "cat", "apply_to": "conditional only"}
    extra_passes(monkeypatch, forge)
    assert same(forge.generate(only), by_hand(forge, models, conditional_only=True))
    extra_passes(monkeypatch, webui)
    erased_in_both(webui, only)


@pytest.mark.parametrize("timestep", [0.0, 1.0, 333.0, 499.5, 749.25, 998.9, 999.0])
def test_noise_levels_and_the_window_are_those_of_comfyui(webui, timestep):
    from saemnesia_webui import model
    theirs = comfy.model_sampling.ModelSamplingDiscrete()
    ours = model.noise_levels(webui.shared.sd_model)
    assert ours.sigma(timestep) == pytest.approx(float(theirs.sigma(torch.tensor(timestep))), rel=5e-5)
    for share in (0.01, timestep / 999, 0.5, 0.99):
        wanted = min(theirs.percent_to_sigma(share), 1e8)
        assert min(ours.at_share(share), 1e8) == pytest.approx(float(wanted), rel=5e-5)


def test_a_forge_models_own_noise_levels_are_read(forge, webui):
    from saemnesia_webui import model
    assert model.noise_levels(forge.shared.sd_model).sigma(500.5) == pytest.approx(sigma_at(500.5), rel=1e-6)


def test_the_window_limits_when_it_acts(webui, models):
    late = webui.generate({"sae": SAE, "concepts": "cat", "start": 0.6})
    assert not same(late, webui.generate(*CAT)) and not same(late, webui.generate(False))
    first_step_only = {"timesteps": (999.0,)}
    left = webui.generate({"sae": SAE, "concepts": "cat", "start": 0.6}, **first_step_only)
    assert same(left, webui.generate(False, **first_step_only)) and texts(left) == "[]"
    assert left.comments == ["SAEmnesia: not erased, because none of the 1 steps of this run lies between start 0.6 "
                             "and end 1: widen them, or paint with more steps"]
    assert late.comments == []


# --- strength 0, silence, off --------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), (False, SAE, "cat"), (None,), (True, SAE, "cat:0, dog:0"), (True, SAE, "rocket"),
                                  ({"enabled": False, "sae": "gone"},), (False, 5, 7)], ids=str)
def test_off_strength_zero_and_silence_are_bit_identical(webui, args):
    plain = webui.generate(use_script=False)
    assert same(webui.generate(*args), plain)
    assert hooks(unet_of(webui)) == 0


def test_nothing_stays_after_a_run(webui):
    plain = webui.generate(use_script=False)
    erased = webui.generate(*CAT)
    assert not same(erased, plain) and hooks(unet_of(webui)) == 0
    assert same(webui.generate(False), plain) and same(webui.generate(use_script=False), plain)


def test_the_sae_is_never_part_of_the_model(webui):
    unet = unet_of(webui)
    before = [name for name, _ in unet.named_modules()], list(unet.state_dict())
    seen = []
    webui.spy = lambda sigma, conditional: seen.append(([n for n, _ in unet.named_modules()], list(unet.state_dict())))
    webui.generate(*CAT)
    assert len(seen) == 3 and all(state == before for state in seen)


# --- arguments (2.2, 2.3) ------------------------------------------------------------------------------------


def test_arguments_by_position_and_by_one_dict_are_the_same(webui):
    by_position = webui.generate(True, SAE, "cat:0.5", "amount", 0.1, 0.9, "both", True, BLOCK)
    by_dict = webui.generate({"sae": SAE, "concepts": "cat:0.5", "start": 0.1, "end": 0.9, "apply_to": "both",
                              "hookpoint": BLOCK}, 1, 2)
    assert same(by_position, by_dict) and not same(by_dict, webui.generate(*CAT))


@pytest.mark.parametrize(("args", "says"), [
    (("yes", SAE, "cat"), "expected true or false for 'enabled', got 'yes'"),
    ((True, 5, "cat"), "expected text for 'sae', got 5"),
    ((True, SAE, "cat", "ablate", "0.5"), "expected a number for 'start', got '0.5'"),
    ((True, SAE, "cat", "ablate", float("nan")), "expected a number for 'start', got nan"),
    ((True, SAE, "cat", "ablate", 0.9, 0.1), "expected 0 <= start <= end <= 1, got 0.9 and 0.1"),
    ((True, SAE, "cat", "blur"), "expected actuator to be one of amount, ablate, steer, replace, thorough, got 'blur'"),
    ((True, SAE, "cat", "ablate", 0, 1, "negative"), "expected apply_to to be one of both, conditional only"),
    (({"sae": SAE, "concept": "cat"},), "no setting 'concept'; did you mean 'concepts'"),
    (({"sae": SAE, "concepts": "cat", "strength": 0.8},), "no setting 'strength': write it .*, for example 'cat:0.8'"),
    ((True, "", "cat"), "no file is chosen: .* find a word"), ((True,), "no file is chosen: .* find a word"),
    ((True, "gone.safetensors", "cat"), "no SAE 'gone.safetensors' in .*sae: put the file there"),
    ((True, "../animals.safetensors", "cat"), "there is no SAE"),
    ((True, SAE, ""), "no concept is chosen"), ((True, SAE, "catt"), "has no concept 'catt'; nearest: cat"),
    ((True, SAE, "cat:2", "ablate"), "expected a strength of 0 to 1 for 'cat'"),
    ((True, SAE, "cat:2.1"), "expected a strength of -1 to 2 for 'cat' with amount"),
    ((True, "folder/sdxl.safetensors", "cat"), "is for SDXL, and this model is SD 1.x"),
    ((True, SAE, "cat", "ablate", 0, 1, "both", True, "up_blocks.7.attentions.0"),
     "was trained on up_blocks.0.attentions.1, not on up_blocks.7.attentions.0: leave 'hookpoint' empty"),
])
def test_a_slip_stops_the_run_with_its_sentence(webui, args, says):
    refused(webui, *args, says=says)


def test_a_damaged_file_stops_the_run(webui, models):
    path = models / "sae" / "cut.safetensors"
    path.write_bytes((models / "sae" / SAE).read_bytes()[:-5])
    try:
        refused(webui, True, "cut.safetensors", "cat", says=r"cut.safetensors cannot be read as safetensors")
    finally:
        path.unlink()


def test_an_error_of_our_own_stops_the_run_too(webui, monkeypatch):
    monkeypatch.setattr(webui.module.Job, "prepare", lambda *a: 1 / 0)
    refused(webui, *CAT, says="SAEmnesia failed: ZeroDivisionError")


# --- silent non-erasure (3) ----------------------------------------------------------------------------------


def test_3_1_an_error_in_process_never_becomes_a_picture_that_says_erased(webui):
    refused(webui, True, "gone.safetensors", "cat", says="there is no SAE")
    assert webui.errors == []  # it was raised in the model call, where the host lets it through


def test_3_2_a_refiner_of_another_build_stops_the_run(webui):
    refused(webui, *CAT, says="reads tokens of width 64, but block .* of this model has 96",
            refiner=sd_model(new_unet(channel_mult=[1, 3])))


def test_3_2_a_hires_checkpoint_of_another_build_stops_the_run(webui):
    refused(webui, *CAT, says="reads tokens of width 64, but block .* of this model has 96", hires=True,
            hires_model=sd_model(new_unet(channel_mult=[1, 3])))


@pytest.mark.parametrize("name", ["webui", "forge"])
def test_3_3_a_hires_checkpoint_that_fits_is_erased_too(request, name):
    host = request.getfixturevalue(name)
    first, second = unet_of(host), sd_model(new_unet(1), forge=host.forge)
    calls = watch(host)
    host.generate(*CAT, hires=True, hires_model=second)
    assert calls == [first] * 3 + [unet_in(second, host.forge)] * 3
    assert hooks(first) == hooks(unet_of(host)) == 0


@pytest.mark.parametrize("name", ["webui", "forge"])
def test_3_3_after_a_switch_to_a_fitting_model_it_goes_on(request, models, name):
    host = request.getfixturevalue(name)
    first, second = host.shared.sd_model, sd_model(new_unet(1), forge=host.forge)
    calls = watch(host)
    erased = host.generate(*CAT, refiner=second)
    assert len(erased.images) == 1 and hooks(unet_of(host)) == 0
    host.shared.sd_model = first
    assert hooks(unet_of(host)) == 0
    assert calls == [unet_of(host), *[unet_in(second, host.forge)] * 2]


@pytest.mark.parametrize("named", [False, True])
def test_3_4_the_inner_pass_of_adetailer_is_erased(webui, models, named):
    """named: this script is among those that ADetailer's settings let run in its pass."""
    inner = {"inner": True, "inner_scripts": named, "prompts": [[1], [2]], "n_iter": 2}
    erased = webui.generate(*CAT, **inner)
    assert same(erased, by_hand(webui, models, **inner)) and webui.errors == []
    assert all(text["SAEmnesia concepts"] == "cat:1.0" for text in erased.infotexts)
    assert hooks(unet_of(webui)) == 0 and same(webui.generate(False), webui.generate(use_script=False))


@pytest.mark.parametrize("name", ["webui", "forge"])
def test_3_5_a_replaced_unet_stops_the_run(request, monkeypatch, name):
    """SD Unet (TensorRT) patches forward: the UNet is called, its blocks are not."""
    host = request.getfixturevalue(name)
    plain = host.generate(use_script=False)
    unet = unet_of(host)
    calls = []
    monkeypatch.setattr(type(unet), "forward", lambda self, x, *a, **k: calls.append(1) or x)
    with pytest.raises(SaeError, match=f"nothing was erased: block {BLOCK} did not run"):
        host.generate(*CAT, batch_cond_uncond=False)
    assert len(calls) == 1
    monkeypatch.undo()
    assert hooks(unet) == 0 and same(host.generate(False), plain)


def test_3_5_a_unet_that_is_not_even_called_gives_no_picture(webui, monkeypatch):
    monkeypatch.setattr(webui, "_call", lambda parts, *a: [part[0] for part in parts])
    with pytest.raises(SaeError, match="nothing was erased"):
        webui.generate(*CAT)
    assert hooks(unet_of(webui)) == 0
    assert webui.generate(False).images


@pytest.mark.parametrize("step", [1, 2, 3])
def test_3_5_a_unet_that_is_left_out_in_one_step_only_gives_no_picture(webui, monkeypatch, step):
    call, steps = webui._call, []

    def sometimes(parts, timestep, tiles):
        steps.append(timestep)
        return [part[0] for part in parts] if len(steps) == step else call(parts, timestep, tiles)
    monkeypatch.setattr(webui, "_call", sometimes)
    with pytest.raises(SaeError, match="nothing was erased"):
        webui.generate(*CAT)


def test_a_host_that_announces_nothing_gives_no_picture(webui):
    webui.callbacks.clear()
    with pytest.raises(SaeError, match="nothing was erased"):
        webui.generate(*CAT)


def test_every_batch_has_to_be_erased_itself(webui):
    class Silences:
        batches = 0

        def process_batch(self, p, *args, **kwargs):
            self.batches += 1
            if self.batches == 2:
                webui.callbacks.clear()
    with pytest.raises(SaeError, match="nothing was erased"):
        webui.run(Processing(script_args=CAT, scripts=(webui.script, Silences()), n_iter=2))


def test_3_6_and_3_7_forges_patch_lists_are_not_relied_on(forge, models):
    """reForge reads none of `add_block_modifier`; Forge replaces `forge_objects` by a copy before sampling."""
    script = forge.script

    class Resets:
        def process_batch(self, p, *args, **kwargs):
            forge.shared.sd_model.forge_objects = copy(forge.shared.sd_model.forge_objects)
    erased = forge.run(Processing(script_args=CAT, scripts=(script, Resets())))
    assert same(erased, by_hand(forge, models))


def test_an_abort_elsewhere_leaves_nothing_for_the_next_run(webui):
    """Postprocess is not called then."""
    plain, unet = webui.generate(use_script=False), unet_of(webui)
    handle = unet.out.register_forward_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        webui.generate(*CAT)
    handle.remove()
    assert not hookpoint.find(unet, BLOCK)._forward_hooks
    assert same(webui.generate(False), plain) and hooks(unet) == 0


@pytest.mark.parametrize("breaks", ["between the passes", "in the model"])
@pytest.mark.parametrize("args", [CAT, (True, "gone.safetensors", "cat")], ids=["fit", "refused"])
def test_after_a_run_that_broke_a_pass_without_scripts_is_left_alone(webui, breaks, args):
    """The Train tab paints previews and trains, some extensions paint: none of them calls our `process`."""
    plain, unet = webui.generate(use_script=False), unet_of(webui)
    handle = unet.register_forward_hook(lambda *a: 1 / 0) if breaks == "in the model" else None
    with pytest.raises((ZeroDivisionError, ValueError, SaeError)):
        webui.generate(*args, hires=True, upscales=False)
    if handle:
        handle.remove()
    x, t, context = torch.zeros(1, 4, 8, 8), torch.tensor([500.0]), torch.zeros(1, 77, 768)
    trained = unet(x, t, context=context)
    assert hooks(unet) == 0 and torch.equal(trained, unet(x, t, context=context))
    assert same(webui.generate(use_script=False), plain)
    assert same(webui.run(Processing()), plain)  # one that begins no job


def test_a_job_of_another_extension_in_the_middle_of_a_run_leaves_it_erased(webui, models):
    class Begins:
        def post_sample(self, p, ps, *args):
            webui.shared.state.begin("theirs")
    two = {"n_iter": 2}
    erased = webui.run(Processing(script_args=CAT, scripts=(webui.script, Begins()), **two))
    assert same(erased, by_hand(webui, models, **two))


@pytest.mark.parametrize("name", ["webui", "forge"])
def test_a_run_that_is_interrupted_before_its_first_step_blames_nobody(request, name, caplog):
    host = request.getfixturevalue(name)
    stopped = host.generate(*CAT, stops_at=0)
    assert texts(stopped) == "[]" and "SAEmnesia" not in caplog.text
    begun = host.generate(*CAT, stops_at=2)
    assert begun.infotexts[0]["SAEmnesia fired"] == "cat: in 2 of 2 steps"


def test_an_abort_after_sampling_leaves_no_hooks(webui):
    class Fails:
        def post_sample(self, p, ps, *args):
            ps.samples = SimpleNamespace()
    with pytest.raises(TypeError):
        webui.run(Processing(script_args=CAT, scripts=(webui.script, Fails())))
    assert hooks(unet_of(webui)) == 0


def test_a_host_that_announces_something_else_gives_no_picture(webui):
    """What the callback raises, the host swallows."""
    fire = webui.fire
    webui.fire = lambda kind, *values: fire(kind, SimpleNamespace(x=None, text_cond=5, denoiser=None))
    with pytest.raises(SaeError, match="SAEmnesia failed: TypeError"):
        webui.generate(*CAT)


def test_a_model_without_a_unet_gives_no_picture(webui):
    model = webui.shared.sd_model

    class Other(torch.nn.Module):
        def forward(self, x, t, context=None):
            return x
    webui.shared.sd_model = sd_model(Other())
    with pytest.raises(SaeError, match="works on SD 1.x, 2.x and SDXL so far; this model is a "):
        webui.generate(*CAT)
    webui.shared.sd_model = SimpleNamespace(model=SimpleNamespace(diffusion_model=Other().forward), sgm=False)
    with pytest.raises(SaeError, match="cannot find the UNet of this model"):
        webui.generate(*CAT)
    webui.shared.sd_model = model
    assert webui.generate(False).images


# --- several places ------------------------------------------------------------------------------------------


@pytest.fixture
def patched_forge(models):
    """Forge as it is: a UNet that asks `transformer_options` for patches (here ComfyUI's, from which it comes)."""
    torch.manual_seed(0)
    config = {**UNET_CONFIG, **{name: SMALL[name] for name in ("model_channels", "channel_mult",
                                                                           "num_heads")},
              "transformer_depth_middle": 1}
    unet = comfy_models.initialised(comfy_models.UNetModel(**config, operations=comfy.ops.disable_weight_init)).eval()
    with Webui(models, sd_model(unet.requires_grad_(False), forge=True), forge=True).installed() as host:
        yield host


def places_by_hand(host: Webui, models: Path, last: str = "to_out.1", **options):
    """The same run without the script: the core's Erasure of each place in a plain hook. A cross-attention is hooked
    after its last layer, which runs whoever attends."""
    now, handles = {}, []
    host.spy = lambda sigma, conditional: now.update(sigma=sigma)
    for block, edit in build_edits(LoadedSae.read(PLACES, models / "sae" / PLACES), "cat", Actuator.ABLATE):
        module, erasure = hookpoint.find(unet_of(host), block.hookpoint), Erasure([edit])
        module = module.get_submodule(last) if hookpoint.is_attention(block.hookpoint) else module
        handles.append(module.register_forward_hook(
            lambda module, inputs, output, erasure=erasure: erasure(output, now["sigma"]).out))
    try:
        return host.generate(use_script=False, **options)
    finally:
        for handle in handles:
            handle.remove()
        host.spy = lambda sigma, conditional: None


@pytest.mark.parametrize("options", [{}, CASES["AND"], CASES["long prompt"], CASES["hires"], CASES["Heun"]], ids=str)
@pytest.mark.parametrize("name", ["webui", "patched_forge"])
def test_a_concept_is_erased_at_every_place_of_its_file(request, models, name, options):
    host = request.getfixturevalue(name)
    erased = host.generate(True, PLACES, "cat", *BOTH, **options)
    assert same(erased, places_by_hand(host, models, **options)) and host.errors == []
    assert not same(erased, host.generate(use_script=False, **options))
    assert hooks(unet_of(host)) == 0


@pytest.mark.parametrize("name", ["webui", "patched_forge"])
def test_silence_and_strength_zero_at_every_place_are_bit_identical(request, name):
    host = request.getfixturevalue(name)
    plain = host.generate(use_script=False)
    assert same(host.generate(True, PLACES, "rocket"), plain)
    assert same(host.generate(True, PLACES, "cat:0, noto style:0"), plain)


def test_attention_that_a_forge_extension_replaces_is_erased(patched_forge, models, monkeypatch):
    """IP-Adapter: the module does not run then."""
    ran, unet = [], unet_of(patched_forge)
    theirs = {"attn2": {("output", 0): lambda q, k, v, extra: q * v.mean(1, keepdim=True)}}
    monkeypatch.setattr(unet, "forward", lambda x, t, context, transformer_options, forward=unet.forward: forward(
        x, t, context=context, transformer_options=transformer_options | {"patches_replace": theirs}))
    handle = unet.get_submodule("output_blocks.0.1.transformer_blocks.0.attn2").register_forward_hook(
        lambda *a: ran.append(1))
    erased = patched_forge.generate(True, PLACES, "cat", *BOTH)
    assert same(erased, places_by_hand(patched_forge, models)) and not ran
    handle.remove()


def test_attention_whose_class_is_replaced_is_erased(webui, models, monkeypatch):
    """What --opt-sdp-attention does in A1111: the class gets another forward."""
    kind = type(hookpoint.find(unet_of(webui), next(iter(hookpoint.cross_attentions(unet_of(webui))))))

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q, k, v = (layer(part).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for layer, part in ((self.to_q, x), (self.to_k, context), (self.to_v, context)))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out[1](self.to_out[0](out))
    monkeypatch.setattr(kind, "forward", forward)
    erased = webui.generate(True, PLACES, "cat", *BOTH)
    assert same(erased, places_by_hand(webui, models)) and webui.errors == []
    assert not same(erased, webui.generate(use_script=False))


def test_a_forge_that_hands_no_attention_on_gives_no_picture(forge):
    """A UNet that knows no patches."""
    refused(forge, True, PLACES, "cat", says="nothing was erased: block down_blocks.1.attentions.0.transformer_blocks.0"
            ".attn2, mid_block.attentions.0.transformer_blocks.0.attn2, .* and 1 more did not run")


def test_a_place_that_is_left_out_gives_no_picture(webui, monkeypatch):
    """An extension that skips one cross-attention."""
    block = unet_of(webui).get_submodule("output_blocks.0.1.transformer_blocks.0")
    monkeypatch.setattr(block, "forward", lambda x, context=None: x)
    refused(webui, True, PLACES, "cat",
            says=r"block up_blocks.0.attentions.0.transformer_blocks.0.attn2 did not run")


def test_the_summary_and_the_page_name_a_concept_once(webui, models, caplog):
    from saemnesia_webui import panel
    with caplog.at_level(logging.INFO, "saemnesia"):
        erased = webui.generate(True, PLACES, "cat, rocket")
    assert "steps in which a concept fired at any of 5 places, of 3: cat 3, rocket 0" in caplog.text
    assert erased.infotexts[0]["SAEmnesia concepts"] == "cat:1.0, rocket:1.0"
    assert panel.concept_list(models, [PLACES]).count('data-name="cat"') == 1


def test_where_no_file_is_chosen_the_sidebar_says_what_to_do(webui, models, tmp_path):
    from saemnesia_webui import panel
    nothing = panel.concept_list(tmp_path, [])
    assert "write a word above and press Find. Or download a published SAE below, or put a file into" in nothing
    assert "Choose one of 4 files" in panel.concept_list(models, [])


# --- life cycle (2.2) ----------------------------------------------------------------------------------------


def test_the_model_may_be_replaced_after_before_process(webui, models):
    new = sd_model(new_unet(3))
    erased = webui.generate(*CAT, loads=new)
    assert same(erased, by_hand(webui, models)) and webui.shared.sd_model is new


def test_the_same_modules_with_new_weights_stay_erased(webui, models):
    webui.generate(*CAT)
    unet_of(webui).load_state_dict(new_unet(4).state_dict())
    assert same(webui.generate(*CAT), by_hand(webui, models))


def test_the_picture_says_in_how_many_steps_each_concept_was_there(webui):
    said = webui.generate(True, SAE, "cat, rocket").infotexts[0]["SAEmnesia fired"]
    assert said == "cat: in 3 of 3 steps, rocket: in none"


def test_a_swap_is_painted_written_and_read_again(webui, models):
    swapped = webui.generate(True, SAE, "cat:0.5 -> Rocket")
    assert swapped.infotexts[0]["SAEmnesia fired"] == "cat -> rocket: in 3 of 3 steps"
    assert not same(swapped, webui.generate(True, SAE, "cat:0.5"))
    read_back = pasted(webui, models, swapped.infotexts[0])
    assert read_back["concepts"] == "cat:0.5 -> Rocket"
    assert same(webui.generate(read_back), swapped)


def test_infotext_is_written_after_the_erasure_and_not_before(webui):
    class Looks:
        seen = []

        def process_batch(self, p, *args, **kwargs):
            self.seen.append(dict(p.extra_generation_params))
    p = Processing(script_args=CAT, scripts=(webui.script, Looks()))
    erased = webui.run(p)
    assert Looks.seen == [{}] and erased.infotexts[0]["SAEmnesia actuator"] == "ablate"
    p.script_args = (False,)
    assert texts(webui.run(p)) == "[]"  # a script that runs the same object again


def test_the_hires_pass_can_be_left_alone(webui, models):
    erased = webui.generate({"sae": SAE, "concepts": "cat", "apply_to": "both", "hires": False}, hires=True)
    assert same(erased, by_hand(webui, models, up_to=4, hires=True))
    assert erased.infotexts[0]["SAEmnesia hires"] is False
    assert not same(erased, webui.generate(*CAT, hires=True))


@pytest.mark.parametrize("hires", [True, False])
def test_the_picture_before_the_hires_pass_says_what_was_erased(webui, hires):
    erased = webui.generate({"sae": SAE, "concepts": "cat", "hires": hires}, hires=True)
    [before] = erased.before_hires
    assert before["SAEmnesia concepts"] == "cat:1.0" and before["SAEmnesia fired"] == "cat: in 3 of 3 steps"
    assert set(before) == set(erased.infotexts[0])
    [off] = webui.generate(False, hires=True).before_hires
    [missed] = webui.generate({"sae": SAE, "concepts": "cat", "start": 0.98, "end": 0.99}, hires=True).before_hires
    assert off == missed == {}


def test_a_hires_pass_alone_that_is_to_be_left_alone_is_no_error(webui):
    alone = {"hires": True, "first": False}
    left = webui.generate({"sae": SAE, "concepts": "cat", "hires": False}, **alone)
    assert same(left, webui.generate(False, **alone)) and texts(left) == "[]"


def test_reloading_the_page_removes_hooks_and_adds_no_axis_twice(webui):
    webui.module.ERASER.arm(webui.module.Job.prepare(webui.module.settings.read(CAT), webui.models), Processing())
    webui.fire("cfg_denoiser", SimpleNamespace(x=torch.zeros(2, 4, 8, 8), text_cond=torch.zeros(1, 77, 768),
                                               denoiser=None))
    assert hooks(unet_of(webui)) == 2
    labels = [axis.label for axis in webui.grid.axis_options]
    webui.reload()
    webui.fire("before_ui")
    assert hooks(unet_of(webui)) == 0
    assert [axis.label for axis in webui.grid.axis_options] == labels
    assert labels == [f"[SAEmnesia] {name}" for name in ("concepts", "strength", "actuator", "SAE")]


def test_the_script_answers_to_its_name(webui):
    assert webui.script.title() == "SAEmnesia"
    assert webui.script.show(False) is webui.script.show(True) is not None


def test_the_log_says_when_a_concept_fired(webui, caplog):
    with caplog.at_level(logging.INFO, "saemnesia"):
        webui.generate(True, SAE, "cat, rocket")
    assert "SAEmnesia: steps in which a concept fired, of 3: cat 3, rocket 0" in caplog.text


# --- what moves, casts and replaces (2.6) --------------------------------------------------------------------


def test_modules_that_are_moved_by_hooks_are_erased_alike(webui, models):
    """--lowvram and --medvram: a forward pre-hook of every block brings it to the device."""
    wanted = by_hand(webui, models)
    unet = unet_of(webui)
    handles = [block.register_forward_pre_hook(lambda module, args: module.to("cpu") and None)
               for block in (unet, *unet.input_blocks, unet.middle_block, *unet.output_blocks)]
    assert same(webui.generate(*CAT), wanted)
    assert hooks(unet) == len(handles)


def test_under_autocast_the_edit_is_still_computed_in_full_precision(webui, models):
    webui.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    kinds = []
    erasure = Erasure.__call__

    def spy(self, x, *args):
        kinds.append(torch.is_autocast_enabled("cpu"))
        return erasure(self, x, *args)
    Erasure.__call__ = spy
    try:
        webui.generate(*CAT)
    finally:
        Erasure.__call__ = erasure
    assert kinds == [False] * 3


def test_attention_blocks_of_another_class_are_found(webui, models):
    """ToMe gives the transformer blocks a class of its own; Forge has classes of its own for all."""
    for module in unet_of(webui).modules():
        if type(module).__name__ in ("BasicTransformerBlock", "SpatialTransformer"):
            module.__class__ = type("Other", (type(module),), {})
    assert same(webui.generate(*CAT), by_hand(webui, models))


def test_attention_that_is_replaced_while_sampling_is_erased(webui, models):
    """HyperTile wraps the attention inside the block, so the edit comes after it."""
    for module in unet_of(webui).modules():
        if hasattr(module, "attn1"):
            module.attn1.forward = lambda *a, forward=module.attn1.forward, **k: 0.5 * forward(*a, **k)
    assert same(webui.generate(*CAT), by_hand(webui, models))


def test_a_second_hook_on_the_block_stays(webui, models):
    seen = []
    handle = hookpoint.find(unet_of(webui), BLOCK).register_forward_hook(lambda *a: seen.append(1))
    webui.generate(*CAT)
    assert len(seen) == 3 and hooks(unet_of(webui)) == 1
    handle.remove()


# --- X/Y/Z plot ----------------------------------------------------------------------------------------------


def test_axes_win_over_the_sidebar_and_stay_in_their_cell(webui):
    axes = {axis.label.removeprefix("[SAEmnesia] "): axis for axis in webui.grid.axis_options}

    def cell(args, **values):
        p = copy(Processing(scripts=(webui.script,), script_args=args))
        for name, value in values.items():
            axes[name].apply(p, value, [])
        return webui.run(p)
    assert same(cell((False, SAE), concepts="cat"), webui.generate(True, SAE, "cat"))
    assert same(cell(CAT, strength=0.0), webui.generate(False))
    assert same(cell((True, SAE, "dog, cat:0.3"), strength=0.5), webui.generate(True, SAE, "dog:0.5, cat:0.5"))
    assert same(cell((True, SAE, "cat"), actuator="steer", strength=-2.0), webui.generate(True, SAE, "cat:-2", "steer"))
    assert same(cell((True, SAE, "cat -> dog"), strength=0.5), webui.generate(True, SAE, "cat:0.5 -> dog"))
    assert same(cell((True, "", "cat"), SAE=SAE), webui.generate(True, SAE, "cat"))
    assert same(cell((False, SAE)), webui.generate(False))
    with pytest.raises(SaeError, match="no concept 'catt'"):
        cell((False, SAE), concepts="catt")


@pytest.mark.parametrize(("axis", "values", "says"), [
    ("concepts", ["cat", "catt"], "sae has no concept 'catt'; nearest: cat"),
    ("concepts", ["cat", "cat:much"], "is not a strength"), ("concepts", ["cat", ""], "no concept is chosen"),
    ("strength", [0.5, 101.0], "expected a strength of -100 to 100, got 101"),
    ("strength", [float("nan")], "expected a strength"),
    ("actuator", ["steer", "blur"], "one of amount, ablate, steer, replace, thorough, got 'blur'"),
    ("SAE", [SAE, "gone.safetensors"], "there is no SAE 'gone.safetensors'"),
])
def test_a_slip_in_a_plot_is_said_before_it_starts(webui, axis, values, says):
    [confirm] = [one.confirm for one in webui.grid.axis_options if one.label == f"[SAEmnesia] {axis}"]
    with pytest.raises(SaeError, match=says):
        confirm(Processing(), values)


def test_a_plot_takes_what_fits_and_file_names_with_commas(webui, more):
    confirm = {one.label.removeprefix("[SAEmnesia] "): one.confirm for one in webui.grid.axis_options}
    for axis, values in (("concepts", ["cat", "Dog:0.5, fox", "#3"]), ("strength", [0.0, 1.0, -3.0]),
                         ("actuator", ["ablate", "replace"])):
        confirm[axis](Processing(), values)
    for apart in (["fox", "and cat.safetensors", SAE], [f"'{more}'", f'"{SAE}"'], [more, SAE]):
        confirm["SAE"](Processing(), apart)
        assert apart == [more, SAE]


# --- several files -------------------------------------------------------------------------------------------


@pytest.fixture
def more(models) -> Iterator[str]:
    """A second file at the block of the first, whose name holds a comma; only it has the fox."""
    name = "fox, and cat.safetensors"
    parts = Table((Concept("fox", (0,)), Concept("cat", (1,))),
                  Rows(torch.randn(2, 64, generator=torch.Generator().manual_seed(5)) / 8, torch.zeros(2),
                       torch.randn(2, 64, generator=torch.Generator().manual_seed(6)) / 8,
                       Statistics((1.0,), torch.zeros(2, 1), torch.ones(2, 1))))
    add(models / "sae" / name, [(Header(SaeConfig(64, 2, 2), BLOCK, "sd15"), parts)])
    yield name
    (models / "sae" / name).unlink()


@pytest.mark.parametrize("name", ["webui", "forge"])
def test_concepts_of_several_files_are_erased_in_one_run(request, models, more, name):
    host = request.getfixturevalue(name)
    edits = [build_edits(LoadedSae.read(file, models / "sae" / file), text, Actuator.AMOUNT)[0][1]
             for file, text in ((SAE, "cat"), (more, "fox:0.5"))]
    erasure, now = Erasure(edits), {}
    host.spy = lambda sigma, conditional: now.update(sigma=sigma)
    handle = hookpoint.find(unet_of(host), BLOCK).register_forward_hook(
        lambda module, inputs, output: erasure(output, now["sigma"], None).out)
    wanted = host.generate(use_script=False)
    handle.remove()
    both = host.generate({"sae": f"{SAE}, {more}", "concepts": "cat, fox:0.5", "apply_to": "both"})
    assert same(both, wanted) and not same(both, host.generate(*CAT)) and host.errors == []
    assert same(host.generate(True, [SAE, more], "fox:0.5, cat", "amount", *BOTH[1:]), wanted)
    assert same(host.generate(True, [SAE, more], "cat -> fox"), host.generate(True, more, "cat -> fox"))
    assert both.infotexts[0]["SAEmnesia fired"] == "cat: in 3 of 3 steps, fox: in 3 of 3 steps"
    read_back = pasted(host, models, both.infotexts[0])
    assert (read_back["sae"], read_back["concepts"]) == ([SAE, more], "cat:1.0, fox:0.5")


def test_a_slip_with_several_files_names_them_all(webui, more):
    refused(webui, {"sae": [SAE, more], "concepts": "foxx"},
            says=f"{SAE}, {more} has no concept 'foxx'; nearest: fox")
    refused(webui, {"sae": [SAE, more], "concepts": "dog -> foxx"}, says="no concept 'foxx'; nearest: fox")
    refused(webui, {"sae": [SAE, more], "concepts": "dog -> fox"},
            says="'dog' and 'fox' are in different files, and a swap needs both in one")
    refused(webui, {"sae": [SAE, "gone.safetensors"], "concepts": "cat"}, says=r"no SAE 'gone.safetensors'")
    refused(webui, {"sae": [SAE, "folder/sdxl.safetensors"], "concepts": "cat"}, says="is for SDXL, and this model is")


# --- a GPU ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forge", [False, True])
def test_a_call_on_a_gpu_never_waits_for_it(webui, forge):
    """Its noise level is a timestep in A1111 and a sigma in Forge; the UNet here is nothing but the SAE's block."""
    from saemnesia_webui import model
    levels, block = model.noise_levels(webui.shared.sd_model), torch.nn.Identity()
    job = webui.module.Job.prepare(webui.module.settings.read(({"sae": SAE, "concepts": "cat", "start": 0.1},)),
                                   webui.models)
    job.announce(webui.shared.sd_model)
    job.fitted.modules = {place: block for place in job.fitted.modules}
    webui.module.ERASER.arm(job, Processing())
    unet = torch.nn.Module()
    unet.forward = lambda x, t, transformer_options=None: block(x)
    webui.module.ERASER._attach(unet)
    with Devices() as devices, torch.no_grad():
        for timestep in (999.0, 500.5, 0.0):
            x, t = devices.put(torch.randn(2, 64, 6, 6)), devices.put(torch.full((2,), timestep))
            options = {"sigmas": devices.put(torch.full((2,), sigma_at(timestep)))} if forge else None
            unet(x, t, transformer_options=options)
            if timestep == 999.0:
                devices.waits.clear()  # the rows go there once
        assert devices.waits == []
    seen = [*job.tally.levels()]
    assert seen == pytest.approx([levels.sigma(timestep) for timestep in (999.0, 500.5, 0.0)], rel=1e-5)


# --- another checkpoint --------------------------------------------------------------------------------------


def test_a_file_of_another_checkpoint_says_so_and_erases(webui, models, caplog):
    from saemnesia_webui import panel
    for name, weights, said in (
            ("small v1", "", ""), ("Other", "", "made.safetensors was made on Other, and this is small v1: it may"),
            ("small v1", "fp32 0123", "made.safetensors was made on a model with other weights than this one")):
        write_sae(models / "sae" / "made.safetensors", d_in=64, made_on=name, made_of=weights)
        try:
            erased = webui.generate(True, "made.safetensors", "cat")
            assert same(erased, webui.generate(True, SAE, "cat"))
            assert said in " ".join(erased.comments) and bool(erased.comments) is bool(said)
            assert (said[:30] in caplog.text) is True and (said[21:40] in caplog.text) is True
            assert bool(said) or "was made on" not in caplog.text
            assert ("fits the loaded checkpoint" in panel.concept_list(models, ["made.safetensors"])) is not bool(said)
            assert said[17:] in panel.concept_list(models, ["made.safetensors"])
        finally:
            (models / "sae" / "made.safetensors").unlink()


# --- infotext ------------------------------------------------------------------------------------------------


def pasted(webui, models, params: dict) -> dict:
    from saemnesia_webui import infotext, settings
    return {name: infotext.reader(name, models)(params) for name in settings.DEFAULTS}


def test_pasted_text_restores_every_setting(webui, models):
    asked = {"sae": SAE, "concepts": "Cat, dog:0.25", "actuator": "replace", "start": 0.1, "end": 0.9,
             "apply_to": "both", "hires": False, "hookpoint": BLOCK}
    written = webui.generate(asked).infotexts[0]
    read_back = pasted(webui, models, {key: str(value) for key, value in written.items()})
    assert read_back == asked | {"enabled": True, "sae": [SAE], "concepts": "Cat:1.0, dog:0.25", "map": None}
    short = webui.generate(True, SAE, "cat").infotexts[0]
    assert set(short) == {"SAEmnesia sae", "SAEmnesia concepts", "SAEmnesia actuator", "SAEmnesia fired"}
    assert pasted(webui, models, short)["hires"] is True


def test_what_is_written_can_be_read_by_the_hosts(webui):
    """They split `Key: value, Key: "quoted, value"`, and know a key by this pattern."""
    from saemnesia_webui import infotext
    assert all(re.fullmatch(r"\w[\w \-/]+", key) for key in infotext.KEYS)
    written = webui.generate(True, SAE, "cat, noto style").infotexts[0]
    assert set(written) <= set(infotext.KEYS)
    assert all(isinstance(value, str | float | bool) and "\n" not in str(value) for value in written.values())


def test_text_without_an_erasure_switches_erasing_off_and_leaves_the_rest(webui, models):
    values = pasted(webui, models, {"Steps": "20"})
    assert values.pop("enabled") is False and set(values.values()) == {None}


def test_the_hash_is_that_of_the_file_and_another_file_is_noticed(webui, models, caplog):
    written = webui.generate(*CAT).infotexts[0]["SAEmnesia sae"]
    assert written == f"{SAE} [{short_hash(models / 'sae' / SAE)}]"
    assert pasted(webui, models, {"SAEmnesia sae": f"{SAE} [0123456789]"})["sae"] == [SAE]
    assert "made with another animals.safetensors (0123456789)" in caplog.text


def test_files_below_the_folder_are_listed_and_none_beside_it(webui, models):
    from saemnesia_webui import files
    (models / "sae" / "animals.activations").mkdir()
    (models / "sae" / "animals.activations" / "maps-00000.safetensors").touch()
    assert files.names(models) == ["animals.safetensors", "folder/sdxl.safetensors", PLACES, VOTERS]
    assert files.names(models / "nowhere") == []


@pytest.mark.parametrize(("setting", "text"), [
    ("start", "abc"), ("start", "nan"), ("end", "7"), ("actuator", "explode"), ("apply_to", ""),
])
def test_a_pasted_value_that_is_none_leaves_the_rest_of_the_text(webui, models, caplog, setting, text):
    from saemnesia_webui import infotext, settings
    given = {"SAEmnesia sae": SAE, "SAEmnesia concepts": "cat", infotext.key(setting): text}
    read_back = pasted(webui, models, given)
    assert read_back == settings.DEFAULTS | {"enabled": True, "sae": [SAE], "concepts": "cat", "map": None}
    assert f"'{infotext.key(setting)}' of the pasted text is left out" in caplog.text


def test_a_new_file_is_hashed_once_however_many_ask(webui, models, monkeypatch):
    path, reads = models / "sae" / "new.safetensors", []
    path.write_bytes(bytes(10**6))
    real = hashing.hashlib.sha256

    def slowly():
        reads.append(1)
        time.sleep(0.2)
        return real()
    monkeypatch.setattr(hashing.hashlib, "sha256", slowly)
    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(short_hash, [path] * 50))) == 1
    path.unlink()
    assert len(reads) == 1


def test_a_file_whose_name_is_no_text_is_not_listed(webui, models):
    """Some hosts could not answer at all with it among the names."""
    from saemnesia_webui import files
    odd = os.fsencode(models / "sae") + b"/odd\xff.safetensors"
    with open(odd, "wb"):
        assert not [name for name in files.names(models) if "odd" in name]
    os.unlink(odd)

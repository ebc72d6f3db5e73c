"""*Show where the concepts are* in A1111 and Forge without a host: the pictures that it adds to those of a run, in the
stand-in (fake_webui.py) with the real UNet of `ldm`; and on a drawn scene, whose things are at known places."""
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fake_webui import Processing, Webui, hooks, sd_model, sigma_at, unet_of
from PIL import Image, ImageDraw
from small_model import write_sae
from webui_model import UNET, random_unet

from benchmarks.minicanvas.canvas import Spot, drawings, ground, put
from benchmarks.minicanvas.icons import OBJECTS, STYLES
from sae_models import SaeError, concept_map, hookpoint
from sae_models.adapter import Block, LoadedSae
from tools.comfy_host import COMFY

SMALL = UNET | {"model_channels": 32, "channel_mult": [1, 2], "num_heads": 2}
SAE, BLOCK = "animals.safetensors", Block("up_blocks.0.attentions.1", False)
LATE, MAP = (999.0, 500.0, 30.0, 0.0), {"enabled": False, "sae": SAE, "concepts": "cat, rocket", "map": True}
ERASED = MAP | {"enabled": True, "concepts": "cat:-100, rocket:-100", "actuator": "steer"}
CASES = {
    "late": {"timesteps": LATE}, "few steps": {}, "batch": {"prompts": [[1], [2]], "timesteps": LATE},
    "AND": {"prompts": [[1, 3], [2, 4]], "timesteps": LATE}, "two batches": {"n_iter": 2},
    "long prompt": {"tokens": (154, 77), "prompts": [[1], [2]]}, "NGMS": {"cond_only_above": 0.0, "timesteps": LATE},
    "split AND": {"prompts": [[1, 3], [2, 4]], "batch_cond_uncond": False}, "wide": {"size": (4, 12)},
    "hires": {"hires": True, "timesteps": LATE}, "Heun": {"evaluations": 2, "timesteps": LATE},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_sae(folder / "sae" / SAE, d_in=64)
    write_sae(folder / "sae" / "sdxl.safetensors", d_in=64, base="sdxl")
    return folder


@pytest.fixture(params=["a1111", "sdxl", "forge"])
def any_host(request, models) -> Iterator[Webui]:
    forge = request.param == "forge"
    torch.manual_seed(0)
    loaded = sd_model(random_unet(SMALL), forge=forge, sgm=request.param == "sdxl")
    with Webui(models, loaded, forge=forge, beside=request.param != "a1111").installed() as host:
        yield host


def all_of(made) -> list[Image.Image]:
    """What the page shows."""
    return [*made.images, *getattr(made, "extra_images", ())]


@pytest.fixture
def webui(models) -> Iterator[Webui]:
    torch.manual_seed(0)
    with Webui(models, sd_model(random_unet(SMALL))).installed() as host:
        yield host


class Shown(NamedTuple):
    """A map, whose it is, and the picture below it."""
    name: str
    map: torch.Tensor
    picture: Image.Image


def maps_of(host: Webui, monkeypatch) -> list[Shown]:
    """What the next runs lay over their pictures, in order."""
    shown, over = [], host.module.heat.over

    def spy(picture, one, name, *rest):
        shown.append(Shown(name, one, picture))
        return over(picture, one, name, *rest)
    monkeypatch.setattr(host.module.heat, "over", spy)
    return shown


def recorded(host: Webui, monkeypatch) -> list[list[tuple]]:
    """Each evaluation's calls of the UNet from now on: (latents, timestep, texts, which rows are conditional)."""
    seen, evaluate, call = [], host._evaluate, host._unet
    monkeypatch.setattr(host, "_evaluate", lambda *a: seen.append([]) or evaluate(*a))
    monkeypatch.setattr(host, "_unet", lambda x, t, context, conditional, kinds: seen[-1].append(
        (x, t, context, conditional)) or call(x, t, context, conditional, kinds))
    return seen


def by_hand(host: Webui, evaluation: list[tuple], prompts: list) -> list[torch.Tensor]:
    """Maps [2, h, w] of the pictures of an evaluation: each row alone, at 0.95 of sampling, read at the block."""
    sae = LoadedSae.read(SAE, host.models / "sae" / SAE)
    readers = concept_map.readers(sae, ["cat", "rocket"])
    rows = [(x[i], t, context[i]) for x, t, context, kinds in evaluation for i in kinds.nonzero()[:, 0].tolist()]
    owners = [i for i, texts in enumerate(prompts) for _ in texts]
    owners = owners if not host.forge else list(range(len(prompts))) * len(prompts[0])
    found = [[] for _ in prompts]
    for owner, (x, t, context) in zip(owners, rows, strict=True):
        at, noise = max(t, 49.95), torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        low, high = sigma_at(t), sigma_at(at)
        noised = (x * (1 + low ** 2) ** 0.5 + (high ** 2 - low ** 2) ** 0.5 * noise) / (1 + high ** 2) ** 0.5
        sight = concept_map.Sight(readers, 1, *x.shape[1:])
        hook = hookpoint.find(unet_of(host), BLOCK.hookpoint).register_forward_hook(
            lambda module, inputs, output, sight=sight, high=high: sight.see(BLOCK, output, high, 1))
        with torch.no_grad():
            unet_of(host)(noised[None], torch.tensor([at]), context=context[None])
        hook.remove()
        found[owner].append(sight.maps(["cat", "rocket"])[:, 0])
    return [torch.stack(parts).amax(0) for parts in found]


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_maps_are_those_of_a_late_look_in_every_arrangement_of_rows(any_host, monkeypatch, options):
    """And of a model that does not erase, where something is erased."""
    prompts, hires = options.get("prompts", [[1]]), options.get("hires", False)
    for asked in (MAP, ERASED):
        evaluations, shown = recorded(any_host, monkeypatch), maps_of(any_host, monkeypatch)
        any_host.generate(asked, decoded=True, **options)
        batches = options.get("n_iter", 1)
        size = len(evaluations) // batches
        wanted = []
        for start in range(0, len(evaluations), size):
            calls = evaluations[start:start + size][size // 2 if hires else 0:]
            looked = next((one for one in calls if one[0][1] <= 49.95), calls[-1])
            wanted += by_hand(any_host, looked, prompts)
        assert [one.name for one in shown] == ["cat", "rocket"] * len(wanted) and any_host.errors == []
        torch.testing.assert_close(torch.stack([one.map for one in shown]), torch.cat(wanted), rtol=1e-3, atol=1e-3)
        assert shown[0].map.any() and hooks(unet_of(any_host)) == 0
        monkeypatch.undo()


def test_the_pictures_stay_what_they_were_and_the_maps_come_behind_them_with_their_texts(any_host):
    options = {"decoded": True, "grid": True, "prompts": [[1], [2]], "n_iter": 2, "timesteps": LATE}
    for off in ({"enabled": False}, ERASED | {"map": False}):
        plain, mapped = (any_host.generate(MAP | off | {"map": wanted}, **options) for wanted in (False, True))
        shown = all_of(mapped)
        assert len(all_of(plain)) == 5 and len(shown) == 5 + 4 * 2
        assert shown[:5] == plain.images and mapped.infotexts[:5] == plain.infotexts
        assert not any_host.beside or mapped.images == plain.images  # a script that puts pictures together has no maps
        assert len(mapped.infotexts) == 13 and mapped.index_of_first_image == 1 and mapped.comments == []
        assert all(one.size == (64, 64) and one.info["parameters"] is text
                   for one, text in zip(shown[5:], mapped.infotexts[5:], strict=True))
        assert [np.ptp(np.asarray(one, int), axis=2).max() > 60 for one in shown[5:]] == [True, False] * 4


@pytest.mark.parametrize("options", [{}, {"timesteps": LATE}, {"hires": True, "timesteps": LATE}])
def test_it_costs_one_pass_of_the_prompts_rows_and_nothing_where_it_is_not_asked_for(any_host, options):
    rows = []
    hookpoint.find(unet_of(any_host), BLOCK.hookpoint).register_forward_hook(
        lambda module, inputs, output: rows.append(len(output)))
    counts = []
    for asked in ((), MAP | {"map": False}, MAP):
        rows.clear()
        any_host.generate(*[asked] if asked else (), decoded=True, **options)
        counts.append(sum(rows))
    assert counts[0] == counts[1] == counts[2] - 1


def test_with_nothing_ticked_it_shows_what_is_heard_strongest_first(webui, monkeypatch):
    shown = maps_of(webui, monkeypatch)
    webui.generate(MAP | {"concepts": ""}, decoded=True)
    assert {one.name for one in shown} == {"cat", "dog", "noto style"}
    peaks = [float(one.map.max()) for one in shown]
    assert peaks == sorted(peaks, reverse=True)


# --- a map that fails is no reason to lose the picture -----------------------------------------------------------


def lacks_maps(host: Webui, asked: dict, says: str, **options) -> None:
    plain = host.generate(decoded=True, **options)
    made = host.generate(asked, decoded=True, **options)
    assert all_of(made) == plain.images and len(made.infotexts) == len(plain.infotexts)
    [said] = made.comments
    assert said.startswith("SAEmnesia: no map of where the concepts are: ") and says in said, said
    assert hooks(unet_of(host)) == 0 and host.errors == []


@pytest.mark.parametrize(("changes", "says"), [
    ({"concepts": "catt"}, "has no concept 'catt'; nearest: cat"), ({"sae": ""}, "no file is chosen"),
    ({"sae": 5}, "expected text for 'sae', got 5"),
    ({"sae": "sdxl.safetensors"}, "is for SDXL, and this model is SD 1.x"),
    ({"concept": "cat"}, "no setting 'concept'; did you mean 'concepts'"),
])
def test_a_slip_is_one_sentence_below_the_picture(webui, changes, says):
    lacks_maps(webui, MAP | changes, says, n_iter=2)


def test_tiles_are_refused_in_a_sentence_and_an_error_of_the_model_too(webui, monkeypatch):
    lacks_maps(webui, MAP, "no call of the model saw the whole picture", tiles=2, batch_cond_uncond=False)
    module = webui.module.looking
    monkeypatch.setattr(module.Call, "again", lambda *a: 1 / 0)
    lacks_maps(webui, MAP, "SAEmnesia failed: ZeroDivisionError")


def test_a_replaced_model_is_refused_in_a_sentence(webui, monkeypatch):
    monkeypatch.setattr(type(unet_of(webui)), "forward", lambda self, x, *a, **k: x)
    lacks_maps(webui, MAP, "where cat, rocket is: no place of the model")


def test_what_cannot_be_erased_still_stops_the_run(webui):
    with pytest.raises(SaeError, match="has no concept 'catt'"):
        webui.generate(ERASED | {"concepts": "catt"}, decoded=True)


@pytest.mark.parametrize("stops_at", [0, 2])
def test_an_interrupted_run_has_no_map_and_no_complaint(webui, stops_at):
    made = webui.generate(MAP, decoded=True, stops_at=stops_at)
    assert len(all_of(made)) == 1 and made.comments == [] and hooks(unet_of(webui)) == 0


def test_nothing_stays_of_a_run_that_broke(webui, monkeypatch):
    plain = webui.generate(decoded=True)
    with pytest.raises(ValueError, match="no such upscaler"):
        webui.generate(MAP, decoded=True, hires=True, upscales=False)
    webui.shared.state.begin("something else")
    with torch.no_grad():  # a training step, announced to nobody
        unet_of(webui)(torch.zeros(1, 4, 8, 8), torch.zeros(1), context=torch.zeros(1, 77, 768))
    assert hooks(unet_of(webui)) == 0 and webui.generate(decoded=True).images == plain.images


# --- beside other extensions, and in inpainting --------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
def test_beside_adetailer_each_picture_has_its_own_map(webui, monkeypatch, named):
    shown = maps_of(webui, monkeypatch)
    options = {"decoded": True, "prompts": [[1], [2]], "n_iter": 2, "timesteps": LATE}
    webui.generate(MAP, **options)
    wanted = [one.map for one in shown]
    made = webui.generate(MAP, inner=True, inner_scripts=named, **options)
    assert len(wanted) == 8 and len(all_of(made)) == 4 + 8 and webui.errors == made.comments == []
    assert all(torch.equal(one.map, other) for one, other in zip(shown[-8:], wanted, strict=True))


def test_a_script_that_paints_twice_with_the_same_request_gets_the_maps_of_each(webui, monkeypatch):
    shown, p = maps_of(webui, monkeypatch), Processing(script_args=(MAP,), scripts=(webui.script,), decoded=True)
    for seed in (1, 2):
        p.seeds = (seed,)
        webui.run(p)
    first, second = (one.map for one in shown if one.name == "cat")
    assert not torch.equal(first, second)


def test_a_batch_that_is_skipped_has_no_map_and_the_next_one_its_own(webui, monkeypatch):
    class Skips:
        def process_batch(self, p, *args, **kwargs):
            webui.shared.state.skipped = not webui.shared.state.skipped
    shown = maps_of(webui, monkeypatch)
    made = webui.run(Processing(script_args=(MAP,), scripts=(Skips(), webui.script), decoded=True, n_iter=2))
    assert len(all_of(made)) == 2 + 2 and made.comments == []
    assert all(one.picture is made.images[1] for one in shown)


def test_pictures_of_masks_stay_between_the_pictures_and_have_no_map(webui, monkeypatch):
    shown = maps_of(webui, monkeypatch)
    webui.shared.opts.return_mask = True
    mask = Image.new("RGB", (64, 64), "red")
    made = webui.generate(MAP, decoded=True, prompts=[[1], [2]], mask_for_overlay=mask)
    assert made.images[1] is mask and made.images[3] is mask and len(all_of(made)) == 4 + 4
    assert len(made.infotexts) == 8
    assert [made.images.index(one.picture) for one in shown] == [0, 0, 2, 2]


def test_of_what_was_painted_of_a_larger_picture_the_map_lies_where_it_was(webui):
    picture = Image.new("RGB", (80, 48), "white")
    one = torch.full((4, 4), 2.0)
    made = np.asarray(webui.module.heat.over(picture, one, "", webui.module.host.font, (30, 20, 40, 20)), int)
    hot = np.ptp(made, axis=2) > 60
    assert hot[22:38, 32:68].all() and not hot[:, :30].any() and not hot[:, 70:].any() and not hot[40:].any()


@pytest.mark.parametrize(("side", "says"), [(512, "cat: 100% of the picture"), (96, "cat")])
def test_on_a_small_picture_stands_the_name_alone(webui, monkeypatch, side, says):
    written, draw = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, *args, **kw: (
        written.append(text), draw(self, at, text, *args, **kw)))
    webui.module.heat.over(Image.new("RGB", (side, side)), torch.ones(12, 12), "cat", webui.module.host.font)
    assert written == [says]


def test_an_inpainting_models_other_channels_stay_clean(webui):
    looking, x = webui.module.looking, torch.randn(1, 9, 4, 4)
    call, sigma = looking.noisier(looking.Call(unet_of(webui), (x, torch.zeros(1)), {}),
                                  looking.noise_levels(webui.shared.sd_model))
    assert torch.equal(call.args[0][:, 4:], x[:, 4:]) and not torch.equal(call.args[0][:, :4], x[:, :4])
    assert sigma == pytest.approx(sigma_at(49.95), rel=1e-5)


# --- on a drawn scene ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minicanvas() -> SimpleNamespace:
    """The checkpoint as Forge would have loaded it, and its VAE."""
    import comfy.sd
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
        str(COMFY / "models" / "checkpoints" / "minicanvas.safetensors"))

    def encode(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([clip.encode_from_tokens(clip.tokenize(text)) for text in texts]).float()
    loaded = sd_model(model.model.diffusion_model.float(), forge=True, encode=encode)
    return SimpleNamespace(model=loaded, vae=vae, process_in=model.model.process_latent_in)


def test_the_cat_of_a_drawn_scene_is_where_the_map_is_hot(minicanvas, monkeypatch):
    canvas, cat, castle = ground(1)[:, :1, :1].expand(3, 96, 152).clone(), Spot(8, 24, 60), Spot(84, 30, 60)
    for name, spot in (("cat", cat), ("castle", castle)):
        put(canvas, drawings()[STYLES.index("noto"), OBJECTS.index(name)], spot)
    latents = minicanvas.process_in(minicanvas.vae.encode(canvas.movedim(0, -1)[None])).float()
    with Webui(COMFY / "models", minicanvas.model, forge=True).installed() as host:
        monkeypatch.setattr(host, "_pass", lambda p, batch, size: (host._evaluate(p, latents, 0.0), latents)[1])
        shown = maps_of(host, monkeypatch)
        host.generate({"enabled": False, "sae": "minicanvas.safetensors", "concepts": "cat, rose", "map": True},
                      decoded=True, prompts=[["a castle and a cat, noto style, on a blue ground"]])
    share = concept_map.mask(concept_map.shares(torch.stack([one.map for one in shown]), 96, 152), 0.5)
    inside = share[0, cat.top:cat.top + cat.size, cat.left:cat.left + cat.size].sum() / share[0].sum()
    assert inside > 0.85 and not share[1].any()

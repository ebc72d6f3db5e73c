"""The extension in a real A1111 or Forge: `WEBUI_PATH=... make test-webui` with a checkout of one."""
import base64
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from small_model import write_sae
from webui_host import WebuiError, WebuiHost
from webui_model import DEEP_UNET, SAE, SDXL_SAE, write_checkpoint, write_models

CHECKOUT = os.environ.get("WEBUI_PATH", "")
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="NO REAL A1111 OR FORGE: set WEBUI_PATH to a checkout of one")
TOKENIZER = Path(__file__).resolve().parents[2] / ".host" / "ComfyUI" / "comfy" / "sd1_tokenizer"
CAT = {"sae": SAE, "concepts": "cat"}
IS_FORGE = (Path(CHECKOUT) / "modules_forge").is_dir()
HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
if IS_FORGE:
    HIRES["hr_additional_modules"] = ["Use same choices"]  # Forge fails without, in its API


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("webui") / "models"
    write_models(folder, TOKENIZER)
    write_sae(folder / "sae" / "z-wide.safetensors", d_in=1280)
    (folder / "adetailer").mkdir()
    (folder / "adetailer" / "box.pt").touch()
    (folder / "sae" / "z-cut.safetensors").write_bytes((folder / "sae" / SAE).read_bytes()[:-5])
    return folder


@pytest.fixture(scope="module")
def host(models) -> Iterator[WebuiHost]:
    with WebuiHost(Path(CHECKOUT), models) as running:
        yield running


@pytest.fixture(scope="module")
def plain(host) -> np.ndarray:
    host.picture()  # the first one loads the model
    pixels = host.picture().pixels
    assert pixels.std() > 1
    return pixels


def same(picture, pixels: np.ndarray) -> bool:
    return np.array_equal(picture.pixels, pixels)


def erased(picture) -> bool:
    return "SAEmnesia sae: saemnesia-test.safetensors [" in picture.infotext


def test_off_is_the_same_before_and_after_and_on_differs(host, plain):
    on = host.picture(CAT)
    assert not same(on, plain) and erased(on)
    off = host.picture(False, SAE, "cat")
    assert same(off, plain) and not erased(off)
    assert same(host.picture(), plain)


@pytest.mark.parametrize("concepts", ["cat:0, noto style:0", "rocket, contrast style"])
@pytest.mark.parametrize("actuator", ["ablate", "steer", "replace"])
def test_strength_zero_and_silence_are_off(host, plain, concepts, actuator):
    assert same(host.picture({"sae": SAE, "concepts": concepts, "actuator": actuator}), plain)


def test_every_actuator_differs_and_position_equals_dict(host, plain):
    pictures = [host.picture(True, SAE, "cat", actuator) for actuator in ("ablate", "steer", "replace")]
    assert all(not same(picture, plain) for picture in pictures)
    assert same(host.picture(CAT), pictures[0].pixels)


@pytest.mark.parametrize(("args", "says"), [
    ({"sae": "gone", "concepts": "cat"}, "there is no SAE 'gone'"),
    ({"sae": "z-cut.safetensors", "concepts": "cat"}, "z-cut.safetensors cannot be read as safetensors"),
    ({"sae": "z-wide.safetensors", "concepts": "cat"}, "reads tokens of width 1280"),
    ({"sae": SAE, "concepts": "catt"}, "has no concept 'catt'"),
    ({"sae": SAE, "concept": "cat"}, "no setting 'concept'"),
])
def test_a_slip_is_http_500_with_the_sentence_and_a_clean_next_run(host, plain, args, says):
    with pytest.raises(WebuiError, match=f"HTTP 500 .*{says}"):
        host.picture(args)
    assert same(host.picture(), plain)


@pytest.mark.parametrize("options", [
    {"batch_size": 2, "n_iter": 2}, {"prompt": "a cat AND a dog"}, {"prompt": "a cat " * 60}, {"sampler_name": "Heun"},
    {"sampler_name": "DDIM"}, {"sampler_name": "UniPC"}, {"width": 128}, {"cfg_scale": 1},
    {"override_settings": {"batch_cond_uncond": False}}, {"s_min_uncond": 4.0}, {"prompt": "a [cat:dog:0.5]"},
    {"override_settings": {"pad_cond_uncond": True}, "prompt": "a cat " * 60},
    {"override_settings": {"skip_early_cond": 0.5}}, {"override_settings": {"token_merging_ratio": 0.5}},
], ids=str)
@pytest.mark.parametrize("apply_to", ["both", "conditional only"])
def test_any_arrangement_is_erased(host, plain, options, apply_to):
    if missing := set(options.get("override_settings", ())) - set(host.get("/sdapi/v1/options")):
        pytest.skip(f"this host has no setting {missing}")
    without = host.picture(**options)
    with_it = host.picture(CAT | {"apply_to": apply_to}, **options)
    assert not same(with_it, without.pixels) and erased(with_it)
    assert same(host.picture({"sae": SAE, "concepts": "rocket", "apply_to": apply_to}, **options), without.pixels)


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "n_iter": 2}, HIRES], ids=("one", "batches", "hires"))
def test_maps_come_behind_the_pictures_and_change_none(host, plain, options):
    asked = {"enabled": False, "sae": SAE, "concepts": "cat, rocket"}
    without, with_it = (host.picture(asked | {"map": shown}, **options).pixels for shown in (False, True))
    count = options.get("batch_size", 1) * options.get("n_iter", 1)
    assert np.array_equal(with_it[:len(without)], without) and len(with_it) == len(without) + 2 * count
    colourful = np.ptp(with_it[-2 * count:].astype(int), axis=3).max(axis=(1, 2)) > 60
    assert colourful.tolist() == [True, False] * count
    assert same(host.picture(), plain)


def test_hires_is_erased_in_both_passes_or_in_the_first_alone(host, plain):
    without, both = host.picture(**HIRES), host.picture(CAT, **HIRES)
    first = host.picture(CAT | {"hires": False}, **HIRES)
    assert not same(both, without.pixels) and not same(first, without.pixels) and not same(first, both.pixels)
    assert "SAEmnesia hires: False" in first.infotext


MASK = np.pad(np.full((32, 32), 255, np.uint8), 16)


@pytest.mark.parametrize("more", [{}, {"mask": MASK}, {"mask": MASK, "inpaint_full_res": True, "inpainting_fill": 1}],
                         ids=("whole", "inpaint", "inpaint only masked"))
def test_img2img_is_erased(host, plain, more):
    options = {"path": "img2img", "init_images": [_base64(plain[0])], "denoising_strength": 0.8, **more}
    if "mask" in options:
        options["mask"] = _base64(MASK)
    assert not same(host.picture(CAT, **options), host.picture(**options).pixels)


def _base64(pixels: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize("switch", [{"refiner_checkpoint": "other.safetensors", "refiner_switch_at": 0.5},
                                    HIRES | {"hr_checkpoint_name": "other.safetensors"}], ids=("refiner", "hires"))
def test_a_checkpoint_of_another_build_in_the_middle_stops_the_run(host, plain, switch):
    host.picture(**switch)
    with pytest.raises(WebuiError, match="HTTP 500 .*reads tokens of width 320"):
        host.picture(CAT, **switch)
    assert same(host.picture(override_settings={"sd_model_checkpoint": "small.safetensors"}), plain)


def test_an_inner_pass_is_erased(host, plain):
    without, with_it = host.picture(how="inner"), host.picture(CAT, how="inner")
    assert not same(with_it, without.pixels) and erased(with_it)
    silent = host.picture({"sae": SAE, "concepts": "cat", "end": 0.0}, how="inner")
    assert same(silent, without.pixels)


@pytest.mark.skipif(IS_FORGE, reason="Forge knows SDXL by the whole set of its weights, and the small one lacks most")
@pytest.mark.parametrize("apply_to", ["both", "conditional only"])
def test_sdxl_is_erased(host, plain, apply_to):
    sdxl = {"override_settings": {"sd_model_checkpoint": "sdxl.safetensors"}, "negative_prompt": "a dog"}
    without = host.picture(**sdxl)
    with_it = host.picture(CAT | {"sae": SDXL_SAE, "apply_to": apply_to}, **sdxl)
    assert not same(with_it, without.pixels) and "SAEmnesia sae: z-sdxl.safetensors [" in with_it.infotext
    assert same(host.picture({"sae": SDXL_SAE, "concepts": "rocket", "apply_to": apply_to}, **sdxl), without.pixels)
    with pytest.raises(WebuiError, match="HTTP 500 .*is for SD 1.x, and this model is SDXL"):
        host.picture(CAT, **sdxl)
    assert same(host.picture(override_settings={"sd_model_checkpoint": "small.safetensors"}), plain)


INNER_ONLY = CAT | {"start": 0.25, "end": 0.45}
"""A window with no step of the picture in it (timesteps 999, 499.5, 0), but one of ADetailer's four (666)."""


def test_beside_adetailer_the_part_it_repaints_is_erased(host, plain):
    """The real one, with a stand-in for its detector that finds one box."""
    if "adetailer" not in host.get("/sdapi/v1/scripts")["txt2img"]:
        pytest.skip("NO ADETAILER: name a checkout of it in WEBUI_EXTENSIONS")
    beside = {"ADetailer": {"args": [True, False, {
        "ad_model": "box.pt", "ad_denoising_strength": 0.5, "ad_use_steps": True, "ad_steps": 4}]}}
    assert same(host.picture(INNER_ONLY), plain)
    for options in ({}, {"batch_size": 2, "n_iter": 2}):
        without = host.picture(beside=beside, **options)
        assert "ADetailer model: box.pt" in without.infotext and not same(without, host.picture(**options).pixels)
        inner = host.picture(INNER_ONLY, beside=beside, **options)
        assert (inner.pixels != without.pixels).any(axis=(1, 2, 3)).all() and erased(inner)
        assert not same(host.picture(CAT, beside=beside, **options), without.pixels)
        assert same(host.picture(False, SAE, "cat", beside=beside, **options), without.pixels)
    assert same(host.picture(), plain)


@pytest.fixture(scope="module")
def referred(host, plain, models) -> dict:
    """A request with ControlNet's reference_only, which needs no weights, and a checkpoint it can work with."""
    if IS_FORGE or "controlnet" not in host.get("/sdapi/v1/scripts")["txt2img"]:
        pytest.skip("NO CONTROLNET: name a checkout of sd-webui-controlnet in WEBUI_EXTENSIONS, in A1111")
    write_checkpoint(models, "deep", DEEP_UNET)
    host.get("/sdapi/v1/refresh-checkpoints", {})
    return {"width": 128, "height": 128, "override_settings": {"sd_model_checkpoint": "deep.safetensors"}, "beside": {
        "ControlNet": {"args": [{"enabled": True, "module": "reference_only", "image": _base64(255 - plain[0])}]}}}


@pytest.mark.parametrize("apply_to", ["both", "conditional only"])
def test_beside_controlnets_reference_pass_it_is_erased(host, plain, referred, apply_to):
    """The real one: it replaces the UNet's forward, and runs the blocks once more for the reference."""
    cat, without = CAT | {"apply_to": apply_to}, host.picture(**referred)
    alone = referred | {"beside": None}
    assert "ControlNet 0" in without.infotext and not same(without, host.picture(**alone).pixels)
    with_it = host.picture(cat, **referred)
    assert not same(with_it, without.pixels) and erased(with_it)
    assert not same(with_it, host.picture(cat, **alone).pixels)
    assert same(host.picture(cat | {"concepts": "rocket"}, **referred), without.pixels)
    assert same(host.picture(False, SAE, "cat", **referred), without.pixels)
    assert same(host.picture(override_settings={"sd_model_checkpoint": "small.safetensors"}), plain)


@pytest.mark.parametrize("tiles_a_call", [1, 4])
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_beside_tiled_diffusion_every_tile_is_erased(host, plain, method, tiles_a_call):
    """The real one. It does not say which rows are whose, so the prompt's alone cannot be erased."""
    if IS_FORGE or "tiled diffusion" not in host.get("/sdapi/v1/scripts")["txt2img"]:
        pytest.skip("NO TILED DIFFUSION: name a checkout of multidiffusion-upscaler in WEBUI_EXTENSIONS, in A1111")
    tiled = {"width": 256, "height": 128, "beside": {"Tiled Diffusion": {
        "args": [True, method, False, True, 256, 128, 16, 16, 4, tiles_a_call]}}}
    without = host.picture(**tiled)
    assert "Tiled Diffusion" in without.infotext
    assert not same(host.picture(width=256, height=128), without.pixels)
    with_it = host.picture(CAT, **tiled)
    assert not same(with_it, without.pixels) and erased(with_it)
    assert same(host.picture({"sae": SAE, "concepts": "rocket"}, **tiled), without.pixels)
    assert erased(host.picture(CAT | {"apply_to": "both"}, **tiled))
    assert same(host.picture(False, SAE, "cat", **tiled), without.pixels) and same(host.picture(), plain)


@pytest.mark.parametrize("how", ["replace", "sd unet"])
def test_a_replaced_unet_stops_the_run(host, plain, how):
    if how == "sd unet" and IS_FORGE:
        pytest.skip("Forge has no SD Unet")
    with pytest.raises(WebuiError, match="HTTP 500 .*nothing was erased: block up_blocks.0.attentions.1 did not run"):
        host.picture(CAT, how=how)
    host.picture(how="")
    assert same(host.picture(), plain)


def test_an_abort_in_the_model_leaves_the_next_run_clean(host, plain):
    with pytest.raises(WebuiError, match="HTTP 500 .*ZeroDivision|HTTP 500 .*division by zero"):
        host.picture(CAT, how="fail")
    assert same(host.picture(), plain)


def test_the_xyz_plot_has_our_axes(host, plain):
    script = next(s for s in host.get("/sdapi/v1/script-info") if s["name"] == "x/y/z plot" and not s["is_img2img"])
    values = {arg["label"]: arg["value"] for arg in script["args"]}
    values |= {"X type": script["args"][0]["choices"].index("[SAEmnesia] strength"), "X values": "0, 1", "Y type": 0,
               "Z type": 0, "Draw legend": False, "Include Sub Images": True}
    args = [values[arg["label"]] for arg in script["args"]]
    grid = host.picture(CAT, script_name="x/y/z plot", script_args=args)
    off, on = grid.pixels[-2:]
    assert np.array_equal(off, plain[0]) and not np.array_equal(on, plain[0])


def test_infotext_of_a_request_restores_the_settings(host, plain):
    on = host.picture({"sae": SAE, "concepts": "cat:0.5", "actuator": "replace"})
    try:
        again = host.picture(infotext=on.infotext)
    except WebuiError as error:
        if "isinstance() argument 2 cannot be a parameterized generic" in str(error):
            pytest.skip("this Forge fails at any request with an infotext")
        raise
    assert same(again, on.pixels)


def test_routes_answer(host):
    assert SAE in host.get("/saemnesia/saes")["saes"]
    assert host.get(f"/saemnesia/concepts?sae={SAE}")["concepts"][0]["name"] == "cat"


# --- the page ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(host, browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1500, "height": 1500})
    opened.route("**/*", lambda route: route.continue_() if host.url in route.request.url else route.abort())
    opened.goto(host.url, wait_until="domcontentloaded")
    expect(opened.locator("#txt2img_generate")).to_be_visible(timeout=120_000)
    yield opened
    opened.close()


def accordion(page: Page):
    return page.locator("#script_txt2img_saemnesia_panel")


def test_the_sidebar_ticks_erases_and_is_restored_by_paste(host, plain, page):
    head = accordion(page).get_by_text("SAEmnesia: erase concepts").first
    head.scroll_into_view_if_needed()
    tick = page.locator('#script_txt2img_saemnesia_list .saemnesia-row[data-name="cat"] input[type=checkbox]').first
    expect(tick).to_be_hidden()
    head.click()
    tick.check()
    text = page.locator("#script_txt2img_saemnesia_concepts textarea, #script_txt2img_saemnesia_concepts input").first
    expect(text).to_have_value("cat")
    page.locator('#script_txt2img_saemnesia_list .saemnesia-row[data-name="cat"] .saemnesia-strength').first.fill("0.5")
    expect(text).to_have_value("cat:0.5")
    if shot := os.environ.get("WEBUI_SCREENSHOT"):
        page.wait_for_timeout(1000)
        accordion(page).screenshot(path=shot)
    page.locator("#txt2img_prompt textarea").fill("a cat")
    page.locator("#txt2img_generate").click()
    info = page.locator("#html_info_txt2img").last
    expect(info).to_contain_text("SAEmnesia concepts", timeout=120_000)
    written = info.locator("p").first.inner_text()
    text.fill("")
    page.locator("#txt2img_prompt textarea").fill(written)
    page.locator("#txt2img_tools #paste, #paste").first.click()
    expect(text).to_have_value("cat:0.5")
    expect(tick).to_be_checked()


def test_send_to_img2img_and_inpaint_take_the_sidebar_along(host, plain, page):
    text = page.locator("#script_txt2img_saemnesia_concepts textarea, #script_txt2img_saemnesia_concepts input").first
    sent = page.locator("#script_img2img_saemnesia_concepts textarea, #script_img2img_saemnesia_concepts input").first
    page.locator("#txt2img_prompt textarea").fill("a cat")
    if not text.is_visible():
        accordion(page).get_by_text("SAEmnesia: erase concepts").first.click()
    for concepts, tab in (("dog:0.5", "img2img"), ("cat:0.25", "inpaint")):
        page.locator("#tabs button").filter(has_text=re.compile("^ *txt2img *$", re.I)).first.click()
        text.fill(concepts)
        page.locator("#txt2img_generate").click()
        expect(page.locator("#html_info_txt2img").last).to_contain_text(concepts, timeout=120_000)
        page.locator(f"#txt2img_send_to_{tab}").click()
        expect(sent).to_be_visible(timeout=30_000)
        expect(sent).to_have_value(concepts)
        if tab == "img2img":
            page.locator("#img2img_generate").click()
            expect(page.locator("#html_info_img2img").last).to_contain_text(concepts, timeout=120_000)

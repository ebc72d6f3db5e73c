"""*Download a published SAE* in the sidebar of A1111 and Forge, in both versions of gradio, from a hub on loopback."""
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from layouts import BLOCK, configuration, publish, random_sae
from playwright.sync_api import Page, expect
from safetensors.torch import save
from test_webui_page import SHIM, VERSIONS, Served

FILE = f"SAEmnesia/unet.{BLOCK}/sae.safetensors"
D_IN, D_SAE = 256, 12_000


@pytest.fixture(scope="module", params=VERSIONS)
def served(request, tmp_path_factory) -> Iterator[Served]:
    """A web UI without any SAE, and its `hub`."""
    weights = {"encoder.weight": torch.zeros(D_SAE, D_IN), "encoder.bias": torch.zeros(D_SAE),
               "W_dec": torch.zeros(D_SAE, D_IN), "b_dec": torch.zeros(D_IN)}
    config = json.dumps(configuration("sparsify") | {"d_in": D_IN}).encode()
    with HubServer({"leno3003/SAEmnesia": {"cfg.json": config, "sae.safetensors": save(weights)}}) as hub:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, "HF_ENDPOINT", hub.url)
            running = Served(request.param, tmp_path_factory.mktemp("models"))
        try:
            running.hub = hub
            running.wait()
            yield running
        finally:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def page(browser, served) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1100, "height": 1400})
    opened.route("**/*", lambda route: route.continue_() if served.url in route.request.url else route.abort())
    opened.goto(f"{served.url}/page/", wait_until="domcontentloaded")
    sidebar = opened.locator(".saemnesia-panel").first
    sidebar.locator(".label-wrap").first.click(timeout=60_000)
    sidebar.locator(".label-wrap").filter(has_text="Download a published SAE").click()
    opened.evaluate(SHIM)
    opened.add_style_tag(url=f"{served.url}/style.css")
    opened.add_script_tag(url=f"{served.url}/javascript/saemnesia.mjs", type="module")
    yield opened
    opened.close()


def part(page: Page, name: str):
    return page.locator(f"#script_txt2img_saemnesia_{name}").first


def choose(page: Page, name: str) -> None:
    part(page, "published").locator("input").click()
    page.locator("ul.options li").filter(has_text=name).first.click()


def test_an_sae_is_chosen_with_its_size_stopped_gone_on_with_and_listed(page, served):
    status, begin = part(page, "download_status"), part(page, "download_begin")
    choose(page, "SAEmnesia objects (about 210 MB)")
    expect(status).to_contain_text("about 210 MB from leno3003/SAEmnesia, licence not said. For SD 1.5 fine-tuned")
    assert served.hub.requests == []
    served.hub.seconds = 0.02
    begin.click()
    expect(status).to_contain_text("SAEmnesia objects: 10 MB of 25 MB", timeout=60_000)
    expect(status.locator("progress")).to_be_visible()
    part(page, "download_stop").click()
    expect(status.locator(".saemnesia-error")).to_contain_text("stopped: asked for again", timeout=60_000)
    served.hub.seconds = 0
    expect(status.locator(".prose.min")).to_have_count(0)  # the last press is answered to its end
    begin.click()
    expect(status).to_contain_text("SAEmnesia objects is there, and chosen.", timeout=60_000)
    assert served.hub.starts("sae.safetensors")[-1] > 0
    expect(part(page, "sae")).to_contain_text(FILE)
    expect(part(page, "list")).to_contain_text(
        re.compile(rf"For SD 1.x, at {re.escape(BLOCK)}.*It has no concept names"))


def test_a_refusal_is_a_sentence_and_a_pickle_is_named_with_what_to_do(page, served):
    served.hub.status = 401
    choose(page, "SAeUron styles")
    part(page, "download_begin").click()
    expect(part(page, "download_status").locator(".saemnesia-error")).to_contain_text(
        "bcywinski/SAeUron is gated, private or gone", timeout=60_000)
    for path in (Path(served.models) / "sae").rglob("*.safetensors"):
        path.unlink()
    source = publish(Path(served.models) / "sae" / f"unet.{BLOCK}_k4" / "final", "sdxl-unbox", random_sae())
    part(page, "refresh").click()
    expect(part(page, "list").locator(".saemnesia-error")).to_contain_text("state_dict.pth is a pickle", timeout=60_000)
    expect(part(page, "list")).to_contain_text(str(source))

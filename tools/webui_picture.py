"""docs/webui.png: the open sidebar in the gradio that Forge pins. Needs `make test`'s packages.

    .host/venv/bin/python -m tools.webui_picture

The host around the sidebar is the tests' stand-in, with a model like MiniCanvas loaded; page and extension are real.
"""
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tools.comfy_host import COMFY, free_port

REPO = Path(__file__).resolve().parents[1]
FILE, WORD = "minicanvas.safetensors", "cat"
SERVE = """
import sys
from pathlib import Path
import webui_page
from benchmarks.minicanvas.models import new_unet
from fake_webui import sd_model
loaded = sd_model(new_unet())
loaded.sd_checkpoint_info.filename = "minicanvas.safetensors"
webui_page.sd_model = lambda *_: loaded
webui_page.random_unet = lambda *_: None
webui_page.main(Path(sys.argv[1]), sys.argv[2])
"""


@contextlib.contextmanager
def served(models: Path) -> Iterator[str]:
    """The address of the page, in a process of its own, because ComfyUI's packages have no gradio."""
    port, path = free_port(), os.pathsep.join(str(p) for p in (REPO / ".host" / "gradio-4", REPO / "tests", REPO))
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVE, str(models), str(port)], cwd=REPO,
                               stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": path})
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/style.css", timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("the page does not answer")


def opened(page: Page, url: str) -> None:
    """The sidebar with a word ticked and the heat map asked for."""
    page.goto(f"{url}/page/", wait_until="domcontentloaded")
    panel = page.locator(".saemnesia-panel").first
    panel.locator(".label-wrap").first.click(timeout=60_000)
    page.evaluate("""() => {
      window.gradioApp = () => document
      window.onAfterUiUpdate = (callback) =>
        new MutationObserver(() => callback()).observe(document.body, { childList: true, subtree: true })
    }""")
    page.add_style_tag(url=f"{url}/style.css")
    page.add_script_tag(url=f"{url}/javascript/saemnesia.mjs", type="module")
    page.wait_for_timeout(2000)
    panel.locator(f'.saemnesia-row[data-name="{WORD}"]').get_by_role("checkbox").check()
    panel.get_by_text("Show where the concepts are").click()
    panel.get_by_label("A heat map").first.check()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)
    panel.screenshot(path=REPO / "docs" / "webui.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sae").mkdir()
        shutil.copy(COMFY / "models" / "sae" / FILE, Path(folder) / "sae" / FILE)
        with served(Path(folder)) as url, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            opened(browser.new_page(viewport={"width": 640, "height": 1600}), url)


if __name__ == "__main__":
    main()

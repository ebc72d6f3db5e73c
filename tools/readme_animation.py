"""docs/words.gif of the README: a word is typed, the workflow runs, the thing is gone. Needs `make test`'s packages.

    .host/venv/bin/python -m tools.readme_animation
"""
import io
import json
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tools.comfy_host import COMFY, ComfyHost

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import widget_helpers as canvas  # noqa: E402

WORD = "cat"
LOOK = "() => { Object.assign(app.canvas.ds, { scale: 0.72, offset: [-400, 90] }); app.canvas.setDirty(true, true) }"
SHOWN = {"x": 0, "y": 72, "width": 1090, "height": 520}
WIDTH = 820
EVERY, LAST = 4, 3.5
"""Seconds between two frames of the run, and how long the end is shown."""
MOST = 14
"""Frames of the run that are kept."""


def frame(page: Page) -> Image.Image:
    picture = Image.open(io.BytesIO(page.screenshot(clip=SHOWN))).convert("RGB")
    return picture.resize((WIDTH, WIDTH * picture.height // picture.width), Image.LANCZOS)


def typed(page: Page, node: int) -> list[Image.Image]:
    made = []
    for i in range(len(WORD) + 1):
        canvas.set_widget(page, node, "words", WORD[:i])
        page.wait_for_timeout(300)
        made.append(frame(page))
    return made


def run(page: Page) -> list[Image.Image]:
    page.evaluate("() => { app.ended = false; app.api.addEventListener('execution_success', () => app.ended = true) }")
    page.evaluate("() => { app.queuePrompt(0) }")
    made, end = [], time.monotonic() + 900
    while not page.evaluate("() => app.ended") and time.monotonic() < end:
        page.wait_for_timeout(1000 * EVERY)
        made.append(frame(page))
    page.wait_for_timeout(2000)
    return [*made[::-(-len(made) // MOST)], frame(page)]


def main() -> None:
    for path in (COMFY / "models" / "sae").glob("minicanvas ????????.*"):
        path.unlink()
    with ComfyHost(threads=2) as host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = canvas.open_page(browser, host, nodes2=False)
        workflow = json.loads((REPO / "example_workflows" / "words.json").read_text("utf-8"))
        (node,) = [node["id"] for node in workflow["nodes"] if node["type"] == "SAEmnesiaEraseWords"]
        canvas.load(page, workflow)
        page.evaluate(LOOK)
        page.wait_for_timeout(1500)
        frames = [*typed(page, node), *run(page)]
    times = [400] * (len(WORD) + 1) + [500] * (len(frames) - len(WORD) - 2) + [int(1000 * LAST)]
    frames[0].save(REPO / "docs" / "words.gif", save_all=True, append_images=frames[1:], duration=times, loop=0)


if __name__ == "__main__":
    main()

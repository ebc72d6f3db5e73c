"""docs/words.gif of the README: a word is typed, the workflow runs, the thing is gone. Needs `make test`'s packages.

    .host/venv/bin/python -m tools.readme_animation
"""
import io
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import Page, sync_playwright

from tools.comfy_host import COMFY, ComfyHost
from tools.on_minicanvas import on_minicanvas

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import widget_helpers as canvas  # noqa: E402

WORD = "cat"
LOOK = "() => { Object.assign(app.canvas.ds, { scale: 0.72, offset: [-325, 165] }); app.canvas.setDirty(true, true) }"
SHOWN = {"x": 56, "y": 122, "width": 990, "height": 540}
WIDTH = 820
EVERY, MOST = 4, 14
"""Seconds between two frames of the run, and how many of them are kept."""
PICTURE = 288


def frame(page: Page) -> Image.Image:
    picture = Image.open(io.BytesIO(page.screenshot(clip=SHOWN))).convert("RGB")
    return picture.resize((WIDTH, WIDTH * picture.height // picture.width), Image.Resampling.LANCZOS)


def typed(page: Page, node: int) -> list[Image.Image]:
    made = []
    for i in range(len(WORD) + 1):
        canvas.set_widget(page, node, "words", WORD[:i])
        page.wait_for_timeout(300)
        made.append(frame(page))
    return made


def both(pictures: Sequence[bytes], size: tuple[int, int]) -> Image.Image:
    """Before and after, large."""
    page = Image.new("RGB", size, "#171717")
    left = (size[0] - 2 * PICTURE) // 3
    for i, (png, title) in enumerate(zip(pictures, ("before", f'without "{WORD}"'), strict=True)):
        x, y = left + i * (left + PICTURE), (size[1] - PICTURE) // 2
        large = Image.open(io.BytesIO(png)).convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)
        page.paste(large, (x, y))
        ImageDraw.Draw(page).text((x + PICTURE / 2, y - 26), title, "#dddddd", ImageFont.load_default(20), anchor="mm")
    return page


def run(page: Page) -> list[Image.Image]:
    page.evaluate("() => { app.ended = false; app.api.addEventListener('execution_success', () => app.ended = true) }")
    page.evaluate("() => { app.queuePrompt(0) }")
    made, end = [], time.monotonic() + 900
    while not page.evaluate("() => app.ended") and time.monotonic() < end:
        page.wait_for_timeout(1000 * EVERY)
        made.append(frame(page))
    page.wait_for_timeout(2000)
    return [*made[::-(-len(made) // MOST)], frame(page)]


def painted(host: ComfyHost) -> list[bytes]:
    """The pictures of the run, before and after."""
    files = {image["filename"]: image for record in host.get_json("/history").values()
             for output in record["outputs"].values() for image in output.get("images", ())
             if image["type"] == "output"}
    return [host.get("/view?" + urlencode(next(image for name, image in files.items() if name.startswith(title))))
            for title in ("before", "after")]


def main() -> None:
    for path in (COMFY / "models" / "sae").glob("minicanvas ????????.*"):
        path.unlink()
    with ComfyHost(threads=2) as host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = canvas.open_page(browser, host, nodes2=False)
        workflow = on_minicanvas(json.loads((REPO / "example_workflows" / "Erase-words.json").read_text("utf-8")))
        (node,) = [node["id"] for node in workflow["nodes"] if node["type"] == "SAEmnesiaEraseWords"]
        canvas.load(page, workflow)
        page.evaluate(LOOK)
        page.wait_for_timeout(1500)
        frames = [*typed(page, node), *run(page)]
        frames.append(both(painted(host), frames[0].size))
    times = [400] * (len(WORD) + 1) + [500] * (len(frames) - len(WORD) - 3) + [2000, 4000]
    frames[0].save(REPO / "docs" / "words.gif", save_all=True, append_images=frames[1:], duration=times, loop=0)


if __name__ == "__main__":
    main()

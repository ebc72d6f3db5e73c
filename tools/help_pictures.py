"""The pictures of the example workflows and of the help pages. Needs `make test`'s packages.

    .host/venv/bin/python -m tools.help_pictures [Compare ... alone]

Each example runs as it loads; its picture is what it paints, before and after.
"""
import argparse
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

from tools.comfy_host import COMFY, ComfyHost
from tools.on_minicanvas import OWN_CHECKPOINT, on_minicanvas

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import widget_helpers as canvas  # noqa: E402

EXAMPLES = REPO / "example_workflows"
HELP = REPO / "web" / "docs"
HALF = 192
LEAVES = {"Find-a-concept": "found", "Train-an-SAE": "my concepts",
          **dict.fromkeys(OWN_CHECKPOINT, "minicanvas ????????")}
PICTURED = {"Compare": {}, "Tick-concepts": {"SAEmnesiaLoadSAE": 2, "SAEmnesiaErase": 3}, "Swap": {},
            "Erase-words": {"SAEmnesiaEraseWords": 13}, "Find-a-concept": {"SAEmnesiaFindConcept": 13},
            "Train-an-SAE": {"SAEmnesiaTrain": 13},
            "Map-and-inpaint": {"SAEmnesiaConceptMap": 10}}
"""{example: {help page: node of which it shows a picture}}"""
ALONE = ("SAEmnesiaConceptPicker", "SAEmnesiaExportConcept")
"""Nodes that no example has."""


def square(picture: Image.Image) -> Image.Image:
    """In the middle of a white square of one half of an example's picture."""
    picture = picture.convert("RGB")
    scale = HALF / max(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    made = Image.new("RGB", (HALF, HALF), "white")
    made.paste(picture, ((HALF - picture.width) // 2, (HALF - picture.height) // 2))
    return made


def save_example(name: str, left: Image.Image, right: Image.Image) -> None:
    made = Image.new("RGB", (2 * HALF, HALF), "white")
    for x, picture in ((0, left), (HALF + 1, right)):
        made.paste(square(picture), (x, 0))
    made.save(EXAMPLES / f"{name}.jpg", quality=90)


def seen(one: Locator) -> Image.Image:
    return Image.open(io.BytesIO(one.screenshot()))


def shot(page: Page, *ids: int, margin: int = 8) -> Image.Image:
    """These nodes as the page draws them."""
    boxes = [page.evaluate(canvas.BOX, node) for node in ids]
    left, top = (min(box[side] for box in boxes) - margin for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) + margin for side in (2, 3))
    title = 30
    clip = {"x": left, "y": top - title, "width": right - left, "height": bottom - top + title}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def run(page: Page, name: str) -> list[Image.Image]:
    """The saved pictures of an example, in the order of its nodes."""
    for old in (COMFY / "models" / "sae").glob(f"{LEAVES.get(name, '-')}.*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    workflow = json.loads((EXAMPLES / f"{name}.json").read_text("utf-8"))
    canvas.load(page, on_minicanvas(workflow) if name in OWN_CHECKPOINT else workflow)
    pictures = [Image.open(io.BytesIO(png)) for png in canvas.queue_and_wait(page, 3600)]
    page.wait_for_timeout(2000)
    return pictures


def compare(page: Page) -> None:
    run(page, "Compare")
    before, strengths = page.locator(".saemnesia-stage").all()
    save_example("Compare", seen(before), seen(strengths))
    shot(page, 6, 7).save(HELP / "SAEmnesiaCompare.jpg", quality=88)


def heat_map(page: Page) -> None:
    pictures = run(page, "Map-and-inpaint")
    save_example("Map-and-inpaint", pictures[1], pictures[-1])


def before_and_after(name: str) -> Callable[[Page], None]:
    def make(page: Page) -> None:
        pictures = run(page, name)
        save_example(name, *pictures[-2:])
    return make


def alone(page: Page) -> None:
    for kind in ALONE:
        canvas.load(page, canvas.EMPTY)
        loader = canvas.add(page, canvas.LOADER, 60, sae_name="minicanvas.safetensors")
        node = canvas.add(page, kind, 480, concepts="cat, rose")
        canvas.link(page, loader, node)
        page.wait_for_timeout(2000)
        shot(page, node).save(HELP / f"{kind}.jpg", quality=88)


COMFYUI = {name: before_and_after(name) for name in PICTURED} | {"Compare": compare, "Map-and-inpaint": heat_map}


def example(page: Page, name: str) -> None:
    COMFYUI[name](page)
    for kind, node in PICTURED[name].items():
        shot(page, node).save(HELP / f"{kind}.jpg", quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*PICTURED, "alone"]
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"of {', '.join(everything)}; all of them")
    which = parser.parse_args().which or everything
    with ComfyHost(threads=2) as host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = canvas.open_page(browser, host, nodes2=False)
        page.set_viewport_size({"width": 2400, "height": 1700})
        for name in which:
            alone(page) if name == "alone" else example(page, name)


if __name__ == "__main__":
    main()

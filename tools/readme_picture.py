"""docs/workflow.png of the README: the example workflow in ComfyUI's page, after a run. Needs `make test`'s packages.

    .host/venv/bin/python -m tools.readme_picture
"""
import json
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tools.comfy_host import ComfyHost

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import widget_helpers as canvas  # noqa: E402

LOOK = """async () => {
    Object.assign(app.canvas.ds, { scale: 0.92, offset: [50, 120] })
    app.canvas.setDirty(true, true)
    await new Promise((resolve) => setTimeout(resolve, 2000))
}"""
BELOW_BANNER = {"x": 0, "y": 72, "width": 1800, "height": 840}


def main() -> None:
    with ComfyHost(threads=2) as host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = canvas.open_page(browser, host, nodes2=False)
        page.set_viewport_size({"width": 1800, "height": 1000})
        canvas.load(page, json.loads((REPO / "example_workflows" / "Tick-concepts.json").read_text("utf-8")))
        canvas.wait_for_list(page)
        canvas.queue_and_wait(page)
        page.evaluate(LOOK)
        page.screenshot(path=REPO / "docs" / "workflow.png", clip=BELOW_BANNER)


if __name__ == "__main__":
    main()

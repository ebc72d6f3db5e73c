"""The drawings of MiniCanvas: 24 objects in 5 styles, a style being one open icon pack.

`icons.json` holds the SVG text of the 120 drawings (licences: LICENSES.md beside it). Rebuild it from the
npm packages with `python -m benchmarks.minicanvas.icons path/to/node_modules`.
"""
import io
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np

OBJECTS = (
    "cat", "dog", "bear", "horse", "frog", "fish", "butterfly", "turtle", "penguin", "sunflower", "rose", "mushroom",
    "cactus", "pizza", "banana", "strawberry", "airplane", "rocket", "guitar", "umbrella", "key", "balloon", "house",
    "castle",
)
PACKS = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent": "fluent-emoji-flat",
    "contrast": "fluent-emoji-high-contrast",
    "mono": "emojione-monotone",
}
STYLES = tuple(PACKS)
ICONS_JSON = Path(__file__).with_name("icons.json")
ICON_PX = 160


def svg_of(pack: dict, name: str) -> str:
    """The standalone SVG of one icon of an Iconify pack, black where the pack says `currentColor`."""
    icon = pack["icons"][pack.get("aliases", {}).get(name, {}).get("parent", name)]
    box = [icon.get(key, pack.get(key, default)) for key, default in
           (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
    view = " ".join(str(side) for side in box)
    body = icon["body"].replace("currentColor", "#000")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{ICON_PX}" height="{ICON_PX}" '
            f'viewBox="{view}">{body}</svg>')


def collect(node_modules: Path) -> dict[str, dict[str, str]]:
    """{style: {object: svg}} from installed `@iconify-json/*` packages."""
    def pack(name: str) -> dict:
        return json.loads((node_modules / "@iconify-json" / name / "icons.json").read_text("utf-8"))
    packs = {style: pack(name) for style, name in PACKS.items()}
    return {style: {name: svg_of(data, name) for name in OBJECTS} for style, data in packs.items()}


@cache
def rgba() -> np.ndarray:
    """All drawings as uint8 [style, object, ICON_PX, ICON_PX, 4], straight alpha."""
    from PIL import Image
    from resvg_py import svg_to_bytes

    def draw(svg: str) -> np.ndarray:
        image = Image.open(io.BytesIO(bytes(svg_to_bytes(svg_string=svg)))).convert("RGBA")
        return np.asarray(image.resize((ICON_PX, ICON_PX)))
    drawings = json.loads(ICONS_JSON.read_text("utf-8"))
    return np.stack([np.stack([draw(drawings[style][name]) for name in OBJECTS]) for style in STYLES])


if __name__ == "__main__":
    ICONS_JSON.write_text(json.dumps(collect(Path(sys.argv[1])), indent=0), "utf-8")
    print(f"wrote {ICONS_JSON} ({ICONS_JSON.stat().st_size // 1024} KB)")

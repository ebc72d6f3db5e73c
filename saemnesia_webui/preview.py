"""The picture beside a file of models/sae, small, for the sidebar: it lies in the page, so that no route serves it."""
import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from sae_models.preview import beside

SIDE = 288
FORMATS = ("PNG", "JPEG", "WEBP")


def as_html(path: Path) -> str:
    """"" where there is none, or it cannot be read."""
    found, data = beside(path), io.BytesIO()
    if found is None:
        return ""
    try:
        with Image.open(found, formats=FORMATS) as picture:
            picture.thumbnail((SIDE, SIDE))
            picture.convert("RGB").save(data, "JPEG", quality=85)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    name, said = escape(path.stem), base64.b64encode(data.getvalue()).decode()
    return f'<img class="saemnesia-preview" alt="{name}" title="{name}" src="data:image/jpeg;base64,{said}">'

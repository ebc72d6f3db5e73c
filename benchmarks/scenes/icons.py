"""The drawings of scenes: 24 of MiniCanvas's objects in 5 of its styles."""
import numpy as np

from ..minicanvas import icons

OBJECTS = (
    "cat", "dog", "bear", "horse", "frog", "fish", "butterfly", "turtle", "penguin", "sunflower", "rose", "mushroom",
    "cactus", "pizza", "banana", "strawberry", "airplane", "rocket", "guitar", "umbrella", "key", "balloon", "house",
    "castle",
)
STYLES = ("noto", "twemoji", "fluent", "contrast", "mono")


def rgba() -> np.ndarray:
    """All drawings as uint8 [style, object, px, px, 4], straight alpha."""
    styles, objects = [icons.STYLES.index(s) for s in STYLES], [icons.OBJECTS.index(o) for o in OBJECTS]
    return icons.rgba()[styles][:, objects]

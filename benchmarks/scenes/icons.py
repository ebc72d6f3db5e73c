from ..minicanvas import icons as o
from ..minicanvas.icons import rgba as old

OBJECTS = ("cat", "dog", "bear", "horse", "frog", "fish", "butterfly", "turtle", "penguin", "sunflower", "rose",
           "mushroom", "cactus", "pizza", "banana", "strawberry", "airplane", "rocket", "guitar", "umbrella", "key",
           "balloon", "house", "castle")
STYLES = ("noto", "twemoji", "fluent", "contrast", "mono")
def rgba():
    a = old()
    return a[[o.STYLES.index(s) for s in STYLES]][:, [o.OBJECTS.index(x) for x in OBJECTS]]

"""The example workflows that are set for a checkpoint of SD 1.5, set for this repository's small test model."""
import copy
from typing import Any

SCENE = "a cat and a castle, noto style, on a blue ground"
SETTINGS = {"CheckpointLoaderSimple": ["minicanvas.safetensors"], "EmptyLatentImage": [96, 96, 1],
            "KSampler": [40, "fixed", 20, 2.5, "euler", "normal", 1], "SAEmnesiaEraseWords": ["", 16, 96, 2.5]}
KEPT = {"SAEmnesiaEraseWords": 1}
"""How many of a node's values stay."""
OWN_CHECKPOINT = ("Erase-words", "Swap")


def on_minicanvas(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same workflow with other values."""
    made = copy.deepcopy(workflow)
    for node in made["nodes"]:
        if node["type"] in SETTINGS:
            node["widgets_values"][KEPT.get(node["type"], 0):] = SETTINGS[node["type"]]
        if node.get("title") == "Prompt":
            node["widgets_values"] = [SCENE]
    return made

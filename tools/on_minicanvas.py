"""The example workflow *words*, which is set for a checkpoint of SD 1.5, set for this repository's small test model."""
import copy
from typing import Any

SCENE = "a cat and a castle, noto style, on a blue ground"
SETTINGS = {"CheckpointLoaderSimple": ["minicanvas.safetensors"], "EmptyLatentImage": [96, 96, 1],
            "KSampler": [40, "fixed", 20, 2.5, "euler", "normal", 1], "SAEmnesiaEraseWords": ["cat", "", 16, 96, 2.5]}


def on_minicanvas(workflow: dict[str, Any]) -> dict[str, Any]:
    """The same workflow with other values."""
    made = copy.deepcopy(workflow)
    for node in made["nodes"]:
        node["widgets_values"] = SETTINGS.get(node["type"], node.get("widgets_values"))
        if node.get("title") == "Prompt":
            node["widgets_values"] = [SCENE]
    return made

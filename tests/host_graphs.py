"""Graphs of ComfyUI's own nodes that need no model, to ask a running host something small."""
from tools.comfy_host import Graph

RED = 0xFF0000


def picture(side: int = 16, color: int = RED) -> Graph:
    """One plain square, saved."""
    return {
        "picture": node("EmptyImage", width=side, height=side, batch_size=1, color=color),
        "save": node("SaveImage", images=["picture", 0], filename_prefix="plain"),
    }


def slow(blurs: int = 200, side: int = 1024) -> Graph:
    """A plain square blurred again and again: many short nodes, some seconds in all."""
    graph = {"0": node("EmptyImage", width=side, height=side, batch_size=1, color=RED)}
    for step in range(1, blurs + 1):
        graph[str(step)] = node("ImageBlur", image=[str(step - 1), 0], blur_radius=31, sigma=10.0)
    return graph | {"save": node("SaveImage", images=[str(blurs), 0], filename_prefix="slow")}


def node(class_type: str, **inputs: object) -> dict[str, object]:
    """One node of a graph."""
    return {"class_type": class_type, "inputs": inputs}

"""Inputs that several nodes have in common."""
from comfy_api.latest import io


def folded(one: io.Input) -> io.Input:
    """An input that the page shows only when asked; an older host takes no such word where an input is made."""
    one.extra_dict = {**(one.extra_dict or {}), "advanced": True}
    return one


def painting_inputs(steps: int) -> list[io.Input]:
    """How pictures to learn from are painted."""
    return [
        io.Int.Input("width", default=512, min=64, max=4096, step=8, tooltip="Width of a picture in pixels."),
        io.Int.Input("height", default=512, min=64, max=4096, step=8, tooltip="Height of a picture in pixels."),
        io.Int.Input("steps", default=steps, min=4, max=200, tooltip="Sampling steps of a picture."),
        io.Float.Input("cfg", default=7.0, min=1.0, max=30.0, step=0.1, tooltip=(
            "Guidance of a picture: what you use with this model.")),
    ]

"""Nodes that do to a model what other people's nodes do, for the tests: fail midway, split calls, skip the network."""
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io
from comfy_api.torch_helpers import set_torch_compile_wrapper


class Meddle(io.ComfyNode):
    """`fail`: raise in the third call. `split`: one call a conditioning, reversed. `skip`: never run the UNet.
    `compile`: what *TorchCompileModel* does, with a backend that needs no C++ compiler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestMeddle", category="test",
                         inputs=[io.Model.Input("model"),
                                 io.Combo.Input("how", options=["fail", "split", "skip", "compile"])],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, how: str) -> io.NodeOutput:
        clone = model.clone()
        if how == "split":
            clone.set_model_unet_function_wrapper(split)
        elif how == "fail":
            clone.set_model_unet_function_wrapper(Failing())
        elif how == "compile":
            set_torch_compile_wrapper(clone, backend="eager")
        else:
            clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", lambda executor, x, *args, **kwargs: x)
        return io.NodeOutput(clone)


class Failing:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, apply_model, args: dict) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("failed on purpose")
        return apply_model(args["input"], args["timestep"], **args["c"])


def split(apply_model, args: dict) -> torch.Tensor:
    """What a host low on memory does: one call for each conditioning, here in reverse order."""
    entries = args["cond_or_uncond"]
    rows = len(args["input"]) // len(entries)
    parts: list[torch.Tensor] = [None] * len(entries)
    for i in reversed(range(len(entries))):
        here = slice(i * rows, (i + 1) * rows)
        c = {key: value[here] if isinstance(value, torch.Tensor) else value for key, value in args["c"].items()}
        c["transformer_options"] = args["c"]["transformer_options"] | {"cond_or_uncond": [entries[i]]}
        parts[i] = apply_model(args["input"][here], args["timestep"][here], **c)
    return torch.cat(parts)


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Meddle]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()

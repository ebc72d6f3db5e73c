"""Nodes that do to a model what other people's nodes do, for the tests: fail midway, split calls, skip the network.

And fewer words to tell a word from, each of which is some prompts that are encoded.
"""
import json
import sys
from functools import partial
from pathlib import Path

import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io
from comfy_api.torch_helpers import set_torch_compile_wrapper
from safetensors import safe_open
from server import PromptServer

FEW_WORDS = json.loads(Path(__file__).resolve().parents[1].joinpath("few_words.json").read_text("utf-8"))
INNER = ".transformer_blocks.0.attn2"
PATHS = {"down_blocks.1.attentions.0": "input_blocks.3.1", "up_blocks.0.attentions.0": "output_blocks.0.1",
         "up_blocks.0.attentions.1": "output_blocks.1.1"}


def find_words_faster(prompt: dict) -> dict:
    """Before a prompt runs, by when every custom node is loaded."""
    for name, module in [*sys.modules.items()]:
        if name.endswith("sae_models.learning.words"):
            module.COMMON = FEW_WORDS
    return prompt


PromptServer.instance.add_on_prompt_handler(find_words_faster)


class Meddle(io.ComfyNode):
    """`fail`: raise in the third call. `split`: one call a conditioning, reversed; `apart`: in the host's order.
    `skip`: never run the UNet. `compile`: what *TorchCompileModel* does, with a backend that needs no C++ compiler.
    `attention`: replace the cross-attention of all blocks, as IP-Adapter does; the modules then do not run. `output`:
    halve the output of every cross-attention by a patch. `nan`: predict nothing that is a number."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestMeddle", category="test",
                         inputs=[io.Model.Input("model"),
                                 io.Combo.Input("how", options=["fail", "split", "apart", "skip", "compile",
                                                                "attention", "output", "nan"])],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, how: str) -> io.NodeOutput:
        clone = model.clone()
        if how == "split":
            clone.set_model_unet_function_wrapper(split)
        elif how == "apart":
            clone.set_model_unet_function_wrapper(partial(split, order=iter))
        elif how == "nan":
            clone.set_model_unet_function_wrapper(
                lambda apply_model, args: torch.nan * apply_model(args["input"], args["timestep"], **args["c"]))
        elif how == "fail":
            clone.set_model_unet_function_wrapper(Failing())
        elif how == "attention":
            for name, number in (("input", 3), ("output", 0), ("output", 1)):
                clone.set_model_attn2_replace(attend, name, number)
        elif how == "output":
            clone.set_model_attn2_output_patch(lambda n, extra_options: 0.5 * n)
        elif how == "compile":
            set_torch_compile_wrapper(clone, backend="eager")
        else:
            clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", lambda executor, x, *args, **kwargs: x)
        return io.NodeOutput(clone)


def attend(q, k, v, extra_options: dict) -> torch.Tensor:
    """The text seen less sharply."""
    return optimized_attention(0.7 * q, k, v, extra_options["n_heads"])


class Reference(io.ComfyNode):
    """Erase one concept of a file of several places in plain forward hooks, by the formula and from the raw tensors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestReference", category="test",
                         inputs=[io.Model.Input("model"), io.String.Input("file"), io.String.Input("concept"),
                                 io.Float.Input("strength")],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model, file: str, concept: str, strength: float) -> io.NodeOutput:
        clone, path = model.clone(), folder_paths.get_full_path("sae", file)
        with safe_open(path, "pt") as opened:
            described = json.loads(opened.metadata()["saemnesia"])
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
        [latents] = [c["latents"] for c in described["concepts"] if c["name"] == concept]
        rows = {}
        for place, inner in latents:
            at = described["places"][place]
            index = [at["start"] + latent for latent in inner]
            rows[at["hookpoint"]] = [tensors[f"{at['d_in']}.{name}"][index]
                                     for name in ("encoder.weight", "encoder.bias", "W_dec")]

        def edit(module, inputs, x, W_enc, bias, W_dec):
            return x - strength * (x @ W_enc.T + bias).relu() @ W_dec

        def call(executor, *args, **kwargs):
            unet = executor.class_obj.diffusion_model
            hooks = [unet.get_submodule(PATHS[name.removesuffix(INNER)] + INNER).to_out.register_forward_hook(
                lambda module, inputs, x, mine=mine: edit(module, inputs, x, *mine)) for name, mine in rows.items()]
            try:
                return executor(*args, **kwargs)
            finally:
                for hook in hooks:
                    hook.remove()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "reference", call)
        return io.NodeOutput(clone)


class Failing:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, apply_model, args: dict) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("failed on purpose")
        return apply_model(args["input"], args["timestep"], **args["c"])


def split(apply_model, args: dict, order=reversed) -> torch.Tensor:
    """What a host low on memory does: one call for each conditioning, unless told otherwise in reverse order."""
    entries = args["cond_or_uncond"]
    rows = len(args["input"]) // len(entries)
    parts: list[torch.Tensor] = [None] * len(entries)
    for i in order(range(len(entries))):
        here = slice(i * rows, (i + 1) * rows)
        c = {key: value[here] if isinstance(value, torch.Tensor) else value for key, value in args["c"].items()}
        c["transformer_options"] = args["c"]["transformer_options"] | {"cond_or_uncond": [entries[i]]}
        parts[i] = apply_model(args["input"][here], args["timestep"][here], **c)
    return torch.cat(parts)


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Meddle, Reference]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()

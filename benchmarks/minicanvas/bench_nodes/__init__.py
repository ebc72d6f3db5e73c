"""Nodes for MiniCanvas's benchmark only, linked into its ComfyUI: a batch of prompts, and the papers' own hook.

The papers' formula is here to be compared with; the extension never uses it.
"""
import json
import math
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io
from safetensors import safe_open

from .rivals import RIVALS


class Prompts(io.ComfyNode):
    """One prompt a line, encoded as one conditioning whose rows go to the rows of the latent batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="MiniCanvasPrompts", category="MiniCanvas",
                         inputs=[io.Clip.Input("clip"), io.String.Input("prompts", multiline=True)],
                         outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, clip, prompts: str) -> io.NodeOutput:
        rows = [clip.encode_from_tokens(clip.tokenize(line)) for line in prompts.split("\n")]
        return io.NodeOutput([[torch.cat(rows), {}]])


CALLS = {"calls": 0, "rows": 0}


class Count(io.ComfyNode):
    """Counts from here on how often the model is called, and with how many rows in all."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="MiniCanvasCount", category="MiniCanvas", inputs=[io.Model.Input("model")],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model: ModelPatcher) -> io.NodeOutput:
        clone = model.clone()

        def wrapper(executor, x, *args, **kwargs):  # of the UNet itself: looks at a step go past APPLY_MODEL's
            CALLS["calls"] += 1
            CALLS["rows"] += len(x)
            return executor(x, *args, **kwargs)
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", wrapper)
        return io.NodeOutput(clone)


class Calls(io.ComfyNode):
    """Says how often that was since it was last asked."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="MiniCanvasCalls", category="MiniCanvas", is_output_node=True, not_idempotent=True,
                         inputs=[io.Latent.Input("latent")])

    @classmethod
    def execute(cls, latent: dict) -> io.NodeOutput:
        said = json.dumps(CALLS)
        CALLS.update(calls=0, rows=0)
        return io.NodeOutput(ui={"text": [said]})


class PapersHook(io.ComfyNode):
    """The papers' released hook: z' = z gamma mu where z > theta, out = z' W_dec + b_dec + (x_hat - x)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="MiniCanvasPapersHook", category="MiniCanvas",
                         inputs=[io.Model.Input("model"), io.String.Input("sae_path"), io.String.Input("block"),
                                 io.String.Input("concepts"), io.Float.Input("gamma", min=-100, max=100),
                                 io.Boolean.Input("sign_error", default=True)],
                         outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model: ModelPatcher, sae_path: str, block: str, concepts: str, gamma: float,
                sign_error: bool) -> io.NodeOutput:
        hook = load_dense_hook(sae_path, concepts.split(", "), gamma, -1.0 if sign_error else 1.0)
        clone = model.clone()

        def wrapper(executor, x, t, *args, **kwargs):
            hook.sigma = float(t.max())
            handle = executor.class_obj.diffusion_model.get_submodule(block).register_forward_hook(hook)
            try:
                return executor(x, t, *args, **kwargs)
            finally:
                handle.remove()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "papers-hook", wrapper)
        return io.NodeOutput(clone)


def load_dense_hook(path: str, names: list[str], gamma: float, error_sign: float) -> "DenseHook":
    """The hook for some concepts of one of our files."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["saemnesia"])
        weights = [file.get_tensor(name).float() for name in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")]
        sigmas, means = file.get_tensor("concept_sigmas"), file.get_tensor("concept_means").float()
    order = [concept["name"] for concept in header["concepts"]]
    rows = [order.index(name) for name in names]
    latents = [header["concepts"][row]["latents"][0] for row in rows]
    # theta is the macro mean over all concepts: their own mean shared out, for a latent silent for the others
    return DenseHook(*weights, header["k"], latents, sigmas, means[rows], means[rows] / len(order), gamma, error_sign)


@dataclass
class DenseHook:
    """Full encode and full decode of every token of both halves, as the papers' code does it.

    W_enc, W_dec [d_sae, d_in]; means (mu), thresholds (theta) [F, T] of the edited latents at `sigmas` [T];
    error_sign -1 is the released code, +1 the mended form. `sigma` is set before each call.
    """
    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    k: int
    latents: list[int]
    sigmas: torch.Tensor
    means: torch.Tensor
    thresholds: torch.Tensor
    gamma: float
    error_sign: float = -1.0
    sigma: float = 1.0

    def __call__(self, module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        x = output.flatten(2).mT
        pre = torch.relu((x - self.b_dec) @ self.W_enc.T + self.b_enc)
        top = pre.topk(self.k, dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter_(-1, top.indices, top.values)
        x_hat = z @ self.W_dec + self.b_dec
        column = int((self.sigmas.log() - math.log(self.sigma)).abs().argmin())
        for row, latent in enumerate(self.latents):
            acts, mu = z[..., latent], self.means[row, column]
            z[..., latent] = torch.where(acts > self.thresholds[row, column], acts * self.gamma * mu, acts)
        out = z @ self.W_dec + self.b_dec + self.error_sign * (x - x_hat)
        return out.mT.reshape(output.shape).to(output.dtype)


class BenchExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Prompts, Count, Calls, PapersHook, *RIVALS]


async def comfy_entrypoint() -> BenchExtension:
    return BenchExtension()

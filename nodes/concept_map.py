"""*SAEmnesia Concept Map*: where concepts are in a picture, as a heat map and as a mask.

One pass over the finished picture: it is encoded, noised a little, and the model called once with its prompt, while
the concepts' neurons are read. The other way would be to watch the run that paints it, by two nodes around the sampler.
On MiniCanvas's drawn scenes one late look points as well (the highest point lies on the object in 96 % of them, for the
mean over three noise levels of a run in 97) and its mask is better (61 and 55 % of the union with the object), and a
pass of its own needs no wiring around the sampler, works with every sampler, workflow and picture, photographs too, and
keeps nothing between runs.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io, ui

from ..sae_models import concept_map
from ..sae_models.adapter import Block, LoadedSae, Tap
from ..sae_models.concept_map import Sight
from ..sae_models.erasure import Erasure
from . import files, patch
from .taps import tapped

PIXELS = 8
"""Of a picture to a side of a latent."""


class ConceptMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaConceptMap", display_name="SAEmnesia Concept Map", category="SAEmnesia",
            description="Shows where concepts are in a picture: a heat map over it, and a mask for inpainting or for a "
                        "regional prompt. It looks at the finished picture, painted by any sampler or loaded from a "
                        "file, in the time of one step.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The model the SAE was made for; only read. What is erased on it is not erased while it looks.")),
                io.Vae.Input("vae", tooltip="The model's VAE, which the picture is encoded with."),
                io.Conditioning.Input("positive", tooltip=(
                    "The prompt of the picture. Only what it says is found: for a photograph write what to look for.")),
                io.Image.Input("image", tooltip="The picture, or several: a map is made of each."),
                files.SaeType.Input("sae", tooltip="Has the concepts: from SAEmnesia Load SAE or Erase Words."),
                io.Float.Input("at", default=0.95, min=0.0, max=1.0, step=0.01, tooltip=(
                    "How far in sampling it looks: 1 is the finished picture, where places are told best; at 0 there "
                    "is only noise. Lower shows what decided the layout.")),
                io.Float.Input("threshold", default=0.5, min=0.0, max=1.0, step=0.01, tooltip=(
                    "How strong a place must be to be in the mask, as a share of the strongest. Lower makes the mask "
                    "larger; 0 gives it no edge: as bright as the heat map.")),
                io.String.Input("concepts", multiline=True, default="", tooltip=(
                    "What to look for, for example: cat, dog, written as in SAEmnesia Erase; strengths do not count. "
                    f"Empty: all concepts of the SAE that are there, the strongest first, at most "
                    f"{concept_map.MOST}.")),
            ],
            outputs=[
                io.Image.Output("heat", display_name="IMAGE", tooltip=(
                    "The heat map over the picture: one a concept, in the order of the names; of several pictures, all "
                    "those of the first concept come first.")),
                io.Mask.Output("mask", display_name="MASK", tooltip=(
                    "Where the concept is, as large as the picture; in the same order.")),
                io.String.Output("names", display_name="names", tooltip=(
                    "The concepts' names, as the 'concepts' of other nodes take them.")),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, vae: Any, positive: list, image: torch.Tensor, sae: LoadedSae, at: float,
                threshold: float, concepts: str) -> io.NodeOutput:
        sae = sae.now(concepts)
        names = concept_map.names_of(sae, concepts)
        pictures = image[..., :3]
        maps = look(model, positive, vae.encode(in_latents(pictures)), sae, names, at)
        if not concepts.strip():
            there = concept_map.strongest(names, maps)
            names, maps = [names[i] for i in there], maps[there]
        return _shown(names, maps, pictures.to(maps), threshold)


def _shown(names: list[str], maps: torch.Tensor, pictures: torch.Tensor, threshold: float) -> io.NodeOutput:
    """What comes out of maps [C, pictures, h, w]; of no concept, the picture as it is and an empty mask."""
    count, height, width, _ = pictures.shape
    share = concept_map.shares(maps.flatten(0, 1), height, width) if names else pictures.new_zeros(count, height, width)
    heat = concept_map.heat(pictures.repeat(max(1, len(names)), 1, 1, 1), share)
    said = concept_map.report(names, share.unflatten(0, (-1, count)), threshold) if names else \
        "None of the SAE's concepts is heard in the picture: is the prompt wired in that says what it shows?"
    patch.log.info("SAEmnesia: %s", said.replace("\n", "; "))
    return io.NodeOutput(heat, concept_map.mask(share, threshold), ", ".join(names),
                         ui={"text": [said], **ui.PreviewImage(heat).as_dict()})


def in_latents(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [n, H, W, 3] stretched to sides that are whole latents, which the VAE would cut them to otherwise."""
    sides = [max(1, round(side / PIXELS)) * PIXELS for side in pictures.shape[1:3]]
    if sides == list(pictures.shape[1:3]):
        return pictures
    return torch.nn.functional.interpolate(pictures.movedim(-1, 1), sides, mode="bicubic").clamp(0, 1).movedim(1, -1)


def look(model: ModelPatcher, positive: list, latents: torch.Tensor, sae: LoadedSae, names: Sequence[str],
         at: float) -> torch.Tensor:
    """Maps float [C, pictures, h, w] of some concepts in latents [pictures, 4, h, w], by one call of the model.

    at: how far in sampling, 0..1. Raises SaeError when the SAE does not fit the model, or no place saw the whole
    picture.
    """
    patch.check_base(model, sae)
    seeing = _Seeing(concept_map.readers(sae, names), latents)
    clone = patch.without_edits(model)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "saemnesia map", seeing)
    sampling = model.get_model_object("model_sampling")
    sigma = min(max(sampling.percent_to_sigma(at), float(sampling.sigma_min)), float(sampling.sigma_max))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    comfy.sample.sample_custom(clone, noise, 1.0, comfy.samplers.KSAMPLER(_one_call), torch.tensor([sigma, 0.0]),
                               positive, positive, latents, disable_pbar=True, seed=0)
    return seeing.sight.maps(names).cpu()


def _one_call(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, **_: Any) -> torch.Tensor:
    """A sampler that only asks the model, and paints nothing."""
    model(x, sigmas[0].expand(len(x)), **extra_args)
    return x


@dataclass
class _Seeing:
    """WrappersMP.APPLY_MODEL: shows a `Sight` what the places put out, unless the call is of a part of the picture."""
    readers: Mapping[Block, Erasure]
    latents: torch.Tensor

    def __post_init__(self) -> None:
        self.sight = Sight(self.readers, len(self.latents), *self.latents.shape[2:])

    def __call__(self, executor: Any, x: torch.Tensor, t: torch.Tensor, c_concat: Any = None, c_crossattn: Any = None,
                 control: Any = None, transformer_options: dict | None = None, **kwargs: Any) -> torch.Tensor:
        options = transformer_options or {}
        whole = x.shape[2:] == self.latents.shape[2:]
        taps = {block: self._tap(block, float(t.max()), len(x)) for block in self.readers} if whole else {}
        with tapped(executor.class_obj.diffusion_model, options, taps) as options:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _tap(self, block: Block, sigma: float, rows: int) -> Tap:
        def tap(output: torch.Tensor, x_in: torch.Tensor | None) -> torch.Tensor:
            self.sight.see(block, output, sigma, rows, x_in)
            return output
        return tap


NODES = [ConceptMap]

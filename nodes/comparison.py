"""*SAEmnesia Compare*: one picture from the same noise in several versions: as it is, and with concepts erased.

It samples by itself, so that every version has the same noise and the picture as it is need not be painted twice. What
cannot be erased is said before anything is painted. (`report_pictures` paints before and after for Train's report.)
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..sae_models.adapter import LoadedSae
from ..sae_models.erasure import Actuator
from ..sae_models.versions import Across, Version, versions
from . import files, patch
from .contact_sheet import as_picture, as_pixels, sheet
from .said import warn

BEFORE, DIFFERENCE = "before", "difference"
"""Labels on the sheet."""
IN_A_ROW = 4
"""Versions that stand in one row of the sheet, twice as many where there are rows of other latents below; more make a
square."""
SEEN = 0.05
"""How much brighter or darker a place must be to count as different, as a share of all there is."""
Callback = Callable[..., None]


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaCompare", display_name="SAEmnesia Compare", category="SAEmnesia",
            description="Paints one picture from the same noise as it is and with concepts erased, and shows both with "
                        "a slider, or a sheet over several strengths, concepts or actuators. It samples by itself: no "
                        "KSampler is needed.",
            is_output_node=True, hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.Model.Input("model", tooltip=(
                    "The model to paint with; only copies of it are changed. What nodes before this one erase stays "
                    "erased in all pictures.")),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input("latent_image", tooltip=(
                    "An empty latent of the size to paint, or a picture to start from. Several are compared each.")),
                io.Vae.Input("vae", tooltip="The model's VAE, which makes the pictures of what was painted."),
                files.SaeType.Input("sae", tooltip=(
                    "Has the concepts: from SAEmnesia Load SAE or Erase Words. It must fit the model.")),
                io.Combo.Input("across", options=[one.value for one in Across], default=Across.AFTER.value, tooltip=(
                    "before and after: one picture as it is and erased. strengths: one for each of 'strengths'. "
                    "concepts: each concept erased alone. actuators: each way of erasing.")),
                io.Combo.Input("actuator", options=[a.value for a in Actuator], default="amount", tooltip=(
                    "How it is erased, as in SAEmnesia Erase: amount switches the concept's neuron off, as far as its "
                    "strength says (start here).")),
                io.String.Input("strengths", default="0.25, 0.5, 0.75, 1", tooltip=(
                    "For 'strengths' only: a picture for each, in place of the strengths in 'concepts'. 0 changes "
                    "nothing, 1 erases fully; for 'steer' -1 does.")),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip=(
                    "Another seed, another picture. The picture before is what KSampler paints with it.")),
                io.Int.Input("steps", default=20, min=1, max=10_000, tooltip=(
                    "Sampling steps of a picture: more take longer and show more detail, up to a point.")),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=(
                    "Guidance: 1 is none; higher keeps closer to the prompt.")),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler", tooltip=(
                    "The sampler, as in KSampler.")),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", tooltip=(
                    "The noise levels of the steps, as in KSampler.")),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "How much is painted anew: 1 all of it; lower keeps more of the picture in 'latent_image'.")),
                io.String.Input("concepts", multiline=True, default="", tooltip=(
                    "What to erase, written as in SAEmnesia Erase: cat, dog:0.5, or cat -> dog to put another in its "
                    "place.")),
            ],
            outputs=[
                io.Image.Output("sheet", display_name="sheet", tooltip=(
                    "All pictures side by side with labels, and between two of them the difference.")),
                io.Image.Output("pictures", display_name="pictures", tooltip=(
                    "The pictures alone: first as it is, then each version in the order of the sheet. Of several "
                    "latents, all pictures as they are come first.")),
                io.Image.Output("difference", display_name="difference", tooltip=(
                    "How much each version differs from the picture as it is, in grey: black is no difference.")),
            ],
        )

    @classmethod
    def execute(cls, model: patch.ModelPatcher, positive: list, negative: list, latent_image: dict, vae: Any,
                sae: LoadedSae, across: str, actuator: str, strengths: str, seed: int, steps: int, cfg: float,
                sampler_name: str, scheduler: str, denoise: float, concepts: str) -> io.NodeOutput:
        sae, wanted = sae.now(concepts), versions(Across(across), concepts, Actuator(actuator), strengths, cfg != 1)
        models = _models(model, sae, wanted, cls.hidden.unique_id or "")
        if sentence := files.elsewhere(sae, model, cls.hidden):
            warn(sentence)
        sampling = Sampling(positive, negative, latent_image, seed, steps, cfg, sampler_name, scheduler, denoise)
        before, *after = _decoded(vae, _painted(sampling, models, cls.hidden.unique_id))
        return _shown(Across(across), wanted, before, after)


def _models(model: patch.ModelPatcher, sae: LoadedSae, wanted: Sequence[Version],
            node: str) -> list[patch.ModelPatcher | None]:
    """The model as it is and that of each version; None for one that differs in nothing; node: whose id stands in the
    pictures' files.

    Raises SaeError for a version that cannot be painted.
    """
    edits = [version.edits(sae) for version in wanted]
    return [model, *(patch.erase(model, sae, one, node=node) if one else None for one in edits)]


@dataclass(frozen=True)
class Sampling:
    """What KSampler is told."""
    positive: list
    negative: list
    latent: dict
    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float

    def paint(self, model: patch.ModelPatcher, callback: Callback) -> torch.Tensor:
        """The latents that KSampler paints."""
        start = comfy.sample.fix_empty_latent_channels(model, self.latent["samples"])
        noise = comfy.sample.prepare_noise(start, self.seed, self.latent.get("batch_index"))
        return comfy.sample.sample(
            model, noise, self.steps, self.cfg, self.sampler, self.scheduler, self.positive, self.negative, start,
            denoise=self.denoise, noise_mask=self.latent.get("noise_mask"), callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=self.seed)


def _painted(sampling: Sampling, models: Sequence[patch.ModelPatcher | None], node: str | None) -> list[torch.Tensor]:
    """The latents of each; the first ones again where there is no model."""
    progress = _Progress(sum(model is not None for model in models), node)
    painted: list[torch.Tensor] = []
    for model in models:
        painted.append(sampling.paint(model, progress.next_run()) if model is not None else painted[0])
    return painted


class _Progress:
    """One bar over several runs, without the host's preview, which would stay below what the node shows."""

    def __init__(self, runs: int, node: str | None) -> None:
        self.runs, self.over = runs, -1
        self.bar = comfy.utils.ProgressBar(runs, node_id=node)

    def next_run(self) -> Callback:
        """What the host calls after every sampling step of it; the bar raises when the run was cancelled."""
        self.over += 1
        return lambda step, x0, x, total: self.bar.update_absolute(self.over * total + step + 1, self.runs * total)


def _decoded(vae: Any, latents: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Pictures [n, H, W, 3] of each, after all sampling, so that model and VAE need not change places in memory."""
    before = vae.decode(latents[0])
    return [before if one is latents[0] else vae.decode(one) for one in latents]


def _shown(across: Across, wanted: Sequence[Version], before: torch.Tensor,
           after: Sequence[torch.Tensor]) -> io.NodeOutput:
    """What comes out, and what the page shows: two pictures and their difference, or the sheet."""
    changes = [(one - before).abs().amax(-1, keepdim=True).expand_as(before) for one in after]
    columns = [(BEFORE, before), *((version.label, one) for version, one in zip(wanted, after, strict=True))]
    if across is Across.AFTER:
        columns.append((DIFFERENCE, changes[0]))
    page = as_pixels(_page(columns))[None]
    shown = {BEFORE: before, "after": after[0], DIFFERENCE: changes[0]} if across is Across.AFTER else {"sheet": page}
    told = {name: ui.PreviewImage(pictures).as_dict()["images"] for name, pictures in shown.items()}
    changed = (changes[0][..., 0] > SEEN).float().mean((1, 2)).tolist() if across is Across.AFTER else []
    return io.NodeOutput(page, torch.cat([before, *after]), torch.cat(changes), ui={**told, "changed": changed})


def _page(columns: Sequence[tuple[str, torch.Tensor]]) -> Image.Image:
    """A sheet of columns of n pictures each: a row for each of the n, or several where there are many columns."""
    count, pictures = len(columns), len(columns[0][1])
    wide = count if count <= IN_A_ROW * min(2, pictures) else math.ceil(math.sqrt(count))
    rows = []
    for i in range(pictures):
        cells = [(label, as_picture(column[i])) for label, column in columns]
        rows += [cells[first:first + wide] for first in range(0, count, wide)]
    return sheet(rows)


NODES = [Compare]

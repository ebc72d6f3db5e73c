"""*SAEmnesia Find Concept*: a concept nobody trained for, from some pictures, in the time that painting them takes."""
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io

from ..sae_models import table
from ..sae_models.adapter import LoadedSae
from ..sae_models.formats import read_sae
from ..sae_models.learning import finding
from ..sae_models.learning.maps import Maps, joined
from . import files, patch, training
from .collect import Collector, Painting
from .inputs import painting_inputs
from .patch import log

OWN, BEST, BEST_BY_LEVEL = "a neuron of its own", "the best neurons", "the best neurons at each noise level"


class FindConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaFindConcept", display_name="SAEmnesia Find Concept", category="SAEmnesia",
            description="Add a concept that the SAE was not trained for. It paints some pictures that show it and some "
                        "that do not, and writes a concept file of some kilobytes.",
            is_output_node=True, hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to learn the concept from; only read, never changed."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                files.SaeType.Input("sae", tooltip="An SAE of this model: it says the block, and its concepts are what "
                                                   "the new one is told from."),
                io.String.Input("name", default="my concepts", tooltip=(
                    "The concept file in models/sae. If it is there, the concept is added to it.")),
                io.String.Input("concepts", multiline=True, default="", tooltip=(
                    "What to find, one a line: cat, or in full cat (object) = a cat | an animal, which is the name, "
                    "its kind, the words that say it, and the words in their place when it is left out.")),
                io.String.Input("contrast", multiline=True, default="", tooltip=(
                    "What it must be told from, in the same form, above all what is like it: dog, bear, fox. Empty: "
                    "concepts of the SAE.")),
                io.String.Input("prompts", multiline=True, default="", tooltip=(
                    "What is painted, one template a line: a photo of {object}; {object}, {style}; or {} for any "
                    "concept. Empty: some simple ones.")),
                io.Combo.Input("how", options=[OWN, BEST, BEST_BY_LEVEL], default=OWN, tooltip=(
                    "a neuron of its own: fitted to the pictures (start here). the best neurons: those of the SAE that "
                    "fire most for the concept, the same at every noise level or the best at each; erase them with "
                    "'steer'.")),
                io.Int.Input("neurons", default=1, min=1, max=64, tooltip=(
                    "How many of the SAE's neurons stand for the concept. A neuron of its own is always one.")),
                io.Int.Input("pictures", default=32, min=2, max=10_000, tooltip=(
                    "How many pictures are painted; half of them show the concept. More are surer.")),
                io.Int.Input("at_once", default=4, min=1, max=64, tooltip=(
                    "Pictures painted at once: as many as your memory allows.")),
                *painting_inputs(steps=12),
                io.Int.Input("seed", default=0, min=0, max=2**31, control_after_generate=False, tooltip=(
                    "Another seed, other pictures.")),
            ],
            outputs=[files.SaeType.Output("concept_file", display_name="SAE"), io.String.Output("report")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, **_: Any) -> float:
        return files.changed(files.new_path(name))

    @classmethod
    def execute(cls, model: Any, clip: Any, sae: LoadedSae, name: str, concepts: str, contrast: str, prompts: str,
                how: str, neurons: int, pictures: int, at_once: int, width: int, height: int, steps: int, cfg: float,
                seed: int) -> io.NodeOutput:
        patch.check_base(model, sae)
        out = files.new_path(name)
        table.check_same_place(out, sae.header)
        painting = Painting(width, height, steps, cfg, batch=min(at_once, pictures), seed=seed)
        what = training.search(concepts, contrast, prompts, sae.header, painting, pictures)
        maps = _painted(model, clip, what, cls.hidden.unique_id)
        with torch.inference_mode(False), torch.no_grad():
            found = _found(how, sae, maps, what, neurons)
        table.add(out, sae.header, found)
        text = f"{out.name}: {', '.join(concept.name for concept in found.concepts)}, from {pictures} pictures"
        log.info("SAEmnesia: %s", text)
        return io.NodeOutput(files.load(out.name), text, ui={"text": [text]})


def _painted(model: Any, clip: Any, what: training.Search, node: str | None) -> Maps:
    bar = comfy.utils.ProgressBar(what.lesson.chunks * what.lesson.painting.steps, node_id=node)
    lesson = what.lesson
    collector = Collector(model, clip, lesson.prompts, len(lesson.subjects), lesson.hookpoint, lesson.painting,
                          lesson.residual, lambda: bar.update(1))
    return joined([collector.chunk(i) for i in range(lesson.chunks)])


def _found(how: str, sae: LoadedSae, maps: Maps, what: training.Search, neurons: int) -> table.Table:
    if how == OWN:
        return finding.own_neurons(maps, what.wanted)
    whole = read_sae(sae.path)[0].to(comfy.model_management.get_torch_device())
    return finding.best_neurons(whole, maps, what.wanted, neurons, how == BEST_BY_LEVEL)


NODES = [FindConcept]

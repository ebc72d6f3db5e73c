"""*SAEmnesia Find Concept*: a concept nobody trained for, from some pictures, in the time that painting them takes."""
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..sae_models import table
from ..sae_models.adapter import LoadedSae
from ..sae_models.errors import SaeError
from ..sae_models.formats import Header, read_sae
from ..sae_models.learning import finding, places
from ..sae_models.learning.lesson import Search, search
from ..sae_models.learning.maps import Maps
from ..sae_models.learning.measuring import NEURONS
from ..sae_models.learning.painting import Painting
from ..sae_models.learning.prompts import understood
from ..sae_models.learning.search import found
from ..sae_models.learning.sparse import learns_on
from ..sae_models.table import Table
from . import files, patch
from .family import family_of
from .inputs import folded, painting_inputs
from .painting import Painter, untouched
from .patch import log
from .progress import Progress

OWN, BEST, BEST_BY_LEVEL = "a neuron of its own", "the best neurons", "the best neurons at each noise level"


class FindConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaFindConcept", display_name="SAEmnesia Find Concept", category="SAEmnesia",
            description="Add a concept nobody trained for, with or without an SAE. It paints some pictures that show "
                        "it and some that do not, measures how much of it is then removed, and writes a concept file.",
            is_output_node=True, hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.Model.Input("model", tooltip="The model to learn the concept from; only read, never changed."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
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
                    "a neuron of its own: fitted to the pictures at every cross-attention of the model (start here). "
                    "the best neurons: those of the SAE that fire most for the concept, the same at every noise level "
                    "or the best at each; erase them with 'steer'.")),
                io.Int.Input("neurons", default=0, min=0, max=64, tooltip=(
                    "How many neurons stand for the concept at a place. 0: as few as remove it, at most 4 (start "
                    "here); of an SAE's best neurons 0 takes one.")),
                io.Int.Input("pictures", default=32, min=2, max=10_000, tooltip=(
                    "How many pictures are painted; half of them show the concept. More are surer.")),
                io.Int.Input("at_once", default=4, min=1, max=64, tooltip=(
                    "Pictures painted at once: as many as your memory allows.")),
                *painting_inputs(steps=12),
                io.Int.Input("seed", default=0, min=0, max=2**31, control_after_generate=False, tooltip=(
                    "Another seed, other pictures.")),
                folded(io.String.Input("hookpoint", default="", tooltip=(
                    "Where the concept gets neurons of its own. Empty: at every cross-attention, where words enter "
                    "(start here). Or blocks of your own choice, separated by commas."))),
                files.SaeType.Input("sae", optional=True, tooltip=(
                    "An SAE of this model, for 'the best neurons'; its concepts are also what the new one is told from "
                    "where 'contrast' is empty.")),
            ],
            outputs=[
                files.SaeType.Output("concept_file", display_name="SAE", tooltip=(
                    "The concept file, for SAEmnesia Erase and its list.")),
                io.String.Output("report", tooltip="What is also said on the node."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **_: Any) -> int:
        return files.changed(name)

    @classmethod
    def execute(cls, model: Any, clip: Any, name: str, concepts: str, contrast: str, prompts: str, how: str,
                neurons: int, pictures: int, at_once: int, width: int, height: int, steps: int, cfg: float, seed: int,
                hookpoint: str, sae: LoadedSae | None = None) -> io.NodeOutput:
        if sae:
            patch.check_base(model, sae)
        painting = Painting(width, height, steps, cfg, batch=min(at_once, pictures), seed=seed)
        known = sae.concepts if sae else ()
        what = search(concepts, contrast, prompts, known, painting, pictures)
        out, headers = files.new_path(name), _places(model, how, sae, hookpoint)
        table.check_addable(out, headers)
        headers = files.made_on(headers, model, cls.hidden)
        said = found(studio(model, clip, what, cls.hidden.unique_id), what, out, headers,
                     [neurons] if neurons else NEURONS, None if how == OWN else _best(how, sae, what, neurons or 1))
        text = f"{out.name}, from {pictures} pictures: {'; '.join(said)}"
        log.info("SAEmnesia: %s", text)
        return io.NodeOutput(files.made(out), text, ui={"text": [text], "sae": [out.name]})


def _places(model: Any, how: str, sae: LoadedSae | None, names: str) -> list[Header]:
    """Where the concept gets neurons: at the places of these names or at every cross-attention, or where the SAE is
    whose neurons are chosen from."""
    if how != OWN:
        if sae is None:
            raise SaeError(f"'{how}' are those of an SAE, and none is wired in: load one with SAEmnesia Load SAE, or "
                           f"choose '{OWN}'")
        return [sae.at(names).header]
    return places_of(model, names)


def places_of(model: Any, names: str = "") -> list[Header]:
    """A header for each place of these names, or for every cross-attention that hears the prompt.

    Raises SaeError as `learning.places` does.
    """
    return places.headers(model.model.diffusion_model, family_of(model.model.model_config), names)


def studio(model: Any, clip: Any, what: Search, node: str | None) -> Painter:
    """Paints all the pictures, and shows how far it is."""
    painting, about = what.lesson.painting, understood(what.wanted)
    log.info("SAEmnesia: understood as %s", about)
    progress = Progress(model, what.batches * painting.steps, node, about)
    return Painter(untouched(model), clip, painting, progress, progress.say)


def _best(how: str, sae: LoadedSae, what: Search, n: int) -> Callable[[Sequence[Maps]], dict[int, list[Table]]]:
    """What finds the SAE's best neurons in the maps."""
    def best(maps: Sequence[Maps]) -> dict[int, list[Table]]:
        with torch.inference_mode(False), torch.no_grad():
            whole = read_sae(sae.path)[0].to(learns_on(comfy.model_management.get_torch_device()))
            return {n: [finding.best_neurons(whole, part, what.wanted, n, how == BEST_BY_LEVEL) for part in maps]}
    return best


NODES = [FindConcept]

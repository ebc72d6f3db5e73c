"""*SAEmnesia Find Concept*: a concept nobody trained for, from some pictures, in the time that painting them takes."""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..sae_models import hookpoint, table
from ..sae_models.adapter import Block, LoadedSae
from ..sae_models.errors import SaeError
from ..sae_models.formats import Header, read_sae
from ..sae_models.learning import finding
from ..sae_models.learning.losses import Weights
from ..sae_models.learning.maps import Maps, joined
from ..sae_models.learning.measuring import NEURONS, fewest_neurons
from ..sae_models.learning.prompts import trial, understood
from ..sae_models.sae import SaeConfig
from ..sae_models.table import Table
from . import files, measure, patch, training
from .collect import Collector, fingerprint
from .inputs import painting_inputs
from .painting import Painter, Painting
from .patch import log
from .progress import Progress

OWN, BEST, BEST_BY_LEVEL = "a neuron of its own", "the best neurons", "the best neurons at each noise level"
TOKENS = 256
"""Of a map that are kept: enough, where a picture has thousands."""
DEAF = 1e-6
"""Share of a place's output below which words make no difference to it."""
WEIGHTS = Weights(push=0.0)
"""What the words add; how much further removes most is measured on the model."""


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
                io.String.Input("hookpoint", default="", tooltip=(
                    "Where the concept gets neurons of its own. Empty: at every cross-attention, where words enter "
                    "(start here). Or blocks of your own choice, separated by commas.")),
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
    def fingerprint_inputs(cls, name: str, **_: Any) -> float:
        return files.changed(files.new_path(name))

    @classmethod
    def execute(cls, model: Any, clip: Any, name: str, concepts: str, contrast: str, prompts: str, how: str,
                neurons: int, pictures: int, at_once: int, width: int, height: int, steps: int, cfg: float, seed: int,
                hookpoint: str, sae: LoadedSae | None = None) -> io.NodeOutput:
        if sae:
            patch.check_base(model, sae)
        painting = Painting(width, height, steps, cfg, batch=min(at_once, pictures), seed=seed)
        known = sae.concepts if sae else ()
        what = training.search(concepts, contrast, prompts, known, painting, pictures)
        out, headers = files.new_path(name), _places(model, how, sae, hookpoint)
        table.check_addable(out, headers)
        headers = files.made_on(headers, cls.hidden)
        said = found(studio(model, clip, what, cls.hidden.unique_id), what, out, headers,
                     lambda maps: _tables(how, sae, maps, what, neurons), own=how == OWN)
        text = f"{out.name}, from {pictures} pictures: {'; '.join(said)}"
        log.info("SAEmnesia: %s", text)
        return io.NodeOutput(files.load(out.name), text, ui={"text": [text], "sae": [out.name]})


def found(painter: Painter, what: training.Search, out: Path, headers: Sequence[Header],
          tables_of: Callable[[Sequence[Maps]], dict[int, list[Table]]], own: bool = True) -> list[str]:
    """Paint, find the wanted concepts, measure them and write them: a sentence each. Interrupted, and begun again with
    the same settings, it goes on where it was. own: the neurons are not an SAE's, so they can carry more than was
    fitted.

    Raises SaeError when words make no difference to the model.
    """
    headers, maps = _heard(headers, _maps(painter, what, headers))
    tables, blocks = tables_of(maps), [Block.of(header) for header in headers]
    chosen = [_chosen(painter, what, blocks, tables, i, own) for i in range(len(what.wanted))]
    for parts, _ in chosen:
        table.add(out, list(zip(headers, parts, strict=True)))
    _painted.clear()
    return [words for _, words in chosen]


def _places(model: Any, how: str, sae: LoadedSae | None, names: str) -> list[Header]:
    """Where the concept gets neurons: at the places of these names or at every cross-attention, or where the SAE is
    whose neurons are chosen from."""
    if how != OWN:
        if sae is None:
            raise SaeError(f"'{how}' are those of an SAE, and none is wired in: load one with SAEmnesia Load SAE, or "
                           f"choose '{OWN}'")
        return [sae.at(names).header]
    return places(model, names)


def places(model: Any, names: str = "") -> list[Header]:
    """A header for each place of these names, or for every cross-attention that hears the prompt.

    Raises SaeError as `training.places` does.
    """
    unet = model.model.diffusion_model
    family = type(model.model.model_config).__name__.lower()
    return [Header(SaeConfig(hookpoint.width(hookpoint.find(unet, name)), 1, 1), name, family)
            for name in training.places(model, names)]


def studio(model: Any, clip: Any, what: training.Search, node: str | None) -> Painter:
    """Paints all the pictures, and shows how far it is."""
    batches = what.lesson.chunks + 2 * len(what.wanted)
    steps = batches * what.lesson.painting.steps
    about = understood(what.wanted)
    log.info("SAEmnesia: understood as %s", about)
    return Painter(model, clip, what.lesson.painting, Progress(model, steps, node, about))


_painted: dict[str, dict[int, dict[Block, Maps]]] = {}
"""The chunks of the run that was begun last and not ended, by what it is."""


def _maps(painter: Painter, what: training.Search, headers: Sequence[Header]) -> list[Maps]:
    lesson, blocks = what.lesson, [Block.of(header) for header in headers]
    collector = Collector(painter, lesson.prompts, len(lesson.subjects), blocks, TOKENS)
    heard = float(painter.encoded([lesson.prompts[0].text]).context.double().sum())
    run = f"{fingerprint(painter.model)} {heard} {lesson} {blocks}"
    if run not in _painted:
        _painted.clear()
    chunks = _painted.setdefault(run, {})
    at = f"painting {lesson.pictures} pictures to learn from" if not chunks else \
        f"going on at picture {len(chunks) * lesson.painting.batch + 1} of {lesson.pictures}"
    log.info("SAEmnesia: %s", at)
    for i in range(lesson.chunks):
        if i not in chunks:
            chunks[i] = collector.chunk(i)
        else:
            painter.skip()
    return [joined([chunks[i][block] for i in range(lesson.chunks)]) for block in blocks]


def _heard(headers: Sequence[Header], maps: Sequence[Maps]) -> tuple[list[Header], list[Maps]]:
    """The places that hear the prompt at all.

    Raises SaeError when none does.
    """
    heard = [(header, part) for header, part in zip(headers, maps, strict=True) if part.heard() > DEAF]
    if not heard:
        raise SaeError("the words make no difference to this model: it paints the same with and without them; check "
                       "that model and clip belong together")
    return [header for header, _ in heard], [part for _, part in heard]


def _tables(how: str, sae: LoadedSae | None, maps: Sequence[Maps], what: training.Search,
            neurons: int) -> dict[int, list[Table]]:
    """{neurons a concept and place: every place's rows}."""
    with torch.inference_mode(False), torch.no_grad():
        if how == OWN:
            return own_tables(maps, what, [neurons] if neurons else NEURONS)
        whole, n = read_sae(sae.path)[0].to(comfy.model_management.get_torch_device()), neurons or 1
        return {n: [finding.best_neurons(whole, part, what.wanted, n, how == BEST_BY_LEVEL) for part in maps]}


def own_tables(maps: Sequence[Maps], what: training.Search, numbers: Sequence[int]) -> dict[int, list[Table]]:
    """{neurons a concept and place: every place's rows}, fitted to the maps."""
    with torch.inference_mode(False), torch.no_grad():
        return {n: [finding.own_neurons(part, what.wanted, WEIGHTS, n) for part in maps] for n in numbers}


def _chosen(painter: Painter, what: training.Search, blocks: Sequence[Block], tables: Mapping[int, list[Table]],
            number: int, own: bool) -> tuple[list[Table], str]:
    """Every place's rows of one wanted concept, as many as it needs and as far as removes most, and what they do, in
    words. Other pictures than those that say how many and how far decide whether to go that far, and what it does."""
    name, trials = what.wanted[number].name, trial(number, what.lesson.held_out, what.lesson.prompts)
    rows = {n: [table.only(part, name) for part in parts] for n, parts in tables.items()}
    effects = measure.effects(painter, {n: measure.ablating(blocks, parts) for n, parts in rows.items()}, *trials)
    n = fewest_neurons({n: effect.scaled() for n, effect in effects.items()} if own else effects)
    ways = {scale: [table.scaled(part, scale) for part in rows[n]] for scale in {1.0, effects[n].scale if own else 1.0}}
    checked = measure.effects(painter, {scale: measure.ablating(blocks, parts) for scale, parts in ways.items()},
                              *trials, batch=1)
    scale = max(checked, key=lambda scale: checked[scale].gain)
    places = f" at each of {len(blocks)} places" if len(blocks) > 1 else ""
    words = f"{name}: {checked[scale].in_words()}, with {n} neuron{'s' if n > 1 else ''}{places}"
    return [table.measured(part, checked[scale].shares) for part in ways[scale]], words


NODES = [FindConcept]

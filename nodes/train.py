"""*SAEmnesia Train*: an SAE on the user's own model, at one place or several, from a list of concepts."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io

from ..sae_models.adapter import LoadedSae
from ..sae_models.learning.job import Job, train_to_file, unmeasured
from ..sae_models.learning.lesson import Lesson, lesson
from ..sae_models.learning.losses import Weights, push_at
from ..sae_models.learning.maps import MakeChunk, Maps
from ..sae_models.learning.origin import Origin
from ..sae_models.learning.pace import Pace, Stopwatch
from ..sae_models.learning.painting import Painting
from ..sae_models.learning.places import places as places_of
from ..sae_models.learning.prompts import understood
from ..sae_models.learning.sparse import learns_on
from ..sae_models.learning.training import TrainSettings
from ..sae_models.made_on import made_of
from ..sae_models.sae import SaeConfig
from . import chart, files, patch, progress, report_pictures, training
from .family import original_weights
from .inputs import folded, painting_inputs
from .progress import Preview

WEIGHTS = (600, 300, 60, 40)
"""Of the bar: painting, learning, measuring, comparing."""
PARTS = sum(WEIGHTS)


class Preset(NamedTuple):
    """What fits: pictures painted at once, maps a training step, gigabytes of the SAEs in training (weights, gradients
    and two moments), d_sae as a multiple of a block's width at most, and gigabytes of RAM for activations."""
    at_once: int
    batch: int
    saes: float
    expansion: int
    memory: float

    def jobs(self, origins: Sequence[Origin], k: int, settings: TrainSettings) -> list[Job]:
        """An SAE for each place, all of one expansion: the largest that fits."""
        fits = int(self.saes * training.GIGABYTE // sum(training.needed(SaeConfig(o.d_in, o.d_in, 1)) for o in origins))
        expansion = max(1, min(self.expansion, fits))
        memory = int(self.memory * training.GIGABYTE)
        return [Job(origin, SaeConfig(origin.d_in, expansion * origin.d_in, k),
                    replace(settings, weights=Weights(push=push_at(origin.hookpoint))), memory) for origin in origins]


PRESETS = {
    "6 GB": Preset(2, 8, 1.6, 8, 1.0),
    "8 GB": Preset(4, 16, 2.4, 16, 2.0),
    "12 GB": Preset(8, 16, 3.2, 16, 3.0),
    "24 GB or more": Preset(16, 32, 12.0, 16, 6.0),
    "CPU, small model": Preset(17, 32, 2.0, 8, 2.0),
}


class Train(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaTrain", display_name="SAEmnesia Train", category="SAEmnesia",
            description="Teach an SAE concepts of your own model: one neuron for each at every place where words "
                        "enter. It paints pictures with the model, learns from them, and measures how much of each "
                        "concept is removed. Stop it whenever you like: queued again, it goes on.",
            is_output_node=True, hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.Model.Input("model", tooltip="The model to learn; only read, never changed."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input("name", default="my concepts", tooltip="The file in models/sae, without .safetensors."),
                io.String.Input("concepts", multiline=True, default="cat, dog", tooltip=(
                    "What to learn, one a line or separated by commas. In full: cat (object) = a cat | an animal, "
                    "which is the name, its kind, the words that say it, and the words in their place when it is "
                    "left out.")),
                io.String.Input("prompts", multiline=True, default="", tooltip=(
                    "What is painted to learn from, one template a line: a photo of {object}; {object}, {style}; or {} "
                    "for any concept. Empty: some simple ones.")),
                io.Combo.Input("memory", options=list(PRESETS), default="8 GB", tooltip=(
                    "How much memory your graphics card has. More lets it paint and learn faster, and gives each place "
                    "more neurons: at the 16 cross-attentions of SD 1.5 4, 6, 8 or 16 for each number of its width, "
                    "which take 1.6, 2.4, 3.2 or 6.3 GB while they learn.")),
                io.Int.Input("pictures", default=600, min=1, max=1_000_000, tooltip=(
                    "How many pictures are painted to learn from. More learns better and takes longer; some ten for "
                    "each concept are the least.")),
                io.Int.Input("training_steps", default=3500, min=2, max=10_000_000, tooltip=(
                    "How long it learns from them. More learns better, up to a point.")),
                *painting_inputs(steps=20),
                folded(io.String.Input("hookpoint", default="", tooltip=(
                    "Empty: every cross-attention of the model, where words enter (start here). Or blocks of your "
                    "own choice, separated by commas, such as up_blocks.1.attentions.1, where SD 1.x decides what an "
                    "object is: 'choose blocks' lists those of your model."))),
                folded(io.Int.Input("k", default=32, min=1, max=1024, tooltip=(
                    "How many neurons may fire for a place."))),
                io.Int.Input("seed", default=0, min=0, max=2**31, control_after_generate=False, tooltip=(
                    "Another seed, other pictures.")),
                io.Boolean.Input("keep_activations", default=False, tooltip=(
                    "Store what the model puts out in models/sae/<name>.activations, to learn from it again without "
                    "painting. It takes gigabytes.")),
                files.SaeType.Input("start", optional=True, tooltip=(
                    "An SAE of the same places, yours or a published one, to teach the concepts. Then all steps go "
                    "into the concepts, and k is that SAE's. Without it a new SAE is trained first.")),
                io.Vae.Input("vae", optional=True, tooltip=(
                    "The model's VAE, for the pictures before and after erasing in the report. Without it they are "
                    "as rough as the host's previews. With it they are also the file's picture in the Models "
                    "sidebar.")),
            ],
            outputs=[
                files.SaeType.Output("sae", display_name="SAE", tooltip="The file, for SAEmnesia Erase and its list."),
                io.Image.Output("report_picture", tooltip="The curve of training and a line a concept, to look at."),
                io.String.Output("report", tooltip="The same in words."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **_: Any) -> int:
        return files.changed(name)

    @classmethod
    def execute(cls, model: Any, clip: Any, name: str, concepts: str, prompts: str, memory: str, pictures: int,
                training_steps: int, width: int, height: int, steps: int, cfg: float, hookpoint: str, k: int, seed: int,
                keep_activations: bool, start: LoadedSae | None = None, vae: Any = None) -> io.NodeOutput:
        preset, out = PRESETS[memory], files.new_path(name)
        painting = Painting(width, height, steps, cfg, batch=min(preset.at_once, pictures), seed=seed)
        what = lesson(concepts, prompts, painting, pictures)
        progress.say(cls.hidden.unique_id, understood(what.subjects))
        patch.log.info("SAEmnesia: understood as %s", understood(what.subjects))
        if start and not hookpoint.strip():
            patch.check_base(model, start)
        places = places_of(model.model.diffusion_model, hookpoint, start)
        what = what if len(places) == 1 else what.holding_out()
        origins = training.origins(model, what, places)
        first = 0 if start else max(1, training_steps * 3 // 7)
        settings = TrainSettings(first, max(1, training_steps - first), preset.batch, seed=seed)
        jobs = [replace(job, made_on=files.checkpoint(cls.hidden), made_of=made_of(original_weights(model)))
                for job in preset.jobs(origins, k, settings)]
        shown = Shown(model, what, origins[0], settings.steps, cls.hidden.unique_id)
        keep = out.with_name(out.stem + files.ACTIVATIONS) if keep_activations else None
        make = shown.making(training.source(model, clip, what, origins, keep, shown.painted))
        painting_of = "" if keep else training.painting_of(model, clip, what, places)
        device = learns_on(comfy.model_management.get_torch_device())
        with torch.inference_mode(False), torch.enable_grad():
            jobs = [job.starting_from(start.path) for job in jobs] if start else jobs
            make = training.making_room(make, jobs, device)
            report = train_to_file(jobs, make, out, shown.trained, device, painting=painting_of,
                                   going_on=shown.going_on)
        shown.finishing(len(unmeasured(out)))
        report = training.measured(model, clip, what, out, report, shown.measured)
        pairs = report_pictures.pairs(model, clip, what, out, report_pictures.decoder(model, vae), shown.compared)
        if vae is not None:
            report_pictures.write_preview(out, pairs)
        picture = np.asarray(chart.report_picture(report, settings.steps, pairs), dtype=np.float32) / 255
        return io.NodeOutput(files.made(out), torch.from_numpy(picture)[None], report.as_text(), ui={
            "text": [f"{out.name} is ready: {report.in_words()}"], "details": [report.numbers()], "sae": [out.name]})


class Shown:
    """Progress of painting, learning, measuring and comparing in the page: the bar, the picture that is being painted
    or the curve, and the time left of each, which is told from its own steps alone. A cancelled run is stopped here,
    within a step: the host's progress bar raises too."""

    def __init__(self, model: Any, what: Lesson, origin: Origin, steps: int, node: str | None) -> None:
        self.a_batch, self.at_once, self.node = what.painting.steps, what.painting.batch, node
        self.painting = Pace((origin.chunks + len(origin.held_out)) * self.a_batch)
        self.learning = Pace(steps)
        self.measuring = Pace(len(what.subjects) * self.a_batch)
        self.comparing = Pace(report_pictures.steps(what))
        self.bar, self.preview = comfy.utils.ProgressBar(PARTS, node_id=node), Preview(model)
        self.curve: list[dict[str, float]] = []
        self.watch = Stopwatch()

    def making(self, make: MakeChunk) -> MakeChunk:
        """`make`; a chunk that was stored counts as painted."""
        def chunk(number: int) -> Mapping[str, Maps]:
            done = self.painting.done
            maps = make(number)
            self.painting.done = min(done + self.a_batch, self.painting.total)
            return maps
        return chunk

    def going_on(self, chunks: int) -> None:
        self.painting.done = chunks * self.a_batch
        if chunks:
            patch.log.info("SAEmnesia: going on at picture %d of %d", chunks * self.at_once + 1, self._pictures())
            self._update(f"going on at picture {chunks * self.at_once + 1} of {self._pictures()}")

    def painted(self, x0: torch.Tensor | None) -> None:
        batch = self.painting.done // self.a_batch
        self.watch.did(self.painting)
        which = f"picture {batch + 1}" if self.at_once == 1 else \
            f"pictures {batch * self.at_once + 1} to {(batch + 1) * self.at_once}"
        then = f"; {self._learned()}" if self.learning.done else ", then it learns"
        self._update(f"painting {which} of {self._pictures()}{self.painting.left()}{then}", self.preview(x0))

    def trained(self, step: int, numbers: dict[str, float]) -> None:
        if self.learning.done == 0:
            patch.log.info("SAEmnesia: pictures painted, learning from them, step %d of %d", step, self.learning.total)
        self.learning.done = step - 1
        self.watch.did(self.learning)
        if numbers:
            self.curve.append({"step": step} | numbers)
            self._update(self._learned(), ("JPEG", chart.curve_picture(self.curve, self.learning.total), None))
        else:
            comfy.model_management.throw_exception_if_processing_interrupted()

    def finishing(self, concepts: int) -> None:
        """From here on: so many concepts are to be measured."""
        self.painting.done, self.learning.done = self.painting.total, self.learning.total
        self.measuring.total = concepts * self.a_batch

    def measured(self, x0: torch.Tensor | None) -> None:
        at = self.measuring.done // self.a_batch + 1
        self.watch.did(self.measuring)
        self._update(f"measuring what is removed: concept {at} of {self.measuring.total // self.a_batch}"
                     f"{self.measuring.left()}", self.preview(x0))

    def compared(self, x0: torch.Tensor | None) -> None:
        at = self.comparing.done // self.a_batch + 1
        self.measuring.done = self.measuring.total
        self.watch.did(self.comparing)
        self._update(f"painting before and after: picture {at} of {self.comparing.total // self.a_batch}"
                     f"{self.comparing.left()}", self.preview(x0))

    def _pictures(self) -> int:
        return self.painting.total // self.a_batch * self.at_once

    def _learned(self) -> str:
        return f"learned {self.learning.done} of {self.learning.total} steps{self.learning.left()}"

    def _update(self, text: str, preview: tuple | None = None) -> None:
        shares = zip((self.painting, self.learning, self.measuring, self.comparing), WEIGHTS, strict=True)
        progress.say(self.node, text)
        self.bar.update_absolute(sum(round(pace.share * weight) for pace, weight in shares), preview=preview)


NODES = [Train]

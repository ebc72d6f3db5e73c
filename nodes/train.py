"""*SAEmnesia Train*: an SAE on the user's own model, at one place or several, from a list of concepts."""
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io

from ..sae_models.adapter import LoadedSae
from ..sae_models.learning.job import Job, train_to_file
from ..sae_models.learning.losses import Weights, push_at
from ..sae_models.learning.origin import Origin
from ..sae_models.learning.prompts import understood
from ..sae_models.learning.training import TrainSettings
from ..sae_models.sae import SaeConfig
from . import chart, files, progress, training
from .inputs import painting_inputs
from .painting import Painting
from .patch import log

GIGABYTE = 10**9


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
        fits = int(self.saes * GIGABYTE // sum(_needed(SaeConfig(o.d_in, o.d_in, 1)) for o in origins))
        expansion = max(1, min(self.expansion, fits))
        return [Job(origin, SaeConfig(origin.d_in, expansion * origin.d_in, k),
                    replace(settings, weights=Weights(push=push_at(origin.hookpoint))), int(self.memory * GIGABYTE))
                for origin in origins]


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
                    "which take 1.6, 2.4, 3.2 or 6.4 GB while they learn.")),
                io.Int.Input("pictures", default=600, min=1, max=1_000_000, tooltip=(
                    "How many pictures are painted to learn from. More learns better and takes longer; some ten for "
                    "each concept are the least.")),
                io.Int.Input("training_steps", default=3500, min=2, max=10_000_000, tooltip=(
                    "How long it learns from them. More learns better, up to a point.")),
                *painting_inputs(steps=20),
                io.String.Input("hookpoint", default="", tooltip=(
                    "Empty: every cross-attention of the model, where words enter (start here). Or blocks of your "
                    "own choice, separated by commas, such as up_blocks.1.attentions.1, where SD 1.x decides what an "
                    "object is.")),
                io.Int.Input("k", default=32, min=1, max=1024, tooltip="How many neurons may fire for a place."),
                io.Int.Input("seed", default=0, min=0, max=2**31, control_after_generate=False, tooltip=(
                    "Another seed, other pictures.")),
                io.Boolean.Input("keep_activations", default=False, tooltip=(
                    "Store what the model puts out in models/sae/<name>.activations, to learn from it again without "
                    "painting. It takes gigabytes.")),
                files.SaeType.Input("start", optional=True, tooltip=(
                    "An SAE of the same places, yours or a published one, to teach the concepts. Then all steps go "
                    "into the concepts, and k is that SAE's. Without it a new SAE is trained first.")),
            ],
            outputs=[
                files.SaeType.Output("sae", display_name="SAE", tooltip="The file, for SAEmnesia Erase and its list."),
                io.Image.Output("report_picture", tooltip="The curve of training and a line a concept, to look at."),
                io.String.Output("report", tooltip="The same in words."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, **_: Any) -> float:
        return files.changed(files.new_path(name))

    @classmethod
    def execute(cls, model: Any, clip: Any, name: str, concepts: str, prompts: str, memory: str, pictures: int,
                training_steps: int, width: int, height: int, steps: int, cfg: float, hookpoint: str, k: int, seed: int,
                keep_activations: bool, start: LoadedSae | None = None) -> io.NodeOutput:
        preset, out = PRESETS[memory], files.new_path(name)
        painting = Painting(width, height, steps, cfg, batch=min(preset.at_once, pictures), seed=seed)
        what = training.lesson(concepts, prompts, painting, pictures)
        progress.say(cls.hidden.unique_id, understood(what.subjects))
        log.info("SAEmnesia: understood as %s", understood(what.subjects))
        places = training.places(model, hookpoint, start)
        what = what if len(places) == 1 else what.holding_out()
        origins = training.origins(model, what, places)
        first = 0 if start else max(1, training_steps * 3 // 7)
        settings = TrainSettings(first, max(1, training_steps - first), preset.batch, seed=seed)
        jobs = [replace(job, made_on=files.checkpoint(cls.hidden)) for job in preset.jobs(origins, k, settings)]
        shown = Shown(origins[0], painting.steps, settings.steps, cls.hidden.unique_id)
        keep = out.with_name(out.stem + ".activations") if keep_activations else None
        make = training.source(model, clip, what, origins, keep, shown.painted)
        device = comfy.model_management.get_torch_device()
        with torch.inference_mode(False), torch.enable_grad():
            jobs = [job.starting_from(start.path) for job in jobs] if start else jobs
            comfy.model_management.free_memory(sum(_needed(job.config) for job in jobs) + GIGABYTE, device)
            report = train_to_file(jobs, _inference(make), out, shown.trained, device)
        report = training.measured(model, clip, what, out, report, shown.measured)
        picture = np.asarray(chart.report_picture(report, settings.steps), dtype=np.float32) / 255
        return io.NodeOutput(files.load(out.name), torch.from_numpy(picture)[None], report.as_text(),
                             ui={"text": [report.as_text()], "sae": [out.name]})


def _needed(config: SaeConfig) -> int:
    """Bytes of the SAE, its gradients and two moments."""
    return 2 * config.d_sae * config.d_in * 4 * 4


def _inference(make):
    def chunk(number: int):
        with torch.inference_mode():
            return make(number)
    return chunk


class Shown:
    """Progress of painting, training and measuring in the page: bar, curve and time left. A cancelled run is stopped
    here, within a step: the host's progress bar raises too."""

    def __init__(self, origin: Origin, sampling_steps: int, steps: int, node: str | None) -> None:
        self.painting, self.steps, self.node = (origin.chunks + len(origin.held_out)) * sampling_steps, steps, node
        self.measuring = len(origin.subjects) * sampling_steps
        self.bar = comfy.utils.ProgressBar(self.painting + steps + self.measuring, node_id=node)
        self.curve: list[dict[str, float]] = []
        self.ticks, self.step, self.measures, self.began = 0, 0, 0, time.monotonic()

    def painted(self, x0: torch.Tensor | None) -> None:
        self.ticks += 1
        self._update(None)

    def trained(self, step: int, numbers: dict[str, float]) -> None:
        if self.step == 0:
            log.info("SAEmnesia: pictures painted, learning from them, step %d of %d", step, self.steps)
        self.step = step
        if numbers:
            self.curve.append({"step": step} | numbers)
            self._update(("JPEG", chart.curve_picture(self.curve, self.steps), None))
        else:
            comfy.model_management.throw_exception_if_processing_interrupted()

    def measured(self, x0: torch.Tensor | None) -> None:
        self.measures += 1
        self._update(None)

    def _update(self, preview: tuple | None) -> None:
        done = min(self.ticks, self.painting) + self.step + self.measures
        left = (time.monotonic() - self.began) / max(done, 1) * (self.painting + self.steps + self.measuring - done)
        progress.say(self.node, f"painted {self.ticks}/{self.painting} steps, learned {self.step}/{self.steps}, "
                                f"measured {self.measures}/{self.measuring}, about {progress.in_words(left)} left")
        self.bar.update_absolute(done, preview=preview)


NODES = [Train]

"""An adapter for `eval-unlearn` (1.1.2): its metrics judge what SAEmnesia erases, painted by a running ComfyUI.

eval-unlearn finds techniques by an entry point. In the `pyproject.toml` of a package of yours, installed beside it,
with this repository on PYTHONPATH:

    [project.entry-points."eval_unlearn.techniques"]
    saemnesia = "benchmarks.published.technique:SaemnesiaTechnique"

or in a script, before its runner is made:

    from eval_unlearn.registry import register_technique
    register_technique("saemnesia")(SaemnesiaTechnique)

    SingleBenchmarkRunner("saemnesia", "asr_i2p", {"checkpoint": "sd-v1-4.safetensors", "sae": "SAE.safetensors",
                                                   "erase_concept": "nudity"}, {"concept_name": "nudity"}).run()
"""
from collections.abc import Sequence

from PIL import Image

from tools.comfy_host import ComfyServer

from . import painting
from .painting import HOST, Shot, Way


class SaemnesiaTechnique:
    """What eval-unlearn calls a technique. The options are those of the other commands here.

    erase_concept: one or several, as *SAEmnesia Erase* has them: "nudity", "cat, dog"; "" erases nothing. Raises
    SaeError when the SAE has it not, HostError when no ComfyUI answers.
    """

    def __init__(self, checkpoint: str, sae: str, erase_concept: str, host: str = HOST, actuator: str = "ablate",
                 strength: float | None = None, hookpoint: str = "", steps: int = 50, guidance: float = 7.5,
                 width: int = 512, height: int = 512, seed: int = 0) -> None:
        self.host = ComfyServer(host)
        self.way = Way(checkpoint, sae, steps, actuator, strength, hookpoint)
        names = list(filter(None, map(str.strip, erase_concept.split(","))))
        self.concepts = self.way.concepts(list(painting.matched(names, painting.told(self.host, self.way),
                                                                self.way).values()))
        self.guidance, self.size, self.seed = guidance, (width, height), seed

    def generate(self, prompts: Sequence[str], seed: int | None = None) -> list[Image.Image]:
        """A picture of each prompt, the first with this seed, the next with the one after it; where none is said (its
        runner says none), seeds go on from the last call."""
        first = self.seed if seed is None else seed
        self.seed += len(prompts) if seed is None else 0
        shots = [Shot(text, first + i, self.guidance, *self.size) for i, text in enumerate(prompts)]
        return list(painting.paint(self.host, self.way, self.concepts, shots))

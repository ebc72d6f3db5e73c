"""*SAEmnesia Erase*: the node an artist wires between checkpoint and sampler."""
from comfy_api.latest import io

from ..sae_models.adapter import BOTH, CONDITIONAL_ONLY, LoadedSae, build_edits, idle
from ..sae_models.erasure import Actuator
from . import files, patch
from .said import warn


class Erase(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaErase", display_name="SAEmnesia Erase", category="SAEmnesia",
            description="Take concepts out of what a model paints, and keep everything else.",
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                io.Model.Input("model", tooltip="The model to paint with; only a copy of it is changed."),
                files.SaeType.Input("sae", tooltip="An SAE trained on this base model."),
                io.Combo.Input("actuator", options=[a.value for a in Actuator], default="amount", tooltip=(
                    "amount switches the concept's neuron off, as far as its strength says (start here): 0 nothing, 1 "
                    "gone, about evenly between; ablate does the same in proportion to what the neuron adds; steer "
                    "scales it by a signed strength; replace paints over the places where it fires with what is around "
                    "them; thorough takes all that the prompt adds of it, whether or not the neuron fires, if the "
                    "thing still comes (above cfg 1).")),
                io.Float.Input("start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "When erasing begins, as a share of sampling: 0 from the first step. Later keeps more of the "
                    "layout.")),
                io.Float.Input("end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "When erasing ends, as a share of sampling: 1 after the last step. Earlier keeps more detail.")),
                io.Combo.Input("apply_to", options=[BOTH, CONDITIONAL_ONLY], default=CONDITIONAL_ONLY, tooltip=(
                    "conditional only: erase in what the prompt asks for, and leave the negative half of guidance "
                    "alone, so that a word in the negative prompt goes on pushing away; both: erase in both halves, as "
                    "the papers do.")),
                io.String.Input("concepts", multiline=True, default="", tooltip=(
                    "What to erase, for example: cat, dog:0.5. A number after a colon is the strength: 1 (or no "
                    "number) erases fully, 0 changes nothing. For 'amount' it runs from -1 to 2: 0.5 takes half of it "
                    "away, above 1 pushes further away, below 0 strengthens the concept. For 'steer' it is signed: -1 "
                    "erases, below -1 pushes further away, above 0 strengthens the concept. An arrow puts another "
                    "concept of the same SAE in its place: cat -> dog, or cat:0.5 -> dog for half of it; with 'amount' "
                    "and 'ablate'.")),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="Paint with it: it does not paint the concepts.")],
        )

    @classmethod
    def execute(cls, model: patch.ModelPatcher, sae: LoadedSae, actuator: str, start: float, end: float,
                apply_to: str, concepts: str) -> io.NodeOutput:
        sae = sae.now(concepts)
        edits = build_edits(sae, concepts, Actuator(actuator), conditional_only=apply_to == CONDITIONAL_ONLY)
        erased = patch.erase(model, sae, edits, (start, end), cls.hidden.unique_id, idle(sae, concepts))
        if edits and (sentence := files.elsewhere(sae, model, cls.hidden)):
            warn(sentence)
        return io.NodeOutput(erased)


NODES = [Erase]

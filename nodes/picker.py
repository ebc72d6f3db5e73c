"""*SAEmnesia Concept Picker*: choose concepts once and wire the list to several *Erase* nodes."""
from comfy_api.latest import io

from ..sae_models.adapter import LoadedSae
from ..sae_models.concepts import mentioned, parse
from . import files


class ConceptPicker(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaConceptPicker", display_name="SAEmnesia Concept Picker", category="SAEmnesia",
            description="Choose concepts of an SAE by name, with a strength each.",
            inputs=[
                files.SaeType.Input("sae", tooltip="The SAE whose concepts are listed."),
                io.String.Input("concepts", multiline=True, default="", tooltip=(
                    "The chosen concepts, for example: cat, dog:0.5. Without a number a concept is erased fully. "
                    "rose -> key puts the key where the rose would be.")),
            ],
            outputs=[io.String.Output("chosen", display_name="concepts", tooltip=(
                "The chosen concepts as text, for the 'concepts' of several SAEmnesia Erase nodes."))],
        )

    @classmethod
    def execute(cls, sae: LoadedSae, concepts: str) -> io.NodeOutput:
        sae = sae.now(concepts)
        for choice in mentioned(parse(concepts)):
            sae.find(choice.name)
        return io.NodeOutput(concepts)


NODES = [ConceptPicker]

"""*SAEmnesia Export Concept*: some concepts of an SAE as a file of kilobytes, to keep or to share."""
from typing import Any

from comfy_api.latest import io

from ..sae_models import table
from ..sae_models.adapter import LoadedSae
from ..sae_models.concepts import mentioned, parse
from . import files


class ExportConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaExportConcept", display_name="SAEmnesia Export Concept", category="SAEmnesia",
            description="Write some concepts of an SAE to a concept file of a few kilobytes, which is loaded and used "
                        "like any SAE.",
            is_output_node=True,
            inputs=[
                files.SaeType.Input("sae", tooltip="The SAE that has the concepts."),
                io.String.Input("name", default="my concepts", tooltip=(
                    "The concept file in models/sae. If it is there, the concepts are added to it.")),
                io.String.Input("concepts", multiline=True, default="", tooltip=(
                    "Which concepts, for example: cat, dog. #123 is neuron 123 of an SAE without names.")),
            ],
            outputs=[files.SaeType.Output("concept_file", display_name="SAE", tooltip=(
                "The concept file, for SAEmnesia Erase and its list."))],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **_: Any) -> int:
        return files.changed(name)

    @classmethod
    def execute(cls, sae: LoadedSae, name: str, concepts: str) -> io.NodeOutput:
        sae = sae.now(concepts)
        out, wanted = files.new_path(name), [choice.name for choice in mentioned(parse(concepts))]
        table.add(out, table.read_tables(sae.path, sae.choose(wanted)))
        names = ", ".join(sae.find(name).name for name in wanted)
        text = f"{out.name}: {out.stat().st_size / 1000:.0f} kB, {names}"
        return io.NodeOutput(files.made(out), ui={"text": [text], "sae": [out.name]})


NODES = [ExportConcept]

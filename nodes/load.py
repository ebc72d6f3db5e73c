"""*SAEmnesia Load SAE*: choose a sparse autoencoder of models/sae; only its header is read here."""
from comfy_api.latest import io

from ..sae_models.errors import SaeError
from . import files


class LoadSae(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SAEmnesiaLoadSAE", display_name="SAEmnesia Load SAE", category="SAEmnesia",
            description="Choose a sparse autoencoder (SAE) trained on your base model.",
            inputs=[
                io.Combo.Input("sae_name", options=files.choices(), tooltip="A file of models/sae."),
                io.String.Input("hookpoint", default="", optional=True, tooltip=(
                    "The block the SAE was trained on, for example up_blocks.1.attentions.1. "
                    "Leave empty: the file says it. Only some published SAEs need it.")),
            ],
            outputs=[files.SaeType.Output("sae", display_name="SAE", tooltip=(
                "The file's description, for SAEmnesia Erase; nothing of it is loaded yet."))],
        )

    @classmethod
    def execute(cls, sae_name: str, hookpoint: str = "") -> io.NodeOutput:
        return io.NodeOutput(files.load(sae_name).at(hookpoint))

    @classmethod
    def validate_inputs(cls, sae_name: str | None = None) -> bool | str:
        """A file that is not there is said in a sentence of ours; where the name is linked in, when it runs."""
        try:
            return bool(sae_name is None or files.path_of(sae_name))
        except SaeError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, sae_name: str, hookpoint: str = "") -> tuple:
        """Changes when the file does, so that a newly trained SAE is read again."""
        status = files.path_of(sae_name).stat()
        return sae_name, hookpoint, status.st_mtime_ns, status.st_size


NODES = [LoadSae]

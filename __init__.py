"""SAEmnesia: switch a concept off while a diffusion model paints. Entry point for ComfyUI."""
try:
    import folder_paths  # noqa: F401  (there only inside ComfyUI)
except ModuleNotFoundError:
    WEB_DIRECTORY = None
else:
    try:
        from comfy_api.latest import ComfyExtension, io

        from .nodes import erase, files, load, picker
    except ImportError as error:
        if not (error.name or "").startswith("comfy"):
            raise
        raise ImportError(f"SAEmnesia needs ComfyUI 0.3.48 or newer: update ComfyUI ({error})") from error

    WEB_DIRECTORY = "./web"
    files.register_folder()

    class SaemnesiaExtension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            from .nodes import comparison, concept_map, export, find, train, words

            return [*words.NODES, *load.NODES, *picker.NODES, *erase.NODES, *concept_map.NODES, *comparison.NODES,
                    *train.NODES, *find.NODES, *export.NODES]

    async def comfy_entrypoint() -> SaemnesiaExtension:
        from .nodes import routes  # noqa: F401  (registers itself with the server, which a command does not have)
        return SaemnesiaExtension()

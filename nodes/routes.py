"""What the picker widget asks the server: the concepts of an SAE file by name."""
from aiohttp import web
from server import PromptServer

from ..sae_models.errors import SaeError
from . import files


@PromptServer.instance.routes.get("/saemnesia/concepts")
async def concepts(request: web.Request) -> web.Response:
    """GET ?sae=NAME -> {base, hookpoint, places, concepts: [{name, kind, description, measured}]}, or 400 {error}."""
    try:
        return web.json_response(files.load(request.query.get("sae", "")).listed())
    except SaeError as error:
        return web.json_response({"error": str(error)}, status=400)

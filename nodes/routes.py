"""What the picker widget asks the server: the concepts of an SAE file by name."""
from aiohttp import web
from server import PromptServer

from ..sae_models.errors import SaeError
from . import files


@PromptServer.instance.routes.get("/saemnesia/concepts")
async def concepts(request: web.Request) -> web.Response:
    """GET ?sae=NAME -> {hookpoint, base, concepts: [{name, kind, description}]}, or 400 {error}."""
    try:
        header = files.load(request.query.get("sae", "")).header
    except SaeError as error:
        return web.json_response({"error": str(error)}, status=400)
    listed = [{"name": c.name, "kind": c.kind, "description": c.description} for c in header.concepts]
    return web.json_response({"hookpoint": header.hookpoint, "base": header.base, "concepts": listed})

"""What the page asks the server: what an SAE file is for, and its concepts by name; which blocks a checkpoint has."""
from aiohttp import web
from server import PromptServer

from ..sae_models.errors import SaeError
from . import family, files


@PromptServer.instance.routes.get("/saemnesia/concepts")
async def concepts(request: web.Request) -> web.Response:
    """GET ?sae=NAME -> {base, hookpoint, places, concepts: [{name, kind, description, measured}], about, unfit}, or
    400 {error, there}.

    about: a line; unfit: a sentence where &checkpoint=NAME of &folder=checkpoints is of another base, else ""; there:
    whether there is such a file.
    """
    asked = request.query
    try:
        sae = files.load(asked.get("sae", ""))
    except SaeError as error:
        return web.json_response({"error": str(error), "there": files.there(asked.get("sae", ""))}, status=400)
    checkpoint = asked.get("checkpoint", "")
    base = family.of_checkpoint(asked.get("folder", "checkpoints"), checkpoint) if checkpoint else ""
    return web.json_response(sae.listed() | {"about": sae.about(), "unfit": sae.unfit(base, checkpoint)})


@PromptServer.instance.routes.get("/saemnesia/blocks")
async def blocks(request: web.Request) -> web.Response:
    """GET ?checkpoint=NAME&folder=checkpoints -> the hookpoints of its cross-attention blocks, [] where that cannot be
    told."""
    asked = request.query
    return web.json_response(family.blocks_of_checkpoint(asked.get("folder", "checkpoints"),
                                                         asked.get("checkpoint", "")))

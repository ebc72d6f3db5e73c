"""What the page asks the server: what an SAE file is for, and its concepts by name; which blocks a checkpoint has;
which SAEs are published, and to bring one of them here. Only `POST /saemnesia/download` asks another server. What is
queued is shown to `feedback`."""
import asyncio
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from server import PromptServer

from ..sae_models.errors import SaeError
from ..sae_models.formats import PICKLES
from ..sae_models.hub import catalogue, entry_called
from ..sae_models.hub.running import Downloads
from . import family, feedback, files

DOWNLOADS = Downloads()
PromptServer.instance.add_on_prompt_handler(feedback.follow)


@PromptServer.instance.routes.get("/saemnesia/concepts")
async def concepts(request: web.Request) -> web.Response:
    """GET ?sae=NAME -> {base, hookpoint, places, concepts: [{name, kind, description, measured}], about, unfit}, or
    400 {error, there}.

    about: a line; unfit: a sentence where &checkpoint=NAME of &folder=checkpoints is of another base, else ""; there:
    whether there is such a file. It is read in a thread, because the server answers nobody else meanwhile.
    """
    return await asyncio.to_thread(_answer, request.query)


def _answer(asked: Mapping[str, str]) -> web.Response:
    try:
        return web.json_response(_told(asked))
    except SaeError as error:
        name = asked.get("sae", "")
        waiting = name.lower().endswith(PICKLES)  # the command that converts it needs to say where it is
        text = str(error) if waiting else files.without_folders(str(error))
        return web.json_response({"error": text, "there": files.there(name)}, status=400)


def _told(asked: Mapping[str, str]) -> dict[str, Any]:
    sae, checkpoint = files.load(asked.get("sae", "")), asked.get("checkpoint", "")
    base = family.of_checkpoint(asked.get("folder", "checkpoints"), checkpoint) if checkpoint else ""
    return sae.listed() | {"about": sae.about(), "unfit": sae.unfit(base, checkpoint)}


@PromptServer.instance.routes.get("/saemnesia/blocks")
async def blocks(request: web.Request) -> web.Response:
    """GET ?checkpoint=NAME&folder=checkpoints -> the hookpoints of its cross-attention blocks, [] where that cannot be
    told."""
    asked = request.query
    named = asked.get("folder", "checkpoints"), asked.get("checkpoint", "")
    return web.json_response(await asyncio.to_thread(family.blocks_of_checkpoint, *named))


@PromptServer.instance.routes.get("/saemnesia/catalogue")
async def published(request: web.Request) -> web.Response:
    """GET -> {saes: [{name, base, model, blocks, knows, size, licence, repository, file, pickled, there}]}."""
    return web.json_response({"saes": [entry.listed() | {"there": files.there(entry.weights)}
                                       for entry in catalogue()]})


@PromptServer.instance.routes.get("/saemnesia/download")
async def downloaded(request: web.Request) -> web.Response:
    """GET -> how far the last one is: {name, done, total, running, file, error}."""
    return web.json_response(DOWNLOADS.as_json())


@PromptServer.instance.routes.post("/saemnesia/download")
async def download(request: web.Request) -> web.Response:
    """POST {name} begins it, {stop: true} ends it -> as GET, or 400 {error}."""
    asked = await request.json()
    try:
        if asked.get("stop"):
            DOWNLOADS.stop()
        else:
            DOWNLOADS.start(entry_called(str(asked.get("name"))), files.folder())
    except SaeError as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.json_response(DOWNLOADS.as_json())

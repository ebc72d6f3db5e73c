"""What an API user may ask: which SAEs there are, which concepts one has, and to find some."""
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from sae_models import SaeError
from sae_models.hashing import short_hash

from . import files
from .find import Finder, Wish


def add(app: FastAPI, models: Path, logins: str | None, finder: Finder) -> None:
    """GET /saemnesia/saes and /saemnesia/concepts?sae=NAME, POST /saemnesia/find; `logins`: the host's --api-auth,
    `user:password,...`."""
    guard = [Depends(_checker(logins))] if logins else []

    def saes() -> dict[str, Any]:
        """{saes: [name]}"""
        return {"saes": files.names(models)}

    def concepts(sae: str) -> dict[str, Any]:
        """{base, hookpoint, places, hash, concepts: [{name, kind, description, measured}]}, or 400 with a sentence."""
        with _sentences(models):
            found = files.load(models, sae)
            return found.listed() | {"hash": short_hash(found.path)}

    def find(wish: dict = Body()) -> dict[str, Any]:  # noqa: B008
        """{file, seconds, concepts: [{name, kind, removed, touched}]}, or 400 with a sentence."""
        with _sentences(models):
            return finder.find(Wish.read(wish)).as_json()
    for path, answer, method in (("saes", saes, "GET"), ("concepts", concepts, "GET"), ("find", find, "POST")):
        app.add_api_route(f"/saemnesia/{path}", answer, methods=[method], dependencies=guard)


@contextmanager
def _sentences(models: Path) -> Iterator[None]:
    """Errors as an answer, which does not say where on the server's disk things are."""
    try:
        yield
    except SaeError as error:
        raise HTTPException(400, str(error).replace(str(models), "models")) from error


def _checker(logins: str) -> Callable:
    known = dict(login.strip().split(":", 1) for login in logins.split(",") if ":" in login)

    def check(login: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
        password = known.get(login.username, "")
        if not password or not secrets.compare_digest(login.password.encode(), password.encode()):
            raise HTTPException(401, "wrong user name or password", {"WWW-Authenticate": "Basic"})
    return check

"""What an API user may ask: which SAEs there are, and which concepts one has."""
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from sae_models import SaeError

from . import files


def add(app: FastAPI, models: Path, logins: str | None) -> None:
    """GET /saemnesia/saes and /saemnesia/concepts?sae=NAME; `logins`: the host's --api-auth, `user:password,...`."""
    guard = [Depends(_checker(logins))] if logins else []

    def saes() -> dict[str, Any]:
        """{saes: [name]}"""
        return {"saes": files.names(models)}

    def concepts(sae: str) -> dict[str, Any]:
        """{base, hookpoint, places, hash, concepts: [{name, kind, description, measured}]}, or 400 with a sentence."""
        try:
            found = files.load(models, sae)
        except SaeError as error:
            raise HTTPException(400, str(error)) from error
        return found.listed() | {"hash": files.short_hash(found.path)}
    app.add_api_route("/saemnesia/saes", saes, methods=["GET"], dependencies=guard)
    app.add_api_route("/saemnesia/concepts", concepts, methods=["GET"], dependencies=guard)


def _checker(logins: str) -> Callable:
    known = dict(login.strip().split(":", 1) for login in logins.split(",") if ":" in login)

    def check(login: HTTPBasicCredentials = Depends(HTTPBasic())) -> None:  # noqa: B008
        password = known.get(login.username, "")
        if not password or not secrets.compare_digest(login.password.encode(), password.encode()):
            raise HTTPException(401, "wrong user name or password", {"WWW-Authenticate": "Basic"})
    return check

"""The app's own pages, and logging in."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from loom4d.serve.guard import COOKIE
from loom4d.serve.site import Id, OfSite

router = APIRouter()

FOLDER = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PATIENCE = 25.0  # seconds
YEAR = 31_536_000  # seconds


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, Field(max_length=200)]


def asset(name: str) -> FileResponse:
    files = {file.name: file for file in FOLDER.iterdir() if file.suffix in TYPES}
    if name not in files:
        raise HTTPException(404, "no such page")
    kind = TYPES[files[name].suffix]
    return FileResponse(files[name], media_type=f"{kind}; charset=utf-8", headers={"cache-control": "no-cache"})


@router.get("/")
def home() -> FileResponse:
    return asset("index.html")


@router.get("/jobs/{job}")
def job_page(job: Id) -> FileResponse:
    """One page for all: its script reads the address."""
    return asset("index.html")


@router.get("/login")
def login_page() -> FileResponse:
    return asset("login.html")


@router.get("/static/{name}")
def static(name: str) -> FileResponse:
    return asset(name)


@router.get("/favicon.ico")
def icon() -> FileResponse:
    return asset("icon.svg")


@router.post("/api/login")
def login(given: Login, request: Request, site: OfSite) -> Response:
    """Trades the token for a cookie that scripts cannot read and other sites cannot use."""
    if not site.tokens.needed or not site.tokens.is_token(given.token):
        raise HTTPException(401, "that is not the token; it is in the link that the server printed")
    answer = JSONResponse({"ok": True})
    answer.set_cookie(
        COOKIE,
        site.tokens.session(),
        max_age=YEAR,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.get("/api/health")
def health(site: OfSite) -> dict[str, Any]:
    """Whether the worker is there; needs no token and tells nothing else."""
    return {"ok": True, "ready": site.children.offer is not None}


@router.get("/api/offer")
async def offer(site: OfSite) -> dict[str, Any]:
    """What can be chosen, and what is taken; waits a while for a worker that is getting ready."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while site.children.offer is None and not site.children.trouble and not site.hub.closed:
                await asyncio.sleep(0.1)
    limits = site.settings.limits
    taken = {name: getattr(limits, name) for name in ("bytes", "pixels", "frames", "seconds")}
    return {**site.offer(), "limits": taken}

"""The server: handlers, guard and children put together, and bound to a port."""

from __future__ import annotations

import errno
import fcntl
import logging
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from loom4d.serve import jobs, pages, uploads
from loom4d.serve.children import Children
from loom4d.serve.guard import Guard, Tokens, refused
from loom4d.serve.settings import ServeError, Settings, is_loopback
from loom4d.serve.site import Hub, Site, Staff
from loom4d.serve.store import FullDisk, Store

CONNECTIONS = 400  # at once; more are told to come back
GRACE = 2  # seconds that open requests have when the server is told to stop


def create(settings: Settings, store: Store, tokens: Tokens, children: Staff | None = None) -> Guard:
    """The app. `children` may be stand-ins; the app starts and stops them."""
    hub = Hub()
    site = Site(settings, store, hub, children or Children(settings, store, hub.poke), tokens)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await site.children.start()
        yield
        hub.close()
        await site.children.stop()

    # The interactive documentation would load its scripts from elsewhere.
    app = FastAPI(title="Loom4D", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.site = site
    for module in (pages, uploads, jobs):
        app.include_router(module.router)
    app.add_exception_handler(HTTPException, told)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ServeError, broken)
    app.add_exception_handler(OSError, disk)
    return Guard(app, settings, tokens)


async def told(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = refused(error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def invalid(request: Request, error: Exception) -> JSONResponse:
    """One line that names the field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return refused(422, f"{where or 'request'}: {first['msg']}")


async def broken(request: Request, error: Exception) -> JSONResponse:
    return refused(507 if isinstance(error, FullDisk) else 503, str(error))


async def disk(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return refused(507, "the disk is full: free some space and try again")
    logging.getLogger("loom4d.serve").exception("a request failed")
    return refused(500, f"the server could not read or write a file ({error.strerror})")


def claimed(settings: Settings) -> IO[str]:
    """The folder, for this server alone as long as the returned file is open."""
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
        lock = open(settings.folder / "serve.lock", "w")  # noqa: SIM115 (held as long as the server lives)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise
    except BlockingIOError as error:
        raise ServeError(f"{settings.folder}: another server uses this folder; choose another --folder") from error
    except OSError as error:
        raise ServeError(
            f"{settings.folder}: cannot write there ({error.strerror}); choose another --folder"
        ) from error
    return lock


def bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or error
        raise ServeError(
            f"cannot listen on {settings.host} port {settings.port} ({reason}); choose another --port"
        ) from error


def clear_arrivals(settings: Settings) -> None:
    """Removes what uploads left that were under way when a server was killed."""
    for part in (settings.folder / "uploads").glob("*/incoming"):
        shutil.rmtree(part.parent, ignore_errors=True)


def serve(settings: Settings, announce: Callable[[str], None], new_token: bool = False) -> None:
    """Serves until it is interrupted. `announce` is told where, and the login link when there is a new one."""
    with claimed(settings), bound(settings) as listening:
        store = Store(settings.database)
        clear_arrivals(settings)
        tokens = Tokens(store, needed=not is_loopback(settings.host))
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else "localhost" if host == "0.0.0.0" else host
        address = f"http://{shown}:{port}/"
        announce(f"serving {Path(settings.folder)} at {address}")
        if tokens.needed:
            link = tokens.first(new_token)
            announce(
                f"log in once with {address}login#{link}"
                if link
                else "log in with the link that was printed first; --new-token makes another"
            )
        config = uvicorn.Config(
            create(settings, store, tokens),
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=20,
            lifespan="on",
        )
        uvicorn.Server(config).run(sockets=[listening])
        store.close()

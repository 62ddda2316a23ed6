"""What the handlers of one server share."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

from fastapi import Depends, HTTPException, Request
from fastapi import Path as InPath

from loom4d.serve.guard import Tokens
from loom4d.serve.settings import Settings
from loom4d.serve.store import FullDisk, Store

Id = Annotated[str, InPath(pattern="^[0-9a-f]{20}$")]


@dataclass
class Hub:
    """Wakes the streams of a job when there is something new to read in the database."""

    waiting: dict[str, set[asyncio.Event]] = field(default_factory=dict)
    closed: bool = False
    loop: asyncio.AbstractEventLoop | None = None  # that the streams run in

    def poke(self, job: str) -> None:
        """From any thread."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._wake, job)

    def _wake(self, job: str) -> None:
        for news in self.waiting.get(job, ()):
            news.set()

    def close(self) -> None:
        """Every stream ends; the server is about to."""
        self.closed = True
        for job in self.waiting:
            self._wake(job)

    @property
    def streams(self) -> int:
        return sum(map(len, self.waiting.values()))

    @contextmanager
    def listening(self, job: str) -> Iterator[asyncio.Event]:
        news = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.waiting.setdefault(job, set()).add(news)
        try:
            yield news
        finally:
            self.waiting[job].discard(news)
            if not self.waiting[job]:
                del self.waiting[job]


@runtime_checkable
class Staff(Protocol):
    """Those who do the work: the `Children`, or stand-ins."""

    offer: dict[str, Any] | None  # what they can do; None while they get ready
    trouble: str  # why they cannot

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def look(self, request: dict[str, Any]) -> dict[str, Any]: ...

    def wake(self) -> None: ...

    def insist(self, job: str) -> None: ...


@dataclass
class Site:
    settings: Settings
    store: Store
    hub: Hub
    children: Staff
    tokens: Tokens
    arriving: int = 0  # uploads under way

    def offer(self) -> dict[str, Any]:
        """The form, or a 503 while the worker has not said what it offers."""
        if self.children.offer is None:
            reason = self.children.trouble or "the program is still getting ready; try again in a moment"
            raise HTTPException(503, reason, headers={"retry-after": "2"})
        return self.children.offer

    def refuse_full_disk(self) -> None:
        free = shutil.disk_usage(self.settings.folder).free
        if free < self.settings.limits.free_bytes:
            raise FullDisk(f"the disk is full ({free / 1e6:.0f} MB are left): free some space and try again")


def site_of(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


OfSite = Annotated[Site, Depends(site_of)]


def new_id() -> str:
    """A name that nobody guesses: 80 random bits."""
    return secrets.token_hex(10)


def shown(name: str) -> str:
    """A file name as it may be shown: no folders, no control or direction marks, not too long. Never a path."""
    last = re.split(r"[/\\]", name)[-1]
    kept = "".join(letter for letter in last if unicodedata.category(letter)[0] != "C")
    return " ".join(kept.split())[:120] or "untitled"


def title_of(name: str) -> str:
    stem = shown(name)
    return (stem.rpartition(".")[0] if re.search(r"\.\w{1,5}$", stem) else stem)[:80] or "untitled"


def remove(folder: Path) -> None:
    """Removes a folder of ours, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)

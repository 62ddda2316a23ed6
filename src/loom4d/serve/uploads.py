"""Uploads: streamed to disk under names of our own, recognised by their bytes, looked at before they are accepted."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from loom4d.serve import kinds
from loom4d.serve.children import Busy, LookFailed
from loom4d.serve.plans import NAMES
from loom4d.serve.records import Upload
from loom4d.serve.settings import Limits
from loom4d.serve.site import Id, OfSite, Site, new_id, remove, shown

router = APIRouter(prefix="/api/uploads")

BLOCK = 1 << 20  # bytes written at once
DAY = 86_400.0
Name = Annotated[str | None, Query(max_length=40)]


@router.post("", status_code=201)
async def receive(request: Request, site: OfSite, name: Annotated[str, Query(max_length=1000)] = "") -> dict[str, Any]:
    """Takes one file as the request's body; answers with what a run would see of it."""
    limits = site.settings.limits
    offered = site.offer()
    if site.arriving >= limits.uploads:
        raise HTTPException(503, "too many uploads are arriving; try again in a moment", {"retry-after": "2"})
    site.refuse_full_disk()
    upload = new_id()
    folder = site.settings.upload(upload)
    site.arriving += 1
    try:
        folder.mkdir(parents=True)
        async with asyncio.timeout(limits.upload_seconds):
            suffix, size = await stored(request.stream(), folder / "incoming", request.headers, limits)
        file = (folder / "incoming").rename(folder / f"original{suffix}")
        choices = {key: offered["defaults"][key] for key in ("kind", "matting", "priors")}
        facts = await looked(site, upload, file, choices)
        record = Upload(upload, shown(name), file.name, facts["kind"], size, facts, time.time())
        await asyncio.to_thread(site.store.add_upload, record)
    except BaseException as error:
        await asyncio.to_thread(remove, folder)
        if isinstance(error, ClientDisconnect):
            raise HTTPException(400, "the upload ended before all of it had come") from error
        if isinstance(error, TimeoutError):
            raise HTTPException(408, "the upload took too long") from error
        raise
    finally:
        site.arriving -= 1
    await asyncio.to_thread(forget_idle, site)
    return {**asdict(record), "look": facts}


async def stored(blocks: AsyncIterator[bytes], target: Path, headers: Any, limits: Limits) -> tuple[str, int]:
    """Writes the body to `target` as it comes; (suffix by its first bytes, its size). Never holds more than a block."""
    too_large = HTTPException(413, f"too large: at most {limits.bytes / 1e6:.0f} MB are taken")
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limits.bytes:
        raise too_large
    suffix, size, waiting = None, 0, bytearray()
    with open(target, "wb") as file:
        async for block in blocks:
            size += len(block)
            if size > limits.bytes:
                raise too_large
            waiting += block
            if suffix is None and len(waiting) >= kinds.HEAD:
                suffix = known(bytes(waiting[: kinds.HEAD]))
            if len(waiting) >= BLOCK:
                await asyncio.to_thread(file.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(file.write, bytes(waiting))
    if size == 0:
        raise HTTPException(422, "an empty file (0 bytes)")
    return suffix or known(bytes(waiting)), size


def known(head: bytes) -> str:
    suffix = kinds.suffix_of(head)
    if suffix is None:
        raise HTTPException(415, f"not a file that can be taken: {kinds.TAKEN} are")
    return suffix


async def looked(site: Site, upload: str, file: Path, choices: dict[str, str]) -> dict[str, Any]:
    """What a run with these choices would see; kept, so that the same look is not taken twice."""
    folder = site.settings.upload(upload) / "looks" / look_name(choices)
    if (folder / "look.json").exists():
        return dict(json.loads((folder / "look.json").read_text()))
    sizes = site.offer()["priors"][choices["priors"]]
    if "missing" in sizes:
        raise HTTPException(422, sizes["missing"])
    request = {**choices, **sizes, "path": str(file), "folder": str(folder)}
    try:
        answer = await site.children.look(request)
    except Busy as error:
        raise HTTPException(503, str(error), {"retry-after": "5"}) from error
    except LookFailed as error:
        raise HTTPException(422, str(error)) from error
    if "refused" in answer:
        raise HTTPException(422, answer["refused"])
    if "failed" in answer:
        raise HTTPException(507, answer["failed"])
    answer = {
        **answer,
        "choices": choices,
        "resolution": sizes["resolution"],
        "pictures_at": f"looks/{look_name(choices)}",
    }
    (folder / "look.json").write_text(json.dumps(answer))
    return answer


def look_name(choices: dict[str, str]) -> str:
    return "-".join([choices["kind"], choices["matting"], choices["priors"]])


def forget_idle(site: Site) -> None:
    """Removes uploads that no job uses: those older than a day, and the oldest beyond a number."""
    for place, (upload, created) in enumerate(site.store.idle_uploads()):
        old = created < time.time() - DAY or place >= site.settings.limits.idle_uploads
        if old and site.store.remove_upload(upload):
            remove(site.settings.upload(upload))


def found(site: Site, upload: str) -> Upload:
    record = site.store.upload(upload)
    if record is None:
        raise HTTPException(404, "no such upload; it may have been deleted")
    return record


@router.get("/{upload}")
async def look_again(
    upload: Id, site: OfSite, kind: Name = None, matting: Name = None, priors: Name = None
) -> dict[str, Any]:
    """The upload, seen with other choices."""
    record = await asyncio.to_thread(found, site, upload)
    offered = site.offer()
    given = {"kind": kind, "matting": matting, "priors": priors}
    choices = {name: value or offered["defaults"][name] for name, value in given.items()}
    for name, value in choices.items():
        if value not in offered[NAMES[name]]:
            raise HTTPException(422, f"unknown {name} {value[:40]!r}; choose one of {', '.join(offered[NAMES[name]])}")
    facts = await looked(site, upload, site.settings.upload(upload) / record.file, choices)
    return {**asdict(record), "look": facts}


@router.get("/{upload}/looks/{look}/{picture}.png")
def picture(upload: Id, look: str, picture: str, site: OfSite) -> FileResponse:
    """A picture that the looker made; never the uploaded bytes themselves."""
    folder = site.settings.upload(upload) / "looks"
    files = {(file.parent.name, file.stem): file for file in folder.glob("*/*.png")}
    if (look, picture) not in files:
        raise HTTPException(404, "no such picture")
    return FileResponse(files[look, picture], media_type="image/png", headers={"cache-control": "private, max-age=600"})


@router.delete("/{upload}", status_code=204)
def forget(upload: Id, site: OfSite) -> None:
    """Deletes an upload that no job uses."""
    if not site.store.remove_upload(upload):
        raise HTTPException(409, "no such upload, or a run still uses it")
    remove(site.settings.upload(upload))

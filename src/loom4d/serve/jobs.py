"""Jobs: into the queue, out of it, what they say while they run, and what they leave."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from loom4d.options import choice_of, unfit
from loom4d.serve import plans
from loom4d.serve.guard import viewer_policy
from loom4d.serve.records import Job
from loom4d.serve.site import Id, OfSite, Site, new_id, remove, title_of
from loom4d.serve.store import ENDED
from loom4d.serve.uploads import found as found_upload

router = APIRouter(prefix="/api")

FILES = {"grid.png": "image/png", "orbit.mp4": "video/mp4", "report.json": "application/json"}  # of a run folder
HEARTBEAT = 15.0  # seconds after which a silent stream says that it lives
Named = Annotated[str, Field(min_length=1, max_length=40)]


class Order(BaseModel):
    """What is to be made of an upload. A choice left out is the offer's default."""

    model_config = ConfigDict(extra="forbid")
    upload: Annotated[str, Field(pattern="^[0-9a-f]{20}$")]
    title: Annotated[str, Field(max_length=80)] | None = None
    method: Named | None = None
    preset: Named | None = None
    quality: Named | None = None
    priors: Named | None = None
    kind: Named | None = None
    matting: Named | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Wish(BaseModel):
    """How an export is to be made: options of its format, by the names that the offer gives. Others are defaults."""

    model_config = ConfigDict(extra="forbid")
    options: dict[str, Any] = {}


def found(site: Site, job: str) -> Job:
    record = site.store.job(job)
    if record is None:
        raise HTTPException(404, "no such run; it may have been deleted")
    return record


def chosen(order: dict[str, Any], offered: dict[str, Any]) -> dict[str, Any]:
    """All choices, defaults filled in; what cannot be had is a 422."""
    defaults = offered["defaults"]
    choices = {name: order.get(name) if order.get(name) is not None else defaults[name] for name in defaults}
    if wrong := plans.checked(choices, offered):
        raise HTTPException(422, wrong)
    return choices


def described(site: Site, job: Job) -> dict[str, Any]:
    """A job as pages show it."""
    queue = [one.id for one in site.store.waiting()] if job.state == "queued" else []
    return {
        **{name: value for name, value in asdict(job).items() if name not in ("cancel", "deaths")},
        "cancelling": job.cancel,
        "ahead": queue.index(job.id) if job.id in queue else 0,
        "latest": site.store.latest(job.id) if job.state not in ENDED else {},
    }


@router.get("/estimate")
def estimate(
    site: OfSite,
    input: Annotated[str, Query(max_length=20)] = "picture",
    method: str | None = None,
    preset: str | None = None,
    quality: str | None = None,
    priors: str | None = None,
    kind: str | None = None,
) -> dict[str, Any]:
    """How long a run will take here and how that is known; `presets` and `qualities` say it of every other choice."""
    offered = site.offer()
    given = {"method": method, "preset": preset, "quality": quality, "priors": priors, "kind": kind}
    choices = chosen(given, offered)
    timings = site.store.timings()

    def seconds(**change: str) -> float | None:
        return plans.estimate(choices | change, input, timings, offered)["seconds"]

    return {
        **plans.estimate(choices, input, timings, offered),
        "presets": {name: seconds(preset=name) for name in offered["methods"][choices["method"]]["presets"]},
        "qualities": {name: seconds(quality=name) for name in offered["qualities"]},
    }


@router.post("/jobs", status_code=201)
def order(order: Order, site: OfSite) -> dict[str, Any]:
    """Puts a run into the queue."""
    site.refuse_full_disk()
    upload = found_upload(site, order.upload)
    choices = chosen(order.model_dump(), site.offer())
    if len(site.store.waiting()) >= site.settings.limits.queued:
        raise HTTPException(503, "the queue is full; wait until some runs are done", {"retry-after": "60"})
    title = title_of(order.title or upload.name)
    job = Job(new_id(), upload.id, title, upload.kind, choices)
    site.store.add_job(job)
    site.children.wake()
    return described(site, found(site, job.id))


@router.get("/jobs")
def jobs(
    site: OfSite, limit: Annotated[int, Query(ge=1, le=100)] = 40, before: Annotated[float, Query()] = 1e18
) -> dict[str, Any]:
    """The newest runs; `before` goes on from the last one's `created`."""
    return {"jobs": [described(site, job) for job in site.store.jobs(limit, before)]}


@router.get("/jobs/{job}")
def one_job(job: Id, site: OfSite) -> dict[str, Any]:
    """A run, its exports, the time it will take and, once it is done, its report."""
    record = found(site, job)
    report = site.settings.run(job) / "report.json"
    upload = site.store.upload(record.upload)
    return {
        **described(site, record),
        "estimate": expected(site, record),
        "exports": [asdict(export) for export in site.store.exports(job)],
        "refused": refused(site, job),
        "report": json.loads(report.read_text()) if report.exists() else {},
        "look": upload.facts if upload else None,
    }


def expected(site: Site, job: Job) -> dict[str, Any]:
    """The time that a job will take; a method or priors that are offered no more have none."""
    offered = site.children.offer
    if offered is None or plans.checked(job.choices, offered):
        return {"seconds": None, "stages": {}, "how": {}, "line": "not known now"}
    return plans.estimate(job.choices, job.kind, site.store.timings(), offered)


@router.post("/jobs/{job}/cancel")
async def cancel(job: Id, site: OfSite) -> dict[str, Any]:
    """Takes a run out of the queue, or asks the worker to stop it; what it has done so far stays."""
    state = await asyncio.to_thread(site.store.cancel, job)
    if state is None:
        raise HTTPException(404, "no such run; it may have been deleted")
    if state == "running":
        site.children.wake()
        site.children.insist(job)
    site.hub.poke(job)
    return described(site, found(site, job))


@router.post("/jobs/{job}/again")
async def again(job: Id, site: OfSite) -> dict[str, Any]:
    """Lets a cancelled or failed run go on."""
    record = await asyncio.to_thread(found, site, job)
    if not await asyncio.to_thread(site.store.again, job):
        raise HTTPException(409, f"this run is {record.state}; only a cancelled or failed one can go on")
    site.children.wake()
    site.hub.poke(job)
    return described(site, found(site, job))


@router.delete("/jobs/{job}", status_code=204)
async def delete(job: Id, site: OfSite) -> None:
    """Deletes a run and everything it left, its upload too where no other run uses it."""
    record = await asyncio.to_thread(found, site, job)
    if await asyncio.to_thread(site.store.remove_job, job) == "running":
        raise HTTPException(409, "this run is under way; cancel it first")
    for folder in (site.settings.run(job), site.settings.live(job), site.settings.exports(job)):
        await asyncio.to_thread(remove, folder)
    if await asyncio.to_thread(site.store.remove_upload, record.upload):
        await asyncio.to_thread(remove, site.settings.upload(record.upload))
    site.hub.poke(job)


# --- what a run says ---


@router.get("/jobs/{job}/events")
async def events(
    job: Id,
    site: OfSite,
    after: Annotated[int, Query(ge=0)] = 0,
    last_event_id: Annotated[str, Header()] = "",
) -> StreamingResponse:
    """Server-sent events: what was said after number `after`, or after Last-Event-ID, and what is said from now on."""
    await asyncio.to_thread(found, site, job)
    if site.hub.streams >= site.settings.limits.streams:
        raise HTTPException(503, "too many pages are listening; try again in a moment", {"retry-after": "10"})
    start = int(last_event_id) if last_event_id.isdecimal() and len(last_event_id) < 19 else after
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(told(site, job, start), media_type="text/event-stream", headers=headers)


async def told(site: Site, job: str, last: int) -> AsyncIterator[str]:
    """The stream's text. It reads from the database in small batches, so a slow listener costs no memory."""
    with site.hub.listening(job) as news:
        yield "retry: 1500\n\n"
        while not site.hub.closed:
            news.clear()
            batch = await asyncio.to_thread(site.store.events, job, last)
            if batch:
                last = batch[-1][0]
                yield "".join(f"id: {number}\ndata: {json.dumps(body)}\n\n" for number, body in batch)
                continue
            if await asyncio.to_thread(site.store.job, job) is None:
                yield 'data: {"kind": "gone"}\n\n'
                return
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await news.wait()
            except TimeoutError:
                yield ": still here\n\n"


# --- what a run leaves ---


def existing(file: Path, media_type: str, **more: Any) -> FileResponse:
    if not file.is_file():
        raise HTTPException(404, "not there yet, or deleted")
    return FileResponse(file, media_type=media_type, **more)


@router.get("/jobs/{job}/live/{picture}.png")
def live(job: Id, picture: str, site: OfSite) -> FileResponse:
    """A preview of the run under way, by its number, or its thumbnail."""
    if not re.fullmatch(r"\d{4,6}|thumb", picture):
        raise HTTPException(404, "no such picture")
    headers = {"cache-control": "private, max-age=600"}
    return existing(site.settings.live(job) / f"{picture}.png", "image/png", headers=headers)


@router.get("/jobs/{job}/files/{name}")
def file(job: Id, name: str, site: OfSite) -> FileResponse:
    """One of the files that every run leaves."""
    if name not in FILES:
        raise HTTPException(404, f"no such file; there are {', '.join(FILES)}")
    return existing(site.settings.run(job) / name, FILES[name])


@router.get("/jobs/{job}/viewer")
def viewer(job: Id, site: OfSite, download: bool = False) -> Response:
    """The run's own page. It comes with the policy it holds and without this site's origin; as a file, whole."""
    page = site.settings.run(job) / "viewer.html"
    if download:
        name = f"{found(site, job).title}.html"
        return existing(page, "text/html", filename=name)
    if not page.is_file():
        raise HTTPException(404, "not there yet, or deleted")
    with open(page, encoding="utf-8") as text:
        head = text.read(4096)
    policies = re.findall(r'http-equiv="Content-Security-Policy" content="([^"\n]*)"', head)
    if not policies:
        raise HTTPException(500, "this run's page carries no policy; it will not be shown")
    return existing(page, "text/html", headers={"content-security-policy": viewer_policy(policies)})


def refused(site: Site, job: str) -> dict[str, str]:
    """The formats that a run's asset cannot be written as, each with the reason."""
    file, offered = site.settings.run(job) / "asset.safetensors", site.children.offer
    if offered is None or not file.is_file():
        return {}
    motion = motion_of(file)
    return {name: one["refused"][motion] for name, one in offered["formats"].items() if motion in one["refused"]}


def motion_of(file: Path) -> str:
    """The motion that the head of an asset file names; the tensors stay unread."""
    with open(file, "rb") as content:
        (length,) = struct.unpack("<Q", content.read(8))
        return str(json.loads(json.loads(content.read(length))["__metadata__"]["loom4d"])["motion"])


def options_of(wish: Wish, offered: list[dict[str, Any]]) -> dict[str, Any]:
    """What is wished and is no default; what cannot be had is a 422."""
    choices = {one["name"]: choice_of(one) for one in offered}
    for name, value in wish.options.items():
        if name not in choices:
            raise HTTPException(422, f"unknown option {name[:40]!r}; choose among {', '.join(choices)}")
        if reason := unfit(choices[name], value):
            raise HTTPException(422, reason)
    return {name: value for name, value in wish.options.items() if value != choices[name].default}


@router.post("/jobs/{job}/exports/{format}", status_code=202)
def ask_export(job: Id, format: str, site: OfSite, wish: Wish | None = None) -> dict[str, Any]:
    """Has the worker write the asset in a format; its events say when the file is there."""
    record, formats = found(site, job), site.offer()["formats"]
    if format not in formats:
        raise HTTPException(404, f"unknown format {format[:40]!r}; choose one of {', '.join(formats)}")
    if record.state != "done":
        raise HTTPException(409, "this run is not done yet")
    if reason := refused(site, job).get(format):
        raise HTTPException(409, f"{format} is not offered for this run: {reason}")
    options = options_of(wish or Wish(), formats[format]["options"])
    site.refuse_full_disk()
    export = site.store.ask_export(job, format, options)
    if export.options != options:
        raise HTTPException(409, f"{format} is being made with other options; wait until it is there")
    site.children.wake()
    site.hub.poke(job)
    return asdict(export)


@router.get("/jobs/{job}/exports/{format}")
def export(job: Id, format: str, site: OfSite) -> FileResponse:
    """The written file, as a download named after the run."""
    record = found(site, job)
    made = next((one for one in site.store.exports(job) if one.format == format and one.state == "done"), None)
    if made is None:
        raise HTTPException(404, "not written yet: ask for it by POST")
    file = site.settings.exports(job) / made.file
    name = record.title if file.suffix == f".{format}" else f"{record.title}-{format}"
    headers = {"cache-control": "no-cache"}  # made anew with other options it has the same address
    return existing(file, "application/octet-stream", filename=f"{name}{file.suffix}", headers=headers)

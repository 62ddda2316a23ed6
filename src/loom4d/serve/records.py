"""What the server's database holds, as records: uploads, jobs, exports, timings."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Upload:
    id: str
    name: str  # as the browser said it: shown, never used as a path
    file: str  # of the upload's folder
    kind: str  # "picture", "clip" or "model"
    bytes: int
    facts: dict[str, Any]
    created: float


@dataclass(frozen=True)
class Job:
    """`state` is "queued", "running", "done", "failed" or "cancelled"."""

    id: str
    upload: str
    title: str
    kind: str  # of the upload
    choices: dict[str, Any]
    state: str = "queued"
    error: str = ""
    cancel: bool = False
    deaths: int = 0
    created: float = 0.0
    queued: float = 0.0
    started: float | None = None
    finished: float | None = None
    seconds: float = 0.0  # that the worker has spent on it


@dataclass(frozen=True)
class Export:
    """`state` is "queued", "writing", "done" or "failed"."""

    job: str
    format: str
    state: str
    error: str = ""
    file: str = ""
    bytes: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of the format, where they are not its defaults


@dataclass(frozen=True)
class Timing:
    """Seconds per stage of one part ("imagine", "fit" or "rest") of a run, as a job or a trial took them."""

    part: str
    key: str
    source: str  # "job" or "trial"
    seconds: dict[str, float] = field(default_factory=dict)


def job_of(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "choices": json.loads(row["choices"]), "cancel": bool(row["cancel"])})


def export_of(row: sqlite3.Row) -> Export:
    names = ("job", "format", "state", "error", "file", "bytes")
    return Export(**{name: row[name] for name in names}, options=json.loads(row["options"]))

"""What the server and its children know, in one SQLite file: uploads, the queue, events, exports, timings, sessions.

Every change is one transaction in write-ahead mode, so a killed process leaves a whole database, and the queue with it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loom4d.serve.records import Export, Job, Timing, Upload, export_of, job_of
from loom4d.serve.settings import ServeError

VERSION = 2
SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, file TEXT NOT NULL, kind TEXT NOT NULL, bytes INTEGER NOT NULL,
    facts TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, upload TEXT NOT NULL, title TEXT NOT NULL, kind TEXT NOT NULL, choices TEXT NOT NULL,
    state TEXT NOT NULL, error TEXT NOT NULL DEFAULT '', cancel INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, queued REAL NOT NULL, started REAL, finished REAL,
    seconds REAL NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, queued);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, at REAL NOT NULL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job, id);
CREATE TABLE IF NOT EXISTS exports (
    job TEXT NOT NULL, format TEXT NOT NULL, state TEXT NOT NULL, error TEXT NOT NULL DEFAULT '', file TEXT NOT NULL
    DEFAULT '', bytes INTEGER NOT NULL DEFAULT 0, asked REAL NOT NULL, options TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (job, format));
CREATE TABLE IF NOT EXISTS timings (
    part TEXT NOT NULL, key TEXT NOT NULL, source TEXT NOT NULL, seconds TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, digest TEXT NOT NULL, at REAL NOT NULL);
"""
NEWER = {1: "ALTER TABLE exports ADD COLUMN options TEXT NOT NULL DEFAULT '{}'"}  # version -> what the next one changed
ENDED = ("done", "failed", "cancelled")
DEATHS = 3  # of the worker during one job, after which the job is given up


class BrokenStore(ServeError):
    """The database cannot be read or written."""


class FullDisk(ServeError):
    """There is no room left on the disk."""


class Store:
    """The database. Any thread may call; several processes may hold one each."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.RLock()
        with self._speaking():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(path, timeout=20, isolation_level=None, check_same_thread=False)
            self.connection.row_factory = sqlite3.Row
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("PRAGMA synchronous = NORMAL")
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, *NEWER, VERSION):
                raise BrokenStore(f"{path}: made by another version of Loom4D; choose another --folder")
            if self.connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("it failed its integrity check")
            for change in range(version, VERSION) if version else ():
                self.connection.execute(NEWER[change])
            self.connection.executescript(SCHEMA)
            self.connection.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        with self.lock:
            self.connection.close()

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "full" in str(error):
                raise FullDisk("the disk is full: free some space and try again") from error
            advice = "move it away to start with an empty one; the runs beside it stay as they are"
            raise BrokenStore(f"{self.path}: the database cannot be used ({error}); {advice}") from error
        except OSError as error:
            raise BrokenStore(f"{self.path.parent}: cannot write there ({error.strerror})") from error

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, taken up front so that two processes never both believe they hold the same job."""
        with self.lock, self._speaking():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
            except BaseException:
                if self.connection.in_transaction:  # a full disk has rolled it back already
                    self.connection.execute("ROLLBACK")
                raise
            self.connection.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self.lock, self._speaking():
            return self.connection.execute(query, values).fetchall()

    # --- uploads ---------------------------------------------------------------------------------------------------

    def add_upload(self, upload: Upload) -> None:
        with self._changing() as db:
            values = (upload.id, upload.name, upload.file, upload.kind, upload.bytes, json.dumps(upload.facts))
            db.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, upload.created))

    def upload(self, upload: str) -> Upload | None:
        rows = self._rows("SELECT * FROM uploads WHERE id = ?", upload)
        return Upload(**{**dict(rows[0]), "facts": json.loads(rows[0]["facts"])}) if rows else None

    def idle_uploads(self) -> list[tuple[str, float]]:
        """(id, created) of the uploads without a job, newest first."""
        query = "SELECT id, created FROM uploads WHERE id NOT IN (SELECT upload FROM jobs) ORDER BY created DESC"
        return [(row["id"], row["created"]) for row in self._rows(query)]

    def remove_upload(self, upload: str) -> bool:
        """Forgets an upload, unless a job has come to use it."""
        with self._changing() as db:
            query = "DELETE FROM uploads WHERE id = ? AND id NOT IN (SELECT upload FROM jobs)"
            return db.execute(query, (upload,)).rowcount > 0

    # --- jobs ------------------------------------------------------------------------------------------------------

    def add_job(self, job: Job) -> None:
        now = time.time()
        with self._changing() as db:
            db.execute(
                "INSERT INTO jobs (id, upload, title, kind, choices, state, created, queued) "
                "VALUES (?, ?, ?, ?, ?, 'queued', ?, ?)",
                (job.id, job.upload, job.title, job.kind, json.dumps(job.choices), now, now),
            )
            self._say_state(db, job.id, "queued")

    def job(self, job: str) -> Job | None:
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", job)
        return job_of(rows[0]) if rows else None

    def jobs(self, limit: int = 100, before: float = float("inf")) -> list[Job]:
        """The newest jobs, and those created before an instant."""
        query = "SELECT * FROM jobs WHERE created < ? ORDER BY created DESC LIMIT ?"
        return [job_of(row) for row in self._rows(query, before, limit)]

    def waiting(self) -> list[Job]:
        """Queued jobs, first come first."""
        return [job_of(row) for row in self._rows("SELECT * FROM jobs WHERE state = 'queued' ORDER BY queued, rowid")]

    def take_job(self) -> Job | None:
        """The first of the queue, now running."""
        with self._changing() as db:
            row = db.execute("SELECT id FROM jobs WHERE state = 'queued' ORDER BY queued, rowid LIMIT 1").fetchone()
            if row is None:
                return None
            db.execute("UPDATE jobs SET state = 'running', started = ? WHERE id = ?", (time.time(), row["id"]))
            self._say_state(db, row["id"], "running")
            return job_of(db.execute("SELECT * FROM jobs WHERE id = ?", (row["id"],)).fetchone())

    def end_job(self, job: str, state: str, error: str = "", seconds: float = 0.0) -> None:
        """A running job has come to `state`, or back into the queue ("queued")."""
        with self._changing() as db:
            db.execute(
                "UPDATE jobs SET state = ?, error = ?, finished = ?, seconds = seconds + ?, cancel = 0 WHERE id = ?",
                (state, error, time.time() if state in ENDED else None, seconds, job),
            )
            self._say_state(db, job, state, error)

    def cancel(self, job: str) -> str | None:
        """Asks a running job to stop, takes a waiting one out of the queue; returns the state found, None without."""
        with self._changing() as db:
            row = db.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None:
                return None
            if row["state"] == "queued":
                db.execute("UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ?", (time.time(), job))
                self._say_state(db, job, "cancelled")
            elif row["state"] == "running":
                db.execute("UPDATE jobs SET cancel = 1 WHERE id = ?", (job,))
            return str(row["state"])

    def again(self, job: str) -> bool:
        """Puts a cancelled or failed job back into the queue; it goes on from where its run folder stands."""
        with self._changing() as db:
            query = "UPDATE jobs SET state = 'queued', error = '', queued = ?, deaths = 0, finished = NULL, cancel = 0 "
            done = db.execute(query + "WHERE id = ? AND state IN ('cancelled', 'failed')", (time.time(), job))
            if done.rowcount:
                self._say_state(db, job, "queued")
            return done.rowcount > 0

    def recover(self, blamed: bool) -> list[str]:
        """Returns what was running to the front of the queue, for its worker is gone; names those jobs.

        `blamed`: the worker died over the job, and not with the server; a job that killed it thrice has failed.
        """
        with self._changing() as db:
            rows = db.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall()
            for row in rows:
                deaths = row["deaths"] + (1 if blamed else 0)
                db.execute("UPDATE jobs SET deaths = ? WHERE id = ?", (deaths, row["id"]))
                if row["cancel"]:
                    state, error = "cancelled", ""
                elif deaths >= DEATHS:
                    state = "failed"
                    error = f"the worker died {deaths} times over this job; perhaps it needs more memory than is here"
                else:
                    state, error = "queued", ""
                ended = time.time() if state in ENDED else None
                query = "UPDATE jobs SET state = ?, error = ?, cancel = 0, finished = ? WHERE id = ?"
                db.execute(query, (state, error, ended, row["id"]))
                self._say_state(db, row["id"], state, error)
            exports = [export_of(row) for row in db.execute("SELECT * FROM exports WHERE state = 'writing'").fetchall()]
            state, error = ("failed", "the worker died while it wrote this") if blamed else ("queued", "")
            for export in exports:
                self._change_export(db, replace(export, state=state, error=error))
            return [row["id"] for row in rows] + [export.job for export in exports]

    def remove_job(self, job: str) -> str | None:
        """Forgets a job that is not running; returns the state found. Only "running" keeps it."""
        with self._changing() as db:
            row = db.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None or row["state"] == "running":
                return None if row is None else str(row["state"])
            writing = db.execute("SELECT 1 FROM exports WHERE job = ? AND state = 'writing'", (job,)).fetchone()
            if writing is not None:
                return "running"
            for query in (
                "DELETE FROM jobs WHERE id = ?",
                "DELETE FROM events WHERE job = ?",
                "DELETE FROM exports WHERE job = ?",
            ):
                db.execute(query, (job,))
            return str(row["state"])

    # --- events ----------------------------------------------------------------------------------------------------

    def say(self, job: str, body: dict[str, Any]) -> None:
        """Appends an event to the job's record."""
        with self._changing() as db:
            self._say(db, job, body)

    def events(self, job: str, after: int, limit: int = 200) -> list[tuple[int, dict[str, Any]]]:
        """The next events of a job after the one with number `after`, at most `limit`."""
        query = "SELECT id, at, body FROM events WHERE job = ? AND id > ? ORDER BY id LIMIT ?"
        return [
            (row["id"], {"at": row["at"], **json.loads(row["body"])}) for row in self._rows(query, job, after, limit)
        ]

    def latest(self, job: str) -> dict[str, Any]:
        """The last event that counts steps, or an empty record."""
        query = "SELECT body FROM events WHERE job = ? AND body LIKE '%\"total\"%' ORDER BY id DESC LIMIT 1"
        rows = self._rows(query, job)
        return json.loads(rows[0]["body"]) if rows else {}

    def _say(self, db: sqlite3.Connection, job: str, body: dict[str, Any]) -> None:
        query = "INSERT INTO events (job, at, body) VALUES (?, ?, ?)"
        db.execute(query, (job, round(time.time(), 3), json.dumps(body)))

    def _say_state(self, db: sqlite3.Connection, job: str, state: str, error: str = "") -> None:
        self._say(db, job, {"kind": "state", "state": state, **({"error": error} if error else {})})

    # --- exports ---------------------------------------------------------------------------------------------------

    def ask_export(self, job: str, format: str, options: dict[str, Any] | None = None) -> Export:
        """Queues an export unless it is there or on its way; a failed one is tried again.

        Other options make it anew, but not while it is being written: then what is returned has the old ones.
        """
        with self._changing() as db:
            db.execute(
                "INSERT INTO exports (job, format, state, asked, options) VALUES (?, ?, 'queued', ?, ?) "
                "ON CONFLICT (job, format) DO UPDATE "
                "SET state = 'queued', error = '', asked = excluded.asked, options = excluded.options "
                "WHERE state = 'failed' OR (state != 'writing' AND options != excluded.options)",
                (job, format, time.time(), json.dumps(options or {}, sort_keys=True)),
            )
            export = export_of(
                db.execute("SELECT * FROM exports WHERE job = ? AND format = ?", (job, format)).fetchone()
            )
            self._say_export(db, export)
            return export

    def take_export(self) -> Export | None:
        """The first export that waits, now being written."""
        with self._changing() as db:
            row = db.execute("SELECT * FROM exports WHERE state = 'queued' ORDER BY asked LIMIT 1").fetchone()
            if row is None:
                return None
            taken = replace(export_of(row), state="writing")
            self._change_export(db, taken)
            return taken

    def end_export(self, export: Export) -> None:
        """Writing it has come to its state."""
        with self._changing() as db:
            self._change_export(db, export)

    def _change_export(self, db: sqlite3.Connection, export: Export) -> None:
        query = "UPDATE exports SET state = ?, error = ?, file = ?, bytes = ? WHERE job = ? AND format = ?"
        db.execute(query, (export.state, export.error, export.file, export.bytes, export.job, export.format))
        self._say_export(db, export)

    def _say_export(self, db: sqlite3.Connection, export: Export) -> None:
        body = {name: getattr(export, name) for name in ("format", "state", "error", "bytes", "options")}
        self._say(db, export.job, {"kind": "export", **body})

    def exports(self, job: str) -> list[Export]:
        return [export_of(row) for row in self._rows("SELECT * FROM exports WHERE job = ?", job)]

    # --- timings and secrets ---------------------------------------------------------------------------------------

    def add_timing(self, timing: Timing) -> None:
        with self._changing() as db:
            values = (timing.part, timing.key, timing.source, json.dumps(timing.seconds), time.time())
            db.execute("INSERT INTO timings VALUES (?, ?, ?, ?, ?)", values)

    def timings(self) -> list[Timing]:
        """The last 500, newest first."""
        rows = self._rows("SELECT part, key, source, seconds FROM timings ORDER BY rowid DESC LIMIT 500")
        return [Timing(row["part"], row["key"], row["source"], json.loads(row["seconds"])) for row in rows]

    def keep_secret(self, name: str, digest: str) -> None:
        """Keeps the digest of a secret; the secret itself is nowhere."""
        with self._changing() as db:
            db.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?)", (name, digest, time.time()))

    def secrets(self) -> dict[str, str]:
        return {row["name"]: row["digest"] for row in self._rows("SELECT name, digest FROM secrets ORDER BY at")}

    def forget_secret(self, name: str) -> None:
        with self._changing() as db:
            db.execute("DELETE FROM secrets WHERE name = ?", (name,))

    def forget_secrets(self) -> None:
        with self._changing() as db:
            db.execute("DELETE FROM secrets")

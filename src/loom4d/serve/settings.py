"""What a server is told when it starts, and what it refuses to take."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class ServeError(Exception):
    """The server cannot start, or go on, as it is asked to; the message is one line that says what to do."""


@dataclass(frozen=True)
class Limits:
    """What an upload may be, and how much may be under way at once."""

    bytes: int = 200_000_000
    pixels: int = 64_000_000  # of one picture
    all_pixels: int = 4_000_000_000  # of all frames of a clip together
    frames: int = 3000
    seconds: float = 120.0
    look_cpu_seconds: float = 40.0  # of looking at one upload
    look_memory: int = 6_000_000_000  # bytes the looking child may allocate
    looks: int = 16  # waiting at once
    export_seconds: float = 900.0  # of writing one file to take home
    export_memory: int = 6_000_000_000  # bytes that writing it may allocate
    uploads: int = 8  # arriving at once
    upload_seconds: float = 900.0  # for one upload to arrive
    idle_uploads: int = 100  # kept without a job
    queued: int = 100  # jobs
    streams: int = 256  # open event streams
    free_bytes: int = 300_000_000  # of the disk, below which nothing new is taken


@dataclass(frozen=True)
class Settings:
    """Everything a server and its children depend on."""

    folder: Path  # of the database, uploads and runs
    host: str = "127.0.0.1"
    port: int = 8765  # 0 takes a free one
    allowed_hosts: tuple[str, ...] = ()  # names besides the machine's own under which browsers may ask
    checkpoints: Path | None = None
    device: str = "cpu"  # of full-size priors
    extensions: tuple[str, ...] = ()  # modules that the children import first: they may add to the registries
    trials: bool = True  # measure this machine by a few steps of each preset while nobody waits
    limits: Limits = field(default_factory=Limits)

    @property
    def database(self) -> Path:
        return self.folder / "loom4d.sqlite"

    def upload(self, upload: str) -> Path:
        """Folder of an upload: the file, and the pictures made of it."""
        return self.folder / "uploads" / upload

    def run(self, job: str) -> Path:
        """The job's run folder, as the pipeline leaves it."""
        return self.folder / "runs" / job

    def live(self, job: str) -> Path:
        """Pictures of the job under way, and its thumbnail."""
        return self.folder / "live" / job

    def exports(self, job: str) -> Path:
        return self.folder / "exports" / job


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def to_json(settings: Settings) -> str:
    record: dict[str, Any] = asdict(settings)
    return json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in record.items()})


def from_json(text: str) -> Settings:
    """The inverse of `to_json`."""
    record = json.loads(text)
    record["folder"] = Path(record["folder"])
    record["checkpoints"] = Path(record["checkpoints"]) if record["checkpoints"] else None
    record["allowed_hosts"], record["extensions"] = tuple(record["allowed_hosts"]), tuple(record["extensions"])
    return Settings(**record | {"limits": Limits(**record["limits"])})

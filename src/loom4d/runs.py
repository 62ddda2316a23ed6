"""What long work says (`Event`), what it refuses (`InputError`) and where it leaves its results (`Run`)."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

Result = TypeVar("Result")
Work = Generator["Event", None, Result]  # yields events, returns its result


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line that says what came and what to do."""


@dataclass(frozen=True)
class Event:
    """One message of long work. Command line, viewer and web page read nothing else.

    `kind` is "start", "progress", "note", "preview" or "done". `step` of `total` counts the stage's own units.
    `data` holds JSON values only; files are named relative to the run folder.
    """

    stage: str
    kind: str
    message: str = ""
    step: int = 0
    total: int = 0
    data: dict[str, Any] = field(default_factory=dict)


def result_of(work: Work[Result], on_event: Callable[[Event], None] | None = None) -> Result:
    """Runs `work` to its end, hands every event to `on_event`, and returns what the work returns."""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            return stop.value
        if on_event is not None:
            on_event(event)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a whole file or leaves what was there: a full disk or a killed process never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> None:
    """Atomic safetensors file; `metadata` is any JSON object, kept under one key of the header."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, {"loom4d": json.dumps(metadata or {}, sort_keys=True)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file written by `save_tensors`. A missing or broken file is an `InputError`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("loom4d", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error


def peak_memory_gb() -> float:
    """Largest resident set of this process so far, in GB (10⁹ bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@runtime_checkable
class Memory(Protocol):
    """Where long work keeps what it needs to go on after a kill. A `Run` is one."""

    def save_state(self, name: str, tensors: dict[str, Tensor], **metadata: Any) -> None: ...

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None: ...

    def keep(self, name: str, tensors: dict[str, Tensor], **facts: Any) -> None: ...


class Run:
    """A run folder: `config.json`, `events.jsonl`, `report.json` and the artefacts, resumable after a kill.

    Opening an existing folder goes on with it when its configuration is the same, and refuses when it is not.
    Files under `state/` hold what resuming needs and may be deleted once the run is done.
    """

    def __init__(self, path: Path | str, config: dict[str, Any]):
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim(json.loads(json.dumps(config)))
            self._events = open(self.path / "events.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (lives with the run)
        except OSError as error:
            raise InputError(f"{self.path}: cannot write there ({error.strerror}); choose another --out") from error
        self.report: dict[str, Any] = {"stages": {}}
        if (self.path / "report.json").exists():
            self.report = json.loads((self.path / "report.json").read_text())

    def _claim(self, config: dict[str, Any]) -> None:
        file = self.path / "config.json"
        if file.exists():
            found = json.loads(file.read_text())
            if found != config:
                differing = sorted(key for key in {*found, *config} if found.get(key) != config.get(key))
                raise InputError(
                    f"{self.path} holds another run (different {', '.join(differing)}); choose another --out"
                )
        elif any(self.path.iterdir()):
            raise InputError(f"{self.path} is not empty and holds no run; choose another --out")
        else:
            write_json(file, config)

    def record(self, event: Event) -> None:
        """Appends the event to `events.jsonl` with the time in seconds since the epoch."""
        line = {"time": round(time.time(), 3), **{name: value for name, value in vars(event).items() if value}}
        self._events.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._events.flush()

    def finished(self, stage: str) -> bool:
        return stage in self.report["stages"]

    def finish(self, stage: str, seconds: float, **facts: Any) -> None:
        """Marks a stage as done in `report.json`, with its seconds and whatever it measured."""
        self.report["stages"][stage] = {"seconds": round(seconds, 2), **facts}
        self.report["peak_memory_gb"] = max(self.report.get("peak_memory_gb", 0.0), round(peak_memory_gb(), 2))
        write_json(self.path / "report.json", self.report)

    def save_state(self, name: str, tensors: dict[str, Tensor], **metadata: Any) -> None:
        save_tensors(self.path / "state" / f"{name}.safetensors", tensors, metadata)

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save_state` last wrote under `name`, or None."""
        file = self.path / "state" / f"{name}.safetensors"
        return load_tensors(file) if file.exists() else None

    def keep(self, name: str, tensors: dict[str, Tensor], **facts: Any) -> None:
        """Writes `NAME.safetensors` into the run folder: a result beside the stages' own."""
        save_tensors(self.path / f"{name}.safetensors", tensors, facts)

    def close(self) -> None:
        self._events.close()

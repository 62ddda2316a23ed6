"""A real server for tests: started as a process with the tiny extension, asked over HTTP, killed and started again."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

from loom4d.denoisers.autoencoder import Autoencoder, AutoencoderConfig
from loom4d.denoisers.small import SmallConfig, SmallPrior
from loom4d.denoisers.weights import AUTOENCODER, PRIOR, write_weights
from loom4d.serve import choices, look
from loom4d.serve.app import create
from loom4d.serve.guard import Tokens
from loom4d.serve.records import Job
from loom4d.serve.settings import Limits, Settings, is_loopback, to_json
from loom4d.serve.store import Store

START = """
import json, sys
from pathlib import Path
from loom4d.serve.app import serve
from loom4d.serve.settings import Limits, from_json
serve(from_json(sys.argv[1]), lambda line: print(line, flush=True))
"""


def write_checkpoints(folder: Path) -> Path:
    """Weights of the small family at its smallest."""
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=4, width=16, deep_width=16, encoder_blocks=1, decoder_blocks=1)
    write_weights(folder / AUTOENCODER, Autoencoder(config), {"config": vars(config), "step": 0, "scores": {}})
    small = SmallConfig(4, 2, 32, 2, 2)
    write_weights(folder / PRIOR, SmallPrior(small), {"config": vars(small), "step": 0, "scores": {}})
    return folder


def picture(size: tuple[int, int] = (40, 40), format: str = "PNG") -> bytes:
    """A red rectangle, cut out."""
    pixels = np.zeros((*size, 4), np.uint8)
    pixels[size[0] // 5 : -size[0] // 5, size[1] // 4 : -size[1] // 4] = [200, 60, 30, 255]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


FAMILIES = {"small": {"resolution": 16, "views": 3, "frames": 2}, "big": {"missing": "its files are not here"}}
OFFER = json.loads(json.dumps(choices.form(FAMILIES)))  # as the worker sends it


class Stand:
    """Stands in for the children: looks are taken here, jobs wait for ever."""

    def __init__(self, limits: Limits):
        self.offer, self.trouble, self.limits, self.news = OFFER, "", limits, 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def look(self, request: dict[str, Any]) -> dict[str, Any]:
        return look.answer(request, self.limits)

    def wake(self) -> None:
        self.news += 1

    def insist(self, job: str) -> None: ...


@contextmanager
def apps(folder: Path) -> Iterator[Callable[..., Any]]:
    """(address, settings changes) -> a client of an app in this process with those settings, and what it is made of."""
    with ExitStack() as opened:

        def serve(address: str = "http://localhost", **changes: Any) -> Any:
            settings = Settings(folder=folder, **{"limits": Limits(free_bytes=0), **changes})
            store = Store(settings.database)
            opened.callback(store.close)
            tokens = Tokens(store, not is_loopback(settings.host))
            app = create(settings, store, tokens, Stand(settings.limits))
            client = opened.enter_context(TestClient(app, base_url=address, raise_server_exceptions=True))
            return SimpleNamespace(
                client=client, store=store, tokens=tokens, settings=settings, site=app.app.state.site
            )

        yield serve


def queued(store: Store, *names: str) -> list[str]:
    for name in names:
        store.add_job(Job(name, "u", name, "picture", {}))
    return list(names)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Served:
    """One server on one folder and port, whatever becomes of its processes."""

    def __init__(self, settings: Settings):
        self.settings, self.record = settings, to_json(settings)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}/"

    def start(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", START, self.record], env=environment)
        self.until(self.is_ready, 240)

    def is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log()
        try:
            return bool(self.ask("GET", "/api/health")["ready"])
        except OSError:
            return False

    def kill(self) -> None:
        """As a power cut would: nothing is told, nothing is closed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def log(self) -> str:
        file = self.settings.folder / "children.log"
        return file.read_text() if file.exists() else ""

    def children(self) -> list[int]:
        """Processes of ours that are not the server itself."""
        mark, found = self.record.encode(), []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes()
            except (OSError, NotADirectoryError):
                continue
            if entry.name.isdecimal() and b"loom4d.serve.nursery" in command and mark in command:
                found.append(int(entry.name))
        return found

    def until(self, true: Callable[[], Any], seconds: float = 120) -> Any:
        end = time.monotonic() + seconds
        while not (value := true()):
            assert time.monotonic() < end, f"it never came true\n{self.log()[-2000:]}"
            time.sleep(0.2)
        return value

    def reply(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.settings.port, timeout=120)
        try:
            link.request(method, path, body, headers or {})
            answer = link.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            link.close()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that is no refusal."""
        if isinstance(body, bytes):
            status, _, content = self.reply(method, path, body)
        else:
            headers = {"content-type": "application/json"} if body is not None else {}
            status, _, content = self.reply(method, path, None if body is None else json.dumps(body).encode(), headers)
        assert status < 400, (status, content)
        return json.loads(content) if content else None

    def events(self, job: str, last: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """What the stream tells, from after event `last` (as a browser that comes back asks)."""
        link = http.client.HTTPConnection("127.0.0.1", self.settings.port, timeout=120)
        try:
            link.request("GET", f"/api/jobs/{job}/events", headers={} if last is None else {"Last-Event-ID": str(last)})
            number = 0
            for line in link.getresponse():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    number = int(value)
                elif name == "data":
                    yield number, json.loads(value)
        finally:
            link.close()

    def state(self, job: str) -> str:
        return str(self.ask("GET", f"/api/jobs/{job}")["state"])

"""The server's side of its children: starts them, hears them, and starts them again when they die."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loom4d.serve.settings import ServeError, Settings, to_json
from loom4d.serve.store import Store

log = logging.getLogger("loom4d.serve")

LONGEST = 1 << 22  # bytes of a child's message
PATIENCE = 15.0  # seconds that a running job has to notice that it was cancelled
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0  # seconds between the death of a child and the birth of the next
WALL = 8.0  # how much longer than its processor time a look may last, on a machine with much else to do


class Busy(Exception):
    """Too much is under way already."""


class LookFailed(Exception):
    """The looker gave no answer: the file made it spin, swell or crash, or it cannot run here."""


@dataclass
class Child:
    """One forked process, at the other end of a socket."""

    role: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pid: int | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    useful: bool = False  # it has come as far as saying what it can do

    def say(self, message: dict[str, Any]) -> None:
        if not self.writer.is_closing():
            self.writer.write(json.dumps(message).encode() + b"\n")

    def kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Children:
    """Nursery, worker and looker. `on_poke` hears of every job about which the worker has said something new."""

    def __init__(self, settings: Settings, store: Store, on_poke: Callable[[str], None]):
        self.settings, self.store, self.on_poke = settings, store, on_poke
        self.offer: dict[str, Any] | None = None  # the form, once the worker has said hello
        self.trouble = ""  # why there are no children, for people
        self.looking = asyncio.Lock()
        self.looks = 0
        self.insisting: set[asyncio.Task[None]] = set()
        self.pause = FIRST_PAUSE  # before the next worker, while the last ones died before they were of use
        self.reset()

    def reset(self) -> None:
        self.nursery: subprocess.Popen[bytes] | None = None
        self.link: socket.socket | None = None
        self.children: dict[str, Child] = {}
        self.born: dict[str, asyncio.Future[int]] = {}

    async def start(self) -> None:
        """Starts the nursery, and watches over it until `stop`."""
        self.loop = asyncio.get_running_loop()
        self.store.recover(blamed=False)
        self.watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        self.watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.watching
        self._drop()

    def wake(self) -> None:
        """Tells the worker, from any thread, that the database holds something new for it."""
        self.loop.call_soon_threadsafe(self._tell_worker)

    def _tell_worker(self) -> None:
        if worker := self.children.get("worker"):
            worker.say({"news": True})

    def insist(self, job: str) -> None:
        """Kills the worker if it has not let go of a cancelled job after a while; the next one takes up the queue."""

        async def later() -> None:
            await asyncio.sleep(PATIENCE)
            found = await asyncio.to_thread(self.store.job, job)
            worker = self.children.get("worker")
            if worker is not None and found is not None and found.state == "running" and found.cancel:
                worker.kill()

        task = asyncio.create_task(later())
        self.insisting.add(task)
        task.add_done_callback(self.insisting.discard)

    async def look(self, request: dict[str, Any]) -> dict[str, Any]:
        """The looker's answer to one request; others wait their turn, and too many are refused."""
        limits = self.settings.limits
        if self.looks >= limits.looks:
            raise Busy("too many uploads are being looked at; try again in a moment")
        self.looks += 1
        try:
            async with self.looking:
                return await self._looked(request, limits.look_cpu_seconds * WALL)
        finally:
            self.looks -= 1

    async def _looked(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(120):
                while (looker := self.children.get("looker")) is None or looker.gone.is_set():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise LookFailed(self.trouble or "the program is still getting ready; try again in a moment") from None
        looker.say(request)
        try:
            async with asyncio.timeout(seconds):
                line = await looker.reader.readline()
        except (TimeoutError, ValueError, OSError):
            line = b""
            looker.kill()
        except asyncio.CancelledError:  # the answer would be taken for that to the next request
            looker.kill()
            looker.gone.set()
            raise
        if not line:
            looker.gone.set()
            raise LookFailed("looking at this file took too long or too much memory; it may be damaged or too large")
        return dict(json.loads(line))

    # --- keeping them alive ------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Starts the nursery again whenever it ends, ever more patiently while it fails."""
        pause = FIRST_PAUSE
        while True:
            lived = False
            try:
                lived = await self._tend()
            except OSError as error:
                self.trouble = f"the worker cannot be started ({error.strerror})"
            except ServeError as error:  # a full disk, a broken database: perhaps it is put right
                self.trouble = str(error)
            self._drop()
            with contextlib.suppress(ServeError):
                await asyncio.to_thread(self.store.recover, False)
            pause = FIRST_PAUSE if lived else min(2 * pause, LONGEST_PAUSE)
            log.warning("the nursery ended; %s; starting it again", self.trouble or "no reason known")
            await asyncio.sleep(pause)

    async def _tend(self) -> bool:
        """One nursery's life; returns whether it ever got ready."""
        ours, theirs = socket.socketpair()
        with theirs, open(self.settings.folder / "children.log", "ab") as errors:
            command = [sys.executable, "-m", "loom4d.serve.nursery", str(theirs.fileno()), to_json(self.settings)]
            self.nursery = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={"OMP_WAIT_POLICY": "passive", **os.environ},  # threads that wait leave the cores to the server
                start_new_session=True,  # a terminal's Ctrl-C is for the server alone
            )
        self.link = ours
        reader, writer = await asyncio.open_connection(sock=ours.dup())
        ready = False
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "ready" in message:
                    ready, self.trouble = True, ""
                    for role in ("worker", "looker"):
                        await self._bear(role)
                elif "failed" in message:
                    self.trouble = f"the worker cannot be started: {message['failed']}"
                elif "born" in message:
                    child = self.children[message["born"]]
                    child.pid = message["pid"]
                elif "died" in message:
                    await self._mourn(message["died"], message["how"])
        finally:
            writer.close()
        return ready

    async def _bear(self, role: str) -> None:
        ours, theirs = socket.socketpair()
        assert self.link is not None
        with theirs:
            socket.send_fds(self.link, [role.encode() + b"\n"], [theirs.fileno()])
        reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
        child = Child(role, reader, writer)
        if role == "worker":
            self.children[role] = child
            self.hearing = asyncio.create_task(self._hear(child))
        else:
            self.greeting = asyncio.create_task(self._greet(child))
            self.children[role] = child
            child.gone.set()  # until it has said that it is looking
        await asyncio.sleep(0)

    async def _greet(self, child: Child) -> None:
        if await child.reader.readline():
            child.gone.clear()

    async def _hear(self, child: Child) -> None:
        while line := await child.reader.readline():
            message = json.loads(line)
            if "offer" in message:
                self.offer, self.trouble, self.pause = message["offer"], "", FIRST_PAUSE
                child.useful = True
            elif "poke" in message:
                self.on_poke(message["poke"])

    async def _mourn(self, pid: int, how: str) -> None:
        """A child has died: what it was doing goes back into the queue, and another takes its place."""
        child = next((one for one in self.children.values() if one.pid == pid), None)
        if child is None:
            return
        child.gone.set()
        child.writer.close()
        log.warning("the %s died (%s)", child.role, how)
        if child.role == "worker":
            for job in await asyncio.to_thread(self.store.recover, child.useful):
                self.on_poke(job)
            if not child.useful:
                self.trouble = f"the worker cannot get ready ({how}); children.log says why"
                self.pause = min(2 * self.pause, LONGEST_PAUSE)
            await asyncio.sleep(self.pause)
        await self._bear(child.role)

    def _drop(self) -> None:
        """Ends nursery and children: each leaves when its socket closes; none is waited for longer than it takes."""
        for child in self.children.values():
            child.gone.set()
            child.writer.close()
            child.kill()
        if self.link is not None:
            self.link.close()
        if self.nursery is not None:
            self.nursery.kill()
            self.nursery.wait()
        self.reset()

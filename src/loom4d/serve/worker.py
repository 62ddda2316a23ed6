"""The worker: takes jobs from the queue one by one, writes exports when they are asked for, measures while idle."""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from loom4d.cameras import turntable
from loom4d.gaussians.asset import render
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.grid import png
from loom4d.pipeline import generating
from loom4d.runs import Event, InputError, write_atomically
from loom4d.serve import choices, plans
from loom4d.serve.exports import written
from loom4d.serve.nursery import Channel
from loom4d.serve.records import Job, Timing
from loom4d.serve.settings import Settings
from loom4d.serve.store import FullDisk, Store
from loom4d.serve.trial import trials

SIDE = 96  # pixels of a thumbnail
INSTANTS = 8  # of a thumbnail
FULL = "the disk is full: free some space, then let it go on"


class Stopped(Exception):
    """The user has cancelled the job."""


def main(settings: Settings, channel: Channel) -> None:
    """Works until the server has gone. Only one worker at a time holds the folder."""
    os.nice(5)  # the server answers first
    store = Store(settings.database)
    with only_one(settings.folder / "worker.lock"):
        form, folders = choices.offer(settings)
        worker = Worker(settings, store, channel, form, folders)
        threading.Thread(target=worker.listen, daemon=True).start()
        channel.say({"offer": form})
        worker.work()


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Waits until no other process is inside; the lock ends with the process that holds it."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Worker:
    """The loop's state: the database, the way to the server, and whether there is something new."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        channel: Channel,
        form: dict[str, Any],
        folders: dict[str, Path | None],
    ):
        self.settings, self.store, self.channel, self.form, self.folders = settings, store, channel, form, folders
        self.news = threading.Event()

    def listen(self) -> None:
        """Any message means that there is news; the end of them that the server has gone, and with it all purpose."""
        for _ in self.channel.heard():
            self.news.set()
        os._exit(0)

    def work(self) -> None:
        measuring = trials(self.form, self.folders, self.settings, self.store) if self.settings.trials else iter(())
        while True:
            self.news.clear()
            if self._export_next():
                continue
            job = self.store.take_job()
            if job is not None:
                self._run(job)
            elif next(measuring, "over") == "over":
                self.news.wait(30)

    def _say(self, job: str, body: dict[str, Any]) -> None:
        self.store.say(job, body)
        self.channel.say({"poke": job})

    # --- jobs ------------------------------------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        self.channel.say({"poke": job.id})
        begun, clock = time.monotonic(), Clock()
        upload = self.store.upload(job.upload)
        source = self.settings.upload(job.upload) / (upload.file if upload else "gone")
        resumed = (self.settings.run(job.id) / "config.json").exists()
        try:
            asset = self._made(job, source, clock)
            self._thumbnail(job.id, asset)
            state, error = "done", ""
        except Stopped:
            state, error = "cancelled", ""
        except FullDisk:
            state, error = "failed", FULL
        except (InputError, OSError) as reason:
            names = {source: upload.name if upload else job.title, self.settings.run(job.id): "this run"}
            state, error = "failed", explained(reason, names)
        except Exception as reason:
            traceback.print_exc()
            state, error = "failed", f"a fault of the program ({type(reason).__name__}); its log says where"
        if state == "done" and not resumed:
            for part, key in plans.keys(job.choices, job.kind, self.form).items():
                seconds = {stage: s for stage, s in clock.seconds.items() if plans.PARTS.get(stage, "imagine") == part}
                self.store.add_timing(Timing(part, key, "job", seconds))
        self.store.end_job(job.id, state, error, round(time.monotonic() - begun - clock.paused, 1))
        self.channel.say({"poke": job.id})

    def _made(self, job: Job, source: Path, clock: Clock) -> DynamicGaussians:
        if job.choices["priors"] not in self.folders:
            raise InputError(f"the {job.choices['priors']} priors are not here any more")
        folder = self.folders[job.choices["priors"]]
        config = choices.config_of(job.choices, folder, self.settings.device, job.title)
        work = generating(source, self.settings.run(job.id), config)
        clock.start()
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                return end.value
            clock.tick(event)
            try:
                self._tell(job.id, event, str(source))
                with clock.pause():
                    self._between(job.id)
            except BaseException:
                work.close()
                raise

    def _between(self, job: str) -> None:
        """What may happen between two events of a job: it is cancelled, or somebody waits for an export."""
        now = self.store.job(job)
        if now is None or now.cancel:
            raise Stopped
        while self._export_next():
            pass

    def _tell(self, job: str, event: Event, source: str) -> None:
        body = {name: value for name, value in vars(event).items() if value}
        body["message"] = event.message.replace(source, "the upload")  # no path of this machine leaves it
        body["data"] = dict(event.data)
        picture, file = body["data"].pop("png", None), body["data"].pop("file", "")
        if picture is not None:
            body["picture"] = self._kept(job, base64.b64decode(picture))
        elif file.endswith(".png"):
            body["picture"] = self._kept(job, (self.settings.run(job) / file).read_bytes())
        self._say(job, body)

    def _kept(self, job: str, picture: bytes) -> str:
        """Writes a preview beside its predecessors; events hold only its name."""
        folder = self.settings.live(job)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{sum(1 for _ in folder.iterdir()):04}.png"
        write_atomically(folder / name, picture)
        return name

    def _thumbnail(self, job: str, asset: DynamicGaussians) -> None:
        """The asset over time from the first camera, side by side."""
        times = torch.linspace(*asset.time_range, INSTANTS)
        pictures = render(asset, turntable(1, INSTANTS, 8.0), times, SIDE, SIDE).rgba
        strip = rearrange(pictures, "1 frame c h w -> c h (frame w)")
        write_atomically(self.settings.live(job) / "thumb.png", png(strip))

    # --- exports ---------------------------------------------------------------------------------------------------

    def _export_next(self) -> bool:
        """Writes one export if any is asked for."""
        asked = self.store.take_export()
        if asked is None:
            return False
        self.channel.say({"poke": asked.job})
        run = self.settings.run(asked.job)
        try:
            folder, limits = self.settings.exports(asked.job), self.settings.limits
            file = written(run, folder, asked.format, asked.options, limits)
            done = replace(asked, state="done", file=file.name, bytes=file.stat().st_size)
        except (InputError, OSError) as reason:
            done = replace(asked, state="failed", error=explained(reason, {run: "this run"}))
        except Exception as reason:
            traceback.print_exc()
            done = replace(asked, state="failed", error=f"this asset has no such file ({type(reason).__name__})")
        self.store.end_export(done)
        self.channel.say({"poke": asked.job})
        return True


class Clock:
    """Seconds per stage, by the events that end them; pauses count for none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.paused = 0.0

    def start(self) -> None:
        self.last = time.monotonic()

    def tick(self, event: Event) -> None:
        now = time.monotonic()
        self.seconds[event.stage] = round(self.seconds.get(event.stage, 0.0) + now - self.last, 3)
        self.last = now

    @contextmanager
    def pause(self) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begun
            self.paused += spent
            self.last += spent


def explained(reason: Exception, names: dict[Path, str]) -> str:
    """An error for the user's eyes: files by the names that they know, and no path of this machine."""
    if isinstance(reason, OSError):
        if reason.errno in (errno.ENOSPC, errno.EDQUOT):
            return FULL
        return f"{next(iter(names.values()))}: {reason.strerror or type(reason).__name__}"
    message = str(reason)
    for path, name in names.items():
        message = message.replace(str(path), name)
    if "holds another run" in message:  # its folder was made with choices that this version means otherwise
        return "this run was begun by another version of the program: delete it and start it anew"
    return message

"""The server as it is run: it may be killed at any moment, and so may its children; the work goes on."""

from __future__ import annotations

import io
import os
import signal
import zipfile
from pathlib import Path

from PIL import Image

from serving import Served, picture

TINY = {"method": "tiny", "preset": "quick", "quality": "tiny"}
SLOW = {"method": "tiny", "preset": "slow", "quality": "tiny"}


def order(server: Served, upload: str, choices: dict[str, str]) -> str:
    return str(server.ask("POST", "/api/jobs", {"upload": upload, **choices})["id"])


def asset(server: Served, job: str) -> bytes:
    return (server.settings.run(job) / "asset.safetensors").read_bytes()


def test_a_file_that_keeps_its_reader_busy_is_given_up_and_the_next_is_read(served):
    """Sixty million pixels in few bytes: within every limit but that of time."""
    buffer = io.BytesIO()
    Image.new("1", (7900, 7900)).save(buffer, "PNG")
    before = set(served.children())
    status, _, answer = served.reply("POST", "/api/uploads?name=long.png", buffer.getvalue())
    assert status == 422 and b"too long" in answer
    assert served.ask("POST", "/api/uploads?name=thing.png", picture())["kind"] == "picture"
    assert len(set(served.children()) - before) == 1 and len(served.children()) == 3


def test_killed_servers_and_workers_leave_jobs_that_go_on_to_the_same_bytes(served):
    upload = served.ask("POST", "/api/uploads?name=thing.png", picture())["id"]
    killed, waiting = order(served, upload, SLOW), order(served, upload, SLOW)
    seen = 0
    for number, event in served.events(killed):
        seen = number
        if event.get("stage") == "grid" and event.get("step", 0) >= 5:
            break
    children = served.children()
    served.kill()
    served.until(lambda: not set(children) & set(served.children()), 60)  # they notice, and leave

    served.start()
    told = []
    for number, event in served.events(killed, last=seen):
        assert number > seen  # what was heard before is not told again
        told.append(event)
        if event.get("state") in ("done", "failed"):
            break
    assert told[-1]["state"] == "done", told[-1]
    assert {"kind": "state", "state": "queued"}.items() <= told[[e["kind"] for e in told].index("state")].items()
    resumed = [event["step"] for event in told if event.get("stage") == "grid" and event["kind"] == "start"]
    assert resumed and resumed[-1] >= 5  # it went on, and did not begin again

    # The next job loses its worker, once; another takes up the work.
    next(e for _, e in served.events(waiting) if e.get("stage") == "grid" and e.get("step", 0) >= 3)
    worker = next(pid for pid in served.children() if holds(pid, served.settings.folder / "worker.lock"))
    os.kill(worker, signal.SIGKILL)
    ended = next(e["state"] for _, e in served.events(waiting) if e.get("state") in ("done", "failed"))
    assert ended == "done"
    assert asset(served, killed) == asset(served, waiting)

    # Exports are written on demand and streamed; a folder comes as a ZIP.
    served.ask("POST", f"/api/jobs/{killed}/exports/ply")
    export = next(e for _, e in served.events(killed) if e["kind"] == "export" and e["state"] in ("done", "failed"))
    assert export["state"] == "done", export
    status, headers, content = served.reply("GET", f"/api/jobs/{killed}/exports/ply")
    assert status == 200 and len(content) == export["bytes"] and "thing-ply.zip" in headers["content-disposition"]
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None

    # A job that runs is stopped between two events, goes on when asked, and can be deleted without a trace.
    endless = order(served, upload, {"method": "tiny", "preset": "quick", "quality": "long"})
    next(e for _, e in served.events(endless) if e.get("stage") == "fit" and e["kind"] == "progress")
    assert served.reply("DELETE", f"/api/jobs/{endless}")[0] == 409
    served.ask("POST", f"/api/jobs/{endless}/cancel")
    served.until(lambda: served.state(endless) == "cancelled")
    served.ask("DELETE", f"/api/jobs/{endless}")
    assert not served.settings.run(endless).exists() and served.reply("GET", f"/api/jobs/{endless}")[0] == 404
    for job in (killed, waiting):
        served.ask("DELETE", f"/api/jobs/{job}")
    left = {folder.name for part in ("uploads", "runs", "live") for folder in (served.settings.folder / part).glob("*")}
    assert not left & {upload, killed, waiting, endless}


def holds(pid: int, file: Path) -> bool:
    """Whether a process has a file open."""
    try:
        return any(os.path.realpath(link) == str(file.resolve()) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False

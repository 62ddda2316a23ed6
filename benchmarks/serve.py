"""How the web app bears strangers: malformed uploads and many clients at once. Prints JSON.

    python benchmarks/serve.py --out benchmarks/results/serve.json

A server with the smallest untrained priors is started as a process. 200 uploads are made by a seeded fuzzer out of good
PNG, WebP, MP4, GLB and ZIP files: cut short, with bytes changed, with another type's head, or with sizes that lie. Then
50 clients at once listen to a run and ask for pages, while runs go on. Memory and open files of the server and its
children are read before and after.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from loom4d.runs import write_json
from loom4d.serve.settings import Limits, Settings

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from serving import Served, free_port, write_checkpoints  # noqa: E402

TINY = {"method": "tiny", "preset": "quick", "quality": "tiny"}


def good_files() -> dict[str, bytes]:
    """One small good file of every type."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[12:52, 16:48] = [200, 90, 30, 255]
    pictures = [Image.fromarray(np.roll(pixels, shift, 1)) for shift in range(6)]
    files = {}
    for name, options in (("png", {}), ("webp", {"save_all": True, "append_images": pictures[1:], "duration": 80})):
        buffer = io.BytesIO()
        pictures[0].save(buffer, name.upper(), **options)
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=12, options={"preset": "ultrafast"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            container.mux(stream.encode(av.VideoFrame.from_image(on_white)))
        container.mux(stream.encode())
    files["mp4"] = buffer.getvalue()
    files["glb"] = triangle()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../frame.png", files["png"])
    files["zip"] = buffer.getvalue()
    return files


def triangle() -> bytes:
    """A GLB of one triangle."""
    binary = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0.5]], "<f4").tobytes()
    description = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "buffers": [{"byteLength": 36}],
    }
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(binary)
    head = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary


def cut(chance: random.Random, file: bytes, files: dict[str, bytes]) -> bytes:
    return file[: chance.randrange(len(file))]


def changed(chance: random.Random, file: bytes, files: dict[str, bytes]) -> bytes:
    """A few bytes, or a whole stretch, are something else."""
    body = bytearray(file)
    for _ in range(chance.choice((1, 4, 32))):
        body[chance.randrange(len(body))] = chance.randrange(256)
    if chance.random() < 0.5:
        start = chance.randrange(len(body))
        stretch = chance.randrange(1, 200)
        body[start : start + stretch] = chance.randbytes(stretch)
    return bytes(body)


def mistyped(chance: random.Random, file: bytes, files: dict[str, bytes]) -> bytes:
    """The head of one type on the body of another, or on noise."""
    head = files[chance.choice(sorted(files))][: chance.choice((8, 12, 16, 32))]
    return head + (file[len(head) :] if chance.random() < 0.5 else chance.randbytes(2000))


def lying(chance: random.Random, file: bytes, files: dict[str, bytes]) -> bytes:
    """Sizes that are not true: a PNG that claims to be huge, else any four bytes set to a large number."""
    if file.startswith(b"\x89PNG"):
        side = chance.choice((0, 30_000, 70_000, 2**31 - 1))
        header = b"IHDR" + struct.pack(">II", side, chance.choice((1, side))) + file[24:29]
        return file[:12] + header + struct.pack(">I", zlib.crc32(header)) + file[33:]
    place = chance.randrange(4, min(len(file) - 4, 400))
    return (
        file[:place] + struct.pack(chance.choice("<>") + "I", chance.choice((2**31, 2**32 - 1, 0))) + file[place + 4 :]
    )


WAYS = {"cut": cut, "changed": changed, "mistyped": mistyped, "lying": lying}


def malformed(count: int, seed: int) -> list[tuple[str, str, bytes]]:
    """(way, type, content) of every upload; the same seed gives the same bytes."""
    chance, files = random.Random(seed), good_files()
    made = []
    for index in range(count):
        kind, way = sorted(files)[index % len(files)], list(WAYS)[index // len(files) % len(WAYS)]
        made.append((way, kind, WAYS[way](chance, files[kind], files)))
    return made


def processes(server: Served) -> dict[str, int]:
    """Resident bytes and open files of the server; of its children only the bytes that are theirs alone."""
    assert server.process is not None
    own = server.process.pid
    memory = int((Path(f"/proc/{own}/statm").read_text().split())[1]) * resource.getpagesize()
    children = 0
    for pid in server.children():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
    return {
        "server_rss_mb": round(memory / 1e6, 1),
        "children_pss_mb": round(children / 1e6, 1),
        "server_open_files": len(list(Path(f"/proc/{own}/fd").iterdir())),
        "children": len(server.children()),
    }


def timed(call: Callable[[], int], times: list[float], statuses: Counter[str]) -> None:
    begun = time.perf_counter()
    try:
        statuses[str(call())] += 1
    except OSError as error:
        statuses[type(error).__name__] += 1
    times.append(time.perf_counter() - begun)


def latency(times: list[float]) -> dict[str, float]:
    ranked = sorted(times)
    return {
        "count": len(ranked),
        "p50_ms": round(1e3 * statistics.median(ranked), 1),
        "p95_ms": round(1e3 * ranked[int(0.95 * (len(ranked) - 1))], 1),
        "max_ms": round(1e3 * ranked[-1], 1),
    }


def fuzzed(server: Served, count: int, seed: int) -> dict[str, Any]:
    times: list[float] = []
    statuses: Counter[str] = Counter()
    by_way: dict[str, Counter[str]] = {}
    for index, (way, kind, content) in enumerate(malformed(count, seed)):
        own: Counter[str] = Counter()
        path = f"/api/uploads?name={way}{index}.{kind}"
        timed(lambda path=path, content=content: server.reply("POST", path, content)[0], times, own)
        statuses += own
        by_way.setdefault(f"{kind} {way}", Counter()).update(own)
    health = server.reply("GET", "/api/health")
    return {
        "uploads": count,
        "answers": dict(sorted(statuses.items())),
        "by_kind": {name: dict(sorted(one.items())) for name, one in sorted(by_way.items())},
        "latency": latency(times),
        "healthy_after": json.loads(health[2]) == {"ok": True, "ready": True},
    }


def crowded(server: Served, clients: int, seconds: float, job: str) -> dict[str, Any]:
    """Half of the clients listen to a run from its beginning over and over, half ask for pages."""
    end = time.monotonic() + seconds
    times: dict[str, list[float]] = {"events": [], "polling": []}
    statuses: Counter[str] = Counter()
    lock = threading.Lock()
    wrong: list[str] = []

    def listener() -> None:
        while time.monotonic() < end:
            begun = time.perf_counter()
            heard = [number for number, _ in zip_until(server.events(job), 20)]
            with lock:
                times["events"].append(time.perf_counter() - begun)
                statuses["stream"] += 1
                if heard != sorted(set(heard)) or len(heard) < 20:
                    wrong.append(f"heard {heard}")

    def poller() -> None:
        while time.monotonic() < end:
            for path in ("/", "/api/jobs", f"/api/jobs/{job}", "/api/offer", "/static/app.css"):
                own: list[float] = []
                found: Counter[str] = Counter()
                timed(lambda path=path: server.reply("GET", path)[0], own, found)
                with lock:
                    times["polling"] += own
                    statuses.update(found)

    threads = [threading.Thread(target=listener if index % 2 else poller) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": dict(sorted(statuses.items())),
        "streams_told_wrongly": len(wrong),
        **{name: latency(one) for name, one in times.items()},
    }


def zip_until(events: Any, count: int) -> Any:
    """The first `count` events, and the stream closed."""
    for place, event in enumerate(events, 1):
        yield event
        if place == count:
            break
    events.close()


def measure(uploads: int, clients: int, seconds: float, seed: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    settings = Settings(
        folder=folder / "data",
        port=free_port(),
        checkpoints=write_checkpoints(folder),
        extensions=("serve_tiny",),
        trials=False,
        limits=Limits(idle_uploads=20),
    )
    server = Served(settings)
    try:
        server.start()
        upload = server.ask("POST", "/api/uploads?name=good.png", good_files()["png"])["id"]
        job = server.ask("POST", "/api/jobs", {"upload": upload, **TINY})["id"]
        server.until(lambda: server.state(job) == "done", 600)
        before = processes(server)
        fuzz = fuzzed(server, uploads, seed)
        after_fuzz = processes(server)
        for _ in range(4):  # the worker has something to do meanwhile
            server.ask("POST", "/api/jobs", {"upload": upload, **TINY})
        crowd = crowded(server, clients, seconds, job)
        time.sleep(1)  # closed connections are let go of
        after = processes(server)
        again = server.ask("POST", "/api/jobs", {"upload": upload, **TINY})["id"]
        server.until(lambda: server.state(again) == "done", 600)
        assert server.process is not None
        ticks = (Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1]).split()
        cpu = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
        deaths = server.log().count("Traceback")
    finally:
        server.kill()
        server.until(lambda: not server.children(), 60)
        shutil.rmtree(folder, ignore_errors=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "machine": f"{os.cpu_count()} x {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "commit": commit.stdout.strip(),
        "seed": seed,
        "before": before,
        "malformed_uploads": fuzz,
        "after_uploads": after_fuzz,
        "many_clients": crowd,
        "after_all": after,
        "server_cpu_seconds": round(cpu, 1),
        "tracebacks_in_log": deaths,
        "a_run_after_it_all": "done",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0, help="that the clients stay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the JSON besides")
    given = parser.parse_args()
    result = measure(given.uploads, given.clients, given.seconds, given.seed)
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    main()

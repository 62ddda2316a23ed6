"""What a picture of the page costs without a graphics card: CPU-milliseconds in headless Chromium, by Gaussians.

    python benchmarks/viewer.py --out benchmarks/results/viewer.json

Each picture has a new time and a new camera, so everything is done again: the motion, the sort (both in the worker),
the upload and the drawing, which SwiftShader does on the CPU. `picture_cpu_ms` is the time of all of Chromium's
processes and threads together, which a busy machine does not change; `worker_cpu_ms` is that of the same scripts in
node, on one thread. On a machine with a graphics card the worker's share is what is left.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Browser, chromium
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.viewer.page import FOLDER, SCENE, write_page
from moving_assets import bending, spacetime_asset

WIDTH, HEIGHT = 640, 480
PICTURES = 4
DRAW = """window.took = null, (async () => {
  const viewer = loom4d.viewer, gl = viewer.painter.gl, begun = performance.now();
  viewer.time = viewer.start + (viewer.end - viewer.start) * ((NUMBER * 0.37) % 1);
  viewer.camera.azimuth = (NUMBER * 47) % 360;
  viewer.dirty = true;
  await viewer.settled();
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));  // waits until it is drawn
  window.took = performance.now() - begun;
})(), 1"""
NODE = """
const fs = require("fs"), zlib = require("zlib"), vm = require("vm");
const [script, page, count] = process.argv.slice(1);
vm.runInThisContext(fs.readFileSync(script, "utf8") + "; globalThis.S = { Scene, unpackFields };");
const text = fs.readFileSync(page, "utf8");
const part = (id) => text.split(`id="${id}">`)[1].split("</script>")[0];
const header = JSON.parse(part("header"));
const scene = new S.Scene(header, S.unpackFields(header, zlib.gunzipSync(Buffer.from(part("data"), "base64"))));
const cost = { motion: 0, sort: 0 };
const timed = (name, work) => {
  const before = process.cpuUsage();
  work();
  const spent = process.cpuUsage(before);
  cost[name] += (spent.user + spent.system) / 1000;
};
for (let picture = -20; picture < count; picture++) {
  if (picture === 0) cost.motion = cost.sort = 0;  // the first ones compile
  const [start, end] = header.times, angle = picture * 0.82;
  const c = Math.cos(angle), s = Math.sin(angle);
  timed("motion", () => scene.advance(start + (end - start) * (((picture + 20) * 0.37) % 1)));
  timed("sort", () => scene.depth.sort(scene.place, [c, 0, -s, 0, 0, 1, 0, 0, s, 0, c, 0, 0, 0, -2, 1], header.near,
    header.alpha_min));
}
console.log(JSON.stringify({ motion: cost.motion / count, sort: cost.sort / count }));
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/viewer.json"))
    parser.add_argument("--counts", type=int, nargs="+", default=[4_000, 20_000, 100_000])
    parser.add_argument("--no-drawing", action="store_true", help="only what the worker does")
    options = parser.parse_args()
    if chromium() is None and not options.no_drawing:
        raise SystemExit("no Chromium on this machine")
    rows = [
        measured(count, motion, not options.no_drawing)
        for count in options.counts
        for motion in ("controlled", "spacetime")
    ]
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.0f}",
        "picture": f"{WIDTH}×{HEIGHT}, ANGLE on SwiftShader, mean of {PICTURES}",
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def dense(count: int, motion: str) -> DynamicGaussians:
    """As many Gaussians as asked for on the same surface, each as small as that makes them."""
    if motion == "controlled":
        size = math.log(1.2 * math.sqrt(0.8 / count))  # the sausage has 0.8 square units of skin
        return replace(bending(count), log_scales=torch.full((count, 3), size))
    asset = spacetime_asset(count)
    return replace(asset, log_scales=asset.log_scales - math.log(0.05) + math.log(1.2 * math.sqrt(2.5 / count)))


def measured(count: int, motion: str, drawing: bool) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "viewer.html"
        size = write_page(dense(count, motion), path)
        row = {
            "motion": motion,
            "gaussians": size.gaussians,
            "page_bytes": size.page,
            "code_bytes": size.code,
            **(painted(path) if drawing else {}),
        }
        if shutil.which("node"):
            command = ["node", "-e", NODE, str(FOLDER / SCENE), str(path), "20"]
            found = subprocess.run(command, capture_output=True, check=True, text=True)
            row["worker_cpu_ms"] = {name: round(value, 1) for name, value in json.loads(found.stdout).items()}
    print(row, file=sys.stderr, flush=True)
    return row


def painted(path: Path) -> dict:
    """The whole cost of a picture at full sharpness."""
    with Browser(WIDTH + 250, HEIGHT + 120, patience=900) as browser:
        browser.open(path, "#time=1")
        browser.run("loom4d.ready.then(() => 1)")
        # a fixed canvas, so that the layout does not decide what is measured
        browser.run(f"(Object.assign(stage.style, {{width: '{WIDTH}px', height: '{HEIGHT}px'}}), 1)")
        for number in (1, 2):
            drawn(browser, number)
        before = cpu_seconds(browser.process.pid)
        walls = [drawn(browser, number) for number in range(3, 3 + PICTURES)]
        spent = cpu_seconds(browser.process.pid) - before
        assert browser.run("loom4d.viewer.worker !== null")
    return {"picture_cpu_ms": round(1000 * spent / PICTURES, 1), "picture_wall_ms_fastest": round(min(walls), 1)}


def drawn(browser: Browser, number: int) -> float:
    """Milliseconds until a picture stands; asked for again and again, as a loaded machine takes its time."""
    browser.run(DRAW.replace("NUMBER", str(number)))
    while (took := browser.run("window.took")) is None:
        time.sleep(0.2)
    return took


def cpu_seconds(root: int) -> float:
    """CPU time of a process and all that it started and that still run."""
    parent, spent = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            parent[int(entry.name)] = int(fields[1])
            spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def below(process: int) -> bool:
        while process in parent:
            if process == root:
                return True
            process = parent[process]
        return False

    return sum(seconds for process, seconds in spent.items() if below(process))


if __name__ == "__main__":
    main()

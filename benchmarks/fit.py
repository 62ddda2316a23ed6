"""Seconds and decibels of a fit on procedural objects whose pictures are exact at any view and time, as JSON.

Held-out views lie half way between the given ones, held-out times half way between the given frames, and `high` looks
from 30 degrees further up. CPU-seconds are process time and include the start on the visual hull.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from dataclasses import replace

import torch

from loom4d.cameras import Cameras, cells, orbit, turntable
from loom4d.gaussians.fit import PRESETS, fit, score
from loom4d.gaussians.motion import MOTIONS
from loom4d.grid import ImageGrid
from loom4d.runs import result_of
from loom4d.sources.procedural import describe, moving_object, procedural_grid, render


def truth(seed: int, cameras: Cameras, times: torch.Tensor, size: int) -> ImageGrid:
    """Exact pictures of the object of a seed; `times` run from 0 to 1 over its clip."""
    rgba = render(moving_object(seed, "valid"), cells(cameras), times.repeat(cameras.batch_shape[0]), size, size)
    return ImageGrid(rgba.unflatten(0, cameras.batch_shape), cameras, times)


def measure(seed: int, motion: str, options: argparse.Namespace) -> dict[str, float | int | str]:
    views, frames, size = options.views, options.frames, options.size
    grid = procedural_grid(seed, views, frames, size, split="valid")
    elevation = float(grid.cameras.elevations_deg()[0, 0])
    between = orbit((torch.arange(views) + 0.5) * 360 / views, elevation).reshape(views, 1)
    above = orbit(torch.arange(4) * 90.0 + 20, elevation + 30).reshape(4, 1)
    middles = (grid.times[1:] + grid.times[:-1]) / 2
    config = replace(PRESETS[options.preset](), motion=motion, preview_every=0)
    started, cpu_started = time.perf_counter(), time.process_time()
    asset = result_of(fit(grid, config))
    return {
        "object": describe(moving_object(seed, "valid")),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "given_psnr": score(asset, grid),
        "held_out_views_psnr": score(asset, truth(seed, between.expand(views, frames), grid.times, size)),
        "held_out_times_psnr": score(asset, truth(seed, turntable(views, frames - 1, elevation), middles, size)),
        "high_psnr": score(asset, truth(seed, above.expand(4, frames), grid.times, size)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="balanced")
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, default=list(MOTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 3, 7])
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report: dict[str, object] = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "commit": commit,
        "sizes": vars(options),
    }
    for motion in options.motions:
        rows = [measure(seed, motion, options) for seed in options.seeds]
        numbers = [name for name, value in rows[0].items() if not isinstance(value, str)]
        columns = {name: [float(row[name]) for row in rows] for name in numbers}
        medians = {name: statistics.median(values) for name, values in columns.items()}
        spread = {name: round(max(values) - min(values), 2) for name, values in columns.items()}
        report[motion] = {"objects": rows, "median": medians, "spread": spread}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

"""Seconds, peak memory and decibels of one fit to a large grid, as JSON: on a GPU, 21 views × 25 frames at 576².

The pictures are exact ones of a procedural object; held-out views lie half way between the given ones. 4DGaussians'
README gives 8 minutes for a D-NeRF scene on one GPU, which is context and no comparison: other scenes, other sizes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from dataclasses import replace

import torch

from loom4d.cameras import Cameras, cells, orbit, turntable
from loom4d.gaussians.fit import fit
from loom4d.gaussians.fit_config import PRESETS
from loom4d.gaussians.motion import MOTIONS
from loom4d.gaussians.rasterize import BACKENDS, default_backend
from loom4d.grid import ImageGrid
from loom4d.runs import peak_memory_gb, result_of
from loom4d.sources.procedural import describe, moving_object, render


def pictures(seed: int, cameras: Cameras, times: torch.Tensor, size: int) -> ImageGrid:
    """One view at a time, so that memory is that of the grid alone."""
    figure = moving_object(seed, "valid")
    rows = [
        render(figure, cells(cameras[view : view + 1]), times, size, size) for view in range(cameras.batch_shape[0])
    ]
    return ImageGrid(torch.stack(rows), cameras, times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=21)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--size", type=int, default=576)
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--motion", choices=MOTIONS, default="controlled")
    parser.add_argument("--backend", choices=BACKENDS, default=None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    times = torch.linspace(0, 1, options.frames)
    began = time.perf_counter()
    grid = pictures(options.seed, turntable(options.views, options.frames, 10.0), times, options.size)
    between = orbit((torch.arange(3) + 0.5) * 360 / options.views * (options.views // 3), 10.0)
    held_out = pictures(options.seed, between.reshape(3, 1).expand(3, options.frames), times, options.size)
    drawn, began = time.perf_counter() - began, time.perf_counter()
    config = replace(
        PRESETS["full"](),
        count=options.count,
        iterations=options.iterations,
        motion=options.motion,
        backend=options.backend,
        preview_every=0,
    )
    events: list = []
    result_of(fit(grid.to(options.device), config, held_out=held_out.to(options.device)), events.append)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    gpu = options.device == "cuda"
    report = {
        "machine": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "commit": commit,
        "sizes": vars(options),
        "backend": options.backend or default_backend(options.device),
        "object": describe(moving_object(options.seed, "valid")),
        "seconds_to_draw": round(drawn, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "iterations_done": events[-1].step,
        "peak_device_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if gpu else None,
        "peak_memory_gb": round(peak_memory_gb(), 2),
        **{name: value for name, value in events[-1].data.items() if name != "seconds"},
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

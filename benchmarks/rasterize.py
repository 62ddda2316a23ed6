"""Forward and backward time of the CPU rasteriser and its ratio to the plain-tensor path, as JSON.

Gaussians lie on a thick shell that fills most of the picture and shrink as their number grows, as in a fit. Every
figure includes covariances, projection, sorting, blending and the whole backward pass to all five fields. CPU-ms is
process time on one thread; wall is the best of the repetitions.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import time

import torch

from loom4d.cameras import orbit
from loom4d.gaussians.gaussians import Gaussians
from loom4d.gaussians.rasterize import RasterOptions, rasterize


def shell(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    radii = 0.4 + 0.05 * torch.rand(count, 1, generator=generator)
    scale = 0.45 * math.sqrt(4 / count)
    log_scales = math.log(scale) + 0.3 * torch.randn(count, 3, generator=generator)
    fields = [
        directions * radii,
        torch.randn(count, 4, generator=generator),
        log_scales,
        torch.rand(count, generator=generator) * 0.8 + 0.1,
        torch.randn(count, 1, 3, generator=generator),
    ]
    return [field.requires_grad_() for field in fields]


def measure(count: int, size: int, images: int, threads: int, backend: str, repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)
    leaves, cameras = shell(count), orbit(torch.arange(images) * (360.0 / images))
    options = RasterOptions(size, size, threads=threads)
    target = torch.rand(images, 4, size, size, generator=torch.Generator().manual_seed(1))
    cpu, wall = [], []
    for _ in range(repeats + 1):
        for leaf in leaves:
            leaf.grad = None
        started, cpu_started = time.perf_counter(), time.process_time()
        rendering = rasterize(Gaussians(*leaves), cameras, options, backend)
        ((rendering.premultiplied - target) ** 2).sum().backward()
        cpu.append((time.process_time() - cpu_started) * 1e3 / images)
        wall.append((time.perf_counter() - started) * 1e3 / images)
    cpu, wall = sorted(cpu[1:]), sorted(wall[1:])
    return {
        "cpu_ms_best": round(cpu[0], 2),
        "cpu_ms_median": round(statistics.median(cpu), 2),
        "cpu_ms_spread": round(cpu[-1] - cpu[0], 2),
        "wall_ms_best": round(wall[0], 2),
        "wall_ms_median": round(statistics.median(wall), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    one = measure(options.count, options.size, options.images, 1, "cpu", options.repeats)
    two = measure(options.count, options.size, options.images, 2, "cpu", options.repeats)
    twin = measure(options.count, options.size, 1, 1, "reference", 3)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "commit": commit,
        "sizes": vars(options),
        "per_image": {"cpu_1_thread": one, "cpu_2_threads": two, "reference_1_thread": twin},
        "times_faster_than_reference": round(twin["cpu_ms_median"] / one["cpu_ms_median"], 1),
        "two_thread_scaling": round(one["wall_ms_best"] / two["wall_ms_best"], 2),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

"""Forward and backward time of the CPU rasteriser and its ratio to the plain-tensor path, as JSON.

Gaussians lie on a thick shell that fills most of the picture and shrink as their number grows, as in a fit. Every
figure includes covariances, projection, sorting, blending and the whole backward pass from given gradients of the
pictures to all five fields. CPU-ms is process time on one thread; wall is the best of the repetitions.

Scaling to two threads is measured in pairs of runs, one thread and then two, of which the best counts: on a machine
that does other work all are too low. `scaling_bound` does not depend on that: it is what two cores can reach at most
(Amdahl), from the CPU time that is spent outside the threaded kernels. Where gsplat is installed, its projection and
its listing of tiles in plain tensors run beside; its blending has no path without a GPU, so its figure is too low.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import statistics
import subprocess
import time
import warnings
from typing import Any

import torch

from loom4d.cameras import orbit
from loom4d.gaussians.gaussians import Gaussians
from loom4d.gaussians.rasterize import RasterOptions, cpu, gsplat, rasterize


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
    upstream = torch.randn(images, 4, size, size, generator=torch.Generator().manual_seed(1))  # a loss is not measured
    spent, wall = [], []
    for _ in range(repeats + 1):
        for leaf in leaves:
            leaf.grad = None
        started, cpu_started = time.perf_counter(), time.process_time()
        rasterize(Gaussians(*leaves), cameras, options, backend).premultiplied.backward(upstream)
        spent.append((time.process_time() - cpu_started) * 1e3 / images)
        wall.append((time.perf_counter() - started) * 1e3 / images)
    spent, wall = sorted(spent[min(1, repeats) :]), sorted(wall[min(1, repeats) :])
    return {
        "cpu_ms_best": round(spent[0], 2),
        "cpu_ms_median": round(statistics.median(spent), 2),
        "cpu_ms_spread": round(spent[-1] - spent[0], 2),
        "wall_ms_best": round(wall[0], 2),
        "wall_ms_median": round(statistics.median(wall), 2),
    }


class Timed:
    """The kernels, adding up the seconds of the calling thread inside them."""

    def __init__(self, kernels: Any):
        self.kernels, self.seconds = kernels, 0.0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.kernels, name)

        def timed(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return call(*arguments)
            finally:
                self.seconds += time.thread_time() - started

        return call if name.endswith("free") else timed


def scaling_bound(count: int, size: int, images: int, repeats: int) -> dict[str, float]:
    """Share of an iteration's CPU time that is outside the kernels, and the speed-up that it leaves to two cores."""
    plain, timed = cpu.library, Timed(cpu.library())
    try:
        cpu.library = lambda: timed  # type: ignore[assignment]
        best = (math.inf, 0.0)
        for _ in range(repeats + 1):
            timed.seconds = 0.0
            spent = measure(count, size, images, 1, "cpu", 0)["cpu_ms_best"] * images / 1e3
            best = min(best, (spent, spent - timed.seconds))
    finally:
        cpu.library = plain
    share = best[1] / best[0]
    return {"share_outside_kernels": round(share, 3), "two_threads_at_most": round(2 / (1 + share), 2)}


def gsplat_parts(count: int, size: int, repeats: int) -> dict[str, float] | None:
    """CPU-ms of gsplat's plain-tensor projection, its backward pass and its tiles; None where it is not installed."""
    if importlib.util.find_spec("gsplat") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gsplat.cuda._torch_impl import _fully_fused_projection, _isect_tiles
    leaves, camera, options = shell(count), orbit(torch.zeros(1)), RasterOptions(size, size)
    tiles, spent = math.ceil(size / gsplat.TILE), []
    for _ in range(repeats + 1):
        started = time.process_time()
        scene = Gaussians(*leaves)
        radii, centres, depths, conics, _ = _fully_fused_projection(
            scene.means,
            scene.covariances,
            gsplat.pose_matrices(camera),
            gsplat.lens_matrices(camera, options),
            size,
            size,
        )
        _isect_tiles(centres.detach(), radii, depths.detach(), gsplat.TILE, tiles, tiles)
        (centres.sum() + depths.sum() + conics.sum()).backward()
        spent.append((time.process_time() - started) * 1e3)
    return {"cpu_ms_best": round(min(spent[1:]), 2), "cpu_ms_median": round(statistics.median(spent[1:]), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    runs = [
        [measure(options.count, options.size, options.images, threads, "cpu", options.repeats) for threads in (1, 2)]
        for _ in range(options.pairs)
    ]
    pairs = [one["wall_ms_best"] / two["wall_ms_best"] for one, two in runs]
    one, two = runs[pairs.index(max(pairs))]
    theirs = gsplat_parts(options.count, options.size, 3)
    twin = measure(options.count, options.size, 1, 1, "reference", 3)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    report = {
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "commit": commit,
        "sizes": vars(options),
        "per_image": {"cpu_1_thread": one, "cpu_2_threads": two, "reference_1_thread": twin},
        "times_faster_than_reference": round(twin["cpu_ms_median"] / one["cpu_ms_median"], 1),
        "two_thread_scaling": round(max(pairs), 2),
        "two_thread_scaling_of_all_pairs": [round(pair, 2) for pair in pairs],
        "scaling_bound": scaling_bound(options.count, options.size, options.images, options.repeats),
        "gsplat_in_plain_tensors_without_blending": theirs,
        "times_faster_than_that": theirs and round(theirs["cpu_ms_median"] / one["cpu_ms_median"], 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

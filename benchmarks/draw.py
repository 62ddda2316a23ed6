"""How fast training pictures are drawn: the native ray caster on one core, plain tensors on a device.

python benchmarks/draw.py --device cuda --resolution 128
"""

from __future__ import annotations

import time

import torch
import tyro

from loom4d.cameras import cells, turntable
from loom4d.sources.procedural import BACKENDS, moving_object, render


def main(device: str = "cpu", resolution: int = 64, objects: int = 3, views: int = 8, frames: int = 8) -> None:
    """Pictures a CPU-second of one core, or a second of the device; and how far the two are apart."""
    torch.set_num_threads(1)
    cameras = cells(turntable(views, frames, 10.0))
    times = torch.linspace(0, 1, frames).repeat(views)
    drawn = {}
    for backend, where in (("native", "cpu"), ("reference", "cpu"), ("reference", device)):
        if backend not in BACKENDS or (backend, where) in drawn:
            continue
        begun = time.process_time() if where == "cpu" else time.monotonic()
        pictures = [
            render(moving_object(seed, "test"), cameras.to(where), times.to(where), resolution, resolution, 4, backend)
            for seed in range(objects)
        ]
        drawn[backend, where] = torch.stack(pictures).cpu()
        spent = (time.process_time() if where == "cpu" else time.monotonic()) - begun
        print(f"{backend} on {where}: {objects * views * frames / spent:.0f} pictures of {resolution}² a second")
    first, *others = drawn.values()
    for other in others:
        apart = ((first - other).abs().amax(2) > 1e-3).float().mean().item()
        print(f"pixels that differ by more than 0.001: {apart:.1e}")


if __name__ == "__main__":
    tyro.cli(main)

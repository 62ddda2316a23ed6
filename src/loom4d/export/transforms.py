"""The image grid as pictures with `transforms.json`, which NeRF and Gaussian trainers read (D-NeRF's has the time)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch

from loom4d.cameras import FOV_DEG, RADIUS, Placement, turntable
from loom4d.export.ply import refuse_file, sample_times
from loom4d.gaussians.asset import render
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.grid import ImageGrid, png
from loom4d.options import Between
from loom4d.runs import write_atomically, write_json


@dataclass(frozen=True)
class TransformsOptions:
    """Which pictures to take of an asset."""

    views: Annotated[int, Between(1, 1000)] = 16
    frames: Annotated[int, Between(1, 1000)] = 16
    size: Annotated[int, Between(1, 4096)] = 512  # pixels, both ways
    elevation_deg: Annotated[float, Between(-90, 90)] = 0.0
    radius: Annotated[float, Between(0.01, 1000)] = RADIUS
    fov_deg: Annotated[float, Between(1, 170)] = FOV_DEG
    placement: Placement = field(default_factory=Placement)  # of the asset in the cameras' world


def write_asset_transforms(asset: DynamicGaussians, path: Path | str, options: TransformsOptions | None = None) -> None:
    """Draws a turntable of the moving asset and writes it with `write_transforms`."""
    options = options or TransformsOptions()
    refuse_file(Path(path))
    times = torch.tensor(sample_times(asset.time_range, 1.0, options.frames))
    cameras = turntable(
        options.views, len(times), options.elevation_deg, radius=options.radius, fov_deg=options.fov_deg
    )
    grid = render(asset, cameras, times, options.size, options.size)
    write_transforms(replace(grid, cameras=options.placement.cameras(cameras)), path)


def write_transforms(grid: ImageGrid, path: Path | str) -> None:
    """Writes `images/VV_FFF.png` (straight alpha) and `transforms.json` into the folder `path`.

    The matrices take a camera (x right, y up, looking down −z) to Blender's world, z up. `time` runs from 0 to 1 as
    D-NeRF wants it; `seconds` is the time itself.
    """
    path = Path(path)
    refuse_file(path)
    blender_from_ours = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    world_from_camera = blender_from_ours @ grid.cameras.world_from_camera.float().cpu()
    intrinsics = grid.cameras.intrinsics.cpu()
    height, width = grid.size
    start, end = float(grid.times[0]), float(grid.times[-1])
    frames = []
    for view in range(grid.views):
        for frame in range(grid.frames):
            name = f"images/{view:02}_{frame:03}.png"
            write_atomically(path / name, png(grid.rgba[view, frame].cpu()))
            lens = intrinsics[view, frame]
            seconds = float(grid.times[frame])
            frames.append(
                {
                    "file_path": f"./{name}",
                    "time": (seconds - start) / (end - start) if end > start else 0.0,
                    "seconds": seconds,
                    "fl_x": float(lens[0, 0]) * width,
                    "fl_y": float(lens[1, 1]) * height,
                    "cx": float(lens[0, 2]) * width,
                    "cy": float(lens[1, 2]) * height,
                    "transform_matrix": world_from_camera[view, frame].tolist(),
                }
            )
    angle = 2 * math.atan(0.5 / float(intrinsics[0, 0, 0, 0]))
    write_json(
        path / "transforms.json",
        {"camera_angle_x": angle, "camera_model": "OPENCV", "w": width, "h": height, "frames": frames},
    )

"""CPU-seconds and decibels of a fit, for every motion and preset, on moving objects whose pictures are known exactly at
any view and time: procedural ones, and clips of a skinned model where the file is there.

A fit is given a turntable of views at even instants. Held-out views lie half way between the given ones, held-out times
half way between the given instants; `unseen` cells are at both. CPU-seconds are process time of fit and start together.
Results are added to the file that is named, measurement by measurement, so that a long table can be made in parts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from loom4d.cameras import Cameras, cells, orbit
from loom4d.evaluation.scores import foreground_psnr
from loom4d.gaussians.asset import render as render_asset
from loom4d.gaussians.fit import fit
from loom4d.gaussians.fit_config import PRESETS, FitConfig
from loom4d.gaussians.losses import psnr
from loom4d.gaussians.motion import MOTIONS, DynamicGaussians
from loom4d.grid import ImageGrid, contact_sheet, straight
from loom4d.runs import result_of, write_json
from loom4d.sources import assets
from loom4d.sources.posing import pose
from loom4d.sources.procedural import describe, moving_object
from loom4d.sources.procedural import render as render_procedural
from loom4d.sources.render import render as render_mesh

ROBOT = Path(__file__).parent.parent.parent / "shared" / "data" / "real" / "robot.glb"
ELEVATION_DEG = 10.0
Truth = Callable[[Cameras, torch.Tensor, int], ImageGrid]  # (cameras (view, frame), seconds, size)


def procedural(seed: int) -> Truth:
    figure = moving_object(seed, "valid")

    def truth(cameras: Cameras, times: torch.Tensor, size: int) -> ImageGrid:
        rgba = render_procedural(figure, cells(cameras), times.repeat(cameras.batch_shape[0]), size, size)
        return ImageGrid(rgba.unflatten(0, cameras.batch_shape), cameras, times)

    return truth


def clip(path: Path, name: str) -> Truth:
    """A clip of a model, its seconds stretched to 0..1."""
    asset = assets.read_asset(path)
    scale, centre = assets.fit(asset, name)

    def truth(cameras: Cameras, times: torch.Tensor, size: int) -> ImageGrid:
        columns = []
        for frame, moment in enumerate(times.tolist()):
            mesh = pose(asset, name, moment * asset.seconds(name))
            mesh = replace(mesh, vertices=(mesh.vertices - centre) * scale)
            columns.append(render_mesh(mesh, cameras[:, frame], size, size)[0])
        return ImageGrid(torch.stack(columns, 1), cameras, times)

    return truth


def scenes() -> dict[str, Truth]:
    """Name to truth; the clips only where the model is there."""
    found = {describe(moving_object(seed, "valid")): procedural(seed) for seed in (0, 3, 8)}
    if ROBOT.exists():
        found |= {f"robot.glb {name}": clip(ROBOT, name) for name in ("Robot_Walking", "Robot_Wave")}
    return found


def ring(views: int, frames: int, between: bool) -> Cameras:
    azimuths = (torch.arange(views) + 0.5 * between) * 360 / views
    return orbit(azimuths, ELEVATION_DEG).reshape(views, 1).expand(views, frames)


def measure(truth: Truth, config: FitConfig, options: argparse.Namespace) -> tuple[dict[str, Any], DynamicGaussians]:
    views, frames, size = options.views, options.frames, options.size
    times = torch.linspace(0, 1, frames)
    middles = (times[1:] + times[:-1]) / 2
    given = truth(ring(views, frames, False), times, size)
    begun = time.process_time()
    asset = result_of(fit(given, config))
    row: dict[str, Any] = {"cpu_seconds": round(time.process_time() - begun, 1)}
    row["gaussians"] = len(asset.tensors()["means"])
    row |= scores("given", asset, given[::2, ::2])
    row |= scores("views", asset, truth(ring(views, frames, True)[::2, ::2], times[::2], size))
    row |= scores("times", asset, truth(ring(views, frames - 1, False)[::2, ::2], middles[::2], size))
    row |= scores("unseen", asset, truth(ring(views, frames - 1, True)[1::2, ::2], middles[::2], size))
    return row, asset


def scores(name: str, asset: DynamicGaussians, truth: ImageGrid) -> dict[str, float]:
    ours = render_asset(asset, truth.cameras, truth.times, *truth.size)
    whole = float(psnr(ours.premultiplied, truth.premultiplied).mean())
    return {
        f"{name}_db": round(whole, 2),
        f"{name}_foreground_db": round(float(foreground_psnr(ours, truth).nanmean()), 2),
    }


def sheet(truth: Truth, asset: DynamicGaussians, options: argparse.Namespace, path: Path) -> None:
    """Truth above fit, at views and times that the fit never saw."""
    times = torch.linspace(0, 1, options.frames)
    middles = ((times[1:] + times[:-1]) / 2)[:: max(1, options.frames // 5)]
    cameras = ring(options.views, len(middles), True)[1:6:4]
    exact = truth(cameras, middles, options.size)
    ours = render_asset(asset, cameras, middles, *exact.size)
    both = torch.stack([exact.premultiplied, ours.premultiplied.clamp(0, 1)], 1).flatten(0, 1)
    views = torch.tensor([0, 0, 1, 1])
    grid = ImageGrid(straight(both), cameras[views], middles)
    contact_sheet(grid, options.size).save(path)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, smallest and largest number over the scenes, of each motion and preset."""
    table: dict[str, Any] = {}
    for key in sorted({(str(row["preset"]), str(row["motion"])) for row in rows}):
        mine = [row for row in rows if (row["preset"], row["motion"]) == key]
        table[" ".join(key)] = {"scenes": len(mine)} | {
            name: spread([row[name] for row in mine]) for name, value in mine[0].items() if isinstance(value, float)
        }
    return table


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "least": min(values), "most": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["preview", "balanced"])
    parser.add_argument("--motions", nargs="+", choices=MOTIONS, default=list(MOTIONS))
    parser.add_argument("--scenes", nargs="+", type=int, help="indices; all by default")
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path, help="JSON file to which results are added")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    all_scenes = scenes()
    for index in options.scenes or range(len(all_scenes)):
        name, truth = list(all_scenes.items())[index]
        for preset in options.presets:
            for motion in options.motions:
                config = replace(PRESETS[preset](), motion=motion, preview_every=0)
                row, asset = measure(truth, config, options)
                row = {"scene": name, "preset": preset, "motion": motion, "commit": commit, **row}
                key = ("scene", "preset", "motion")
                rows = [old for old in rows if any(old[k] != row[k] for k in key)] + [row]
                print(json.dumps(row), flush=True)
                if options.sheets:
                    options.sheets.mkdir(parents=True, exist_ok=True)
                    sheet(truth, asset, options, options.sheets / f"{preset}_{motion}_{index}.png")
                if options.out:
                    write_json(options.out, report(rows, options))


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "sizes": {"views": options.views, "frames": options.frames, "size": options.size},
        "summary": summary(rows),
        "rows": rows,
    }


if __name__ == "__main__":
    main()

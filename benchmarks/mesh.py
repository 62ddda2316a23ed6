"""How well the mesh of an asset follows the object, where the object is known exactly.

    python benchmarks/mesh.py --out benchmarks/results/mesh.json

Procedural objects are drawn as exact grids, fitted as the program fits (8 views, 8 frames, 64² pixels, `balanced`),
meshed, and compared with the object itself: Chamfer distance to points all over its visible surface, and silhouettes
from cameras that the fit never had, at the grid's instants and between them. The silhouettes of the Gaussians
themselves say how much of the error the fit has made already. CPU-seconds are the process's.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from PIL import Image
from torch import Tensor

from loom4d.cameras import Cameras, orbit
from loom4d.export.mesh import MeshOptions, canonical_mesh, moving_mesh
from loom4d.export.skin import skinned_mesh
from loom4d.export.surface import Mesh, normals
from loom4d.gaussians.asset import load_asset, save_asset
from loom4d.gaussians.fit import fit
from loom4d.gaussians.fit_config import balanced
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.runs import result_of
from loom4d.sources.posing import Mesh as Drawable
from loom4d.sources.posing import Surface
from loom4d.sources.procedural import CLIP_SECONDS, moving_object, procedural_grid
from loom4d.sources.procedural import render as raycast
from loom4d.sources.procedural.scene import MovingObject, Shape, extents, pose
from loom4d.sources.render import render as draw

SEEDS = (3, 7, 12, 18)  # of the test split: what the priors never saw
VIEWS, FRAMES, RESOLUTION = 8, 8, 64
INSTANTS = 7  # compared, first to last: every second one lies between the grid's
POINTS, SIZE = 12_000, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mesh.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--assets", type=Path, help="folder where fitted assets are kept and looked for")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of meshes beside their objects")
    options = parser.parse_args()
    objects = [measured(seed, options.assets, options.pictures) for seed in options.seeds]
    names = objects[0]["scores"]
    mean = {
        name: {score: round(float(np.mean([one["scores"][name][score] for one in objects])), 4) for score in scores}
        for name, scores in names.items()
    }
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "sizes": f"{VIEWS} views, {FRAMES} frames, {RESOLUTION}² pixels; silhouettes at {SIZE}², {POINTS} points",
        "mean": mean,
        "objects": objects,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(mean, indent=1))


def measured(seed: int, assets: Path | None, pictures: Path | None) -> dict:
    """All scores of one object: shares of its longest side for distances, 0..1 for silhouettes."""
    figure = moving_object(seed, "test")
    asset = fitted(seed, assets)
    times = torch.linspace(0, 1, INSTANTS)
    options = MeshOptions(frames=INSTANTS)
    begun = time.process_time()
    one = canonical_mesh(asset, options)
    surface_seconds = time.process_time() - begun
    seconds, meshes = {}, {}
    begun = time.process_time()
    moving = moving_mesh(asset, options, one)
    meshes["morph targets"] = [moving.at(frame) for frame in range(INSTANTS)]
    seconds["morph targets"] = round(time.process_time() - begun, 1)
    begun = time.process_time()
    skinned = skinned_mesh(asset, options, 4, one)
    meshes["skeleton"] = [skinned.at(frame) for frame in range(INSTANTS)]
    seconds["skeleton"] = round(time.process_time() - begun, 1)
    cameras = orbit(torch.tensor([20.0, 95.0, 170.0, 245.0, 320.0]), 22.0)
    truth = torch.stack(
        [raycast(figure, cameras, moment.expand(5), SIZE, SIZE, 16)[:, 3] > 0.5 for moment in times]
    )  # (instant, view, y, x)
    surfaces = [surface_points(figure, float(moment), POINTS) for moment in times]
    low, high = extents(figure, pose(figure, times.double().numpy()))
    box = float((high.max((0, 1)) - low.min((0, 1))).max())
    shown = [
        rasterize(asset.at(float(moment) * CLIP_SECONDS), cameras, RasterOptions(SIZE, SIZE)).alpha[:, 0] > 0.5
        for moment in times
    ]
    scores = {"gaussians": {"silhouette_iou": round(overlap(torch.stack(shown), truth), 4)}}
    for name, path in meshes.items():
        away = [chamfer(sampled(mesh, POINTS), surface) / box for mesh, surface in zip(path, surfaces, strict=True)]
        outline = torch.stack([silhouettes(mesh, cameras) for mesh in path])
        scores[name] = {
            "chamfer_share": round(float(np.mean(away)), 4),
            "chamfer_share_canonical": round(away[one.start], 4),
            "chamfer_share_worst": round(max(away), 4),
            "silhouette_iou": round(overlap(outline, truth), 4),
        }
    if pictures:
        photographed(pictures / f"{seed}.png", figure, meshes, shown, cameras)
    print(seed, figure.caption, scores, flush=True)
    return {
        "seed": seed,
        "object": figure.caption,
        "triangles": len(one.mesh.faces),
        "skinning_cut_share": round(skinned.cut_error / box, 4),
        "cpu_seconds": {"surface": round(surface_seconds, 1), **seconds},
        "scores": scores,
    }


def fitted(seed: int, folder: Path | None) -> DynamicGaussians:
    path = folder / f"{seed}.safetensors" if folder else None
    if path and path.exists():
        return load_asset(path)
    asset = result_of(fit(procedural_grid(seed, VIEWS, FRAMES, RESOLUTION, "test", 16), balanced()))
    if path:
        save_asset(asset, path)
    return asset


def surface_points(figure: MovingObject, moment: float, count: int) -> Float[Tensor, "point 3"]:
    """Points spread evenly over the surface of the union of an object's parts at a time in 0..1."""
    rng = np.random.default_rng(0)
    matrices = pose(figure, np.array([moment]))[0]
    triangles, owner = [], []
    for part, matrix in enumerate(matrices):
        corners = unit_solid(Shape(int(figure.shapes[part])), float(figure.tapers[part]))
        triangles.append(corners @ matrix[:3, :3].T + matrix[:3, 3])
        owner += [part] * len(corners)
    corners, parts = np.concatenate(triangles), np.array(owner)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen = rng.choice(len(corners), 6 * count, p=area / area.sum())
    weights = rng.dirichlet(np.ones(3), len(chosen))
    points, of = (weights[..., None] * corners[chosen]).sum(1), parts[chosen]
    hidden = np.zeros(len(points), bool)
    for part, matrix in enumerate(matrices):
        local = (points - matrix[:3, 3]) @ np.linalg.inv(matrix[:3, :3]).T
        hidden |= (of != part) & inside(Shape(int(figure.shapes[part])), float(figure.tapers[part]), local)
    return torch.from_numpy(points[~hidden][:count]).float()


def inside(shape: Shape, taper: float, points: Float[ndarray, "point 3"]) -> ndarray:
    if shape == Shape.ELLIPSOID:
        return (points**2).sum(1) < 1
    if shape == Shape.BOX:
        return np.abs(points).max(1) < 1
    radius = (1 + taper) / 2 + (taper - 1) / 2 * points[:, 1]
    return (np.abs(points[:, 1]) < 1) & (np.hypot(points[:, 0], points[:, 2]) < radius)


def unit_solid(shape: Shape, taper: float, steps: int = 24) -> Float[ndarray, "triangle 3 3"]:
    """Triangles on a unit solid: a lattice of (u, v) in 0..1 bent around it."""
    u, v = np.meshgrid(np.linspace(0, 1, 2 * steps + 1), np.linspace(0, 1, steps + 1), indexing="ij")
    if shape == Shape.BOX:
        side = np.stack([2 * u - 1, 2 * v - 1, np.ones_like(u)], -1)
        sheets = [sign * np.roll(side, turn, -1) for turn in range(3) for sign in (1, -1)]
    elif shape == Shape.ELLIPSOID:
        around, height = 2 * np.pi * u, np.cos(np.pi * v)
        ring = np.sqrt(1 - height**2)
        sheets = [np.stack([ring * np.sin(around), height, ring * np.cos(around)], -1)]
    else:
        around = 2 * np.pi * u
        wall, disc = 1 + (taper - 1) * v, np.stack([np.sin(around), 0 * around, np.cos(around)], -1)
        up = np.array([0.0, 1.0, 0.0])
        sheets = [disc * wall[..., None] + up * (2 * v - 1)[..., None]]
        sheets += [disc * (v * taper)[..., None] + up, disc * v[..., None] - up]
    found = []
    for sheet in sheets:
        a, b, c, d = (sheet[i : i - 1 or None, j : j - 1 or None] for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))
        found += [np.stack(three, -2).reshape(-1, 3, 3) for three in ((a, b, c), (a, c, d))]
    return np.concatenate(found)


def sampled(mesh: Mesh, count: int) -> Float[Tensor, "point 3"]:
    """Points spread evenly over a mesh."""
    corners = mesh.vertices[mesh.faces].double().numpy()
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    rng = np.random.default_rng(1)
    chosen = rng.choice(len(corners), count, p=area / area.sum())
    return torch.from_numpy((rng.dirichlet(np.ones(3), count)[..., None] * corners[chosen]).sum(1)).float()


def chamfer(one: Float[Tensor, "point 3"], other: Float[Tensor, "point 3"]) -> float:
    """Mean of the mean distances to the nearest point of the other set, both ways."""
    there = torch.cat([torch.cdist(part, other).amin(1) for part in one.split(1000)])
    back = torch.cat([torch.cdist(part, one).amin(1) for part in other.split(1000)])
    return float(there.mean() + back.mean()) / 2


def silhouettes(mesh: Mesh, cameras: Cameras) -> Tensor:
    return draw(drawable(mesh), cameras, SIZE, SIZE, 2)[0][:, 3] > 0.5


def drawable(mesh: Mesh) -> Drawable:
    """A grey mesh for the renderer of 3D models."""
    count = len(mesh.vertices)
    flat = torch.zeros(len(mesh.faces), dtype=torch.long)
    white, uv = torch.ones(count, 4), torch.zeros(count, 2)
    return Drawable(mesh.vertices.float(), normals(mesh), white, uv, mesh.faces, flat, (Surface(),))


def overlap(one: Tensor, other: Tensor) -> float:
    """Mean over pictures of the intersection over the union of two masks."""
    both, either = (one & other).sum((-1, -2)), (one | other).sum((-1, -2))
    return float((both / either.clamp_min(1)).mean())


def photographed(
    path: Path, figure: MovingObject, meshes: dict[str, list[Mesh]], shown: list[Tensor], cameras: Cameras
) -> None:
    """Rows: the object, the Gaussians' outlines, each mesh. Columns: three instants from two sides."""
    times = torch.linspace(0, 1, INSTANTS)
    picked = [(frame, view) for frame in (0, INSTANTS // 2, INSTANTS - 1) for view in (0, 2)]
    on_white = lambda rgba: rgba[:3] * rgba[3:] + 1 - rgba[3:]  # noqa: E731
    truth = [on_white(raycast(figure, cameras[v : v + 1], times[f : f + 1], 256, 256, 16)[0]) for f, v in picked]
    pictures = [torch.cat(truth, -1)]
    outlines = [shown[f][v].float().expand(3, -1, -1)[None] for f, v in picked]
    pictures.append(torch.cat([1 - torch.nn.functional.interpolate(one, (256, 256))[0] for one in outlines], -1))
    for path_ in meshes.values():
        drawn = [draw(drawable(path_[f]), cameras[v : v + 1], 256, 256, 2)[0][0] for f, v in picked]
        pictures.append(torch.cat([on_white(one) for one in drawn], -1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = torch.cat(pictures, 1).clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(sheet).save(path)


if __name__ == "__main__":
    main()

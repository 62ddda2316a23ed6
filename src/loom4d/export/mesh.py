"""A moving asset as one mesh of fixed topology whose vertices move: what engines, Blender and film tools take.

The mesh is taken from one instant and carried through time. Two motions are known of a Gaussian: where it goes, and
how it turns. Gaussians that live through the whole clip carry the vertices near them like bones; space-time Gaussians
live briefly, so vertices flow along the velocities around them. Both drift a little, so at each instant the vertices
are drawn back to that instant's own surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.export.decimate import decimated
from loom4d.export.ply import sample_times
from loom4d.export.surface import (
    Distance,
    Mesh,
    SurfaceOptions,
    Views,
    around,
    colours,
    grown,
    look_around,
    outline_offset,
    signed_distance,
    smoothed,
    surface_nets,
    without_crumbs,
)
from loom4d.gaussians.gaussians import Gaussians, rotations
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.motion.spacetime import Spacetime
from loom4d.options import Between
from loom4d.runs import InputError

NEAREST = 8  # Gaussians that carry a vertex


@dataclass(frozen=True)
class MeshOptions:
    frames: Annotated[int, Between(1, 500)] = 24  # instants; engines dislike more than 100 morph targets
    most_faces: Annotated[int, Between(4, 1_000_000)] = 20_000  # more where fewer would fold it
    canonical: float | None = None  # seconds of the instant that the mesh is taken from; None tries a few
    drawn_to_surface: bool = True  # correct the drift at each instant; off keeps the motion as it is
    surface: SurfaceOptions = field(default_factory=SurfaceOptions)


@dataclass(frozen=True)
class MovingMesh:
    """Fixed triangles, counter-clockwise from outside, over moving vertices."""

    times: Float[Tensor, " frame"]  # seconds
    vertices: Float[Tensor, "frame vertex 3"]
    faces: Int[Tensor, "face 3"]
    colours: Float[Tensor, "vertex 3"]  # 0..1, as displayed (sRGB)

    def at(self, frame: int) -> Mesh:
        return Mesh(self.vertices[frame], self.faces)


@dataclass(frozen=True)
class Canonical:
    """The mesh as it is taken from one instant, before it moves."""

    mesh: Mesh
    views: Views  # of that instant
    times: list[float]  # seconds of all instants
    start: int  # which of them the mesh is taken from
    offset: float  # world units by which the surface was grown to the outlines


def moving_mesh(
    asset: DynamicGaussians, options: MeshOptions | None = None, taken: Canonical | None = None
) -> MovingMesh:
    """The asset's surface at one instant, moved to all others. `taken` is that of the same options, if it is there."""
    options = options or MeshOptions()
    with torch.no_grad():
        one = taken or canonical_mesh(asset, options)
        times, start, mesh = one.times, one.start, one.mesh
        path: list[Tensor] = [mesh.vertices] * len(times)
        for order in (range(start + 1, len(times)), range(start - 1, -1, -1)):
            before = start
            for frame in order:
                path[frame] = _carried(asset, mesh, path, (times[before], times[frame], times[start]), before)
                if options.drawn_to_surface:
                    path[frame] = _drawn(path[frame], mesh, asset.at(times[frame]), one.offset, options.surface)
                before = frame
        return MovingMesh(torch.tensor(times), torch.stack(path), mesh.faces, colours(mesh, one.views))


def canonical_mesh(asset: DynamicGaussians, options: MeshOptions) -> Canonical:
    """The asset's surface at one instant: fused depths, cleaned and decimated."""
    times = sample_times(asset.time_range, 1.0, options.frames)
    start = _canonical(asset, times, options)
    with torch.no_grad():
        gaussians = asset.at(times[start])
        views = look_around(gaussians, options.surface)
        distance = signed_distance(gaussians, views, options.surface)
        offset = outline_offset(distance, views)
        mesh = smoothed(without_crumbs(surface_nets(grown(distance, offset))))
        return Canonical(decimated(mesh, options.most_faces), views, times, start, offset)


def _canonical(asset: DynamicGaussians, times: list[float], options: MeshOptions) -> int:
    """The instant asked for, or of five the one where the object spreads widest, as limbs are apart there."""
    if options.canonical is not None:
        return min(range(len(times)), key=lambda frame: abs(times[frame] - (options.canonical or 0.0)))
    spread = {}
    for frame in sorted({round(part * (len(times) - 1) / 4) for part in range(5)}):
        gaussians = asset.at(times[frame])
        weight = gaussians.opacities[:, None] / gaussians.opacities.sum().clamp_min(1e-9)
        centre = (weight * gaussians.means).sum(0)
        spread[frame] = float((weight * (gaussians.means - centre) ** 2).sum())
    return max(spread, key=lambda frame: spread[frame])


def _carried(
    asset: DynamicGaussians, mesh: Mesh, path: list[Tensor], times: tuple[float, float, float], before: int
) -> Tensor:
    """Vertices at `times[1]`, from those at `times[0]` or from the canonical ones at `times[2]`."""
    if isinstance(asset, Spacetime):
        return flowed(asset, path[before], times[0], times[1])
    return carried(mesh.vertices, asset.at(times[2]), asset.at(times[1]))


def carried(vertices: Float[Tensor, "vertex 3"], before: Gaussians, after: Gaussians) -> Float[Tensor, "vertex 3"]:
    """Each vertex moved and turned as the Gaussians around it were, nearer ones counting more."""
    index, weight = neighbours(vertices, before)
    turn = rotations(after.quaternions) @ rotations(before.quaternions).mT  # (N, 3, 3)
    offset = vertices[:, None] - before.means[index]  # (V, k, 3)
    moved = after.means[index] + einsum(turn[index], offset, "v k i j, v k j -> v k i")
    return einsum(weight, moved, "v k, v k i -> v i")


def flowed(
    asset: Spacetime, vertices: Float[Tensor, "vertex 3"], start: float, end: float
) -> Float[Tensor, "vertex 3"]:
    """Each vertex taken along by the velocities of the Gaussians that are there.

    Midpoint rule, in steps of at most half the time that a Gaussian is there, after which others have taken over.
    """
    velocities = asset.velocities().detach()
    duration = float(asset.covariances()[:, 3, 3].detach().sqrt().median()) * asset.unit
    steps = min(64, max(2, math.ceil(abs(end - start) / (0.5 * duration))))
    step = (end - start) / steps
    for number in range(steps):
        time = start + number * step
        half = vertices + 0.5 * step * _velocity(asset, velocities, vertices, time)
        vertices = vertices + step * _velocity(asset, velocities, half, time + 0.5 * step)
    return vertices


def _velocity(asset: Spacetime, velocities: Tensor, points: Tensor, time: float) -> Tensor:
    """What a rigid body has at each point that moves and turns as the Gaussians around the point do."""
    gaussians = asset.at(time)
    there = gaussians.opacities > 0.02
    seen = gaussians.select(there)
    index, weight = neighbours(points, seen, 2 * NEAREST)
    place, velocity = seen.means[index], velocities[there][index]  # (V, k, 3)
    centre, mean = (einsum(weight, values, "v k, v k i -> v i") for values in (place, velocity))
    arm = place - centre[:, None]
    moment = einsum(weight, torch.linalg.cross(arm, velocity - mean[:, None], dim=-1), "v k, v k i -> v i")
    spread = einsum(weight, arm, arm, "v k, v k i, v k j -> v i j")
    size = spread.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    inertia = (1 + 1e-3) * size * torch.eye(3) - spread
    turning = torch.linalg.solve(inertia + 1e-12 * torch.eye(3), moment[..., None])[..., 0]
    return mean + torch.linalg.cross(turning, points - centre, dim=-1)


def neighbours(
    points: Float[Tensor, "vertex 3"], gaussians: Gaussians, most: int = NEAREST
) -> tuple[Int[Tensor, "vertex k"], Float[Tensor, "vertex k"]]:
    """The nearest Gaussians of each point, and weights that sum to 1: opacity, falling off with distance."""
    count = min(most, len(gaussians.means))
    if not count:
        raise InputError("nothing of this asset can be seen at some instant, so no mesh can follow it")
    rows = 2**22 // len(gaussians.means) + 1  # points at a time, so that memory stays small
    found = [torch.cdist(part, gaussians.means).topk(count, largest=False) for part in points.split(rows)]
    distance, index = (torch.cat(parts) for parts in zip(*found, strict=True))
    reach = distance[:, -1:].clamp_min(1e-6)
    weight = gaussians.opacities[index].clamp_min(1e-3) * torch.exp(-2 * (distance / reach) ** 2)
    return index, weight / weight.sum(1, keepdim=True)


def _drawn(vertices: Tensor, mesh: Mesh, gaussians: Gaussians, offset: float, options: SurfaceOptions) -> Tensor:
    """Vertices moved to this instant's surface by a smooth field, so that neighbours stay neighbours."""
    coarse = SurfaceOptions(
        resolution=max(24, options.resolution // 2),
        views=max(12, options.views // 2),
        picture=max(64, options.picture // 2),
    )
    distance = grown(signed_distance(gaussians, look_around(gaussians, coarse), coarse), offset)
    for _ in range(4):
        vertices = vertices - _smooth(_towards(distance, vertices), mesh.faces)
    return vertices


def _towards(distance: Distance, vertices: Tensor) -> Tensor:
    return distance.gradients(vertices) * distance.at(vertices)[:, None] * distance.truncation * 0.8


def _smooth(values: Tensor, faces: Tensor) -> Tensor:
    for _ in range(6):
        values = 0.5 * values + 0.5 * around(values, faces)
    return values

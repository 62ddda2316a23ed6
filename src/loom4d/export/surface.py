"""The surface of one instant: median depths from all around, fused into a signed distance, meshed by surface nets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loom4d.cameras import Cameras, look_at, pinhole
from loom4d.export.coverage import outlines
from loom4d.gaussians.gaussians import Gaussians
from loom4d.gaussians.rasterize import RasterOptions, Rendering, rasterize
from loom4d.options import Between
from loom4d.runs import InputError

FOV_DEG = 30.0
SOLID = 0.5  # alpha from which a pixel counts as the object's
OUTSIDE = 1.0


@dataclass(frozen=True)
class SurfaceOptions:
    resolution: Annotated[int, Between(4, 256)] = 88  # cells along the longest side of the object
    views: Annotated[int, Between(2, 200)] = 40
    picture: Annotated[int, Between(8, 1024)] = 224  # pixels, of each view
    truncation: Annotated[float, Between(1, 20)] = 5.0  # cells: how far from the surface distances are kept


@dataclass(frozen=True)
class Mesh:
    """Triangles, counter-clockwise seen from outside."""

    vertices: Float[Tensor, "vertex 3"]
    faces: Int[Tensor, "face 3"]


@dataclass(frozen=True)
class Views:
    """One instant as seen from all around."""

    cameras: Cameras
    rendering: Rendering


@dataclass(frozen=True)
class Distance:
    """Signed distance on a lattice, in units of the truncation and cut at ±1: positive outside."""

    values: Float[Tensor, "x y z"]
    low: Float[Tensor, 3]  # world position of values[0, 0, 0]
    cell: float  # world units between neighbours
    truncation: float  # world units that a value of 1 stands for

    def at(self, points: Float[Tensor, "point 3"]) -> Float[Tensor, " point"]:
        """Interpolated between the lattice points; beyond the lattice as at its border."""
        size = torch.tensor(self.values.shape, dtype=torch.float32) - 1
        where = (points - self.low) / self.cell / size * 2 - 1
        volume = self.values[None, None]
        sampled = torch.nn.functional.grid_sample(
            volume, where.flip(-1)[None, None, None], align_corners=True, padding_mode="border"
        )
        return sampled.reshape(-1)

    def gradients(self, points: Float[Tensor, "point 3"]) -> Float[Tensor, "point 3"]:
        """Unit directions out of the object, or zeros far from its surface."""
        step = 0.75 * self.cell
        offsets = step * torch.eye(3)
        slope = torch.stack([self.at(points + offset) - self.at(points - offset) for offset in offsets], -1)
        return torch.nn.functional.normalize(slope, dim=-1, eps=1e-6)


def look_around(gaussians: Gaussians, options: SurfaceOptions) -> Views:
    """Views on a sphere around the object, evenly spread, each holding all of it."""
    low, high = bounds(gaussians)
    centre, radius = (low + high) / 2, float((high - low).norm()) / 2
    index = torch.arange(options.views) + 0.5
    height = 1 - 2 * index / options.views  # equal areas: a Fibonacci lattice on the sphere
    angle = index * math.pi * (1 + 5**0.5)
    ring = (1 - height**2).sqrt()
    direction = torch.stack([ring * angle.sin(), height, ring * angle.cos()], -1)
    distance = 1.05 * radius / math.sin(math.radians(FOV_DEG) / 2)
    pose = look_at(centre + distance * direction, centre.expand(options.views, 3))
    cameras = Cameras(pose, pinhole(FOV_DEG).expand(options.views, 3, 3))
    with torch.no_grad():
        return Views(cameras, rasterize(gaussians, cameras, RasterOptions(options.picture, options.picture)))


def bounds(gaussians: Gaussians) -> tuple[Float[Tensor, 3], Float[Tensor, 3]]:
    """A box around what can be seen, without the outermost few of a thousand, which are stray."""
    seen = gaussians.select(gaussians.opacities > 0.1)
    if not len(seen.means):
        raise InputError("nothing of this asset can be seen at the chosen instant: choose another one")
    means = seen.means.detach()[:: max(1, len(seen.means) // 1_000_000)]
    margin = 2 * seen.log_scales.detach().exp().amax(-1).median()
    return torch.quantile(means, 0.003, dim=0) - margin, torch.quantile(means, 0.997, dim=0) + margin


def signed_distance(gaussians: Gaussians, views: Views, options: SurfaceOptions) -> Distance:
    """The mean over the views of the distance to their surface along the ray, as far as each can see.

    A pixel without object says that its whole ray is outside; what no view reaches is inside.
    """
    low, high = bounds(gaussians)
    cell = float((high - low).max()) / options.resolution
    low = low - (options.truncation + 1) * cell
    shape = [int(side) + 1 for side in ((high - low) / cell + options.truncation + 1).ceil()]
    axes = [torch.arange(side) * cell + start for side, start in zip(shape, low.tolist(), strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    truncation = options.truncation * cell
    total, weight = torch.zeros(len(points)), torch.zeros(len(points))
    size = options.picture
    for view in range(options.views):
        image, depth = views.cameras[view].project(points)
        column, row = (image * size).long().clamp(0, size - 1).unbind(-1)
        pixel = row * size + column
        median = views.rendering.median_depth[view, 0].reshape(-1)[pixel]
        solid = (views.rendering.alpha[view, 0].reshape(-1)[pixel] >= SOLID) & (median > 0)
        distance = torch.where(solid, (median - depth) / truncation, torch.ones_like(depth)).clamp_max(1)
        reached = distance > -1
        total += distance * reached
        weight += reached
    values = torch.where(weight > 0, total / weight.clamp_min(1), -torch.ones_like(total)).reshape(shape)
    for axis in range(3):  # closed at the border
        values.index_fill_(axis, torch.tensor([0, shape[axis] - 1]), OUTSIDE)
    return Distance(values, low, cell, truncation)


def outline_offset(distance: Distance, views: Views) -> float:
    """How far outside the zero distance, in world units, the solid's outlines agree best with the pictures.

    A depth is where a Gaussian's centre lies, but one sees it further out, by about its standard deviation; and what
    is thinner than a cell would have holes.
    """
    chosen = list(range(0, len(views.rendering.alpha), max(1, len(views.rendering.alpha) // 8)))
    cameras, solid = views.cameras[chosen], views.rendering.alpha[chosen, 0] >= SOLID

    def agreement(level: float) -> float:
        mesh = surface_nets(grown(distance, level * distance.truncation))
        mask = outlines(mesh.vertices, mesh.faces, cameras, solid.shape[-1])
        return float(((mask & solid).sum((1, 2)) / (mask | solid).sum((1, 2)).clamp_min(1)).mean())

    levels = {level: agreement(level) for level in (0.0, 0.2, 0.4, 0.6, 0.8)}
    best = max(levels, key=lambda level: levels[level])
    levels |= {level: agreement(level) for level in (best - 0.1, best + 0.1) if 0 < level < 0.9}
    return max(levels, key=lambda level: levels[level]) * distance.truncation


def grown(distance: Distance, offset: float) -> Distance:
    """The distance to the surface `offset` world units further out."""
    return replace(distance, values=(distance.values - offset / distance.truncation).clamp(-1, 1))


def surface_nets(distance: Distance) -> Mesh:
    """One vertex in every cell that the surface crosses, one quad around every lattice edge that it cuts.

    A vertex is the mean of the points where the cell's edges are cut (naive surface nets, Gibson 1998).
    """
    values = distance.values
    inside = values < 0
    shape = torch.tensor(values.shape) - 1
    corners = list(product((0, 1), repeat=3))
    part = lambda field, corner: field[tuple(slice(c, c + n) for c, n in zip(corner, shape.tolist(), strict=True))]  # noqa: E731
    count = sum(part(inside, corner).int() for corner in corners)
    cells = ((count > 0) & (count < 8)).nonzero()  # (n, 3)
    total, cuts = torch.zeros(len(cells), 3), torch.zeros(len(cells), 1)
    edges = [(one, other) for one, other in product(corners, corners) if one < other and _differing(one, other) == 1]
    for one, other in edges:
        first, second = torch.tensor(one), torch.tensor(other)
        a, b = values[tuple((cells + first).T)], values[tuple((cells + second).T)]
        cut = (a < 0) != (b < 0)
        where = torch.where(cut, a / torch.where(cut, a - b, torch.ones_like(a)), torch.zeros_like(a))
        total += (first + where[:, None] * (second - first)) * cut[:, None]
        cuts += cut[:, None]
    vertices = distance.low + distance.cell * (cells + total / cuts.clamp_min(1))
    number = torch.full(shape.tolist(), -1)
    number[tuple(cells.T)] = torch.arange(len(cells))
    quads = []
    for axis in range(3):
        along = torch.eye(3, dtype=torch.long)[axis]
        u, v = (torch.eye(3, dtype=torch.long)[(axis + turn) % 3] for turn in (1, 2))
        first, second = (inside.narrow(axis, start, values.shape[axis] - 1) for start in (0, 1))
        crossed = (first != second).nonzero()
        around = torch.stack([number[tuple((crossed - away).T)] for away in (u + v, v, 0 * along, u)], 1)  # (n, 4)
        outward = inside[tuple(crossed.T)]  # the surface looks along the edge
        # lattice points on the border are outside, so every edge that is cut has four cells around it
        quads.append(torch.where(outward[:, None], around, around.flip(1)))
    return Mesh(vertices, _triangles(vertices, torch.cat(quads)))


def _differing(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def _triangles(vertices: Float[Tensor, "vertex 3"], quads: Int[Tensor, "quad 4"]) -> Int[Tensor, "face 3"]:
    """Two triangles a quad, cut along its shorter diagonal."""
    a, b, c, d = quads.unbind(1)
    straight = (vertices[a] - vertices[c]).norm(dim=-1) <= (vertices[b] - vertices[d]).norm(dim=-1)
    first = torch.where(straight[:, None], torch.stack([a, b, c], 1), torch.stack([a, b, d], 1))
    second = torch.where(straight[:, None], torch.stack([a, c, d], 1), torch.stack([b, c, d], 1))
    return torch.cat([first, second])


def compacted(vertices: Float[Tensor, "vertex 3"], faces: Int[Tensor, "face 3"]) -> Mesh:
    """Without the vertices that no face uses."""
    used, index = faces.unique(return_inverse=True)
    return Mesh(vertices[used], index.reshape(-1, 3))


def without_crumbs(mesh: Mesh, least: float = 0.03) -> Mesh:
    """Only the connected parts with at least this share of the largest part's faces."""
    label = torch.arange(len(mesh.vertices))
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    while True:  # every vertex takes the least label around it, then that label's own label
        lowest = label.scatter_reduce(0, edges[:, 0], label[edges[:, 1]], "amin")
        lowest = lowest[lowest]
        if torch.equal(lowest, label):
            break
        label = lowest
    of_face = label[mesh.faces[:, 0]]
    sizes = torch.bincount(of_face, minlength=len(label))
    return compacted(mesh.vertices, mesh.faces[sizes[of_face] >= least * sizes.max()])


def smoothed(mesh: Mesh, rounds: int = 4) -> Mesh:
    """Without the lattice's steps: alternately a little in and out, which keeps the volume (Taubin 1995)."""
    vertices = mesh.vertices
    for _ in range(rounds):
        for pull in (0.5, -0.53):
            vertices = vertices + pull * (around(vertices, mesh.faces) - vertices)
    return Mesh(vertices, mesh.faces)


def around(values: Float[Tensor, "vertex c"], faces: Int[Tensor, "face 3"]) -> Float[Tensor, "vertex c"]:
    """The mean of each vertex's neighbours."""
    total, count = torch.zeros_like(values), torch.zeros(len(values), 1).to(values)
    for one, other in ((0, 1), (1, 2), (2, 0)):  # in a closed mesh each neighbour comes up once each way
        for a, b in ((one, other), (other, one)):
            total.index_add_(0, faces[:, a], values[faces[:, b]])
            count.index_add_(0, faces[:, a], torch.ones(len(faces), 1).to(values))
    return total / count.clamp_min(1)


def normals(mesh: Mesh) -> Float[Tensor, "vertex 3"]:
    """Unit normals of the vertices, faces weighted by area."""
    a, b, c = (mesh.vertices[mesh.faces[:, corner]] for corner in range(3))
    face = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(mesh.vertices)
    for corner in range(3):
        total.index_add_(0, mesh.faces[:, corner], face)
    return torch.nn.functional.normalize(total, dim=-1)


def colours(mesh: Mesh, views: Views) -> Float[Tensor, "vertex 3"]:
    """What the views see at each vertex; where none does, what its neighbours have."""
    shade, known = seen_colours(mesh.vertices, normals(mesh), views)
    for _ in range(64):
        if known.all():
            break
        there = known[:, None].to(shade)
        spread = around(torch.cat([shade * there, there], 1), mesh.faces)
        share = spread[:, 3:]
        shade = torch.where(known[:, None], shade, spread[:, :3] / share.clamp_min(1e-6))
        known = known | (share[:, 0] > 0)
    return shade


def seen_colours(
    points: Float[Tensor, "point 3"], outward: Float[Tensor, "point 3"], views: Views
) -> tuple[Float[Tensor, "point 3"], Bool[Tensor, " point"]]:
    """What the views see at points of a surface, those that look straight at it most; and whether any does."""
    size = views.rendering.alpha.shape[-1]
    total, weight = torch.zeros(len(points), 3), torch.zeros(len(points), 1)
    reach = 0.03 * float((points.amax(0) - points.amin(0)).norm())
    for view in range(len(views.rendering.alpha)):
        camera = views.cameras[view]
        image, depth = camera.project(points)
        column, row = (image * size).long().clamp(0, size - 1).unbind(-1)
        towards = torch.nn.functional.normalize(camera.positions - points, dim=-1)
        facing = (outward * towards).sum(-1).clamp_min(0) ** 2
        solid = views.rendering.alpha[view, 0, row, column] > SOLID
        seen = (views.rendering.median_depth[view, 0, row, column] > depth - reach) & solid & (facing > 0.02)
        layers = torch.cat([views.rendering.rgb[view], views.rendering.alpha[view]])[None]
        rgba = torch.nn.functional.grid_sample(
            layers, image[None, None] * 2 - 1, align_corners=False, padding_mode="border"
        )[0, :, 0]  # (4, point)
        total += (facing * seen)[:, None] * (rgba[:3] / rgba[3].clamp_min(SOLID)).T
        weight += (facing * seen)[:, None]
    known = weight[:, 0] > 0
    return torch.where(known[:, None], total / weight.clamp_min(1e-9), torch.full_like(total, 0.5)).clamp(0, 1), known

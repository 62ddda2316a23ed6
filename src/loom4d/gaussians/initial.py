"""Where a fit starts: points in space and time, from the masks' visual hull or in a ball."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loom4d.cameras import Cameras, Region, seen_region
from loom4d.grid import ImageGrid

ENOUGH = 30  # voxels: a smaller hull means that some mask is wrong
BORROWED, WHILE, ELSEWHERE_DEG = 8, 0.15, 20.0  # cells at most that a moment takes, share of the clip, least angle
COVERED = 0.93  # share of a mask that a hull must explain


@dataclass(frozen=True)
class Cloud:
    """Coloured points, each at its own moment."""

    means: Float[Tensor, "point 3"]
    times: Float[Tensor, " point"]  # seconds
    rgb: Float[Tensor, "point 3"]
    area: float  # of the surface at one moment

    def __getitem__(self, index: Tensor) -> Cloud:
        return Cloud(self.means[index], self.times[index], self.rgb[index], self.area)

    def moments(self) -> list[Cloud]:
        """The points of each moment, in the order of time."""
        return [self[self.times == moment] for moment in self.times.unique()]

    def spacing(self, points: int | float) -> float:
        """Typical distance between neighbours when a moment has so many points."""
        return math.sqrt(self.area / points)


def voxel_centres(region: Region, resolution: int) -> Float[Tensor, "voxel 3"]:
    axis = ((torch.arange(resolution) + 0.5) / resolution * 2 - 1) * region.half
    return torch.cartesian_prod(axis, axis, axis) + region.centre


def sampled(
    pictures: Float[Tensor, "view channel height width"], places: Float[Tensor, "view point 2"]
) -> Float[Tensor, "view point channel"]:
    """Bilinear values at (u, v) in 0..1; zero outside the picture."""
    values = torch.nn.functional.grid_sample(pictures, places[:, :, None] * 2 - 1, align_corners=False)
    return rearrange(values, "view channel point 1 -> view point channel")


def carved(
    alphas: Float[Tensor, "view 1 height width"],
    cameras: Cameras,
    points: Float[Tensor, "point 3"],
    trust: Float[Tensor, " view"],
) -> Bool[Tensor, " point"]:
    """Points that every mask contains; where these leave masks uncovered, as when masks contradict each other, points
    that all masks but one contain, and so on. A mask that is trusted n times as much counts n times."""
    trust = trust / trust.min()
    places, depth = cameras.project(points.expand(len(alphas), -1, 3))
    outside = (((sampled(alphas, places)[..., 0] < 0.5) | (depth <= 0)) * trust[:, None]).sum(0)
    most = trust > 0.99 * trust.max()
    for misses in range(max(1, len(alphas) // 2)):
        kept = outside <= misses
        share = covered(alphas, places[:, kept])
        if kept.sum() >= ENOUGH and share[most].median() >= COVERED and share.median() >= COVERED - 0.1:
            break
    return kept


def covered(
    alphas: Float[Tensor, "view 1 height width"], places: Float[Tensor, "view point 2"], cells: int = 32
) -> Float[Tensor, " view"]:
    """Share of each mask over which some point lies, at a coarse resolution; 1 for an empty mask."""
    masks = torch.nn.functional.adaptive_avg_pool2d(alphas, cells)[:, 0].flatten(1) > 0.6
    cell = (places.clamp(0, 1 - 1e-6) * cells).long()
    hit = torch.zeros_like(masks).scatter(1, cell[..., 1] * cells + cell[..., 0], True)
    return torch.where(masks.any(1), (hit & masks).sum(1) / masks.sum(1).clamp_min(1), torch.ones(len(masks)))


def relief(alpha: Float[Tensor, "1 height width"], camera: Cameras, points: Tensor, region: Region) -> Tensor:
    """For a single view, whose hull would be an endless cone: points no deeper than the mask is wide around them."""
    inside, width = (alpha > 0.5).float()[None], alpha.shape[-1]
    distance, eroded = torch.zeros_like(inside), inside
    for _ in range(width // 2):
        distance = distance + eroded
        eroded = -torch.nn.functional.max_pool2d(-eroded, 3, 1, 1)
    place, depth = camera.project(points)
    pixel = 2 * region.half / width
    thickness = sampled(distance[0:1], place[None])[0, :, 0] * pixel
    middle = camera.project(region.centre[None])[1]
    return (depth - middle).abs() <= thickness


def hull_cloud(
    grid: ImageGrid,
    count: int,
    resolution: int,
    generator: torch.Generator,
    trust: Float[Tensor, "view frame"] | None = None,
) -> Cloud | None:
    """`count` points on the surface of the visual hull at every moment, coloured by the views that see them.

    Cells of no `trust` are not looked at. None where the masks tell nothing: they keep nothing, or nearly everything.
    """
    if (grid.rgba[:, :, 3] > 0.5).float().mean() > 0.95:
        return None
    trust = torch.ones(grid.views, grid.frames) if trust is None else trust
    region = seen_region(grid.cameras)
    voxels, voxel = voxel_centres(region, resolution), 2 * region.half / resolution
    parts, areas = [], []
    for moment in grid.times.unique():
        views, frames = looking(grid, moment, trust)
        if len(views) == 0:
            continue
        cameras, pictures = grid.cameras[views, frames], grid.rgba[views, frames]
        inside = carved(pictures[:, 3:], cameras, voxels, trust[views, frames])
        if len(views) == 1:
            inside &= relief(pictures[0, 3:], cameras[0], voxels, region)
        surface = voxels[inside & _touches_outside(inside, resolution)]
        if len(surface) == 0:
            continue
        rgb = _seen_colours(surface, pictures, cameras, 2.5 * voxel)
        chosen = torch.randint(len(surface), (count,), generator=generator)
        jitter = (torch.rand(count, 3, generator=generator) - 0.5) * voxel
        parts.append((surface[chosen] + jitter, moment.expand(count), rgb[chosen]))
        areas.append(len(surface) * voxel**2)
    if not parts:
        return None
    means, times, rgb = (torch.cat(column) for column in zip(*parts, strict=True))
    return Cloud(means, times, rgb, sum(areas) / len(areas))


def looking(
    grid: ImageGrid, moment: Float[Tensor, ""], trust: Float[Tensor, "view frame"]
) -> tuple[Int[Tensor, " cell"], Int[Tensor, " cell"]]:
    """(view, frame) of the trusted cells that show a moment. Where there is one only, as in a clip of a moving camera,
    those nearest in time that look from elsewhere are added, as long as the object has hardly moved meanwhile."""
    trusted, now = trust > 0, grid.times == moment
    views, frames = (trusted & now).nonzero(as_tuple=True)
    if len(views) != 1:
        return views, frames
    axes = grid.cameras.world_from_camera[..., :3, 2]
    away = (grid.times - moment).abs()
    near = trusted & (away <= WHILE * (grid.times.max() - grid.times.min()))
    others_view, others_frame = near.nonzero(as_tuple=True)
    for place in away[others_frame].argsort(stable=True).tolist():
        view, frame = others_view[place : place + 1], others_frame[place : place + 1]
        closest = (axes[views, frames] @ axes[view, frame][0]).max()
        if len(views) < BORROWED and closest < math.cos(math.radians(ELSEWHERE_DEG)):
            views, frames = torch.cat([views, view]), torch.cat([frames, frame])
    return views, frames


def _touches_outside(inside: Bool[Tensor, " voxel"], resolution: int) -> Bool[Tensor, " voxel"]:
    volume = rearrange(inside.float(), "(x y z) -> 1 1 x y z", x=resolution, y=resolution)
    padded = torch.nn.functional.pad(1 - volume, (1, 1, 1, 1, 1, 1), value=1.0)
    return torch.nn.functional.max_pool3d(padded, 3, 1)[0, 0].flatten() > 0


def _seen_colours(
    points: Float[Tensor, "point 3"],
    pictures: Float[Tensor, "view 4 height width"],
    cameras: Cameras,
    tolerance: float,
    cells: int = 48,
) -> Float[Tensor, "point 3"]:
    """Mean colour over the views where no other point of the surface lies in front, by a coarse depth buffer."""
    places, depth = cameras.project(repeat(points, "point c -> view point c", view=len(pictures)))
    cell = (places.clamp(0, 1 - 1e-6) * cells).long()
    index = cell[..., 1] * cells + cell[..., 0]
    nearest = torch.full((len(pictures), cells * cells), torch.inf)
    nearest = nearest.scatter_reduce(1, index, depth, "amin")
    seen = (depth <= nearest.gather(1, index) + tolerance).float()
    colour = sampled(torch.cat([pictures[:, :3] * pictures[:, 3:], pictures[:, 3:]], 1), places)
    colour = colour * (seen + 1e-3)[..., None]
    return (colour[..., :3].sum(0) / colour[..., 3:].sum(0).clamp_min(1e-6)).clamp(0, 1)


def ball_cloud(grid: ImageGrid, count: int, generator: torch.Generator) -> Cloud:
    """`count` grey points at every moment, uniform in a ball that fills most of the cameras' view."""
    region, moments = seen_region(grid.cameras), grid.times.unique()
    total = count * len(moments)
    radius = 0.7 * region.half
    directions = torch.nn.functional.normalize(torch.randn(total, 3, generator=generator), dim=-1)
    radii = radius * torch.rand(total, 1, generator=generator) ** (1 / 3)
    times = moments.repeat_interleave(count)
    return Cloud(region.centre + directions * radii, times, torch.full((total, 3), 0.5), 4 * math.pi * radius**2)


def still_cloud(
    points: Float[Tensor, "point 3"], rgb: Float[Tensor, "point 3"], times: Float[Tensor, " frame"]
) -> Cloud:
    """Given points that do not move, at every moment; their surface is taken to be as large as their bounding box's."""
    sides = (points.amax(0) - points.amin(0)).clamp_min(1e-3)
    area = float(2 * (sides * sides.roll(1)).sum())
    frames = len(times)
    return Cloud(points.repeat(frames, 1), times.repeat_interleave(len(points)), rgb.repeat(frames, 1), area)

"""Pinhole cameras and orbits.

The world is right-handed with y up. A camera looks down its own −z axis with x to its right and y up (OpenGL).
Azimuth 0 looks at the object from +z and grows towards +x, so a growing azimuth moves the camera to its own right;
elevation is positive above the object. Every other convention exists only as an adapter at the end of this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

FOV_DEG = 33.8  # field of view of SV3D's training renders, and ours
RADIUS = 2.0  # at this distance a unit cube spins inside the picture


@dataclass(frozen=True)
class Cameras:
    """Any batch of pinhole cameras; intrinsics do not depend on the resolution.

    `intrinsics` map camera rays to an image that spans [0, 1]² with x to the right and y *down*:
    u = fx · x/(−z) + cx, v = fy · (−y)/(−z) + cy.
    """

    camera_from_world: Float[Tensor, "*batch 4 4"]
    intrinsics: Float[Tensor, "*batch 3 3"]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.camera_from_world.shape[:-2])

    def __getitem__(self, index) -> Cameras:
        return Cameras(self.camera_from_world[index], self.intrinsics[index])

    def reshape(self, *shape: int) -> Cameras:
        return Cameras(self.camera_from_world.reshape(*shape, 4, 4), self.intrinsics.reshape(*shape, 3, 3))

    def expand(self, *shape: int) -> Cameras:
        return Cameras(self.camera_from_world.expand(*shape, 4, 4), self.intrinsics.expand(*shape, 3, 3))

    def to(self, target) -> Cameras:
        """The same cameras on another device or in another dtype, as `Tensor.to`."""
        return Cameras(self.camera_from_world.to(target), self.intrinsics.to(target))

    @property
    def world_from_camera(self) -> Float[Tensor, "*batch 4 4"]:
        """Inverse of the rigid transform `camera_from_world`."""
        rotation = self.camera_from_world[..., :3, :3].mT
        position = -rotation @ self.camera_from_world[..., :3, 3:]
        matrix = torch.zeros_like(self.camera_from_world)
        matrix[..., :3, :3] = rotation
        matrix[..., :3, 3:] = position
        matrix[..., 3, 3] = 1
        return matrix

    @property
    def positions(self) -> Float[Tensor, "*batch 3"]:
        """Camera centres in the world."""
        return self.world_from_camera[..., :3, 3]

    def azimuths_deg(self) -> Float[Tensor, "*batch"]:
        """Azimuth of each camera centre around the world's y axis, in [0, 360)."""
        x, _, z = self.positions.unbind(-1)
        return torch.rad2deg(torch.atan2(x, z)) % 360

    def elevations_deg(self) -> Float[Tensor, "*batch"]:
        """Elevation of each camera centre above the horizontal plane, in [−90, 90]."""
        x, y, z = self.positions.unbind(-1)
        return torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))

    def project(
        self, points: Float[Tensor, "*batch point 3"]
    ) -> tuple[Float[Tensor, "*batch point 2"], Float[Tensor, "*batch point"]]:
        """World points to (u, v) in image units (0..1 inside the picture, v down) and depth along the view axis."""
        rotation, translation = self.camera_from_world[..., :3, :3], self.camera_from_world[..., None, :3, 3]
        local = points @ rotation.mT + translation
        depth = -local[..., 2]
        flat = torch.stack([local[..., 0] / depth, -local[..., 1] / depth, torch.ones_like(depth)], -1)
        return (flat @ self.intrinsics.mT)[..., :2], depth

    def rays(self, height: int, width: int) -> tuple[Float[Tensor, "*batch 3"], Float[Tensor, "*batch height width 3"]]:
        """Camera centres, and unit world directions through every pixel's centre."""
        v = (torch.arange(height) + 0.5) / height
        u = (torch.arange(width) + 0.5) / width
        v, u = torch.meshgrid(v, u, indexing="ij")
        image = torch.stack([u, v, torch.ones_like(u)], -1).to(self.intrinsics)  # (H, W, 3)
        inverse = torch.linalg.inv(self.intrinsics)
        plane = torch.einsum("...ij,hwj->...hwi", inverse, image)
        local = torch.stack([plane[..., 0], -plane[..., 1], -torch.ones_like(plane[..., 0])], -1)
        world = torch.einsum("...ij,...hwj->...hwi", self.world_from_camera[..., :3, :3], local)
        return self.positions, torch.nn.functional.normalize(world, dim=-1)


def pinhole(fov_deg: float = FOV_DEG, aspect: float = 1.0) -> Float[Tensor, "3 3"]:
    """Intrinsics of a centred pinhole with vertical field of view `fov_deg`; `aspect` is width over height."""
    focal = 0.5 / math.tan(math.radians(fov_deg) / 2)
    return torch.tensor([[focal / aspect, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]])


def look_at(position: Float[Tensor, "*batch 3"], target: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 4 4"]:
    """`camera_from_world` of cameras at `position` that look at `target` with +y up."""
    back = torch.nn.functional.normalize(position - target, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0]).to(position).expand_as(back)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back, dim=-1), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(back, right, dim=-1), back], -2)  # rows are the camera's axes
    matrix = torch.eye(4).to(position).repeat(*position.shape[:-1], 1, 1)
    matrix[..., :3, :3] = rotation
    matrix[..., :3, 3] = -(rotation @ position[..., None])[..., 0]
    return matrix


def orbit(
    azimuths_deg: Float[Tensor, "*batch"],
    elevations_deg: Float[Tensor, "*batch"] | float = 0.0,
    radius: float = RADIUS,
    fov_deg: float = FOV_DEG,
) -> Cameras:
    """Cameras on a sphere around the origin, all looking at it: one per azimuth (and elevation, broadcast)."""
    azimuth = torch.deg2rad(azimuths_deg)
    elevation = torch.deg2rad(torch.as_tensor(elevations_deg, dtype=azimuth.dtype)).expand_as(azimuth)
    direction = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], -1)
    position = radius * direction
    intrinsics = pinhole(fov_deg).to(position).expand(*azimuth.shape, 3, 3)
    return Cameras(look_at(position, torch.zeros_like(position)), intrinsics)


def turntable(views: int, frames: int = 1, elevation_deg: float = 0.0, **lens: float) -> Cameras:
    """`views` cameras at uniform azimuths starting at 0, each repeated over `frames`: batch (view, frame)."""
    azimuths = torch.arange(views) * (360.0 / views)
    return orbit(azimuths, elevation_deg, **lens).reshape(views, 1).expand(views, frames)


@dataclass(frozen=True)
class Region:
    """The cube that cameras look at."""

    centre: Float[Tensor, 3]
    half: float


def seen_region(cameras: Cameras) -> Region:
    """Centre: the point nearest to all optical axes. Half side: what the narrowest camera sees of it."""
    flat = cameras.reshape(-1).to(torch.float64)
    positions, axes = flat.positions, -flat.world_from_camera[:, :3, 2]
    across = torch.eye(3).to(axes) - axes[:, :, None] * axes[:, None, :]  # projections onto each image plane
    weak = 1e-3 * torch.eye(3).to(axes)  # parallel axes meet nowhere: then the origin's distance decides
    centre = torch.linalg.solve(across.mean(0) + weak, (across @ positions[..., None]).mean(0)[:, 0])
    distance = ((centre - positions) * axes).sum(-1).clamp_min(1e-3)
    widest = torch.maximum(flat.intrinsics[:, 0, 0], flat.intrinsics[:, 1, 1])
    return Region(centre.float(), float((0.5 * distance / widest).median()))


@dataclass(frozen=True)
class Placement:
    """Where an asset stands in a world of another size: a point x of the asset is scale · x + shift there.

    Axes keep their directions, so rotations, spherical harmonics and angles are the same in both.
    """

    scale: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def points(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """From the asset's coordinates to the world's."""
        return self.scale * points + torch.tensor(self.shift, dtype=torch.float64).to(points)

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras among the asset as cameras in the world: they see the placed asset as these see the asset."""
        matrix = cameras.camera_from_world.clone()
        moved = matrix[..., :3, :3] @ torch.tensor(self.shift, dtype=torch.float64).to(matrix)
        matrix[..., :3, 3] = self.scale * matrix[..., :3, 3] - moved
        return Cameras(matrix, cameras.intrinsics)

    def inverse(self) -> Placement:
        x, y, z = (-value / self.scale for value in self.shift)
        return Placement(1 / self.scale, (x, y, z))


# --- adapters ------------------------------------------------------------------------------------------------------


def flip_yz(matrix: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """OpenGL `camera_from_world` to OpenCV/COLMAP's (x right, y down, looks down +z), and back: its own inverse."""
    return torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).to(matrix) @ matrix


def from_opencv(camera_from_world: Float[Tensor, "*batch 4 4"], intrinsics: Float[Tensor, "*batch 3 3"]) -> Cameras:
    """Cameras given as OpenCV or COLMAP extrinsics; `intrinsics` already in image units (divided by width, height)."""
    return Cameras(flip_yz(camera_from_world), intrinsics)


def blender_pose(world_from_camera: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """`camera_from_world` of OpenGL cameras in a world with z up, whose (x, y, z) is our (x, z, −y)."""
    ours_from_blender = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]).to(world_from_camera)
    return torch.linalg.inv(ours_from_blender @ world_from_camera)


def from_blender(world_from_camera: Float[Tensor, "*batch 4 4"], fov_deg: float) -> Cameras:
    """Cameras of a z-up OpenGL world (NeRF's `transforms.json`, Blender, Diffusion4D's orbit)."""
    matrix = blender_pose(world_from_camera)
    return Cameras(matrix, pinhole(fov_deg).to(matrix).expand(*matrix.shape[:-2], 3, 3))


def colmap_pose(camera_from_colmap: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """`camera_from_world` of COLMAP's extrinsics (OpenCV camera) in its world turned half around z, which puts y up:
    COLMAP's (x, y, z) is our (−x, −y, z)."""
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).to(camera_from_colmap)
    return flip_yz(camera_from_colmap @ half_turn)


def sv3d_angles(cameras: Cameras) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """(polar, azimuth) in radians as SV3D embeds them: polar = 90° − elevation; azimuth in (0, 2π], reference 2π."""
    azimuth = torch.deg2rad(cameras.azimuths_deg())
    azimuth = torch.where(azimuth < 1e-5, azimuth + 2 * math.pi, azimuth)
    return math.pi / 2 - torch.deg2rad(cameras.elevations_deg()), azimuth


def cells(cameras: Cameras) -> Cameras:
    """A (view, frame) batch of cameras as one flat batch, views outermost."""
    return Cameras(
        rearrange(cameras.camera_from_world, "view frame i j -> (view frame) i j"),
        rearrange(cameras.intrinsics, "view frame i j -> (view frame) i j"),
    )

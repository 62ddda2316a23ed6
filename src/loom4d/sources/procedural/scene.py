"""Moving objects made of analytic solids: a joint tree, a table of waves that drives it, and painted parts.

Everything is a plain array, so an object can be posed at all times at once, saved, and compared byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor


class Shape(IntEnum):
    """Unit solids; every part is an affine image of one of them."""

    ELLIPSOID = 0  # the unit ball
    BOX = 1  # the cube [−1, 1]³
    CONE = 2  # radius 1 at y = −1, radius `taper` in 0..1 at y = +1, capped; taper 1 is a cylinder


class Pattern(IntEnum):
    """How a part's second colour is mixed into its first, as a function of the position in the unit solid."""

    PLAIN = 0
    STRIPES = 1
    SPOTS = 2
    CHECKER = 3
    GRADIENT = 4
    TWO_TONE = 5


class Channel(IntEnum):
    """What a wave moves: a joint's shift, its turn in radians, or the logarithm of its scale."""

    SHIFT_X = 0
    SHIFT_Y = 1
    SHIFT_Z = 2
    TURN_X = 3
    TURN_Y = 4
    TURN_Z = 5
    SCALE_X = 6
    SCALE_Y = 7
    SCALE_Z = 8


class Wave(IntEnum):
    """Functions of x = rate · time + phase."""

    SINE = 0  # sin 2πx
    HOP = 1  # sin² πx: rests at 0, peaks at 1 once a cycle
    RAMP = 2  # x
    RISE = 3  # 0 up to x = 0, 1 from x = 1, smooth between
    WANDER = 4  # two sines whose periods do not match: never repeats


@dataclass(frozen=True)
class MovingObject:
    """An articulated figure and its motion over one clip, time 0..1, in a world with y up.

    A joint's frame is `parent_from_joint · shift · turn_z · turn_y · turn_x · scale`; parents come before children.
    """

    caption: str
    world_from_root: Float[ndarray, "4 4"]
    parents: Int[ndarray, " joint"]  # −1 for a root
    parent_from_joint: Float[ndarray, "joint 4 4"]
    wave_targets: Int[ndarray, "wave 3"]  # joint, Channel, Wave
    wave_numbers: Float[ndarray, "wave 3"]  # amplitude, rate in cycles per clip, phase in cycles
    joints: Int[ndarray, " part"]
    joint_from_part: Float[ndarray, "part 4 4"]
    shapes: Int[ndarray, " part"]  # Shape
    tapers: Float[ndarray, " part"]
    colours: Float[ndarray, "part 2 3"]  # 0..1
    patterns: Int[ndarray, " part"]  # Pattern
    pattern_numbers: Float[ndarray, "part 4"]  # wave vector in the unit solid, phase
    light: Float[ndarray, 3]  # unit direction towards the light, fixed in the world

    def world_from_part(self, times: Float[Tensor, "*time"] | float) -> Float[Tensor, "*time part 4 4"]:
        """Affine maps from the unit solids into the world at the given times in 0..1."""
        times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
        poses = pose(self, times.detach().reshape(-1).numpy())
        return torch.from_numpy(poses.astype(np.float32)).reshape(*times.shape, len(self.joints), 4, 4)


def wave_values(kinds: Int[ndarray, " wave"], x: Float[ndarray, "time wave"]) -> Float[ndarray, "time wave"]:
    """Each column by its own kind of wave."""
    eased = np.clip(x, 0, 1)
    table = [
        np.sin(2 * np.pi * x),
        np.sin(np.pi * x) ** 2,
        x,
        eased * eased * eased * (eased * (6 * eased - 15) + 10),
        (np.sin(2 * np.pi * x) + 0.6 * np.sin(2 * np.pi * 1.618 * x + 1)) / 1.6,
    ]
    return np.choose(kinds, table)


def pose(figure: MovingObject, times: Float[ndarray, " time"]) -> Float[ndarray, "time part 4 4"]:
    """`world_from_part` in double precision, all times at once."""
    joint, channel, kind = figure.wave_targets.T
    amplitude, rate, phase = figure.wave_numbers.T
    values = amplitude * wave_values(kind, times[:, None] * rate + phase)  # (T, wave)
    freedoms = np.zeros((9, len(figure.parents), len(times)))
    np.add.at(freedoms, (channel, joint), values.T)
    local = figure.parent_from_joint @ freedom_matrices(freedoms.transpose(2, 1, 0))  # (T, joint, 4, 4)
    world = np.empty_like(local)
    for index, parent in enumerate(figure.parents.tolist()):
        above = figure.world_from_root if parent < 0 else world[:, parent]
        np.matmul(above, local[:, index], out=world[:, index])
    return world[:, figure.joints] @ figure.joint_from_part


def freedom_matrices(freedoms: Float[ndarray, "*batch 9"]) -> Float[ndarray, "*batch 4 4"]:
    """shift · turn_z · turn_y · turn_x · scale of the nine channels."""
    shift, turn, scale = freedoms[..., :3], freedoms[..., 3:6], np.exp(freedoms[..., 6:])
    cx, cy, cz = np.moveaxis(np.cos(turn), -1, 0)
    sx, sy, sz = np.moveaxis(np.sin(turn), -1, 0)
    matrix = np.zeros((*freedoms.shape[:-1], 4, 4))
    matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 0, 2] = cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx
    matrix[..., 1, 0], matrix[..., 1, 1], matrix[..., 1, 2] = sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx
    matrix[..., 2, 0], matrix[..., 2, 1], matrix[..., 2, 2] = -sy, cy * sx, cy * cx
    matrix[..., :3, :3] *= scale[..., None, :]
    matrix[..., :3, 3] = shift
    matrix[..., 3, 3] = 1
    return matrix


def extents(
    figure: MovingObject, poses: Float[ndarray, "time part 4 4"]
) -> tuple[Float[ndarray, "time part 3"], Float[ndarray, "time part 3"]]:
    """Lower and upper corners of each part's exact bounding box (a cone's is that of its two end discs)."""
    axes, centre = poses[..., :3, :3], poses[..., :3, 3]
    ball = np.sqrt((axes**2).sum(-1))
    box = np.abs(axes).sum(-1)
    disc = np.sqrt(axes[..., 0] ** 2 + axes[..., 2] ** 2)
    taper, along = figure.tapers[:, None], axes[..., 1]
    reach_up = np.maximum(disc - along, taper * disc + along)
    reach_down = np.maximum(disc + along, taper * disc - along)
    shape = figure.shapes[:, None]
    up = np.where(shape == Shape.ELLIPSOID, ball, np.where(shape == Shape.BOX, box, reach_up))
    down = np.where(shape == Shape.ELLIPSOID, ball, np.where(shape == Shape.BOX, box, reach_down))
    return centre - down, centre + up


def surface_points(figure: MovingObject) -> Float[ndarray, "part point 3"]:
    """Twenty-six points on (a box, a cone) or just outside (a ball) each unit solid; their hull covers most of it."""
    axis = np.array([-1.0, 0.0, 1.0])
    cube = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    cube = np.delete(cube, 13, axis=0)  # the centre
    ball = cube / np.linalg.norm(cube, axis=-1, keepdims=True) * 1.05
    flat = np.maximum(np.hypot(cube[:, 0], cube[:, 2]), 1)
    points = np.stack([ball, cube, cube / np.stack([flat, np.ones_like(flat), flat], -1) * [1.04, 1, 1.04]])[
        figure.shapes
    ]
    radius = np.where(figure.shapes == Shape.CONE, figure.tapers, 1)[:, None]
    radius = (1 + radius) / 2 + (radius - 1) / 2 * points[..., 1]
    cone = (figure.shapes == Shape.CONE)[:, None]
    points[..., 0] *= np.where(cone, radius, 1)
    points[..., 2] *= np.where(cone, radius, 1)
    return points

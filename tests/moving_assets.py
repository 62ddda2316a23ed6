"""Small moving assets for tests of what comes after the fit."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from loom4d.gaussians.gaussians import Gaussians, rotations, sh_of
from loom4d.gaussians.initial import Cloud
from loom4d.gaussians.motion.controlled import Controlled
from loom4d.gaussians.motion.deformed import Deformed, at_rest
from loom4d.gaussians.motion.spacetime import Spacetime


def spacetime_asset(points: int = 400, harmonics: int = 1, degree: int = 0, seed: int = 0) -> Spacetime:
    """A cloud of space-time Gaussians on a ball: tilted in time, so they move, appear and vanish over 2 seconds."""
    draw = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    means = 0.45 * torch.nn.functional.normalize(normal(points, 3), dim=-1)
    colours = 0.15 * normal(points, harmonics, (degree + 1) ** 2, 3)
    colours[:, 0, 0] = sh_of(0.5 + means)[:, 0]
    return Spacetime(
        means=means,
        times=torch.rand(points, generator=draw),
        log_scales=math.log(0.05) + 0.4 * normal(points, 3),
        log_durations=math.log(0.2) + 0.3 * normal(points),
        left=torch.tensor([1.0, 0, 0, 0]) + 0.4 * normal(points, 4),
        right=torch.tensor([1.0, 0, 0, 0]) + 0.4 * normal(points, 4),
        opacity_logits=normal(points) + 1,
        colours=colours,
        start=0.5,
        end=2.5,
        unit=2.0,
    )


def as_spacetime(asset: Swinging, pieces: int = 24) -> Spacetime:
    """The same motion in native 4D: each Gaussian many times, alive for a while, at the velocity it then has."""
    parts, unit = [], 0.1  # in which durations are long beside the sizes in space, so that θ is what it is meant to be
    for piece in range(pieces):
        time = (piece + 0.5) / pieces
        now = asset.at(time)
        velocity = unit * (asset.at(time + 1e-3).means - asset.at(time - 1e-3).means) / 2e-3
        # tilting the t axis towards u by θ = atan|v| takes θ/2 from either side; quaternions count (t, z, y, x)
        half = torch.atan(velocity.norm(dim=-1, keepdim=True)) / 2
        tilt = half.sin() * torch.nn.functional.normalize(velocity, dim=-1).flip(-1)
        parts.append(
            {
                "means": now.means,
                "times": torch.full((len(now.means),), time / unit),
                "log_scales": asset.log_scales,
                "log_durations": torch.full((len(now.means),), math.log(0.5 / pieces / unit)),
                "left": torch.cat([half.cos(), tilt], -1),
                "right": torch.cat([half.cos(), -tilt], -1),
                "opacity_logits": torch.logit(now.opacities),
                "colours": now.colours[:, None],
            }
        )
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Spacetime(**joined, start=0.0, end=1.0, unit=unit)


class Swinging:
    """A ball that swings around the y axis, twice to each side: a motion that no exporter knows."""

    time_range = (0.0, 1.0)

    def __init__(self, points: int = 300, seed: int = 0, radius: float = 0.4, scale: float = 0.06):
        draw = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(torch.randn(points, 3, generator=draw), dim=-1)
        self.means = radius * self.directions
        self.quaternions = torch.randn(points, 4, generator=draw)
        self.log_scales = torch.full((points, 3), math.log(scale)) + 0.2 * torch.randn(points, 3, generator=draw)
        self.opacities = 0.5 + 0.45 * torch.rand(points, generator=draw)
        self.colours = sh_of((0.5 + 0.5 * self.directions).clamp(0, 1))

    def angle(self, time: float) -> float:
        return 0.8 * math.sin(4 * math.pi * time)

    def place(self, points: torch.Tensor, time: float) -> torch.Tensor:
        """Where points that were at `points` at time 0 are at `time`: turned, and carried up and down."""
        half = torch.tensor(self.angle(time) / 2)
        turn = rotations(torch.stack([half.cos(), torch.zeros(()), half.sin(), torch.zeros(())]))
        return points @ turn.mT + torch.tensor([0.0, 0.15 * math.sin(2 * math.pi * time), 0.0])

    def at(self, time: float) -> Gaussians:
        half = self.angle(time) / 2
        w, x, y, z = self.quaternions.unbind(-1)
        a, b = math.cos(half), math.sin(half)
        turned = torch.stack([a * w - b * y, a * x + b * z, a * y + b * w, a * z - b * x], -1)
        return Gaussians(self.place(self.means, time), turned, self.log_scales, self.opacities, self.colours)

    def slices(self, times: torch.Tensor) -> Gaussians:
        instants = [self.at(time) for time in times.tolist()]
        means = torch.stack([one.means for one in instants])
        quaternions = torch.stack([one.quaternions for one in instants])
        return Gaussians(means, quaternions, self.log_scales, self.opacities, self.colours)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {}

    def finished(self) -> Swinging:
        return self

    def config(self) -> dict:
        return {}

    @staticmethod
    def from_tensors(tensors: dict[str, torch.Tensor], config: dict) -> Swinging:
        return Swinging()

    @staticmethod
    def initial(cloud, times: torch.Tensor) -> Swinging:
        return Swinging()

    @staticmethod
    def rates() -> dict[str, float]:
        return {}

    @staticmethod
    def point_fields() -> tuple[str, ...]:
        return ()

    def split(self, chosen: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def penalty(self) -> torch.Tensor:
        return torch.zeros(())


def bending(points: int = 500, keys: int = 5, seed: int = 0) -> Controlled:
    """A sausage along y on seven control points that bends to both sides and rises: keys turn and shift together."""
    draw = torch.Generator().manual_seed(seed)
    around = 2 * math.pi * torch.rand(points, generator=draw)
    height = torch.rand(points, generator=draw) * 0.9 - 0.45
    ring = 0.14 * (1 - (height / 0.52) ** 4).clamp_min(0).sqrt()
    means = torch.stack([ring * around.sin(), height, ring * around.cos()], -1)
    joints = torch.stack([torch.zeros(7), torch.linspace(-0.45, 0.45, 7), torch.zeros(7)], -1)
    phase = torch.linspace(0, 2 * math.pi, keys)
    angle = 1.1 * phase.sin()[:, None] * (joints[:, 1] + 0.45)  # (key, joint), about z, growing upwards
    arm = torch.stack([-angle.sin(), angle.cos(), torch.zeros_like(angle)], -1) * 0.15
    places = torch.cat([torch.zeros(keys, 1, 3), arm[:, :-1].cumsum(1)], 1) + joints[0]
    places[..., 1] += 0.05 * phase.cos()[:, None]
    turns = torch.stack([(angle / 2).cos(), 0 * angle, 0 * angle, (angle / 2).sin()], -1)
    return Controlled(
        means=means,
        quaternions=torch.randn(points, 4, generator=draw),
        log_scales=torch.full((points, 3), math.log(0.035)),
        opacity_logits=torch.full((points,), 3.0),
        colours=sh_of((0.5 + torch.stack([2 * means[:, 0], means[:, 1], 2 * means[:, 2]], -1)).clamp(0, 1)),
        bones=torch.cdist(means, joints).topk(4, largest=False).indices,
        points=joints,
        log_radii=torch.full((7,), math.log(0.12)),
        edges=torch.cdist(joints, joints).topk(3, largest=False).indices[:, 1:],
        shifts=places - joints,
        turns=turns,
        keys=torch.linspace(0.5, 1.5, keys).tolist(),
    )


def waving(points: int = 300, seed: int = 0) -> Deformed:
    """A ball in a field that carries it from side to side over one second."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(points, 3, generator=draw), dim=-1)
    cloud = Cloud(0.4 * directions, torch.zeros(points), (0.5 + 0.5 * directions).clamp(0, 1), 2.0)
    asset = at_rest(cloud, points, torch.linspace(0, 1, 3), draw, [0.0, 0.0, 0.0], 0.6)
    head = torch.zeros_like(asset.head)
    head[0] = 0.3
    return replace(
        asset, time=asset.time * torch.tensor([0.8, 1.0, 1.2]), head=head, opacity_logits=torch.full((points,), 3.0)
    )

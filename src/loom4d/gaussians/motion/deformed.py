"""Gaussians at rest and a field that moves them: six planes of features over pairs of x, y, z and t, whose products a
small network turns into a shift, a change of log scale and a change of quaternion (HexPlane 4DGS; STAG4D).

The field is evaluated at the places at rest, which get no gradient through it. For one time a plane over (x, t) is a
line over x, so that its samples at many points are one matrix product; between two moments the line follows a cubic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians.flow import carried
from loom4d.gaussians.gaussians import Gaussians, quaternions_of, sh_of, split_rows
from loom4d.gaussians.initial import Cloud
from loom4d.gaussians.losses import plane_smoothness
from loom4d.gaussians.motion.curve import spline
from loom4d.gaussians.motion.rigid import continued, neighbours, procrustes

ROUND = 0.6  # first scale over the distance of neighbours
RESOLUTION, FEATURES, WIDTH = 24, 12, 32  # nodes a side (the finer planes have twice as many); per plane; hidden units
OUTPUTS = 10  # 3 of place, 3 of log scale, 4 of quaternion
REACH = 0.1  # a unit of the network's output in half sides of the box; in quaternion and log scale
SMOOTH, STEADY, PLAIN = 1e-3, 1e-3, 1e-4  # penalties: of space planes, of time planes over time, of time planes off 1
TRACKED, EDGES, STEPS = 240, 8, 120  # points whose motion the field learns first, their neighbours, and how long


@dataclass(frozen=True)
class Deformed:
    means: Float[Tensor, "point 3"]  # at rest, as everything with a point axis
    quaternions: Float[Tensor, "point 4"]
    log_scales: Float[Tensor, "point 3"]
    opacity_logits: Float[Tensor, " point"]
    colours: Float[Tensor, "point basis 3"]
    space: Float[Tensor, "3 feature r r"]  # xy, xz, yz; rows are the second axis
    space_fine: Float[Tensor, "3 feature s s"]
    time: Float[Tensor, "3 feature r moment"]  # xt, yt, zt
    time_fine: Float[Tensor, "3 feature s moment"]
    trunk: Float[Tensor, "width twice"]
    trunk_bias: Float[Tensor, " width"]
    head: Float[Tensor, "10 width"]
    head_bias: Float[Tensor, " 10"]
    centre: list[float]  # of the box that the planes span
    half: float
    start: float  # seconds
    end: float

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last second that was seen."""
        return self.start, self.end

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is learnt."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.type.startswith("Float")}

    def config(self) -> dict[str, Any]:
        return {"centre": self.centre, "half": self.half, "start": self.start, "end": self.end}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], config: dict[str, Any]) -> Deformed:
        return Deformed(**{**config, **tensors})

    @staticmethod
    def initial(cloud: Cloud, times: Float[Tensor, " frame"], count: int, generator: torch.Generator) -> Deformed:
        """The moment from which the others are reached best, in a field that has learnt how the surface moves."""
        start, points, places = carried(cloud, times, TRACKED, generator)
        chosen = start[torch.randperm(len(start.means), generator=generator)[:count]]
        low, high = cloud.means.amin(0), cloud.means.amax(0)
        still = at_rest(chosen, count, times, generator, ((low + high) / 2).tolist(), 0.55 * float((high - low).max()))
        if len(times) < 2:
            return still
        edges = neighbours(places, min(EDGES, len(points) - 1))
        turns = continued(quaternions_of(procrustes(points, places, edges)))
        return still.taught(points, places - points, turns, times)

    def taught(
        self,
        points: Float[Tensor, "k 3"],
        shifts: Float[Tensor, "frame k 3"],
        turns: Float[Tensor, "frame k 4"],
        times: Float[Tensor, " frame"],
    ) -> Deformed:
        """The same with a field that moves `points` by `shifts` and turns them, as nearly as a short descent finds."""
        names = [name for name in self.tensors() if name not in self.point_fields()]
        leaves = {name: getattr(self, name).clone().requires_grad_() for name in names}
        optimiser = torch.optim.Adam([{"params": [leaf], "lr": self.rates()[name]} for name, leaf in leaves.items()])
        target = torch.cat([shifts / self.half, turns - torch.tensor([1.0, 0, 0, 0])], -1)
        for step in range(STEPS):
            for group, name in zip(optimiser.param_groups, names, strict=True):
                group["lr"] = 4 * self.rates()[name] * 0.1 ** (step / STEPS)
            field = Deformed.from_tensors(self.tensors() | leaves, self.config())
            shift, _, turn = field.change(points, times)
            loss = (torch.cat([shift / self.half, turn], -1) - target).square().mean() + 0.1 * field.penalty()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return Deformed.from_tensors(self.tensors() | {n: leaf.detach() for n, leaf in leaves.items()}, self.config())

    @staticmethod
    def rates() -> dict[str, float]:
        """Learning rates, of Adam."""
        planes = dict.fromkeys(("space", "space_fine", "time", "time_fine"), 5e-3)
        network = dict.fromkeys(("trunk", "trunk_bias", "head", "head_bias"), 1e-3)
        still = {"means": 1e-3, "quaternions": 5e-3, "log_scales": 1e-2, "opacity_logits": 5e-2, "colours": 1e-2}
        return {**still, **planes, **network}

    @staticmethod
    def point_fields() -> tuple[str, ...]:
        """Tensors with one row per Gaussian."""
        return ("means", "quaternions", "log_scales", "opacity_logits", "colours")

    def split(self, chosen: Int[Tensor, " point"], generator: torch.Generator) -> dict[str, Tensor]:
        """Rows of two smaller Gaussians in the place of each chosen one."""
        return split_rows({name: getattr(self, name)[chosen] for name in self.point_fields()}, generator)

    def penalty(self) -> Float[Tensor, ""]:
        """Smooth over space and over time, and no change over time where none is needed (hustvl's regularisers)."""
        total = torch.zeros(())
        for planes in (self.space, self.space_fine):  # means over three planes each
            total = total + 3 * SMOOTH * (plane_smoothness(planes) + plane_smoothness(planes.mT))
        for planes in (self.time, self.time_fine):
            total = total + 3 * SMOOTH * plane_smoothness(planes) + 3 * PLAIN * (planes - 1).abs().mean()
            if planes.shape[-1] > 2:
                total = total + 3 * STEADY * plane_smoothness(planes.mT)
        return total

    def features(
        self, places: Float[Tensor, "point 3"], times: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch twice point"]:
        """Products of the six planes' bilinear samples; border values outside the box and the clip."""
        unit = ((places.detach() - torch.tensor(self.centre).to(places)) / self.half).clamp(-1, 1)  # (N, 3)
        pairs = torch.stack([unit[:, [0, 1]], unit[:, [0, 2]], unit[:, [1, 2]]])[:, None]  # (3, 1, N, 2)
        moment = (times.to(places) - self.start) / max(self.end - self.start, 1e-9)
        smooth = spline(moment, torch.linspace(0, 1, self.time.shape[-1]).to(moment)).mT  # (moment, B)
        parts = []
        for space, time in ((self.space, self.time), (self.space_fine, self.time_fine)):
            still = torch.nn.functional.grid_sample(space, pairs, align_corners=True, padding_mode="border")
            lines = torch.einsum("acrm,mb->abcr", time, smooth)  # (3, B, C, R)
            across = torch.stack([hats((axis + 1) / 2, time.shape[2]) for axis in unit.unbind(-1)])  # (3, R, N)
            moving = (lines.flatten(1, 2) @ across).unflatten(1, lines.shape[1:3])  # (3, B, C, N)
            xy, xz, yz = still[:, :, 0].unbind(0)
            xt, yt, zt = moving.unbind(0)
            parts.append(xy * xz * yz * (xt * yt * zt))
        return torch.cat(parts, 1)

    def change(
        self, places: Float[Tensor, "point 3"], times: Float[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch point 3"], Float[Tensor, "batch point 3"], Float[Tensor, "batch point 4"]]:
        """Shift, change of log scale and change of quaternion at places at rest."""
        hidden = torch.relu(self.trunk @ self.features(places, times) + self.trunk_bias[:, None])  # (B, W, N)
        raw = REACH * (self.head @ hidden + self.head_bias[:, None]).mT  # (B, N, 10)
        return raw[..., :3] * self.half, raw[..., 3:6], raw[..., 6:]

    def finished(self) -> Deformed:
        return self

    def slices(self, times: Float[Tensor, " batch"]) -> Gaussians:
        """Several instants: what is at rest plus the field's changes; quaternions are added before normalisation."""
        shift, growth, turn = self.change(self.means, times)
        return Gaussians(
            self.means + shift,
            self.quaternions + turn,
            self.log_scales + growth,
            torch.sigmoid(self.opacity_logits),
            self.colours,
        )

    def at(self, time: float) -> Gaussians:
        """One instant, at a time in seconds; before the first and after the last one the object stands still."""
        one = self.slices(torch.tensor([time], dtype=torch.float64))
        return Gaussians(one.means[0], one.quaternions[0], one.log_scales[0], one.opacities, one.colours)


def at_rest(
    cloud: Cloud,
    count: int,
    times: Float[Tensor, " frame"],
    generator: torch.Generator,
    centre: list[float],
    half: float,
) -> Deformed:
    """Round Gaussians that do not move: the last layer is zero. Space planes begin as smooth random waves around 1, so
    that their products tell places apart without being rough; time planes begin as 1."""
    bound = math.sqrt(6 / (2 * FEATURES + WIDTH))
    return Deformed(
        means=cloud.means,
        quaternions=torch.tensor([1.0, 0, 0, 0]).repeat(len(cloud.means), 1),
        log_scales=torch.full((len(cloud.means), 3), math.log(ROUND * cloud.spacing(count))),
        opacity_logits=torch.zeros(len(cloud.means)),
        colours=sh_of(cloud.rgb),
        space=waves(RESOLUTION, generator),
        space_fine=waves(2 * RESOLUTION, generator),
        time=torch.ones(3, FEATURES, RESOLUTION, len(times)),
        time_fine=torch.ones(3, FEATURES, 2 * RESOLUTION, len(times)),
        trunk=(torch.rand(WIDTH, 2 * FEATURES, generator=generator) * 2 - 1) * bound,
        trunk_bias=torch.zeros(WIDTH),
        head=torch.zeros(OUTPUTS, WIDTH),
        head_bias=torch.zeros(OUTPUTS),
        centre=centre,
        half=half,
        start=float(times[0]),
        end=float(times[-1]),
    )


def waves(nodes: int, generator: torch.Generator) -> Float[Tensor, "3 feature r r"]:
    """1 + ½ cos(k · x + φ) with random wave vectors of up to about a turn across the plane."""
    turn = 2 * torch.randn(3, FEATURES, 2, 1, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(3, FEATURES, 1, 1, generator=generator)
    axis = torch.linspace(-1, 1, nodes)
    return 1 + 0.5 * torch.cos(turn[:, :, 0] * axis + turn[:, :, 1] * axis[:, None] + phase)


def hats(places: Float[Tensor, " point"], nodes: int) -> Float[Tensor, "node point"]:
    """Weights of evenly spaced nodes at places in 0..1: linear interpolation as a matrix."""
    at = places * (nodes - 1)
    return (at - torch.arange(nodes)[:, None].to(at)).abs_().neg_().add_(1).clamp_min_(0)

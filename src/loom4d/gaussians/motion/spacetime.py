"""Native 4D Gaussians: ellipsoids of space-time whose slice at a time is what one sees (Yang et al., 4DGS).

A Gaussian lives for a while, moves on a straight line meanwhile, and fades in and out; long motions are many of them
in a row. Its covariance is Σ = R₄ S (R₄ S)ᵀ, with R₄ ∈ SO(4) from two quaternions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians.flow import velocities
from loom4d.gaussians.gaussians import SPLIT, Ellipsoids, Gaussians, multiplied, sh_of
from loom4d.gaussians.initial import Cloud

ROUND, LASTS = 0.6, 0.7  # first scale over the distance of neighbours; first duration (one σ) in frames
FRAMES = 4  # for so many frames there are as many Gaussians as were asked for
SHORT = 1.0  # weight of the penalty on durations shorter than `least`
BENT, SHORTEST = 0.35, 0.5  # of paths that become straight pieces: error over size; frames of a piece at least
DROPPED = 0.05  # a Gaussian whose temporal weight is below is not drawn


@dataclass(frozen=True)
class Spacetime:
    """Every field belongs to one Gaussian; time counts in `unit` seconds from `start`."""

    means: Float[Tensor, "point 3"]
    times: Float[Tensor, " point"]  # when it is at `means`
    log_scales: Float[Tensor, "point 3"]
    log_durations: Float[Tensor, " point"]  # logarithm of the standard deviation along the time axis
    left: Float[Tensor, "point 4"]  # left-isoclinic quaternion, of any length
    right: Float[Tensor, "point 4"]  # right-isoclinic quaternion, of any length
    opacity_logits: Float[Tensor, " point"]
    colours: Float[Tensor, "point harmonic basis 3"]  # spherical harmonics, times cos(2π n Δt / whole time)
    start: float  # seconds
    end: float  # seconds
    unit: float  # seconds
    least: float = 0.75  # units that a Gaussian should last (one σ) where no one knows what is between the frames

    @staticmethod
    def initial(cloud: Cloud, times: Float[Tensor, " frame"], count: int, generator: torch.Generator) -> Spacetime:
        """Points of all moments, each moving as it does: round, half transparent, lasting `LASTS` frames (one σ).

        There are `count` for every FRAMES frames, because none lasts much longer than that.
        """
        count = min(len(cloud.means), round(count * max(1.0, len(times) / FRAMES)))
        cloud = cloud[torch.randperm(len(cloud.means), generator=generator)[:count].sort().values]
        start, end = float(times[0]), float(times[-1])
        unit = (end - start or 1.0) / max(len(times) - 1, 1)  # so that velocities are small numbers
        left, right = tilted(velocities(cloud, generator) * unit)
        scale = ROUND * cloud.spacing(count / len(times))
        return Spacetime(
            means=cloud.means,
            times=(cloud.times - start) / unit,
            log_scales=torch.full((count, 3), math.log(scale)),
            log_durations=torch.full((count,), math.log(LASTS)),
            left=left,
            right=right,
            opacity_logits=torch.full((count,), 0.0),
            colours=sh_of(cloud.rgb)[:, None],
            start=start,
            end=end,
            unit=unit,
        )

    @staticmethod
    def following(asset: Any, times: Float[Tensor, " frame"]) -> Spacetime:
        """What another motion shows, as pieces of straight lines: each of its Gaussians as few in a row as stay within
        `BENT` of its size of where it goes. `times` in seconds."""
        start, end = float(times[0]), float(times[-1])
        unit = (end - start or 1.0) / max(len(times) - 1, 1)
        moments = torch.linspace(start, end, 2 * len(times) - 1).to(asset.means)
        shown = asset.slices(moments)
        size = shown.log_scales.exp().mean(-1).expand(len(moments), -1).mean(0)  # of each Gaussian
        pieces = straightened(shown.means, (moments - start) / unit, BENT * size)
        of = pieces.point
        nearest = (pieces.times[:, None] - (moments - start) / unit).abs().argmin(1)
        w, x, y, z = torch.nn.functional.normalize(shown.quaternions[nearest, of], dim=-1).unbind(-1)
        turn = torch.stack([w, -z, -y, -x], -1)  # over (t, z, y, x), whose handedness is the other one
        left, right = (multiplied(tilt, turn) for tilt in tilted(pieces.velocities))
        scales = shown.log_scales.expand(len(moments), -1, 3)[nearest, of]
        rows = asset.opacity_logits[of], asset.colours[of][:, None]
        return Spacetime(
            pieces.means,
            pieces.times,
            scales,
            pieces.durations.log(),
            left,
            right,
            *rows,
            start,
            end,
            unit,
            SHORTEST / 2,
        )

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last second that was seen."""
        return self.start, self.end

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is learnt."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.type.startswith("Float")}

    def config(self) -> dict[str, Any]:
        return {"start": self.start, "end": self.end, "unit": self.unit, "least": self.least}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], config: dict[str, Any]) -> Spacetime:
        return Spacetime(**{**config, **tensors})

    @staticmethod
    def rates() -> dict[str, float]:
        """Learning rates, of Adam."""
        return {
            "means": 1e-3,
            "times": 5e-3,
            "log_scales": 1e-2,
            "log_durations": 1e-2,
            "left": 5e-4,
            "right": 5e-4,
            "opacity_logits": 5e-2,
            "colours": 1e-2,
        }

    @staticmethod
    def point_fields() -> tuple[str, ...]:
        """Tensors with one row per Gaussian: all."""
        return tuple(field.name for field in fields(Spacetime) if field.type.startswith("Float"))

    def split(self, chosen: Int[Tensor, " point"], generator: torch.Generator) -> dict[str, Tensor]:
        """Rows of two Gaussians in the place of each chosen one: drawn from it in space and time, smaller in both."""
        rows = {name: getattr(self, name)[chosen].repeat_interleave(2, 0) for name in self.point_fields()}
        scales = torch.cat([rows["log_scales"], rows["log_durations"][:, None]], 1)
        drawn = torch.randn(scales.shape, generator=generator).to(scales) * scales.exp()
        offset = (rotations4(rows["left"], rows["right"]) @ drawn[..., None])[..., 0]
        smaller = math.log(SPLIT)
        return {
            **rows,
            "means": rows["means"] + offset[:, :3],
            "times": rows["times"] + offset[:, 3],
            "log_scales": rows["log_scales"] - smaller,
            "log_durations": rows["log_durations"] - smaller,
        }

    def penalty(self) -> Float[Tensor, ""]:
        return SHORT * (math.log(self.least) - self.log_durations).clamp_min(0).square().mean()

    def covariances(self) -> Float[Tensor, "point 4 4"]:
        """Covariance over (x, y, z, t)."""
        scales = torch.cat([self.log_scales, self.log_durations[:, None]], 1).exp()
        half = rotations4(self.left, self.right) * scales[:, None, :]
        return half @ half.mT

    def velocities(self) -> Float[Tensor, "point 3"]:
        """World units per second: covariance of place and time over variance of time."""
        covariances = self.covariances()
        return covariances[:, :3, 3] / covariances[:, 3:, 3] / self.unit

    def finished(self) -> Spacetime:
        return self

    def slices(self, times: Float[Tensor, " batch"]) -> Ellipsoids:
        """The conditional Gaussians at several seconds; means and opacities are batched, shapes do not change.

        With Σ = [[A, b], [bᵀ, c]] and δ = t − μ_t: mean μ + (b/c) δ, covariance A − b bᵀ/c, opacity o exp(−½ δ²/c). The
        weight is not normalised, so a Gaussian at its own time has its own opacity.
        """
        covariances = self.covariances()
        block, across, variance = covariances[:, :3, :3], covariances[:, :3, 3], covariances[:, 3, 3]
        local = (times.to(self.times) - self.start) / self.unit
        delta = local[:, None] - self.times  # (B, N)
        velocity = across / variance[:, None]
        means = self.means + velocity * delta[..., None]
        shapes = block - across[:, :, None] * velocity[:, None, :]
        weight = torch.exp(-0.5 * delta**2 / variance)
        opacities = torch.sigmoid(self.opacity_logits) * torch.where(weight > DROPPED, weight, torch.zeros_like(weight))
        return Ellipsoids(means, shapes, opacities, self._colours(delta))

    def at(self, time: float) -> Gaussians:
        """One instant. Points keep their number and order at all times; those that are not there have opacity 0."""
        one = self.slices(torch.tensor([time], dtype=torch.float64))
        colours = one.colours if one.colours.ndim == 3 else one.colours[0]
        return Ellipsoids(one.means[0], one.covariances, one.opacities[0], colours).gaussians()

    def _colours(self, delta: Float[Tensor, "batch point"]) -> Float[Tensor, "*batch point basis 3"]:
        harmonics = self.colours.shape[1]
        if harmonics == 1:
            return self.colours[:, 0]
        whole = max((self.end - self.start) / self.unit, 1e-6)
        orders = torch.arange(harmonics).to(delta)
        waves = torch.cos(2 * math.pi / whole * delta[..., None] * orders)  # (B, N, n)
        return torch.einsum("bpn,pnkc->bpkc", waves, self.colours)


@dataclass(frozen=True)
class Pieces:
    """Straight parts of paths; times count in frames."""

    point: Int[Tensor, " piece"]  # whose path it is part of
    means: Float[Tensor, "piece 3"]
    velocities: Float[Tensor, "piece 3"]
    times: Float[Tensor, " piece"]  # of its middle
    durations: Float[Tensor, " piece"]  # standard deviation of the weight by which it was fitted


def straightened(
    places: Float[Tensor, "moment point 3"], moments: Float[Tensor, " moment"], bent: Float[Tensor, " point"]
) -> Pieces:
    """Each path as 1, 2, 4 ... pieces, as few as stay within `bent` (root of the mean square of what a line leaves,
    under a bell over time half as wide as the piece), and no more than one for `SHORTEST` frames."""
    span = float(moments[-1] - moments[0])
    most, count = max(1, int(span / SHORTEST)), 1
    waiting, parts = torch.arange(places.shape[1], device=places.device), []
    while len(waiting):
        width = max(span / count / 2, SHORTEST / 2)
        centres = moments[0] + span * (torch.arange(count).to(moments) + 0.5) / count
        away = moments - centres[:, None]  # (piece, moment)
        weights = torch.softmax(-0.5 * (away / width) ** 2, 1)
        early = (weights * away).sum(1, keepdim=True)
        here = places[:, waiting]
        middle = torch.einsum("pm,mkc->pkc", weights, here)
        slope = torch.einsum("pm,mkc->pkc", weights * (away - early), here)
        slope = slope / (weights * (away - early) ** 2).sum(1).clamp_min(1e-6)[:, None, None]
        middle = middle - slope * early[:, :, None]
        left = here - middle[:, None] - slope[:, None] * away[:, :, None, None]  # (piece, moment, point, 3)
        error = torch.einsum("pm,pmk->pk", weights, left.square().sum(-1)).amax(0).sqrt()
        done = (error <= bent[waiting]) | (count >= most)
        point = waiting[done].repeat(count)
        lasting = torch.full_like(moments[:1], width).expand(len(point))
        found = middle[:, done].flatten(0, 1), slope[:, done].flatten(0, 1), centres.repeat_interleave(int(done.sum()))
        parts.append((point, *found, lasting))
        waiting, count = waiting[~done], min(2 * count, most)
    return Pieces(*(torch.cat(column) for column in zip(*parts, strict=True)))


def tilted(
    velocity: Float[Tensor, "point 3"],
) -> tuple[Float[Tensor, "point 4"], Float[Tensor, "point 4"]]:
    """Quaternions of the rotation that turns the time axis along (v, 1) and leaves what is orthogonal to both alone.

    A Gaussian much longer along that axis than across moves with v world units per unit of time.
    """
    whole = torch.cat([torch.ones_like(velocity[:, :1]), velocity.flip(-1)], 1)  # over (t, z, y, x)
    axis = torch.nn.functional.normalize(whole, dim=-1)
    root = torch.nn.functional.normalize(axis + torch.tensor([1.0, 0.0, 0.0, 0.0]).to(axis), dim=-1)
    return root, root * torch.tensor([1.0, -1.0, -1.0, -1.0]).to(root)  # root times root is the axis


def rotations4(left: Float[Tensor, "*batch 4"], right: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Rotations of (x, y, z, t) space from two quaternions, normalised here: left-isoclinic times right-isoclinic.

    The product is written over (t, z, y, x); reversing both axes brings it to (x, y, z, t).
    """
    a, b, c, d = torch.nn.functional.normalize(left, dim=-1).unbind(-1)
    p, q, r, s = torch.nn.functional.normalize(right, dim=-1).unbind(-1)
    left_rows = [[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]]
    right_rows = [[p, q, r, s], [-q, p, -s, r], [-r, s, p, -q], [-s, -r, q, p]]
    left_matrix = torch.stack([torch.stack(row, -1) for row in left_rows], -2)
    right_matrix = torch.stack([torch.stack(row, -1) for row in right_rows], -2)
    return (left_matrix @ right_matrix).flip(-1, -2)

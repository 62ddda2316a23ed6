"""Sparse control points that carry Gaussians along (SC-GS): what exports to a skeleton, and stays one object between
the pictures' moments.

Each point has a key pose per frame; between keys it follows a cubic curve. Gaussians are skinned to the four nearest
points (linear blend skinning), and a penalty keeps neighbouring points as rigid as possible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians.flow import carried
from loom4d.gaussians.gaussians import Gaussians, quaternions_of, rotations, sh_of, split_rows
from loom4d.gaussians.initial import Cloud
from loom4d.gaussians.motion.curve import hermite, spline
from loom4d.gaussians.motion.rigid import continued, neighbours, procrustes
from loom4d.gaussians.motion.skinning import posed, skinned

ROUND = 0.6  # first scale over the distance of neighbours
POINTS, BONES, EDGES = 160, 4, 6  # control points; those that carry a Gaussian; neighbours that stay rigid
ARAP, SMOOTH = 0.05, 0.02


@dataclass(frozen=True)
class Controlled:
    means: Float[Tensor, "gaussian 3"]  # at rest, as all that has no key axis
    quaternions: Float[Tensor, "gaussian 4"]
    log_scales: Float[Tensor, "gaussian 3"]
    opacity_logits: Float[Tensor, " gaussian"]
    colours: Float[Tensor, "gaussian basis 3"]
    bones: Int[Tensor, "gaussian bone"]  # control points that carry the Gaussian
    points: Float[Tensor, "point 3"]
    log_radii: Float[Tensor, " point"]  # how far each control point's influence reaches
    edges: Int[Tensor, "point edge"]  # neighbours of each control point
    shifts: Float[Tensor, "key point 3"]  # place minus place at rest
    turns: Float[Tensor, "key point 4"]  # rotation from rest, a quaternion of any length
    keys: list[float]  # seconds

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last second that was seen."""
        return self.keys[0], self.keys[-1]

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def config(self) -> dict[str, Any]:
        return {"keys": self.keys}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], config: dict[str, Any]) -> Controlled:
        return Controlled(**{**config, **tensors})

    @staticmethod
    def initial(cloud: Cloud, times: Float[Tensor, " frame"], count: int, generator: torch.Generator) -> Controlled:
        """The moment from which the others are reached best, carried to them by matching their surfaces."""
        start, points, places = carried(cloud, times, POINTS, generator)
        edges = neighbours(places, min(EDGES, len(points) - 1))
        turns = continued(quaternions_of(procrustes(points, places, edges)))
        chosen = torch.randperm(len(start.means), generator=generator)[:count]
        means = start.means[chosen]
        distance, bones = torch.cdist(means, points).topk(min(BONES, len(points)), largest=False)
        return Controlled(
            means=means,
            quaternions=torch.tensor([1.0, 0, 0, 0]).repeat(len(means), 1),
            log_scales=torch.full((len(means), 3), math.log(ROUND * cloud.spacing(count))),
            opacity_logits=torch.zeros(len(means)),
            colours=sh_of(start.rgb[chosen]),
            bones=bones,
            points=points,
            log_radii=torch.full((len(points),), math.log(max(float(distance.mean()), 1e-4))),
            edges=edges,
            shifts=places - points,
            turns=turns,
            keys=times.tolist(),
        )

    @staticmethod
    def rates() -> dict[str, float]:
        """Learning rates, of Adam."""
        return {
            "means": 1e-3,
            "quaternions": 5e-3,
            "log_scales": 1e-2,
            "opacity_logits": 5e-2,
            "colours": 1e-2,
            "log_radii": 5e-3,
            "shifts": 1e-3,
            "turns": 2e-3,
        }

    @staticmethod
    def point_fields() -> tuple[str, ...]:
        """Tensors with one row per Gaussian."""
        return ("means", "quaternions", "log_scales", "opacity_logits", "colours", "bones")

    def split(self, chosen: Int[Tensor, " point"], generator: torch.Generator) -> dict[str, Tensor]:
        """Rows of two smaller Gaussians in the place of each chosen one."""
        return split_rows({name: getattr(self, name)[chosen] for name in self.point_fields()}, generator)

    def penalty(self) -> Float[Tensor, ""]:
        """As rigid as possible, and no sudden change of velocity."""
        bend = torch.zeros(())
        if len(self.keys) > 2:
            bend = (self.shifts[2:] - 2 * self.shifts[1:-1] + self.shifts[:-2]).square().sum(-1).mean()
        return ARAP * self.stretch() + SMOOTH * bend / self._edge_length() ** 2

    def stretch(self) -> Float[Tensor, ""]:
        """Mean squared departure of edges from their control point's own rotation, over the mean squared edge."""
        rest = self.points[self.edges] - self.points[:, None]  # (K, edge, 3)
        places = self.points + self.shifts
        edge = places[:, self.edges] - places[:, :, None]  # (key, K, edge, 3)
        turned = torch.einsum("tkij,kej->tkei", rotations(self.turns), rest)
        return (edge - turned).square().sum(-1).mean() / self._edge_length() ** 2

    def _edge_length(self) -> Tensor:
        return (self.points[self.edges] - self.points[:, None]).square().sum(-1).mean().sqrt().clamp_min(1e-6)

    def finished(self) -> Controlled:
        """The same at its keys, with keys half way between them on the natural spline, which bends less than the
        curve from key to key; `hermite` alone needs no more than the nearest keys, which players like."""
        keys = torch.tensor(self.keys, dtype=torch.float64)
        finer = torch.cat([keys, (keys[1:] + keys[:-1]) / 2]).sort().values
        curve = spline(finer, keys).to(self.shifts)
        shifts, turns = (torch.einsum("tk,kpc->tpc", curve, values) for values in (self.shifts, self.turns))
        return replace(self, shifts=shifts, turns=turns, keys=finer.tolist())

    def slices(self, times: Float[Tensor, " batch"]) -> Gaussians:
        """Several instants: x' = Σ w [R (x − p) + p + T], and the blended rotation turns the Gaussian."""
        curve = hermite(times.to(self.shifts), torch.tensor(self.keys).to(self.shifts))  # (B, key)
        shifts = torch.einsum("bt,tkc->bkc", curve, self.shifts)
        turns = torch.einsum("bt,tkc->bkc", curve, self.turns)
        poses = posed(self.points, shifts, turns)  # (B, K, 16)
        means, quaternions = skinned(self.means, self.quaternions, self.bones, self.near_weights(), poses)
        return Gaussians(means, quaternions, self.log_scales, torch.sigmoid(self.opacity_logits), self.colours)

    def near_weights(self) -> Float[Tensor, "gaussian bone"]:
        """Skinning weights, softmax of −d²/2r² over a Gaussian's bones: rows sum to one."""
        distance = (self.means.detach()[:, None] - self.points[self.bones]).square().sum(-1)
        return torch.softmax(-distance / (2 * torch.exp(2 * self.log_radii[self.bones])), -1)

    def weights(self) -> Float[Tensor, "gaussian point"]:
        """The same over all control points: most entries are zero."""
        near = self.near_weights()
        return torch.zeros(len(self.means), len(self.points)).to(near).scatter(1, self.bones, near)

    def at(self, time: float) -> Gaussians:
        """One instant, at a time in seconds; before the first and after the last key the object stands still."""
        one = self.slices(torch.tensor([time], dtype=torch.float64))
        return Gaussians(one.means[0], one.quaternions[0], one.log_scales, one.opacities, one.colours)

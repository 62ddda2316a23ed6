"""How a surface moves between moments, from clouds of coloured points that know nothing of each other."""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.gaussians.initial import Cloud

MATCHED = 300  # points of each cloud that are matched; the others follow their neighbours
ROUNDS, BALANCING = 14, 6
COLOUR = 0.25  # difference of colour that counts as much as one match width of distance


def moving(cloud: Cloud, generator: torch.Generator) -> Cloud:
    """The same points with velocities: each moment is matched with the one before and the one after it."""
    moments = cloud.times.unique()
    velocities = torch.zeros_like(cloud.means)
    for index, moment in enumerate(moments):
        here, slopes = cloud.times == moment, []
        for other in moments[[i for i in (index - 1, index + 1) if 0 <= i < len(moments)]]:
            there = cloud.times == other
            shift = displacements(cloud.means[here], cloud.rgb[here], cloud.means[there], cloud.rgb[there], generator)
            slopes.append(shift / (other - moment))
        if slopes:
            velocities[here] = torch.stack(slopes).mean(0)
    return replace(cloud, velocities=velocities)


def displacements(
    places: Float[Tensor, "point 3"],
    colours: Float[Tensor, "point 3"],
    next_places: Float[Tensor, "other 3"],
    next_colours: Float[Tensor, "other 3"],
    generator: torch.Generator,
) -> Float[Tensor, "point 3"]:
    """Where each point goes. A soft one-to-one matching, alternating with a fit of locally affine motion.

    Both widths, of the match and of the neighbourhood that moves together, shrink from the size of the object to
    that of its details.
    """
    chosen, other = _some(len(places), generator), _some(len(next_places), generator)
    source, target = places[chosen], next_places[other]
    unlike = torch.cdist(colours[chosen], next_colours[other]) ** 2 / (2 * COLOUR**2)
    extent = float(torch.cat([places, next_places]).std(0).norm())
    moved = torch.zeros_like(source)
    for turn in range(ROUNDS):
        share = turn / (ROUNDS - 1)
        match_width, together = extent * 0.5 * 0.12**share, extent * 1.0 * 0.3**share
        cost = torch.cdist(source + moved, target) ** 2 / (2 * match_width**2) + unlike
        towards = _matched(cost) @ target - source
        moved = locally_affine(source, towards, source, together)
    return locally_affine(source, moved, places, 0.3 * extent)


def _some(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[:MATCHED]


def _matched(cost: Float[Tensor, "point other"]) -> Float[Tensor, "point other"]:
    """Rows sum to one; columns are balanced before (Sinkhorn), so that no target point is forgotten."""
    score = -cost
    for _ in range(BALANCING):
        score = score - score.logsumexp(0, keepdim=True)
        score = score - score.logsumexp(1, keepdim=True)
    return score.exp()


def locally_affine(
    places: Float[Tensor, "point 3"],
    values: Float[Tensor, "point 3"],
    queries: Float[Tensor, "query 3"],
    width: float,
) -> Float[Tensor, "query 3"]:
    """At each query, the value there of an affine map fitted to the neighbours' values (moving least squares)."""
    offset = places[None] - queries[:, None]  # (query, point, 3)
    weight = torch.exp(-(offset**2).sum(-1) / (2 * width**2)) + 1e-6
    weight = weight / weight.sum(1, keepdim=True)
    design = torch.cat([torch.ones_like(offset[..., :1]), offset / width], -1)  # (query, point, 4)
    weighted = rearrange(design * weight[..., None], "query point row -> query row point")
    ridge = torch.diag(torch.tensor([0.0, 0.05, 0.05, 0.05]))
    solution = torch.linalg.solve(weighted @ design + ridge, weighted @ values)
    return solution[:, 0]

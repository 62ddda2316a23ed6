"""How a surface moves between moments, from clouds of coloured points that know nothing of each other."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians.initial import Cloud

MATCHED, FINELY = 300, 800  # points of each cloud that are matched, when trying and in the end; the others follow
BEGUN, ROUNDS, BALANCING = 0.4, 9, 6  # of the way from the widest match to the narrowest that a moment's first round is
STARTS, CHECKED = 6, 600  # moments from which matching is tried; points by which the best is found
COLOUR = 0.12  # difference of colour that counts as much as one match width of distance


def velocities(cloud: Cloud, generator: torch.Generator) -> Float[Tensor, "point 3"]:
    """World units per second at every point: each moment is matched with the one before and the one after it."""
    moments, found = cloud.times.unique(), torch.zeros_like(cloud.means)
    for index, moment in enumerate(moments):
        here, slopes = cloud.times == moment, []
        for other in moments[[i for i in (index - 1, index + 1) if 0 <= i < len(moments)]]:
            moved = tracked(cloud[here], [cloud[cloud.times == other]], cloud.means[here], generator)[0]
            slopes.append((moved - cloud.means[here]) / (other - moment))
        if slopes:
            found[here] = torch.stack(slopes).mean(0)
    return found


def tracked(
    start: Cloud,
    moments: list[Cloud],
    points: Float[Tensor, "point 3"],
    generator: torch.Generator,
    matched: int = MATCHED,
) -> list[Float[Tensor, "point 3"]]:
    """Where `points`, which move with the cloud `start`, are at each of the following moments.

    `start` itself is matched with every moment, beginning from where it was at the one before, so errors do not add
    up. The match of `matched` points is soft and one-to-one, and alternates with a fit of locally affine motion; both
    widths, of the match and of the neighbourhood that moves together, shrink from that of limbs to that of details.
    """
    chosen = _some(start, matched, generator)
    extent = max(float(start.means.std(0, correction=0).norm()), 1e-4)  # of one point, too
    shares = [BEGUN + (1 - BEGUN) * turn / (ROUNDS - 1) for turn in range(ROUNDS)]
    together = [affine_map(chosen.means, chosen.means, extent * 0.3**share) for share in shares]
    onwards = affine_map(chosen.means, points, 0.3 * extent)
    moved, found = torch.zeros_like(chosen.means), []
    for moment in moments:
        target = _some(moment, matched, generator)
        unlike = torch.cdist(chosen.rgb, target.rgb) ** 2 / (2 * COLOUR**2)
        for share, smooth in zip(shares, together, strict=True):
            match_width = extent * 0.5 * 0.12**share
            cost = torch.cdist(chosen.means + moved, target.means) ** 2 / (2 * match_width**2) + unlike
            moved = smooth @ (_matched(cost) @ target.means - chosen.means)
        found.append(points + onwards @ moved)
    return found


def farthest(places: Float[Tensor, "point 3"], count: int) -> Int[Tensor, " chosen"]:
    """Farthest-point sampling, from the point nearest to the centre."""
    distance = torch.full((len(places),), torch.inf)
    chosen = [int((places - places.mean(0)).norm(dim=-1).argmin())]
    for _ in range(count - 1):
        distance = torch.minimum(distance, (places - places[chosen[-1]]).square().sum(-1))
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen)


def carried(
    cloud: Cloud, times: Float[Tensor, " frame"], count: int, generator: torch.Generator
) -> tuple[Cloud, Float[Tensor, "point 3"], Float[Tensor, "frame point 3"]]:
    """The moment whose surface reaches those of the others best, at most `count` of its points far from each other, and
    where these are at every frame, by matching the surfaces.

    It matters which moment that is: where limbs touch, what was matched from there cannot part. Several are tried with
    few points, and the best is matched again with more.
    """
    moments = cloud.moments()
    tried = range(0, len(moments), math.ceil(len(moments) / STARTS))
    best = min(tried, key=lambda rest: _carried_from(moments, rest, count, generator, MATCHED)[0])
    start, (_, points, places) = moments[best], _carried_from(moments, best, count, generator, FINELY)
    if len(moments) < len(times):  # a moment whose masks kept nothing takes the pose of the nearest one
        seen = torch.stack([moment.times[0] for moment in moments])
        places = places[(times[:, None] - seen).abs().argmin(1)]
    return start, points, places


def _carried_from(
    moments: list[Cloud], rest: int, count: int, generator: torch.Generator, matched: int
) -> tuple[float, Float[Tensor, "point 3"], Float[Tensor, "moment point 3"]]:
    """Mean squared distance between a moment's surface, carried along, and the surface that is there; points far from
    each other, and where they are at every moment."""
    start = moments[rest]
    points = start.means[farthest(start.means, min(count, len(start.means)))]
    watched = torch.cat([points, start.means[:CHECKED]])
    after = tracked(start, moments[rest + 1 :], watched, generator, matched)
    before = tracked(start, moments[:rest][::-1], watched, generator, matched)
    places = torch.stack([*before[::-1], watched, *after])  # (moment, K + checked, 3)
    missed = 0.0
    for there, moment in zip(places[:, len(points) :], moments, strict=True):
        distance = torch.cdist(there, moment.means[: 2 * CHECKED]).square()
        missed += float(distance.amin(0).mean() + distance.amin(1).mean()) / len(moments)
    return missed, points, places[:, : len(points)]


def _some(cloud: Cloud, count: int, generator: torch.Generator) -> Cloud:
    return cloud[torch.randperm(len(cloud.means), generator=generator)[:count]]


def _matched(cost: Float[Tensor, "point other"]) -> Float[Tensor, "point other"]:
    """Rows sum to one; columns are balanced before (Sinkhorn), so that no target point is forgotten."""
    kernel = torch.exp(cost.amin(1, keepdim=True) - cost) + 1e-12
    rows = torch.ones(len(cost))
    for _ in range(BALANCING):
        columns = 1 / (rows @ kernel)
        rows = 1 / (kernel @ columns)
    return rows[:, None] * kernel * columns


def affine_map(
    places: Float[Tensor, "point 3"], queries: Float[Tensor, "query 3"], width: float
) -> Float[Tensor, "query point"]:
    """What, times values at places, gives at each query the value there of an affine map fitted to its neighbours'
    (moving least squares)."""
    offset = places[None] - queries[:, None]  # (query, point, 3)
    weight = torch.exp(-(offset**2).sum(-1) / (2 * width**2)) + 1e-6
    weight = weight / weight.sum(1, keepdim=True)
    design = torch.cat([torch.ones_like(offset[..., :1]), offset / width], -1)  # (query, point, 4)
    weighted = rearrange(design * weight[..., None], "query point row -> query row point")
    ridge = torch.diag(torch.tensor([0.0, 0.05, 0.05, 0.05]))
    there = torch.linalg.solve(weighted @ design + ridge, torch.eye(4)[:1].mT.expand(len(queries), 4, 1))  # symmetric
    return (there.mT @ weighted)[:, 0]

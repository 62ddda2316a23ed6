"""How a surface moves between moments, from clouds of coloured points that know nothing of each other."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians.initial import Cloud

MATCHED = 300  # points of each cloud that are matched; the others follow their neighbours
ROUNDS, BALANCING = 14, 6
COLOUR = 0.25  # difference of colour that counts as much as one match width of distance


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
    start: Cloud, moments: list[Cloud], points: Float[Tensor, "point 3"], generator: torch.Generator
) -> list[Float[Tensor, "point 3"]]:
    """Where `points`, which move with the cloud `start`, are at each of the following moments.

    `start` itself is matched with every moment, beginning from where it was at the one before, so errors do not add
    up. The match is soft and one-to-one, and alternates with a fit of locally affine motion; both widths, of the
    match and of the neighbourhood that moves together, shrink from the size of the object to that of its details.
    """
    chosen = _some(start, generator)
    extent = max(float(start.means.std(0, correction=0).norm()), 1e-4)  # of one point, too
    moved, found = torch.zeros_like(chosen.means), []
    for moment in moments:
        target = _some(moment, generator)
        unlike = torch.cdist(chosen.rgb, target.rgb) ** 2 / (2 * COLOUR**2)
        for turn in range(ROUNDS):
            share = turn / (ROUNDS - 1)
            match_width, together = extent * 0.5 * 0.12**share, extent * 0.3**share
            cost = torch.cdist(chosen.means + moved, target.means) ** 2 / (2 * match_width**2) + unlike
            towards = _matched(cost) @ target.means - chosen.means
            moved = locally_affine(chosen.means, towards, chosen.means, together)
        found.append(points + locally_affine(chosen.means, moved, points, 0.3 * extent))
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
    """The moment at which the object is most spread out, at most `count` of its points far from each other, and where
    these are at every frame, by matching the surfaces."""
    moments = cloud.moments()
    rest = max(range(len(moments)), key=lambda index: float(moments[index].means.std(0, correction=0).norm()))
    start = moments[rest]
    points = start.means[farthest(start.means, min(count, len(start.means)))]
    after = tracked(start, moments[rest + 1 :], points, generator)
    before = tracked(start, moments[:rest][::-1], points, generator)
    places = torch.stack([*before[::-1], points, *after])  # (moment, K, 3)
    if len(moments) < len(times):  # a moment whose masks kept nothing takes the pose of the nearest one
        seen = torch.stack([moment.times[0] for moment in moments])
        places = places[(times[:, None] - seen).abs().argmin(1)]
    return start, points, places


def _some(cloud: Cloud, generator: torch.Generator) -> Cloud:
    return cloud[torch.randperm(len(cloud.means), generator=generator)[:MATCHED]]


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

"""How neighbouring points turn together."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians.gaussians import turned_by


def neighbours(places: Float[Tensor, "moment point 3"], count: int) -> Int[Tensor, "point edge"]:
    """The points that stay nearest over all moments: a hand that touches a hip once is no neighbour of it."""
    distance = torch.stack([torch.cdist(moment, moment) for moment in places]).amax(0)
    distance.fill_diagonal_(torch.inf)
    return distance.topk(count, largest=False).indices


def procrustes(
    rest: Float[Tensor, "point 3"], places: Float[Tensor, "moment point 3"], edges: Int[Tensor, "point edge"]
) -> Float[Tensor, "moment point 3 3"]:
    """The rotation that best carries each point's edges at rest to those at each moment."""
    return turned_by(rest[edges] - rest[:, None], places[:, edges] - places[:, :, None])


def continued(quaternions: Float[Tensor, "moment point 4"]) -> Float[Tensor, "moment point 4"]:
    """The same rotations with signs chosen so that each lies near the one before."""
    result = [quaternions[0]]
    for following in quaternions[1:]:
        flip = (following * result[-1]).sum(-1, keepdim=True) < 0
        result.append(torch.where(flip, -following, following))
    return torch.stack(result)

"""Which pixels triangles cover: of a texture, or of a picture."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from loom4d.cameras import Cameras


def covered(
    corners: Float[ndarray, "face 3 2"], size: int, inside: float = -1e-9
) -> tuple[Int[ndarray, " texel"], Int[ndarray, " texel"], Float[ndarray, "texel 3"]]:
    """Texels whose centres lie in a triangle: their places in the picture, the triangles, barycentric coordinates."""
    low = np.floor(corners.min(1) - 0.5).astype(np.int64).clip(0, size - 1)
    spans = np.ceil(corners.max(1) - 0.5).astype(np.int64).clip(0, size - 1) - low + 1
    area = spans.prod(1)
    owner = np.repeat(np.arange(len(corners)), area)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(area) - area, area)
    column, row = low[owner, 0] + step % spans[owner, 0], low[owner, 1] + step // spans[owner, 0]
    a, b, c = (corners[owner, corner] for corner in range(3))
    x, y = column + 0.5, row + 0.5
    twice = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    safe = np.where(np.abs(twice) < 1e-12, np.inf, twice)
    u = ((b[:, 0] - x) * (c[:, 1] - y) - (b[:, 1] - y) * (c[:, 0] - x)) / safe
    v = ((c[:, 0] - x) * (a[:, 1] - y) - (c[:, 1] - y) * (a[:, 0] - x)) / safe
    weights = np.stack([u, v, 1 - u - v], -1)
    keep = (weights >= inside).all(1) & np.isfinite(safe)
    return (row * size + column)[keep], owner[keep], weights[keep]


def outlines(
    vertices: Float[Tensor, "vertex 3"], faces: Int[Tensor, "face 3"], cameras: Cameras, size: int
) -> Bool[Tensor, "view size size"]:
    """The pixels of `size`² pictures whose centres a mesh covers; all of it has to be in front of the cameras."""
    masks = torch.zeros(cameras.batch_shape[0], size * size, dtype=torch.bool)
    for mask, view in zip(masks, range(len(masks)), strict=True):
        corners = cameras[view].project(vertices)[0][faces].double().numpy() * size
        mask[torch.from_numpy(covered(corners, size)[0])] = True
    return masks.reshape(-1, size, size)

"""Distance of pictures as a trained network sees them: between its features, not between pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.grid import ImageGrid

Features = Callable[[Float[Tensor, "b 4 height width"]], Sequence[Float[Tensor, "b _ _ _"]]]  # of premultiplied RGBA


def perceptual_distance(ours: ImageGrid, truth: ImageGrid, features: Features) -> Float[Tensor, "view frame"]:
    """Squared distance of the features, each of unit length over channels at its place, averaged over places and
    stages: 0 for equal pictures, 2 for features at right angles, 4 at most."""
    a, b = (features(rearrange(grid.premultiplied, "v f c h w -> (v f) c h w")) for grid in (ours, truth))
    each = [(_unit(x) - _unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)]
    return rearrange(torch.stack(each).mean(0), "(v f) -> v f", v=truth.views)


def _unit(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return torch.nn.functional.normalize(maps, dim=1)

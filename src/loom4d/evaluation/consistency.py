"""Whether a grid is one moving object: how its pictures change over time, and whether its outlines fit one body."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from loom4d.cameras import seen_region
from loom4d.evaluation.scores import crops
from loom4d.gaussians.initial import sampled, voxel_centres
from loom4d.grid import ImageGrid

VOXELS, BINS = 32, 24  # per side: of the hull, and of the maps it is compared on (a voxel is smaller than a bin)


def motion(grid: ImageGrid) -> Float[Tensor, " view"]:
    """Mean absolute change between consecutive pictures of each view, on white."""
    return grid.on(1.0).diff(dim=1).abs().mean((1, 2, 3, 4))


def change_psnr(ours: ImageGrid, truth: ImageGrid, views: Bool[Tensor, " view"] | None = None) -> float:
    """PSNR in dB of the changes between consecutive frames against the truth's, over the object's crops: flicker and
    motion that is missing or wrong cost alike. `views` chooses some; 100 dB where nothing differs."""
    boxes = crops(truth)
    mask = (boxes[:, 1:] | boxes[:, :-1])[:, :, None].float()
    error = (ours.on(1.0).diff(dim=1) - truth.on(1.0).diff(dim=1)).square() * mask
    chosen = slice(None) if views is None else views
    mean = error[chosen].sum() / (3 * mask[chosen].sum()).clamp_min(1)
    return min(100.0, -10 * torch.log10(mean.clamp_min(1e-10)).item())


def hull_agreement(grid: ImageGrid) -> Float[Tensor, " frame"]:
    """Share of each frame's outlines that the visual hull of all views explains: 1 where some body has them all.

    A view that shows more than the others allow loses that part, and takes from the others what it does not show.
    """
    centres = voxel_centres(seen_region(grid.cameras), VOXELS).to(grid.rgba)
    return torch.stack([_agreement(grid[:, frame : frame + 1], centres) for frame in range(grid.frames)])


def _agreement(column: ImageGrid, centres: Float[Tensor, "voxel 3"]) -> Float[Tensor, ""]:
    alphas = column.rgba[:, 0, 3:]  # (V, 1, H, W)
    places = column.cameras.project(repeat(centres, "n c -> v 1 n c", v=column.views))[0][:, 0]  # (V, N, 2)
    body = sampled(alphas, places)[..., 0].amin(0)  # (N,)
    cells = (places * BINS).floor().long()
    inside = ((cells >= 0) & (cells < BINS)).all(-1)
    flat = (cells[..., 1] * BINS + cells[..., 0]).clamp(0, BINS**2 - 1)
    shadow = alphas.new_zeros(column.views, BINS**2).scatter_reduce(1, flat, body * inside, "amax")
    outlines = rearrange(torch.nn.functional.adaptive_avg_pool2d(alphas, BINS), "v 1 h w -> v (h w)")
    return torch.minimum(shadow, outlines).sum() / outlines.sum().clamp_min(1e-6)

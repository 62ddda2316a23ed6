"""Scores of one grid against another: what a person would look at, the object, not the empty paper around it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loom4d.gaussians.losses import ssim, statistics
from loom4d.grid import ImageGrid

MARGIN = 2  # pixels around the object that its crop keeps
VISIBLE = 0.02  # alpha from which a pixel counts as the object's


def psnr(ours: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"]) -> float:
    """Peak signal-to-noise ratio in dB of values in 0..1, over all of them at once; 100 dB where nothing differs."""
    return min(100.0, -10 * torch.log10((ours - truth).square().mean().clamp_min(1e-10)).item())


def crops(truth: ImageGrid) -> Bool[Tensor, "view frame height width"]:
    """Each picture's crop: the bounding box of the object in the truth, and a small margin."""
    seen = truth.rgba[:, :, 3] > VISIBLE
    rows, columns = seen.any(-1), seen.any(-2)
    inside = _between(rows)[..., :, None] & _between(columns)[..., None, :]
    flat = inside.flatten(0, 1)[:, None].float()
    return torch.nn.functional.max_pool2d(flat, 2 * MARGIN + 1, 1, MARGIN)[:, 0].bool().reshape(inside.shape)


def _between(marks: Bool[Tensor, "*batch n"]) -> Bool[Tensor, "*batch n"]:
    """True from the first mark to the last."""
    forth = marks.int().cummax(-1).values
    back = marks.int().flip(-1).cummax(-1).values.flip(-1)
    return (forth & back).bool()


def foreground_psnr(ours: ImageGrid, truth: ImageGrid) -> Float[Tensor, "view frame"]:
    """PSNR in dB over each picture's crop, on white; NaN where the truth shows nothing."""
    mask = crops(truth)[:, :, None].float()
    error = ((ours.on(1.0) - truth.on(1.0)).square() * mask).sum((2, 3, 4))
    return (-10 * torch.log10(error / (3 * mask.sum((2, 3, 4))))).clamp_max(100.0)


def similarity(ours: ImageGrid, truth: ImageGrid) -> Float[Tensor, "view frame"]:
    """Mean SSIM of each picture on white."""
    return ssim(ours.on(1.0), statistics(truth.on(1.0)))


def silhouette_iou(ours: ImageGrid, truth: ImageGrid) -> Float[Tensor, "view frame"]:
    """Intersection over union of the alphas, as fuzzy sets: Σ min / Σ max."""
    a, b = ours.rgba[:, :, 3], truth.rgba[:, :, 3]
    return torch.minimum(a, b).sum((-1, -2)) / torch.maximum(a, b).sum((-1, -2)).clamp_min(1e-6)


def compare(ours: ImageGrid, truth: ImageGrid, cells: Bool[Tensor, "view frame"] | None = None) -> dict[str, float]:
    """Means over the chosen cells (all by default): foreground PSNR in dB, SSIM, silhouette IoU."""
    chosen = torch.ones(truth.rgba.shape[:2], dtype=torch.bool) if cells is None else cells
    scores = {
        "foreground_psnr": foreground_psnr(ours, truth),
        "ssim": similarity(ours, truth),
        "silhouette_iou": silhouette_iou(ours, truth),
    }
    return {name: round(values[chosen].nanmean().item(), 4) for name, values in scores.items()}

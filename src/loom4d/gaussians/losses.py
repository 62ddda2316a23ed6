"""Distances between pictures, and what keeps Gaussians well-behaved where no picture looks.

Pictures are premultiplied RGBA: colour times alpha, and alpha.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians import native_losses
from loom4d.gaussians.gaussians import turned_by

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window (Wang et al.)
C1, C2 = 0.01**2, 0.03**2


@functools.lru_cache(maxsize=32)
def band_matrix(size: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "size size"]:
    """Filtering a line of `size` pixels with SSIM's window as a matrix; outside the line there are zeros."""
    place = torch.arange(size)
    offset = place[:, None] - place + WINDOW // 2
    inside = (offset >= 0) & (offset < WINDOW)
    return torch.where(inside, taps(torch.float64)[offset.clamp(0, WINDOW - 1)], 0.0).to(dtype)


def taps(dtype: torch.dtype = torch.float32) -> Float[Tensor, " tap"]:
    """SSIM's window along one axis; it sums to one."""
    values = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) / SIGMA) ** 2)
    return (values / values.sum()).to(dtype)


def windowed(pictures: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height width"]:
    """Mean over SSIM's window around every pixel, as two matrix products: some 20 times faster on CPU than `conv2d`."""
    rows, columns = (band_matrix(size, pictures.dtype).to(pictures.device) for size in pictures.shape[-2:])
    return rows @ pictures @ columns.mT


@dataclass(frozen=True)
class Statistics:
    """What SSIM needs of a target; it does not change while a render approaches it."""

    pictures: Float[Tensor, "*batch height width"]
    mean: Float[Tensor, "*batch height width"]
    variance: Float[Tensor, "*batch height width"]

    def __getitem__(self, index) -> Statistics:
        return Statistics(self.pictures[index], self.mean[index], self.variance[index])


def statistics(pictures: Float[Tensor, "*batch height width"]) -> Statistics:
    mean = windowed(pictures)
    return Statistics(pictures, mean, windowed(pictures**2) - mean**2)


def ssim_map(
    rendered: Float[Tensor, "*batch height width"], target: Statistics
) -> Float[Tensor, "*batch height width"]:
    """Structural similarity at every pixel for values in 0..1; zero padding, as the 3DGS family uses it."""
    parts = (rendered, target.pictures, target.mean, target.variance)
    if not native_losses.usable(*parts):
        return ssim_map_reference(rendered, target)
    planes = [part.reshape(-1, *part.shape[-2:]) for part in parts]
    return native_losses.SsimMap.apply(*planes, taps()).reshape(rendered.shape)


def ssim_map_reference(
    rendered: Float[Tensor, "*batch height width"], target: Statistics
) -> Float[Tensor, "*batch height width"]:
    """`ssim_map` in plain tensors: any dtype, any device."""
    mean, square, product = windowed(torch.stack([rendered, rendered**2, rendered * target.pictures])).unbind(0)
    variance, covariance = square - mean**2, product - mean * target.mean
    luminance = (2 * mean * target.mean + C1) / (mean**2 + target.mean**2 + C1)
    return luminance * (2 * covariance + C2) / (variance + target.variance + C2)


def ssim(
    rendered: Float[Tensor, "*batch channel height width"],
    target: Statistics,
    weights: Float[Tensor, "*batch height width"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean structural similarity of each picture; `weights` in 0..1 say how much a pixel's dissimilarity counts."""
    similarity = ssim_map(rendered, target).mean(-3)
    if weights is not None:
        similarity = 1 - weights * (1 - similarity)
    return similarity.mean((-2, -1))


def confidence(similarity: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Diffusion²'s C_ssim: a cell that disagrees with the current asset pulls less on it. No gradient passes."""
    return similarity.detach().clamp(0, 1)


def composite_l1(
    rendered: Float[Tensor, "*batch 4 height width"],
    target: Float[Tensor, "*batch 4 height width"],
    background: Float[Tensor, "*batch 3"],
) -> Float[Tensor, "*batch"]:
    """Mean absolute difference of each picture over its background."""
    difference = rendered - target
    colour = difference[..., :3, :, :] - difference[..., 3:, :, :] * background[..., None, None]
    return colour.abs().mean((-3, -2, -1))


def alpha_l1(
    rendered: Float[Tensor, "*batch 4 height width"], target: Float[Tensor, "*batch 4 height width"]
) -> Float[Tensor, "*batch"]:
    return (rendered[..., 3, :, :] - target[..., 3, :, :]).abs().mean((-2, -1))


def absolute(
    rendered: Float[Tensor, "picture 4 height width"],
    target: Float[Tensor, "picture 4 height width"],
    background: Float[Tensor, "picture 3"],
    shares: tuple[float, float],
    weights: Float[Tensor, "picture height width"] | None = None,
) -> Float[Tensor, " picture"]:
    """Shares of `composite_l1` and of `alpha_l1`, added; `weights` in 0..1 say how much a pixel counts."""
    pixels = rendered.shape[-2] * rendered.shape[-1]
    maps = () if weights is None else (weights,)
    if native_losses.usable(rendered, target, background, *maps):
        scaled = (shares[0] / (3 * pixels), shares[1] / pixels)
        return native_losses.Absolute.apply(rendered, target, background, weights, scaled)
    difference = rendered - target
    if weights is not None:
        difference = difference * weights[:, None]
    nothing = torch.zeros_like(difference)
    return shares[0] * composite_l1(difference, nothing, background) + shares[1] * alpha_l1(difference, nothing)


def psnr(
    rendered: Float[Tensor, "*batch 4 height width"], target: Float[Tensor, "*batch 4 height width"]
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio of each picture over white, in dB."""
    difference = rendered - target
    colour = difference[..., :3, :, :] - difference[..., 3:, :, :]
    return -10 * (colour**2).mean((-3, -2, -1)).clamp_min(1e-12).log10()


# --- regularisers ---------------------------------------------------------------------------------------------------


def opacity_entropy(opacities: Float[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Mean binary entropy in nats: 0 when every Gaussian is either solid or gone."""
    o = opacities.clamp(1e-6, 1 - 1e-6)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def anisotropy(log_scales: Float[Tensor, "point axis"], limit: float) -> Float[Tensor, ""]:
    """Mean excess of longest over shortest axis beyond `limit` (PhysGaussian, with scales and not their logarithms)."""
    spread = log_scales.amax(-1) - log_scales.amin(-1)
    return (spread.clamp_max(10.0).exp() - limit).clamp_min(0).mean()


def oversize(log_scales: Float[Tensor, "point axis"], limit: float) -> Float[Tensor, ""]:
    """Mean excess of the longest axis over `limit`, relative to it."""
    return ((log_scales.amax(-1).clamp_max(5.0).exp() / limit) - 1).clamp_min(0).mean()


def plane_smoothness(planes: Float[Tensor, "*batch channel first second"]) -> Float[Tensor, ""]:
    """Mean squared second difference along the first axis."""
    return ((planes[..., 2:, :] - 2 * planes[..., 1:-1, :] + planes[..., :-2, :]) ** 2).mean()


def depth_smoothness(
    depth: Float[Tensor, "*batch 1 height width"],
    alpha: Float[Tensor, "*batch 1 height width"],
    guide: Float[Tensor, "*batch channel height width"],
    unit: float,
    edge: float = 10.0,
) -> Float[Tensor, ""]:
    """Mean absolute difference of neighbouring depths, in `unit`s, where both pixels are covered and the guide, a
    picture in 0..1, is flat: exp(−edge · |∂guide|) weighs a pair. Depth may jump where colour does."""
    total = torch.zeros(()).to(depth)
    for axis in (-1, -2):
        size = depth.shape[axis]
        near, far = _pairs(depth, axis, size)
        one, other = _pairs(alpha, axis, size)
        jump, covered = (far - near).abs() / unit, (one * other).detach()
        a, b = _pairs(guide, axis, size)
        flat = torch.exp(-edge * (a - b).abs().mean(-3, keepdim=True))
        total = total + (jump * covered * flat).sum() / covered.sum().clamp_min(1)
    return total


def _pairs(tensor: Tensor, axis: int, size: int) -> tuple[Tensor, Tensor]:
    """All but the last, and all but the first, along an axis."""
    return tensor.narrow(axis, 0, size - 1), tensor.narrow(axis, 1, size - 1)


def arap(
    before: Float[Tensor, "point 3"], after: Float[Tensor, "*batch point 3"], edges: Int[Tensor, "point edge"]
) -> Float[Tensor, ""]:
    """As rigid as possible: Σ ‖(pⱼ − pᵢ)′ − R̂ᵢ (pⱼ − pᵢ)‖² over each point's edges, R̂ᵢ their best rotation, which gets
    no gradient; mean over points, in units of the mean squared edge before."""
    rest = before[edges] - before[:, None]  # (point, edge, 3)
    moved = after[..., edges, :] - after[..., :, None, :]
    with torch.no_grad():
        rotation = turned_by(rest, moved)
    turned = torch.einsum("...pij,pej->...pei", rotation, rest)
    return (moved - turned).square().sum(-1).mean() / rest.square().sum(-1).mean().clamp_min(1e-12)


def acceleration(places: Float[Tensor, "moment point 3"], unit: float) -> Float[Tensor, ""]:
    """Mean squared second difference over even moments, in `unit`s of length: no sudden change of velocity."""
    return ((places[2:] - 2 * places[1:-1] + places[:-2]) / unit).square().sum(-1).mean()

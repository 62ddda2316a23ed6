"""What a fit minimises: the distance of renders to a grid's pictures, and what keeps Gaussians well-behaved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.cameras import Cameras, Region, cells
from loom4d.gaussians import losses
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.rasterize import Rendering
from loom4d.grid import ImageGrid

CACHED_PIXELS = 2**26  # targets up to this size keep their SSIM statistics
RIGID_POINTS, RIGID_EDGES = 400, 6  # of the ARAP regulariser

Perceptual = Callable[[Tensor, Tensor], Tensor]  # (rendered, target) premultiplied RGBA -> distance per picture


@dataclass(frozen=True)
class LossWeights:
    """Shares of the loss; what is 0 is not computed."""

    l1: float = 0.8  # over a background drawn anew for every picture
    ssim: float = 0.2  # of 1 − SSIM on premultiplied RGBA
    alpha: float = 0.3
    perceptual: float = 0.0  # of the distance that the fit was given
    depth: float = 0.0  # smooth depth where the target's colour is flat; 1 is the object's half side per pixel
    opacity: float = 0.0  # mean opacity; falls evenly to nothing at half of the iterations
    entropy: float = 0.0  # of opacities
    anisotropy: float = 0.0  # needles
    oversize: float = 0.0
    rigid: float = 0.0  # ARAP of neighbouring Gaussians, between rest and another moment
    steady: float = 0.0  # sudden changes of velocity, over thirds of a frame
    motion: float = 1.0  # the motion's own penalty


@dataclass(frozen=True)
class Targets:
    """The grid as one flat batch of cells."""

    pictures: Float[Tensor, "cell 4 height width"]  # premultiplied
    statistics: losses.Statistics | None
    cameras: Cameras
    seconds: Float[Tensor, " cell"]
    trust: Float[Tensor, " cell"]  # mean 1
    confidence: Float[Tensor, "cell height width"] | None  # 0..1; None is 1 everywhere
    views: int

    @property
    def frames(self) -> int:
        return len(self.pictures) // self.views

    def statistics_of(self, cell: Int[Tensor, " batch"]) -> losses.Statistics:
        return losses.statistics(self.pictures[cell]) if self.statistics is None else self.statistics[cell]


def flat_targets(
    grid: ImageGrid, trust: Float[Tensor, "view frame"], confidence: Float[Tensor, "view frame h w"] | None = None
) -> Targets:
    """`confidence` may have another resolution than the pictures."""
    pictures = rearrange(grid.premultiplied, "view frame c h w -> (view frame) c h w").contiguous()
    statistics = losses.statistics(pictures) if pictures.numel() <= CACHED_PIXELS else None
    maps = None
    if confidence is not None:
        flat = rearrange(confidence.to(pictures), "view frame h w -> (view frame) 1 h w")
        maps = torch.nn.functional.interpolate(flat, grid.size, mode="bilinear", antialias=True)[:, 0].clamp(0, 1)
    cameras, seconds = cells(grid.cameras), grid.times.repeat(grid.views)
    return Targets(pictures, statistics, cameras, seconds, trust.flatten().to(pictures), maps, grid.views)


def picture_loss(
    rendering: Rendering,
    targets: Targets,
    cell: Int[Tensor, " batch"],
    background: Float[Tensor, "batch 3"],
    weights: LossWeights,
    perceptual: Perceptual | None,
    doubting: bool,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Loss of each picture, times its trust, and its SSIM. `doubting` weighs a picture by Diffusion²'s confidences:
    C_ssim is its SSIM, C_lpips is 1 − its perceptual distance."""
    rendered, target = rendering.premultiplied, targets.statistics_of(cell)
    maps = None if targets.confidence is None else targets.confidence[cell]
    similarity = losses.ssim(rendered, target, maps)
    each = losses.absolute(rendered, target.pictures, background, (weights.l1, weights.alpha), maps)
    each = each + weights.ssim * (1 - similarity)
    if doubting:
        each = each * losses.confidence(similarity)
    if weights.perceptual and perceptual is not None:
        distance = perceptual(rendered, target.pictures)
        if maps is not None:
            distance = distance * maps.mean((-2, -1))
        each = each + weights.perceptual * distance * (losses.confidence(1 - distance) if doubting else 1.0)
    return each * targets.trust[cell], similarity


def depth_loss(
    rendering: Rendering, targets: Targets, cell: Int[Tensor, " batch"], region: Region
) -> Float[Tensor, ""]:
    guide = targets.pictures[cell, :3]
    return losses.depth_smoothness(rendering.depth, rendering.alpha, guide, region.half)


def regularisation(
    asset: DynamicGaussians,
    weights: LossWeights,
    region: Region,
    frames: int,
    done: float,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """What does not depend on any picture; `done` is the share of the iterations that are over."""
    tensors = asset.tensors()
    total = weights.motion * asset.penalty()
    if weights.opacity and done < 0.5:
        price = weights.opacity * (1 - 2 * done)
        total = total + price * torch.sigmoid(tensors["opacity_logits"]).mean()
    if weights.entropy:
        total = total + weights.entropy * losses.opacity_entropy(torch.sigmoid(tensors["opacity_logits"]))
    if weights.anisotropy:
        total = total + weights.anisotropy * losses.anisotropy(tensors["log_scales"], 5.0)
    if weights.oversize:
        total = total + weights.oversize * losses.oversize(tensors["log_scales"], 0.1 * region.half)
    if weights.rigid:
        total = total + weights.rigid * rigidity(asset, generator)
    if weights.steady and frames > 2:
        total = total + weights.steady * steadiness(asset, frames, region, generator)
    return total


def rigidity(asset: DynamicGaussians, generator: torch.Generator) -> Float[Tensor, ""]:
    """ARAP of some Gaussians and their neighbours between two moments drawn from the clip."""
    start, end = asset.time_range
    times = start + (end - start) * torch.rand(2, generator=generator)
    points = asset.tensors()["means"].shape[0]
    chosen = torch.randperm(points, generator=generator)[:RIGID_POINTS]
    places = asset.slices(times).means[:, chosen]
    if len(chosen) < 3:
        return torch.zeros(())
    distance = torch.cdist(places[0].detach(), places[0].detach())
    distance.fill_diagonal_(math.inf)
    edges = distance.topk(min(RIGID_EDGES, len(chosen) - 1), largest=False).indices
    return losses.arap(places[0], places[1:], edges)


def steadiness(asset: DynamicGaussians, frames: int, region: Region, generator: torch.Generator) -> Float[Tensor, ""]:
    """Second difference of the means around a moment drawn from the clip, a third of a frame apart."""
    start, end = asset.time_range
    apart = (end - start) / (frames - 1) / 3
    middle = start + apart + (end - start - 2 * apart) * torch.rand(1, generator=generator)
    places = asset.slices(middle + apart * torch.tensor([-1.0, 0.0, 1.0])).means
    return losses.acceleration(places, 0.01 * region.half)

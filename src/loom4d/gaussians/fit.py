"""Fitting dynamic Gaussians to an image grid by gradient descent on its pictures."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.cameras import Cameras, cells, orbit, seen_region
from loom4d.gaussians import losses
from loom4d.gaussians.asset import render
from loom4d.gaussians.initial import ball_cloud, hull_cloud
from loom4d.gaussians.motion import MOTIONS, DynamicGaussians
from loom4d.gaussians.rasterize import RasterOptions, default_backend, rasterize
from loom4d.grid import ImageGrid, png
from loom4d.runs import Event, InputError, Work

STAGE = "fit"
MOMENTUM, SQUARES = 0.9, 0.99  # Adam's averages, over the last 10 and 100 steps
CACHED_PIXELS = 2**26  # targets up to this size keep their SSIM statistics

Perceptual = Callable[[Tensor, Tensor], Tensor]  # (rendered, target) premultiplied RGBA -> distance per picture


@dataclass(frozen=True)
class LossWeights:
    """Shares of the loss; what is 0 is not computed."""

    l1: float = 0.8  # over a background drawn anew for every picture
    ssim: float = 0.2  # of 1 − SSIM on premultiplied RGBA
    alpha: float = 0.3
    perceptual: float = 0.0
    entropy: float = 0.0  # of opacities
    anisotropy: float = 0.0  # needles
    oversize: float = 0.0
    motion: float = 1.0  # the motion's own penalty


@dataclass(frozen=True)
class FitConfig:
    """How a fit runs; `preview()`, `balanced()` and `best()` are the presets."""

    motion: str = "controlled"  # stays one object between the frames; "spacetime" where parts come and go
    count: int = 4000  # Gaussians
    iterations: int = 600
    batch: int = 8  # pictures per iteration
    rate: float = 1.0  # multiplies the motion's learning rates
    final_rate: float = 0.05  # what is left of them at the end; they fall exponentially
    coarse: float = 0.0  # share of the iterations, the first ones, at half resolution
    hull_resolution: int = 48  # voxels per side
    thinnest: float = 0.3  # no axis of a Gaussian gets shorter than so many pixels at the object's distance
    needle: float = 4.0  # nor the longest longer than so many times the middle one
    confidence: bool = False  # trust a cell by its similarity to the render (Diffusion²), against inconsistent grids
    weights: LossWeights = field(default_factory=LossWeights)
    seed: int = 0
    backend: str | None = None  # of the rasteriser
    preview_every: int = 100  # iterations; 0 for none
    state_every: int = 100  # iterations between calls of `on_state`


def preview() -> FitConfig:
    return FitConfig(count=2500, iterations=150)


def balanced() -> FitConfig:
    return FitConfig()


def best() -> FitConfig:
    return replace(balanced(), count=8000, iterations=2000)


PRESETS: dict[str, Callable[[], FitConfig]] = {"preview": preview, "balanced": balanced, "best": best}


@dataclass(frozen=True)
class FitState:
    """What a killed fit needs to go on to the same bytes: everything that is learnt, and Adam's averages."""

    step: int  # iterations done
    tensors: dict[str, Tensor]  # "asset.NAME", "mean.NAME", "square.NAME"
    motion: dict[str, Any]  # the motion's config


@dataclass(frozen=True)
class Targets:
    """The grid as one flat batch of cells."""

    pictures: Float[Tensor, "cell 4 height width"]  # premultiplied
    statistics: losses.Statistics | None
    cameras: Cameras
    seconds: Float[Tensor, " cell"]
    trust: Float[Tensor, " cell"]  # mean 1

    def statistics_of(self, cell: Int[Tensor, " batch"]) -> losses.Statistics:
        return losses.statistics(self.pictures[cell]) if self.statistics is None else self.statistics[cell]


def fit(
    grid: ImageGrid,
    config: FitConfig,
    trust: Float[Tensor, "view frame"] | None = None,
    held_out: ImageGrid | None = None,
    perceptual: Perceptual | None = None,
    resume: FitState | None = None,
    on_state: Callable[[FitState], None] | None = None,
) -> Work[DynamicGaussians]:
    """An asset whose pictures from the grid's cameras at the grid's times are the grid.

    `trust` weighs cells, those of a given picture above generated ones. `on_state` is handed a state every
    `state_every` iterations, after which a fit with `resume` ends in the same bytes as one that was never stopped.
    `held_out` is scored while the fit runs. The same seed gives the same bytes on one machine. Where the loss or a
    gradient is not finite the fit stops, says at which step, and returns the last good asset.
    """
    started = time.perf_counter()
    yield from _notes(grid, config)
    trusted = _checked_trust(grid, trust)
    stages = [flat_targets(grid, trusted)]
    if config.coarse > 0:
        stages.insert(0, flat_targets(grid.resized(max(16, grid.size[0] // 2), max(16, grid.size[1] // 2)), trusted))
    state = resume or initial_state(grid, config, trusted)
    rates = MOTIONS[config.motion].rates()
    thinnest = config.thinnest * 2 * seen_region(grid.cameras).half / max(grid.size)
    stopped = ""
    for step in range(state.step, config.iterations):
        targets = stages[0] if step < config.coarse * config.iterations else stages[-1]
        with _one_torch_thread() as threads:
            loss, similarity, gradients = _gradients(state, targets, step, config, threads, perceptual)
            if not math.isfinite(loss) or not all(bool(g.isfinite().all()) for g in gradients.values()):
                stopped = f"loss {loss:.4g} or its gradient is not finite at iteration {step + 1}; kept the one before"
                break
            decay = config.rate * config.final_rate ** (step / config.iterations)
            state = _adam(state, gradients, {name: rate * decay for name, rate in rates.items()})
            bounded_shapes(state.tensors["asset.log_scales"], thinnest, config.needle)
        done = step + 1
        if on_state is not None and config.state_every and done % config.state_every == 0:
            on_state(state)
        if done % max(1, config.iterations // 100) == 0:
            data = {"loss": round(loss, 5), "ssim": round(similarity, 4), "seconds": _since(started)}
            yield Event(STAGE, "progress", step=done, total=config.iterations, data=data)
        if config.preview_every and done % config.preview_every == 0 and done < config.iterations:
            yield _preview(asset_of(state, config.motion), grid, held_out, done, config)
    if stopped:
        if on_state is not None:
            on_state(state)
        yield Event(STAGE, "note", stopped, state.step, config.iterations)
    asset = asset_of(state, config.motion)
    scores = {"given_psnr": score(asset, grid), "seconds": _since(started), "gaussians": len(asset.tensors()["means"])}
    if held_out is not None:
        scores["held_out_psnr"] = score(asset, held_out)
    yield Event(STAGE, "done", step=state.step, total=config.iterations, data=scores)
    return asset


def asset_of(state: FitState, motion: str) -> DynamicGaussians:
    """The asset in a state, of the motion by that name."""
    return MOTIONS[motion].from_tensors(_part(state, "asset"), state.motion)


def score(asset: DynamicGaussians, grid: ImageGrid) -> float:
    """Mean PSNR in dB over the grid's cells, on white."""
    rendered = render(asset, grid.cameras, grid.times, *grid.size)
    return round(float(losses.psnr(rendered.premultiplied, grid.premultiplied).mean()), 2)


def initial_state(grid: ImageGrid, config: FitConfig, trust: Float[Tensor, "view frame"]) -> FitState:
    """The start of a fit: Gaussians on the visual hull, or in a ball where the masks tell nothing."""
    if config.motion not in MOTIONS:
        raise ValueError(f"unknown motion {config.motion!r}; choose one of {', '.join(MOTIONS)}")
    generator = torch.Generator().manual_seed(config.seed)
    cloud = hull_cloud(grid, config.count, config.hull_resolution, generator, trust)
    cloud = ball_cloud(grid, config.count, generator) if cloud is None else cloud
    asset = MOTIONS[config.motion].initial(cloud, grid.times, config.count, generator)
    tensors = {name: tensor.detach().clone() for name, tensor in asset.tensors().items()}
    zeros = {name: torch.zeros_like(tensors[name]) for name in MOTIONS[config.motion].rates()}
    parts = {"asset": tensors, "mean": zeros, "square": zeros}
    named = {f"{part}.{name}": tensor for part, group in parts.items() for name, tensor in group.items()}
    return FitState(0, named, asset.config())


def flat_targets(grid: ImageGrid, trust: Float[Tensor, "view frame"]) -> Targets:
    pictures = rearrange(grid.premultiplied, "view frame c h w -> (view frame) c h w").contiguous()
    statistics = losses.statistics(pictures) if pictures.numel() <= CACHED_PIXELS else None
    return Targets(pictures, statistics, cells(grid.cameras), grid.times.repeat(grid.views), trust.flatten())


def batch_cells(step: int, cells_count: int, config: FitConfig) -> Int[Tensor, " batch"]:
    """The cells of one iteration: every cell once per round, each round in its own order."""
    size = min(config.batch, cells_count)
    rounds = math.ceil(cells_count / size)
    turn, place = divmod(step, rounds)
    order = torch.randperm(cells_count, generator=_generator(config.seed, 1, turn))
    return order[place * size : (place + 1) * size]


def _generator(seed: int, stream: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 40) + (stream << 32) + index)


def _gradients(
    state: FitState, targets: Targets, step: int, config: FitConfig, threads: int, perceptual: Perceptual | None
) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, mean SSIM and gradients of one iteration."""
    tensors, motion = _part(state, "asset"), MOTIONS[config.motion]
    leaves = {name: tensors[name].requires_grad_() for name in motion.rates()}
    asset = motion.from_tensors(tensors, state.motion)
    cell = batch_cells(step, len(targets.pictures), config)
    height, width = targets.pictures.shape[-2:]
    options = RasterOptions(height, width, threads=threads)
    scene = asset.slices(targets.seconds[cell])
    rendered = rasterize(scene, targets.cameras[cell], options, config.backend).premultiplied
    target, weights = targets.statistics_of(cell), config.weights
    background = torch.rand(len(cell), 3, generator=_generator(config.seed, 2, step))
    similarity = losses.ssim(rendered, target)
    each = weights.l1 * losses.composite_l1(rendered, target.pictures, background)
    each = each + weights.ssim * (1 - similarity) + weights.alpha * losses.alpha_l1(rendered, target.pictures)
    if weights.perceptual and perceptual is not None:
        distance = perceptual(rendered, target.pictures)
        trust = 1 - distance.detach().clamp(0, 1) if config.confidence else 1.0
        each = each + weights.perceptual * trust * distance
    if config.confidence:
        each = each * losses.confidence(similarity)
    loss = (each * targets.trust[cell]).mean() + regularisation(asset, weights, targets)
    loss.backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return loss.item(), similarity.mean().item(), gradients


def regularisation(asset: DynamicGaussians, weights: LossWeights, targets: Targets) -> Float[Tensor, ""]:
    """What does not depend on any picture."""
    tensors = asset.tensors()
    total = weights.motion * asset.penalty()
    if weights.entropy:
        total = total + weights.entropy * losses.opacity_entropy(torch.sigmoid(tensors["opacity_logits"]))
    if weights.anisotropy:
        total = total + weights.anisotropy * losses.anisotropy(tensors["log_scales"], 5.0)
    if weights.oversize:
        limit = 0.1 * seen_region(targets.cameras).half
        total = total + weights.oversize * losses.oversize(tensors["log_scales"], limit)
    return total


@torch.no_grad()
def _adam(state: FitState, gradients: dict[str, Tensor], rates: dict[str, float]) -> FitState:
    """One step of Adam (ε as small as in 3DGS: a Gaussian seen rarely moves as far as one seen often)."""
    tensors, count = dict(state.tensors), state.step + 1
    for name, gradient in gradients.items():
        mean = tensors[f"mean.{name}"].lerp(gradient, 1 - MOMENTUM)
        square = torch.lerp(tensors[f"square.{name}"], gradient**2, 1 - SQUARES)
        scale = (square / (1 - SQUARES**count)).sqrt_().add_(1e-15)
        step = rates[name] / (1 - MOMENTUM**count)
        tensors[f"asset.{name}"] = torch.addcdiv(tensors[f"asset.{name}"], mean, scale, value=-step)
        tensors[f"mean.{name}"], tensors[f"square.{name}"] = mean, square
    return FitState(count, tensors, state.motion)


def bounded_shapes(log_scales: Float[Tensor, "point 3"], thinnest: float, needle: float) -> None:
    """Brings shapes back, in place, to those that look right from sides and at sizes that no picture showed."""
    if thinnest > 0:
        log_scales.clamp_min_(math.log(thinnest))
    middle = log_scales.median(-1, keepdim=True).values
    torch.minimum(log_scales, middle + math.log(needle), out=log_scales)


def _part(state: FitState, part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {
        name.removeprefix(prefix): tensor.detach() for name, tensor in state.tensors.items() if name.startswith(prefix)
    }


@contextmanager
def _one_torch_thread() -> Iterator[int]:
    """Leaves the cores to the rasteriser: torch's own threads would spin beside it. Yields how many there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _checked_trust(grid: ImageGrid, trust: Tensor | None) -> Float[Tensor, "view frame"]:
    if trust is None:
        return torch.ones(grid.views, grid.frames)
    if tuple(trust.shape) != (grid.views, grid.frames) or not (trust >= 0).all() or not trust.any():
        raise ValueError(f"trust needs one number ≥ 0 for each of {grid.views}×{grid.frames} cells, got {trust}")
    return trust / trust.mean()


def _notes(grid: ImageGrid, config: FitConfig) -> Iterator[Event]:
    """Refuses what cannot be fitted; the start event, and what the user should know before."""
    if not grid.rgba.isfinite().all():
        raise InputError("the grid holds pixels that are not finite numbers; check the pictures it was made from")
    if not (grid.rgba[:, :, 3] > 0.5).any():
        raise InputError("the grid is empty: no pixel has an alpha above ½; check the foreground masks")
    facts = {"views": grid.views, "frames": grid.frames, "height": grid.size[0], "width": grid.size[1]}
    yield Event(STAGE, "start", total=config.iterations, data={**facts, "motion": config.motion})
    if (config.backend or default_backend()) == "reference":
        yield Event(STAGE, "note", "no native kernels: the plain-tensor rasteriser is some 30 times slower")


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


def _preview(
    asset: DynamicGaussians, grid: ImageGrid, held_out: ImageGrid | None, step: int, config: FitConfig
) -> Event:
    """Four sides at four moments as one PNG, in base64 because events hold JSON only."""
    region, start, end = seen_region(grid.cameras), *asset.time_range
    first = grid.cameras[0, 0]
    radius = float((first.positions - region.centre).norm())
    around = orbit(first.azimuths_deg() + torch.arange(4) * 90.0, float(first.elevations_deg()), radius)
    cameras = Cameras(around.camera_from_world, first.intrinsics.expand(4, 3, 3)).reshape(4, 1).expand(4, 4)
    pictures = render(asset, cameras, torch.linspace(start, end, 4), 96, 96).on(1.0)
    data: dict[str, Any] = {"png": base64.b64encode(png(rearrange(pictures, "v f c h w -> c (v h) (f w)"))).decode()}
    if held_out is not None:
        data["held_out_psnr"] = score(asset, held_out)
    return Event(STAGE, "preview", step=step, total=config.iterations, data=data)

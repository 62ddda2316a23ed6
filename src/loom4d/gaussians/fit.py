"""Fitting dynamic Gaussians to an image grid by gradient descent on its pictures."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.cameras import Cameras, Region, orbit, seen_region
from loom4d.gaussians import densify, losses
from loom4d.gaussians.asset import render
from loom4d.gaussians.between import filled, shown_between
from loom4d.gaussians.densify import Growth
from loom4d.gaussians.fit_config import FitConfig
from loom4d.gaussians.gaussians import Ellipsoids, Gaussians
from loom4d.gaussians.initial import Cloud, ball_cloud, hull_cloud
from loom4d.gaussians.motion import FOLLOWING, MOTIONS, DynamicGaussians
from loom4d.gaussians.objective import (
    Perceptual,
    Targets,
    depth_loss,
    flat_targets,
    picture_loss,
    regularisation,
)
from loom4d.gaussians.rasterize import RasterOptions, default_backend, rasterize
from loom4d.gaussians.state import FitState, adam, asset_of, averaged, bounded_shapes, named, state_of
from loom4d.grid import ImageGrid, png
from loom4d.runs import Event, InputError, Work, write_atomically

STAGE = "fit"
SMALLEST = 64  # pixels a side: no stage shrinks pictures further, for a coarse start leaves rags around small ones


def fit(
    grid: ImageGrid,
    config: FitConfig,
    trust: Float[Tensor, "view frame"] | None = None,
    confidence: Float[Tensor, "view frame h w"] | None = None,
    held_out: ImageGrid | None = None,
    perceptual: Perceptual | None = None,
    resume: FitState | None = None,
    on_state: Callable[[FitState], None] | None = None,
) -> Work[DynamicGaussians]:
    """An asset whose pictures from the grid's cameras at the grid's times are the grid.

    `trust` weighs cells, those of a given picture above generated ones; `confidence`, maps in 0..1 of any resolution,
    says how far each pixel is to be believed. `on_state` is handed a state every `state_every` iterations, after which
    a fit with `resume` ends in the same bytes as one that was never stopped; `initial_state` makes one from points of
    your own. `held_out` is scored while the fit runs. The same seed gives the same bytes on one machine. Where the
    loss, a gradient or a step is not finite the fit stops, says at which iteration and with which loss, hands the last
    good state to `on_state` and returns its asset. Work is done where the grid is, on the processor or on a GPU; it
    begins on the processor and leaves the asset there.
    """
    started = time.perf_counter()
    _refuse(grid, config, confidence, perceptual)
    yield from _notes(grid, config)
    trusted, region = _checked_trust(grid, trust), seen_region(grid.cameras.to("cpu"))
    config = replace(config, densify=replace(config.densify, most=_most(grid, config, trusted)))
    state = (resume or initial_state(grid.to("cpu"), config, trusted)).to(grid.rgba.device)
    targets = _targets(grid, state, config, trusted, confidence)
    thinnest = config.thinnest * 2 * region.half / max(grid.size)
    stopped = ""
    for step in range(state.step, config.iterations):
        with _one_torch_thread() as threads:
            begun = state
            if step == config.handover > 0:
                begun = handed_over(state, grid, config)
                targets = _targets(grid, begun, config, trusted, confidence)
            found = _descent(begun, targets[config.stage_at(step)], step, config, threads, perceptual)
            following = _stepped(begun, found, config, thinnest, region)
        if following is None:
            stopped = f"loss {found.loss:.4g} or what follows from it is not finite at iteration {step + 1}; "
            stopped += "kept the state before"
            break
        state, done = following, step + 1
        if on_state is not None and config.state_every and done % config.state_every == 0:
            on_state(state)
        if done % max(1, config.iterations // 100) == 0:
            data = {"loss": round(found.loss, 5), "ssim": round(found.similarity, 4), "seconds": _since(started)}
            yield Event(STAGE, "progress", step=done, total=config.iterations, data=data)
        if config.preview_every and done % config.preview_every == 0 and done < config.iterations:
            yield _preview(asset_of(state, config.motion_of(state)), grid, held_out, done, config)
    if stopped:
        if on_state is not None:
            on_state(state)
        yield Event(STAGE, "note", stopped, state.step, config.iterations)
    asset = asset_of(state, config.motion_of(state)).finished()
    scores = {"given_psnr": score(asset, grid), "seconds": _since(started), "gaussians": len(asset.tensors()["means"])}
    if held_out is not None:
        scores["held_out_psnr"] = score(asset, held_out)
    yield Event(STAGE, "done", step=state.step, total=config.iterations, data=scores)
    return asset_of(state.to("cpu"), config.motion_of(state)).finished()


def with_previews(work: Work[DynamicGaussians], folder: Path) -> Work[DynamicGaussians]:
    """A fit whose previews are PNG files in a folder as soon as they are there; their events name them."""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            return stop.value
        if "png" in event.data:
            name = f"{event.stage}_{event.step:06}.png"
            write_atomically(folder / name, base64.b64decode(event.data["png"]))
            facts = {key: value for key, value in event.data.items() if key != "png"}
            event = replace(event, data={**facts, "file": f"{folder.name}/{name}"})
        yield event


def score(asset: DynamicGaussians, grid: ImageGrid) -> float:
    """Mean PSNR in dB over the grid's cells, on white."""
    rendered = render(asset, grid.cameras, grid.times, *grid.size)
    return round(float(losses.psnr(rendered.premultiplied, grid.premultiplied).mean()), 2)


def initial_state(
    grid: ImageGrid, config: FitConfig, trust: Float[Tensor, "view frame"] | None = None, points: Cloud | None = None
) -> FitState:
    """The start of a fit: Gaussians on the given points, or on the visual hull, or in a ball if masks tell nothing."""
    generator = torch.Generator().manual_seed(config.seed)
    trust = _checked_trust(grid, trust)
    count = _most_at_first(grid, config, trust)
    cloud = points or hull_cloud(grid, count, config.hull_resolution, generator, trust)
    cloud = ball_cloud(grid, count, generator) if cloud is None else cloud
    count = count // 2 if config.handover else count
    asset = MOTIONS[config.motion_at(0)].initial(cloud, grid.times.unique(), count, generator)
    return _watched(state_of(asset), config)


def _most_at_first(grid: ImageGrid, config: FitConfig, trust: Float[Tensor, "view frame"]) -> int:
    return min(config.count, math.ceil(config.dense * _covered(grid, trust)))


def _most(grid: ImageGrid, config: FitConfig, trust: Float[Tensor, "view frame"]) -> int:
    """How many Gaussians there may be when they multiply."""
    first = _most_at_first(grid, config, trust)
    return config.densify.most or (first // 2 if config.handover else first)


def handed_over(state: FitState, grid: ImageGrid, config: FitConfig) -> FitState:
    """The state of a leader as one of the motion that was led, of which nothing is learnt yet; with what the leader
    shows between the given moments."""
    leader = asset_of(state, config.motion_of(state)).finished()
    led = replace(state_of(FOLLOWING[config.motion](leader, grid.times.unique())), step=state.step)
    taught = {"pictures": shown_between(leader, grid)}
    return _watched(replace(led, tensors=led.tensors | named(taught=taught)), config)


def _targets(
    grid: ImageGrid, state: FitState, config: FitConfig, trust: Tensor, confidence: Tensor | None
) -> list[Targets]:
    """What each stage is to look like; after a handover also half way between the given moments."""
    if "taught.pictures" in state.tensors:
        grid, trust, confidence = filled(grid, state.tensors["taught.pictures"], trust, confidence)
    return [flat_targets(_scaled(grid, stage.scale), trust, confidence) for stage in config.stages]


def _watched(state: FitState, config: FitConfig) -> FitState:
    """With what densification needs to know, if it is on."""
    if config.densify.policy == "none":
        return state
    growth = densify.nothing_seen(len(state.tensors["asset.means"]))
    return replace(state, tensors=state.tensors | named(growth=vars(growth)))


def batch_cells(step: int, views: int, frames: int, config: FitConfig) -> Int[Tensor, " batch"]:
    """The flat cells of one iteration: every cell once per round, each round in its own order, in groups of several
    views of one moment so that a batch shows few moments."""
    size = min(config.batch, views * frames)
    turn, place = divmod(step, math.ceil(views * frames / size))
    generator = _generator(config.seed, 1, turn)
    together = max(1, round(size / config.instants))
    order = torch.rand(frames, views, generator=generator).argsort(1)  # the views of each frame
    group = torch.arange(views) // together
    keys = torch.rand(frames, views, generator=generator)[:, group]
    cell = (order * frames + torch.arange(frames)[:, None]).flatten()[keys.flatten().argsort(stable=True)]
    return cell[place * size : (place + 1) * size]


@dataclass(frozen=True)
class _Descent:
    """What one iteration found."""

    loss: float
    similarity: float  # mean SSIM
    gradients: dict[str, Tensor]
    growth: Growth | None


def _descent(
    state: FitState, targets: Targets, step: int, config: FitConfig, threads: int, perceptual: Perceptual | None
) -> _Descent:
    tensors, motion, weights = state.part("asset"), MOTIONS[config.motion_at(step)], config.weights
    leaves = {name: tensors[name].requires_grad_() for name in motion.rates()}
    asset = motion.from_tensors(tensors, state.motion)
    cell = batch_cells(step, targets.views, targets.frames, config)
    size = (targets.pictures.shape[-2], targets.pictures.shape[-1])
    growing = densify.active(config.densify, step, config.iterations)
    options = RasterOptions(*size, threads=threads, track_screen=growing)
    rendering = rasterize(_instants(asset, targets.seconds[cell]), targets.cameras[cell], options, config.backend)
    background = torch.rand(len(cell), 3, generator=_generator(config.seed, 2, step)).to(targets.pictures)
    each, similarity = picture_loss(rendering, targets, cell, background, weights, perceptual, config.confidence)
    region = seen_region(targets.cameras)
    loss = each.mean()
    done = step / config.iterations
    loss = loss + regularisation(asset, weights, region, targets.frames, done, _generator(config.seed, 3, step))
    if weights.depth:
        loss = loss + weights.depth * depth_loss(rendering, targets, cell, region)
    loss.backward()
    growth = None
    if growing and rendering.screen_offsets is not None and rendering.screen_offsets.grad is not None:
        seen = Growth(state.tensors["growth.sums"], state.tensors["growth.steps"])
        growth = densify.observed(seen, rendering.screen_offsets.grad, rendering.visible, size)
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return _Descent(loss.item(), similarity.mean().item(), gradients, growth)


def _instants(asset: DynamicGaussians, seconds: Float[Tensor, " batch"]) -> Gaussians | Ellipsoids:
    """The asset at each of the times; equal times are computed once."""
    times, index = seconds.unique(return_inverse=True)
    scene = asset.slices(times)
    shared = {"means": 2, "quaternions": 2, "log_scales": 2, "covariances": 3, "opacities": 1, "colours": 3}
    batched = {name: value[index] for name, value in vars(scene).items() if value.ndim > shared[name]}
    return replace(scene, **batched)


@torch.no_grad()
def _stepped(state: FitState, found: _Descent, config: FitConfig, thinnest: float, region: Region) -> FitState | None:
    """The state after one step down; None where a number is not finite."""
    if not math.isfinite(found.loss) or not all(bool(g.isfinite().all()) for g in found.gradients.values()):
        return None
    motion = config.motion_at(state.step)
    decay = config.rate * config.final_rate ** (state.step / config.iterations)
    if 0 < config.handover <= state.step:
        decay *= config.settled
    rates = {name: rate * decay for name, rate in MOTIONS[motion].rates().items()}
    following = adam(state, found.gradients, rates)
    bounded_shapes(following.tensors["asset.log_scales"], thinnest, config.needle)
    following = averaged(following)
    if found.growth is not None:
        following = replace(following, tensors=following.tensors | named(growth=vars(found.growth)))
    generator = _generator(config.seed, 4, following.step)
    following = densify.densified(following, motion, config.densify, config.iterations, region.half, generator)
    return following if following.finite() else None


def _generator(seed: int, stream: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 40) + (stream << 32) + index)


def _scaled(grid: ImageGrid, scale: float) -> ImageGrid:
    size = tuple(max(min(SMALLEST, side), round(side * scale)) for side in grid.size)
    return grid if size == grid.size else grid.resized(*size)


@contextmanager
def _one_torch_thread() -> Iterator[int]:
    """Leaves the cores to the rasteriser: torch's own threads would spin beside it. Yields how many there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _covered(grid: ImageGrid, trust: Float[Tensor, "view frame"]) -> float:
    """Mean number of pixels that the object covers, over the trusted pictures that show it."""
    pixels = (grid.rgba[:, :, 3] > 0.5).sum((-2, -1)).float()
    showing = pixels[(pixels > 0) & (trust > 0)]
    return float(showing.mean()) if len(showing) else 1.0


def _checked_trust(grid: ImageGrid, trust: Tensor | None) -> Float[Tensor, "view frame"]:
    if trust is None:
        return torch.ones(grid.views, grid.frames)
    if tuple(trust.shape) != (grid.views, grid.frames) or not (trust >= 0).all() or not trust.any():
        raise ValueError(f"trust needs one number ≥ 0 for each of {grid.views}×{grid.frames} cells, got {trust}")
    return trust / trust.mean()


def _refuse(grid: ImageGrid, config: FitConfig, confidence: Tensor | None, perceptual: Perceptual | None) -> None:
    """Stops at what cannot be fitted."""
    if config.motion not in MOTIONS:
        raise ValueError(f"unknown motion {config.motion!r}; choose one of {', '.join(MOTIONS)}")
    if not grid.rgba.isfinite().all():
        raise InputError("the grid holds pixels that are not finite numbers; check the pictures it was made from")
    if not (grid.rgba[:, :, 3] > 0.5).any():
        raise InputError("the grid is empty: no pixel has an alpha above ½; check the foreground masks")
    if confidence is not None:
        known = tuple(confidence.shape[:2]) == (grid.views, grid.frames)
        if not known or not bool(((confidence >= 0) & (confidence <= 1)).all()):
            raise ValueError(
                f"confidence needs maps of numbers in 0..1 for {grid.views}×{grid.frames} cells, "
                f"got {tuple(confidence.shape)}"
            )
    if config.weights.perceptual and perceptual is None:
        raise ValueError("weights.perceptual is not 0, but the fit was given no perceptual distance")
    ends = [stage.until for stage in config.stages]
    if not ends or ends != sorted(ends) or ends[-1] != 1 or any(not 0 < stage.scale <= 1 for stage in config.stages):
        raise ValueError(f"stages need rising ends up to 1 and scales in (0, 1], got {config.stages}")


def _notes(grid: ImageGrid, config: FitConfig) -> Iterator[Event]:
    """The start event, and what the user should know before."""
    facts = {"views": grid.views, "frames": grid.frames, "height": grid.size[0], "width": grid.size[1]}
    yield Event(STAGE, "start", total=config.iterations, data={**facts, "motion": config.motion})
    if (config.backend or default_backend(grid.rgba.device.type)) == "reference":
        yield Event(STAGE, "note", "no native kernels: the plain-tensor rasteriser is some 30 times slower")


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


def _preview(
    asset: DynamicGaussians, grid: ImageGrid, held_out: ImageGrid | None, step: int, config: FitConfig
) -> Event:
    """Four sides at four moments as one PNG, in base64 because events hold JSON only."""
    region, start, end = seen_region(grid.cameras.to("cpu")), *asset.time_range
    first = grid.cameras[0, 0].to("cpu")
    radius = float((first.positions - region.centre).norm())
    around = orbit(first.azimuths_deg() + torch.arange(4) * 90.0, float(first.elevations_deg()), radius)
    cameras = Cameras(around.camera_from_world, first.intrinsics.expand(4, 3, 3)).reshape(4, 1).expand(4, 4)
    pictures = render(asset, cameras, torch.linspace(start, end, 4), 96, 96).on(1.0)
    data: dict[str, Any] = {"png": base64.b64encode(png(rearrange(pictures, "v f c h w -> c (v h) (f w)"))).decode()}
    if held_out is not None:
        data["held_out_psnr"] = score(asset, held_out)
    return Event(STAGE, "preview", step=step, total=config.iterations, data=data)

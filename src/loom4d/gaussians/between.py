"""Moments half way between those of a grid, at which one motion can show another what no picture tells it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from loom4d.gaussians.asset import render
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.grid import ImageGrid


def middles(times: Float[Tensor, " frame"]) -> tuple[Int[Tensor, " middle"], Float[Tensor, " middle"]]:
    """The frames that a later one follows, and the seconds half way to it."""
    before = (times.diff() > 0).nonzero()[:, 0]
    return before, (times[before] + times[before + 1]) / 2


def shown_between(asset: DynamicGaussians, grid: ImageGrid) -> UInt8[Tensor, "view middle 4 height width"]:
    """The asset half way between the grid's moments, from the cameras of the frames before."""
    before, seconds = middles(grid.times)
    if len(before) == 0:
        return torch.zeros(grid.views, 0, 4, *grid.size, dtype=torch.uint8)
    shown = render(asset, grid.cameras[:, before], seconds, *grid.size)
    return (shown.rgba * 255).round().to(torch.uint8)


def filled(
    grid: ImageGrid,
    pictures: UInt8[Tensor, "view middle 4 height width"],
    trust: Float[Tensor, "view frame"],
    confidence: Float[Tensor, "view frame h w"] | None,
) -> tuple[ImageGrid, Float[Tensor, "view more"], Float[Tensor, "view more h w"] | None]:
    """The grid with these pictures in their places, trusted as much as the frames before them."""
    before, seconds = middles(grid.times)
    frames = torch.cat([torch.arange(grid.frames).to(before), before])
    times, order = torch.cat([grid.times, seconds]).sort(stable=True)
    rgba = torch.cat([grid.rgba, pictures.to(grid.rgba) / 255], 1)[:, order]
    weights = torch.cat([trust, trust[:, before.to(trust.device)]], 1)[:, order.to(trust.device)]
    more = replace(grid, rgba=rgba, cameras=grid.cameras[:, frames[order]], times=times)
    chosen = None if confidence is None else confidence[:, frames[order].to(confidence.device)]
    return more, weights / weights.mean(), chosen

"""Diffusion²: a views × frames grid by composing a multi-view and a video prior's scores (2404.02148), then its fit.

column: the multi-view prior draws all views of the reference instant
row:    the video prior draws the reference view over time (or a clip is given)
grid:   euler(composed(columns(multiview), rows(video), weight), noise, sigmas)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor

from loom4d.cameras import Cameras, turntable
from loom4d.denoisers.family import CrossingClip, Family, Guidance
from loom4d.diffusion.composition import (
    Bands,
    alternating,
    cells,
    clamped,
    columns,
    composed,
    marginal_corrected,
    rows,
    switched,
    view_trust,
    weight_over,
)
from loom4d.diffusion.denoiser import Denoiser, Latents, Sigma, grid_noise
from loom4d.diffusion.disagreement import Disagreement
from loom4d.diffusion.frequency import FILTERS
from loom4d.diffusion.guidance import guided, linear
from loom4d.diffusion.reuse import Held, by_turns, reused, step_of
from loom4d.diffusion.schedules import Sigmas, leaping, schedule
from loom4d.grid import ImageGrid, straight
from loom4d.methods.diffusion_squared_presets import (
    PRESETS,
    BandsConfig,
    DiffusionSquaredConfig,
    Shortcuts,
    default,
    full,
    paper,
    preview,
    released,
)
from loom4d.methods.walking import Walk, walked
from loom4d.runs import InputError, Memory, Work

__all__ = [
    "PRESETS",
    "BandsConfig",
    "DiffusionSquaredConfig",
    "Shortcuts",
    "Weaver",
    "default",
    "full",
    "imagine",
    "paper",
    "preview",
    "released",
]

STREAMS = {"column": 1 << 20, "row": 2 << 20, "grid": 0}  # of the noise: no stage shares another's


def imagine(
    given: ImageGrid, family: Family, config: DiffusionSquaredConfig, memory: Memory | None = None
) -> Work[ImageGrid]:
    """The whole grid from one picture (1×1), a clip (1×F) or the views of a static object (V×1).

    `given` has the family's resolution, its first view at azimuth 0. `memory` keeps each stage's state after every
    step; with it a killed run goes on to the same grid.
    """
    if given.size != (family.resolution, family.resolution):
        raise ValueError(f"the {family.name} priors see {family.resolution}² pictures, got {given.size}")
    if given.views > 1 and given.frames > 1:
        raise InputError(f"a grid of {given.views} × {given.frames} pictures leaves nothing to imagine")
    weaver = Weaver(given, family, config, memory)
    column = yield from weaver.column()
    row = yield from weaver.row()
    return (yield from weaver.grid(column, row))


class Weaver:
    """One grid in the making: what the three stages share."""

    def __init__(self, given: ImageGrid, family: Family, config: DiffusionSquaredConfig, memory: Memory | None):
        config = sized(config, family)
        self.given, self.family, self.config, self.memory = given, family, config, memory
        self.outer = self._shallow()
        self.cameras, self.times = extent(given, config)
        self.reference = config.reference_frame % len(self.times) if given.frames > 1 else 0
        self.azimuths = self.cameras.azimuths_deg()[:, 0]
        self.elevations = self.cameras.elevations_deg()[:, 0]
        self.sigmas = grid_sigmas(config, family)
        self.condition_sigmas = schedule(config.schedule, config.steps, family.sigma_min, family.sigma_max)

    def _shallow(self) -> Family:
        """The family that draws the grid: its deep layers are asked at every so-manieth step only."""
        every = self.config.shortcuts.deep_every
        if every == 1:
            return self.family
        if self.family.shallow is None:
            raise InputError(
                f"the {self.family.name} priors cannot leave deep layers out; use --imagining.shortcuts.deep-every 1"
            )
        return self.family.shallow(lambda sigma: step_of(self.sigmas)(sigma) % every == 0)

    def column(self) -> Work[Float[Tensor, "view 4 height width"]]:
        """Premultiplied pictures of the reference instant from every view; the given one stands as given."""
        pictures = self.given.premultiplied
        if self.given.views > 1:
            return pictures[:, 0]
        picture = pictures[:, self.reference]  # (1, 4, H, W)
        guidance = self.config.column_guidance or self.config.multiview_guidance
        denoise = self.family.multiview(picture, self.azimuths, self.elevations, guidance)
        known, mask = self._at_first(picture, (len(self.azimuths), 1))
        latents = yield from self._sampled("column", clamped(columns(denoise), known, mask), mask.shape)
        drawn = self.family.decode(latents)  # views are no clip over time: each is one of a single picture
        return torch.cat([picture, drawn[1:, 0]])

    def row(self) -> Work[Float[Tensor, "frame 4 height width"]]:
        """Premultiplied pictures of the reference view over time."""
        pictures = self.given.premultiplied
        if self.given.frames > 1:
            return pictures[0]
        picture = pictures[:1, 0]
        guidance = self.config.row_guidance or self.config.video_guidance
        denoise = self.family.video(picture, self.elevations[:1], self.times, 0, guidance)
        known, mask = self._at_first(picture, (1, len(self.times)))
        latents = yield from self._sampled("row", clamped(rows(denoise), known, mask), mask.shape)
        return torch.cat([picture, self.family.decode(latents)[0, 1:]])

    def grid(
        self, column: Float[Tensor, "view 4 height width"], row: Float[Tensor, "frame 4 height width"]
    ) -> Work[ImageGrid]:
        """All cells, given the condition column and row. What the priors disagreed about goes to memory as a map."""
        known, mask = self._conditions(column, row)
        asked = torch.ones_like(mask) if not self.config.clamp_conditions else ~mask
        watch: Disagreement = Disagreement()
        held: Held = {}
        denoise = self._composed(column, row, asked, watch, held)
        if self.config.clamp_conditions:
            denoise = clamped(denoise, known, mask)
        latents = yield from self._sampled("grid", denoise, (len(column), len(row)), watch, held)
        rgba = straight(self.family.decode(latents).clamp(0, 1))
        if self.config.keep_given:
            frames = slice(None) if self.given.frames > 1 else slice(0, 1)
            rgba[: self.given.views, frames] = self.given.rgba.to(rgba)
        disagreed = watch.map()
        if self.memory is not None and disagreed is not None:
            facts = {"unit": "share of variance, d²/(1 + d²)", "sigmas": watch.window, "steps": watch.evaluations}
            self.memory.keep("disagreement", {"disagreement": disagreed}, **facts)
        return ImageGrid(rgba, self.cameras, self.times)

    def _composed(
        self,
        column: Float[Tensor, "view 4 height width"],
        row: Float[Tensor, "frame 4 height width"],
        asked: Bool[Tensor, "view frame"],
        watch: Disagreement,
        held: Held,
    ) -> Denoiser:
        """The rule: one denoiser of the cells in `asked`, out of both priors and the cells' own."""
        config, sigmas, few = self.config, self.sigmas, self.config.shortcuts
        shared = config.shared_background
        if shared not in ("off", "video", "multiview"):
            raise InputError(f"--imagining.shared-background takes off, video or multiview, not {shared!r}")
        plain = None if shared == "off" else Guidance()
        across_rows, across_columns = self._crossings(column, row)
        video = partial(self._video, column, asked, across_rows, held)
        multiview = partial(self._multiview, row, asked, across_columns, held)
        along = video(plain or config.video_guidance, few.row_turns)
        around = multiview(plain or config.multiview_guidance, few.column_turns)
        trust = view_trust(self.azimuths) if config.trust_by_azimuth else None
        weight = weight_over(config.share, sigmas, trust)
        blend = composed(
            reused(around, few.multiview_every, sigmas, held, "multiview"),
            reused(along, few.video_every, sigmas, held, "video"),
            weight,
            few.negligible,
            watch,
            self._bands(trust),
        )
        denoise = switched(alternating(around, along, sigmas), blend, config.alternate_above)
        if config.correction:
            single = cells(self._image(column, row, asked), asked)
            denoise = marginal_corrected(denoise, reused(single, few.cells_every, sigmas, held, "cells"), self._gamma)
        if plain is None:
            return denoise
        nothing, guide = Guidance(0.0, 0.0), config.video_guidance
        background = video(nothing, 1) if shared == "video" else multiview(nothing, 1)
        scale = linear(guide.first, guide.last, len(row))
        return guided(denoise, background, scale, (guide.low, guide.high))

    def _video(
        self,
        column: Float[Tensor, "view 4 height width"],
        asked: Bool[Tensor, "view frame"],
        across: CrossingClip | None,
        held: Held,
        guidance: Guidance,
        turns: int,
    ) -> Denoiser:
        """The video prior of the rows with an asked cell, each given its picture of the condition column."""
        told = self.reference if self.config.told_frame is None else self.config.told_frame
        views = asked.any(1).nonzero()[:, 0].tolist()

        def bind(some: Sequence[int]) -> Denoiser:
            return self.outer.video(
                column[some], self.elevations[some], self.times, told, guidance, **told_of(across, some)
            )

        return rows(by_turns(bind, views, turns, self.sigmas, held, "rows"), views)

    def _multiview(
        self,
        row: Float[Tensor, "frame 4 height width"],
        asked: Bool[Tensor, "view frame"],
        across: CrossingClip | None,
        held: Held,
        guidance: Guidance,
        turns: int,
    ) -> Denoiser:
        """The multi-view prior of the columns with an asked cell, each given its picture of the condition row."""
        frames = asked.any(0).nonzero()[:, 0].tolist()

        def bind(some: Sequence[int]) -> Denoiser:
            return self.outer.multiview(row[some], self.azimuths, self.elevations, guidance, **told_of(across, some))

        return columns(by_turns(bind, frames, turns, self.sigmas, held, "columns"), frames)

    def _bands(self, trust: Float[Tensor, " view"] | None) -> Bands | None:
        bands = self.config.bands
        if bands.over == "off":
            return None
        if bands.over not in FILTERS:
            raise InputError(f"--imagining.bands.over takes off, {', '.join(FILTERS)}, not {bands.over!r}")
        return Bands(weight_over(bands.share, self.sigmas, trust), partial(FILTERS[bands.over], cutoff=bands.cutoff))

    def _gamma(self, sigma: Sigma) -> float:
        config = self.config
        blended = float(sigma) < config.alternate_above
        return config.correction if blended and float(sigma) <= config.correction_below else 0.0

    @property
    def _since(self) -> Float[Tensor, " frame"]:
        """Times after the reference instant, in lengths of the clip."""
        return (self.times - self.times[self.reference]) / (self.times[-1] - self.times[0])

    @property
    def _crossing(self) -> bool:
        return self.config.crossings and self.family.crossings

    def _crossings(
        self, column: Float[Tensor, "view 4 height width"], row: Float[Tensor, "frame 4 height width"]
    ) -> tuple[CrossingClip | None, CrossingClip | None]:
        """What each row is told of the condition row, and each column of the condition column."""
        if not self._crossing:
            return None, None
        turns, waits = self.azimuths[0] - self.azimuths, -self._since
        every_row = row.expand(len(column), -1, -1, -1, -1)
        every_column = column.expand(len(row), -1, -1, -1, -1)
        return (
            CrossingClip(every_row, turns, torch.zeros_like(turns)),
            CrossingClip(every_column, torch.zeros_like(waits), waits),
        )

    def _image(
        self,
        column: Float[Tensor, "view 4 height width"],
        row: Float[Tensor, "frame 4 height width"],
        asked: Bool[Tensor, "view frame"],
    ) -> Denoiser:
        """The prior of the asked cells, told what both their row and their column know and nothing more: the reference
        picture, or with crossings the cell's own pictures in the condition column and row."""
        image = self.outer.image
        if image is None:
            raise InputError(
                f"the {self.family.name} priors have no prior of single pictures; use --imagining.correction 0"
            )
        view, frame = asked.nonzero().unbind(1)
        azimuths, elevations, since = self.azimuths[view], self.elevations[view], self._since[frame]
        if not self._crossing:
            pictures = repeat(row[self.reference], "c h w -> cell c h w", cell=len(view))
            return image(pictures, azimuths, elevations, since, Guidance())
        still = torch.zeros_like(azimuths)
        crossing = CrossingClip(row[frame][:, None], self.azimuths[0] - azimuths, still)
        return image(column[view], still, elevations, since, Guidance(), crossing)

    def _at_first(
        self, picture: Float[Tensor, "1 4 height width"], size: tuple[int, int]
    ) -> tuple[Latents, Bool[Tensor, "view frame"]]:
        """The given picture's latent, and the mask of its cell: the first of the column or row."""
        mask = torch.zeros(size, dtype=torch.bool)
        mask[0, 0] = True
        return self.family.encode(picture).expand(*size, -1, -1, -1), mask

    def _conditions(
        self, column: Float[Tensor, "view 4 height width"], row: Float[Tensor, "frame 4 height width"]
    ) -> tuple[Latents, Bool[Tensor, "view frame"]]:
        """Latents of the condition row and column in their places, and the mask of those cells."""
        mask = torch.zeros(len(column), len(row), dtype=torch.bool)
        mask[0], mask[:, self.reference] = True, True
        known = torch.zeros(len(column), len(row), *self.family.latent_shape)
        known[:, self.reference] = self.family.encode(column)
        known[0] = self.family.encode(row)
        return known, mask

    def _sampled(
        self,
        stage: str,
        denoise: Denoiser,
        size: tuple[int, ...],
        watch: Disagreement | None = None,
        held: Held | None = None,
    ) -> Work[Latents]:
        """One trajectory of so many views and frames, with the stage's own noise."""
        config, (views, frames) = self.config, size
        noise = grid_noise(config.seed, views, frames, self.family.latent_shape, stream=STREAMS[stage])
        sampling = (config.column_sampling if stage == "column" else None) or config.sampling
        walk = Walk(
            stage,
            self.sigmas if stage == "grid" else self.condition_sigmas,
            replace(sampling, seed=config.seed),
            Disagreement() if watch is None else watch,
            {} if held is None else held,
            self.family.decode,
            config.preview_every,
            config.shortcuts.deep_every if stage == "grid" else 1,
        )
        return (yield from walked(walk, denoise, noise, self.memory))


def told_of(across: CrossingClip | None, clips: Sequence[int]) -> dict[str, CrossingClip]:
    """The argument that tells some clips what crosses them; nothing for families that cannot be told."""
    if across is None:
        return {}
    return {"crossing": CrossingClip(across.pictures[clips], across.azimuths_deg[clips], across.times[clips])}


def grid_sigmas(config: DiffusionSquaredConfig, family: Family) -> Sigmas:
    """The steps in which the grid is drawn; the condition column and row take the schedule as it is."""
    if not config.leap:
        return schedule(config.schedule, config.steps, family.sigma_min, family.sigma_max)
    if config.steps < 2 or not family.sigma_min < config.leap < family.sigma_max:
        raise InputError(
            f"--imagining.leap {config.leap:g} in {config.steps} steps: it takes two steps or more, and a σ between "
            f"{family.sigma_min:g} and {family.sigma_max:g} with the {family.name} priors, or 0 for none"
        )
    return leaping(config.schedule, config.steps, config.leap, family.sigma_min, family.sigma_max)


def sized(config: DiffusionSquaredConfig, family: Family) -> DiffusionSquaredConfig:
    """The configuration with the family's own clip lengths where it names none."""
    return replace(config, views=config.views or family.views, frames=config.frames or family.frames)


def extent(given: ImageGrid, config: DiffusionSquaredConfig) -> tuple[Cameras, Float[Tensor, " frame"]]:
    """Cameras (view, frame) and times of the finished grid: the given ones along the axis that is given, else a
    turntable at the given camera's elevation. `config` is `sized`."""
    assert config.views is not None and config.frames is not None
    frames = given.frames if given.frames > 1 else config.frames
    times = given.times if given.frames > 1 else torch.linspace(0, config.seconds, frames)
    if given.views > 1:
        return given.cameras[:, :1].expand(given.views, frames), times
    return turntable(config.views, frames, given.cameras.elevations_deg()[0, 0].item()), times

"""Clips cut out of grids to train the priors on: over time, over views, single pictures; alone, or told what crosses
them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loom4d.denoisers.small import ClipCondition, Crossing

VIDEO_SHARE = 0.4  # of a step's clips, over time; the rest go around the object, which is harder to learn


@dataclass(frozen=True)
class Clips:
    """Clean clips and what they are conditioned on; the given picture is one of the clip's own."""

    latents: Float[Tensor, "b p c h w"]
    condition: ClipCondition


@dataclass(frozen=True)
class LatentGrids:
    """Encoded training grids: a turntable of V views from azimuth 0, F frames over `seconds`."""

    latents: Float[Tensor, "grid view frame c h w"]
    elevations_deg: Float[Tensor, " grid"]
    seconds: float = 1.0

    def to(self, device: torch.device) -> LatentGrids:
        return LatentGrids(self.latents.to(device), self.elevations_deg.to(device), self.seconds)

    @property
    def interval(self) -> float:
        """Seconds between frames."""
        return self.seconds / max(self.latents.shape[2] - 1, 1)

    @property
    def step_deg(self) -> float:
        """Degrees between views."""
        return 360.0 / self.latents.shape[1]

    def videos(
        self,
        grids: Int[Tensor, " b"],
        views: Int[Tensor, " b"],
        given: Int[Tensor, " b"],
        crossing: Int[Tensor, " b"] | None = None,
        told: Bool[Tensor, " b"] | None = None,
    ) -> Clips:
        """One camera over time, conditioned on frame `given`, and where `told` on what camera `crossing` saw."""
        latents = self.latents[grids, views].float()
        clips, frames = latents.shape[:2]
        times = (torch.arange(frames, device=grids.device) - given[:, None]) * self.interval
        picture = latents[torch.arange(clips, device=grids.device), given][:, None]
        elevations = repeat(self.elevations_deg[grids], "b -> b p", p=frames)
        condition = ClipCondition(picture, torch.zeros_like(times), elevations, times)
        if crossing is None:
            return Clips(latents, condition)
        turn = repeat((crossing - views) * self.step_deg, "b -> b p", p=frames)
        across = Crossing(self.latents[grids, crossing].float(), turn, _all(grids) if told is None else told)
        return Clips(latents, replace(condition, picture=picture.expand_as(latents), crossing=across))

    def orbits(
        self,
        grids: Int[Tensor, " b"],
        frames: Int[Tensor, " b"],
        given: Int[Tensor, " b"],
        crossing: Int[Tensor, " b"] | None = None,
        told: Bool[Tensor, " b"] | None = None,
    ) -> Clips:
        """All cameras at one instant, rolled so that the given view comes first; where `told`, each picture is
        conditioned on its own camera's at instant `crossing`, and the given view is what crosses them."""
        views = self.latents.shape[1]
        places = torch.arange(views, device=grids.device)
        order = (given[:, None] + places) % views  # (B, V)
        latents = self.latents[grids[:, None], order, frames[:, None]].float()
        azimuths = repeat(places * self.step_deg, "p -> b p", b=len(grids))
        elevations = repeat(self.elevations_deg[grids], "b -> b p", p=views)
        picture, still = latents[:, :1], torch.zeros_like(azimuths)
        if crossing is None:
            return Clips(latents, ClipCondition(picture, azimuths, elevations, still))
        told = _all(grids) if told is None else told
        own = self.latents[grids[:, None], order, crossing[:, None]].float()
        wait = repeat((frames - crossing) * self.interval, "b -> b p", p=views)
        condition = ClipCondition(
            torch.where(told[:, None, None, None, None], own, picture),
            torch.where(told[:, None], still, azimuths),
            elevations,
            torch.where(told[:, None], wait, still),
            Crossing(picture.expand_as(latents), -azimuths, told),
        )
        return Clips(latents, condition)

    def cells(
        self,
        grids: Int[Tensor, " b"],
        place: Int[Tensor, "b 2"],
        given: Int[Tensor, "b 2"],
        crossing: Int[Tensor, " b"] | None = None,
        told: Bool[Tensor, " b"] | None = None,
    ) -> Clips:
        """Single pictures at (view, frame) `place`, conditioned on the picture at (view, frame) `given`, and where
        `told` on what camera `crossing` saw at that instant."""
        latents = self.latents[grids, place[:, 0], place[:, 1]].float()[:, None]
        picture = self.latents[grids, given[:, 0], given[:, 1]].float()[:, None]
        turn, wait = ((place - given).float()).unbind(1)
        across = None
        if crossing is not None:
            aside = (crossing - place[:, 0])[:, None] * self.step_deg
            seen = self.latents[grids, crossing, place[:, 1]].float()[:, None]
            across = Crossing(seen, aside, _all(grids) if told is None else told)
        azimuths = (turn[:, None] * self.step_deg) % 360
        elevations = self.elevations_deg[grids][:, None]
        return Clips(latents, ClipCondition(picture, azimuths, elevations, wait[:, None] * self.interval, across))


def _all(grids: Int[Tensor, " b"]) -> Bool[Tensor, " b"]:
    return torch.ones_like(grids, dtype=torch.bool)


def joined(a: Clips, b: Clips) -> Clips:
    """Both in one batch; either both have crossing clips or neither."""
    first, second = a.condition, b.condition
    across = None
    if first.crossing is not None and second.crossing is not None:
        across = Crossing(*_joined_fields(first.crossing, second.crossing, CROSSING_FIELDS))
    picture, azimuths, elevations, times = _joined_fields(first, second, CONDITION_FIELDS)
    condition = ClipCondition(picture, azimuths, elevations, times, across)
    return Clips(torch.cat([a.latents, b.latents]), condition)


CONDITION_FIELDS = ("picture", "azimuths_deg", "elevations_deg", "times")
CROSSING_FIELDS = ("pictures", "azimuths_deg", "known")


def _joined_fields(first: object, second: object, names: tuple[str, ...]) -> list[Tensor]:
    return [torch.cat([getattr(first, name), getattr(second, name)]) for name in names]


def some_clips(
    grids: LatentGrids,
    count: int,
    generator: torch.Generator,
    video_share: float = VIDEO_SHARE,
    crossed: float | None = None,
) -> Clips:
    """Random clips: `video_share` of them over time (mostly given their first frame), the rest over views; this share
    of them is told the row of another view, or the column of another instant. None: no crossing clips at all."""

    def any_of(limit: int, size: int) -> Tensor:
        return torch.randint(limit, (size,), generator=generator, device=generator.device)

    def across(limit: int, ours: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if crossed is None:
            return None, None
        other = (ours + 1 + any_of(max(limit - 1, 1), len(ours))) % limit
        return other, torch.rand(len(ours), generator=generator, device=generator.device) < crossed

    total, views, frames = grids.latents.shape[:3]
    videos = round(count * video_share)
    first = torch.rand(videos, generator=generator, device=generator.device) < 0.8
    which, view = any_of(total, videos), any_of(views, videos)
    given = torch.where(first, 0, any_of(frames, videos))
    over_time = grids.videos(which, view, given, *across(views, view))
    orbits = count - videos
    which, frame, given = any_of(total, orbits), any_of(frames, orbits), any_of(views, orbits)
    return joined(over_time, grids.orbits(which, frame, given, *across(frames, frame)))


def some_cells(grids: LatentGrids, count: int, generator: torch.Generator, crossed: float | None = None) -> Clips:
    """As many single pictures as `count` clips have, anywhere in their grids, given another one of the grid; this share
    of them is given one of its own row and one of its own column. None: no crossing pictures at all."""
    total, views, frames = grids.latents.shape[:3]
    drawn = torch.rand(count * views, 5, generator=generator, device=generator.device)
    chosen = (drawn * torch.tensor([total, views, frames, views, frames], device=generator.device)).long()
    which, place, given = chosen[:, 0], chosen[:, 1:3], chosen[:, 3:5]
    if crossed is None:
        return grids.cells(which, place, given)
    told = torch.rand(len(which), generator=generator, device=generator.device) < crossed
    own_row = torch.stack([place[:, 0], given[:, 1]], 1)
    return grids.cells(which, place, torch.where(told[:, None], own_row, given), given[:, 0], told)

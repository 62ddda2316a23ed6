"""One square crop for a whole clip, so that the object's motion survives; and the way from a path to an `ImageGrid`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import Cameras, orbit, turntable
from loom4d.grid import ImageGrid, straight
from loom4d.runs import Event, InputError, Work
from loom4d.sources.assets import asset_grid, is_asset
from loom4d.sources.files import Clip, read
from loom4d.sources.matting import matte

VISIBLE = 0.1  # alpha from which a pixel counts for the crop; faint shadows and dust do not
KINDS = ("clip", "orbit")


@dataclass(frozen=True)
class Config:
    """How an input is prepared."""

    kind: str = "clip"  # "orbit": the pictures are one object seen from evenly spread azimuths, at one instant
    matting: str = "auto"  # auto, given, key or u2netp
    resampling: str = "nearest"  # nearest, or linear: blend neighbouring frames
    fps: float = 24.0  # of a folder of frames
    fill: float = 0.85  # share of the picture that the object's longer side takes, over the whole clip
    elevation_deg: float = 0.0  # of the camera that took the input, above the object
    views: int = 8  # of a 3D model, around it
    clip: str | None = None  # of a 3D model: which of its animations; None takes the first


@dataclass(frozen=True)
class Crop:
    """A square in a picture, in pixels from its upper left corner; it may reach over the picture's edges."""

    left: float
    top: float
    side: float


def load(path: Path | str, frames: int | None, resolution: int, config: Config | None = None) -> Work[ImageGrid]:
    """The object at `path`, cut out, framed and resized: a photo 1 × 1, a clip 1 × F, an orbit V × 1.

    A 3D model is drawn: V × F when it has animations, else V × 1, and V × 1 at the start where an orbit is asked for.
    `frames` is how many to take (F of a clip, V of an orbit), None all of them. Raises `InputError` for bad input.
    """
    config = config or Config()
    path = Path(path)
    if config.kind not in KINDS:
        raise InputError(f"unknown kind {config.kind!r}; choose one of {', '.join(KINDS)}")
    if not 0 < config.fill <= 1 or resolution < 1:
        raise InputError(f"fill is in (0, 1] and resolution at least 1, not {config.fill} and {resolution}")
    yield Event("sources", "start", f"reading {path}")
    is_orbit = config.kind == "orbit"
    if is_asset(path):
        return (yield from _drawn(path, frames, resolution, config))
    clip = read(path, frames, config.resampling, config.fps, cyclic=is_orbit)
    yield Event("sources", "note", described(clip, config), data={"frames": clip.frames, "of": clip.source_frames})
    try:
        clip = yield from matte(clip, config.matting)
        crop = common_crop(clip.rgba[:, 3], config.fill)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    rgba = cropped(clip.rgba, crop, resolution)
    yield Event(
        "sources",
        "done",
        f"one crop of {crop.side:.0f} pixels at ({crop.left:.0f}, {crop.top:.0f}) to {resolution} × {resolution}",
        data={"crop": [crop.left, crop.top, crop.side], "of": [clip.size[1], clip.size[0]]},
    )
    if is_orbit:
        return orbit_grid(rgba, clip, config)
    cameras = turntable(1, clip.frames, config.elevation_deg)
    return ImageGrid(rgba[None], cameras, clip.times)


def _drawn(path: Path, frames: int | None, resolution: int, config: Config) -> Work[ImageGrid]:
    is_orbit = config.kind == "orbit"
    views = frames if is_orbit and frames is not None else config.views
    grid = asset_grid(path, config.clip, views, 1 if is_orbit else frames, resolution, config.elevation_deg)
    yield Event("sources", "done", f"drew the model from {grid.views} sides at {grid.frames} instants")
    return grid


def described(clip: Clip, config: Config) -> str:
    height, width = clip.source_size
    unit = "views" if config.kind == "orbit" else "frames"
    what = "1 picture" if clip.source_frames == 1 else f"{clip.source_frames} {unit}"
    line = f"{what} of {width} × {height}"
    if clip.frames != clip.source_frames:
        line += f", resampled to {clip.frames} ({config.resampling})"
    if clip.size != clip.source_size:
        line += f", shrunk to {clip.size[1]} × {clip.size[0]} on reading"
    return line


def orbit_grid(rgba: Float[Tensor, "view 4 height width"], clip: Clip, config: Config) -> ImageGrid:
    """Pictures at even azimuths as a V × 1 grid; view 0 is at azimuth 0, growing to the camera's right."""
    azimuths = torch.arange(clip.frames) * (360 / clip.frames)
    if config.resampling == "nearest":  # the azimuth that each chosen picture really has
        step = 360 / clip.source_frames
        azimuths = (azimuths / step).round() * step
    cameras: Cameras = orbit(azimuths, config.elevation_deg).reshape(clip.frames, 1)
    return ImageGrid(rgba[:, None], cameras, torch.zeros(1))


def common_crop(alpha: Float[Tensor, "frame height width"], fill: float) -> Crop:
    """The square around whatever is visible in any frame, whose longer side takes `fill` of it."""
    visible = (alpha > VISIBLE).any(0)  # (H, W)
    rows, columns = visible.any(1).nonzero()[:, 0], visible.any(0).nonzero()[:, 0]
    if not len(rows):
        raise InputError("the picture is fully transparent; give one that shows an object")
    top, bottom = rows[0].item(), rows[-1].item() + 1
    left, right = columns[0].item(), columns[-1].item() + 1
    side = max(bottom - top, right - left) / fill
    return Crop((left + right - side) / 2, (top + bottom - side) / 2, side)


def cropped(
    rgba: Float[Tensor, "frame 4 height width"], crop: Crop, resolution: int
) -> Float[Tensor, "frame 4 resolution resolution"]:
    """The crop at another resolution; outside of the picture it is transparent.

    Colour is averaged premultiplied, so that no rim darkens. Fractions of pixels are kept: nothing is rounded.
    """
    height, width = rgba.shape[-2:]
    rows = sampling(crop.top, crop.side, height, resolution)
    columns = sampling(crop.left, crop.side, width, resolution)
    alpha = rgba[:, 3:]
    premultiplied = torch.cat([rgba[:, :3] * alpha, alpha], 1)
    small = torch.einsum("yh,fchw,xw->fcyx", rows, premultiplied, columns)
    return straight(small.clamp(0, 1))


def sampling(start: float, length: float, given: int, wanted: int) -> Float[Tensor, "wanted given"]:
    """Weights of `given` pixels in each of `wanted` ones that span [start, start + length].

    A triangle as wide as two wanted pixels (or two given ones when enlarging); a row sums to 1 inside the picture.
    """
    scale = length / wanted  # given pixels per wanted pixel
    width = max(scale, 1.0)
    reach = int(width) + 2  # pixels beyond the edge, where all is transparent, count for the sum
    first, last = int(min(start, 0)) - reach, int(max(start + length, given)) + reach
    centres = start + (torch.arange(wanted, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(first, last, dtype=torch.float64) + 0.5
    weights = (1 - (pixels - centres[:, None]).abs() / width).clamp_min(0)  # (wanted, last − first)
    weights = weights / weights.sum(1, keepdim=True)
    return weights[:, -first : -first + given].float()

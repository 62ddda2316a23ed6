"""Folders of posed pictures that others made, as image grids: `transforms.json`, COLMAP text and `cameras.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import Placement
from loom4d.grid import ImageGrid, load_grid
from loom4d.runs import Event, InputError, Work
from loom4d.sources.captures.camera_list import has_camera_list, read_camera_list
from loom4d.sources.captures.colmap import has_model, read_colmap
from loom4d.sources.captures.shots import Layout, arranged, decoded_size, opaque, placement_of
from loom4d.sources.captures.transforms import has_transforms, read_json, read_transforms
from loom4d.sources.files import Clip
from loom4d.sources.matting import matte

STAGE = "sources"


@dataclass(frozen=True)
class CaptureConfig:
    """What a folder of posed pictures does not say itself."""

    seconds: float = 1.0  # what `time` 1 of a transforms.json is, where it has no `seconds`
    fps: float = 24.0  # of the frame numbers in the names of COLMAP's pictures
    side: int | None = None  # longest side in pixels; None shrinks only what memory cannot hold
    matting: str = "given"  # how pictures without transparency lose their background: given keeps it; auto, key, u2netp
    hold_out: int = 0  # every so-manieth picture is kept from the fit and scored; 0 for none but those the folder names


@dataclass(frozen=True)
class Capture:
    """Posed pictures in the box where fits take place: centred, as large as the standard camera sees."""

    grid: ImageGrid
    held_out: ImageGrid | None = None  # not to be fitted but scored
    points: Float[Tensor, "point 3"] | None = None  # seen by the program that found the cameras
    rgb: Float[Tensor, "point 3"] | None = None  # of these points, 0..1
    placement: Placement = field(default_factory=Placement)  # of the box in the capture's own world
    world: str = ""  # how our axes in that world are its own


@dataclass(frozen=True)
class Kind:
    """A layout: whether a path holds it, and what is read of it; what cannot be used is an `InputError`."""

    found: Callable[[Path], bool]
    read: Callable[[Path, Any], Layout]


LAYOUTS: dict[str, Kind] = {  # the first one found is read
    "transforms.json": Kind(has_transforms, read_transforms),
    "cameras.json": Kind(has_camera_list, read_camera_list),
    "COLMAP text": Kind(has_model, read_colmap),
}


def is_capture(path: Path) -> bool:
    """Whether the folder, or the JSON file, holds cameras for its pictures."""
    return _reader(path) is not None


def read_capture(path: Path, config: CaptureConfig | None = None) -> Work[Capture]:
    """The pictures of a run folder, a saved grid, or a folder in one of the layouts of docs/conventions.md.

    Pictures become a grid of views × frames where every instant has the same number of them, and otherwise one row in
    the order of time, in which frames may share an instant. Raises `InputError` with one line for what cannot be used.
    """
    config = config or CaptureConfig()
    folder = path / "grid" if (path / "grid" / "cameras.json").exists() else path
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if _is_grid(folder):
        return Capture(load_grid(folder))
    read = _reader(path)
    if read is None:
        raise InputError(
            f"{path}: holds none of {', '.join(LAYOUTS)} (docs/conventions.md); give a run folder or posed pictures"
        )
    layout = _held_out(read(path, config), config.hold_out)
    size = decoded_size(layout.shots, config.side)
    facts = {"pictures": len(layout.shots), "held_out": sum(shot.held_out for shot in layout.shots)}
    yield Event(STAGE, "start", f"reading {len(layout.shots)} pictures of {layout.name}", data=facts)
    if size.scale < 1:
        yield Event(STAGE, "note", f"pictures are shrunk from {size.full} to {size.kept}; --capture.side chooses")
    given = [shot for shot in layout.shots if not shot.held_out]
    kept = [shot for shot in layout.shots if shot.held_out]
    if not given:
        raise InputError(f"{path}: all of its pictures are held out; nothing is left to fit")
    placement = placement_of(path, given)
    inverse = placement.inverse()
    grid = arranged(given, size, inverse)
    held_out = arranged(kept, size, inverse) if kept else None
    if opaque(grid) and config.matting == "given":
        message = "no picture is transparent: the background is fitted too; give masks, or --capture.matting auto"
        yield Event(STAGE, "note", message)
    elif opaque(grid):
        grid = yield from _cut_out(grid, config.matting)
        if held_out is not None:
            held_out = yield from _cut_out(held_out, config.matting)
    points = None if layout.points is None else inverse.points(layout.points)
    return Capture(grid, held_out, points, layout.rgb, placement, layout.world)


def _cut_out(grid: ImageGrid, method: str) -> Work[ImageGrid]:
    """The object of every cell, as `framing` cuts it out of a clip."""
    cells = grid.views * grid.frames
    clip = Clip(grid.rgba.flatten(0, 1), torch.arange(cells).float(), False, cells, grid.size)
    cut = yield from matte(clip, method)
    return replace(grid, rgba=cut.rgba.reshape(grid.rgba.shape))


def _is_grid(folder: Path) -> bool:
    """Whether `save_grid` wrote the folder: its cameras.json is one of arrays, not a list of pictures."""
    file = folder / "cameras.json"
    content = read_json(file) if file.is_file() else None
    return isinstance(content, dict) and "camera_from_world" in content


def _reader(path: Path) -> Callable[[Path, Any], Layout] | None:
    return next((kind.read for kind in LAYOUTS.values() if kind.found(path)), None)


def _held_out(layout: Layout, every: int) -> Layout:
    if every < 0 or every == 1:
        raise InputError(f"hold_out {every}: give 0 for none, or 2 and more for every so-manieth picture")
    return layout.holding_out(every) if every else layout


__all__ = ["LAYOUTS", "Capture", "CaptureConfig", "is_capture", "read_capture"]

"""Single posed pictures, whatever layout named them, and how they become a grid."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import FOV_DEG, RADIUS, Cameras, Placement, seen_region
from loom4d.grid import ImageGrid
from loom4d.runs import InputError
from loom4d.sources.pictures import NotAPicture, picture_facts, read_picture

HALF = RADIUS * math.tan(math.radians(FOV_DEG) / 2)  # of the box in which fits take place
MAX_PIXELS = 32_000_000  # kept of all pictures: 512 MB as float RGBA
MAX_SHOTS = 20_000
SAME_POSE = 1e-4  # largest difference of a matrix entry, with the box as the unit, of a camera that stands still
RIGID = 2e-3  # largest departure of RᵀR from the identity: rounded files, not scaled axes


@dataclass(frozen=True)
class Shot:
    """One picture, its camera in our axes and the capture's own units, and its second."""

    file: Path
    camera: Cameras  # of no batch axis
    seconds: float
    mask: Path | None = None  # a picture whose grey is the alpha
    held_out: bool = False


@dataclass(frozen=True)
class Layout:
    """What a layout's reader found, before any picture is decoded."""

    name: str  # of the file that told
    shots: Sequence[Shot]
    world: str  # one sentence: our axes in terms of the capture's
    points: Float[Tensor, "point 3"] | None = None  # in our axes
    rgb: Float[Tensor, "point 3"] | None = None  # 0..1

    def holding_out(self, every: int) -> Layout:
        """Every so-manieth picture held out besides those that are, never the first one."""
        chosen = range(every // 2, len(self.shots), every)
        shots = [replace(shot, held_out=shot.held_out or place in chosen) for place, shot in enumerate(self.shots)]
        return replace(self, shots=shots)


@dataclass(frozen=True)
class Size:
    """What is decoded of each picture."""

    height: int
    width: int
    scale: float
    full: str  # "width × height" in the files
    kept: str


@dataclass(frozen=True)
class Lens:
    """Pinhole in pixels of a picture of `width` × `height`."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: float
    height: float

    def intrinsics(self) -> Float[Tensor, "3 3"]:
        """In image units."""
        fx, fy, cx, cy = self.fx / self.width, self.fy / self.height, self.cx / self.width, self.cy / self.height
        return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def checked_lens(where: str, fx: float, fy: float, cx: float, cy: float, width: float, height: float) -> Lens:
    """A lens that can be, or an `InputError` that names where it was read."""
    values = (fx, fy, cx, cy, width, height)
    if not all(math.isfinite(value) for value in values) or min(fx, fy, width, height) <= 0:
        raise InputError(
            f"{where}: focal lengths {fx:g} and {fy:g}, centre ({cx:g}, {cy:g}) of {width:g} × {height:g} pixels is no "
            "camera; focal lengths and sizes are positive"
        )
    return Lens(*values)


def refuse_shape(where: str, width: float, height: float, picture: Path) -> None:
    """The picture may be smaller than the camera was calibrated for, but not of another shape."""
    rows, columns = file_size(picture)
    if width <= 0 or height <= 0 or abs(width / height * rows / columns - 1) > 0.01:
        raise InputError(f"{where}: the camera has {width:g} × {height:g} pixels, {picture} is {columns} × {rows}")


def checked_pose(where: str, values: object) -> Float[Tensor, "4 4"]:
    """A rigid 4 × 4 matrix from nested lists of 3 or 4 rows, with its rotation made exact; else an `InputError`."""
    try:
        matrix = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: a pose is 4 rows of 4 numbers, got {_short(values)}") from error
    if matrix.shape == (3, 4):
        matrix = torch.cat([matrix, torch.tensor([[0.0, 0, 0, 1]], dtype=torch.float64)])
    if matrix.shape != (4, 4):
        raise InputError(f"{where}: a pose is 4 rows of 4 numbers, got shape {tuple(matrix.shape)}")
    if not matrix.isfinite().all():
        raise InputError(f"{where}: the pose holds numbers that are not finite")
    rotation = matrix[:3, :3]
    off = float((rotation.mT @ rotation - torch.eye(3, dtype=torch.float64)).abs().max())
    if off > RIGID or torch.linalg.det(rotation) < 0 or float((matrix[3] - torch.eye(4)[3]).abs().max()) > RIGID:
        raise InputError(
            f"{where}: the pose is not rigid (RᵀR is off by {off:.2g}, determinant "
            f"{float(torch.linalg.det(rotation)):.3f}); it needs a rotation, without scale, shear or mirroring"
        )
    left, _, right = torch.linalg.svd(rotation)
    exact = matrix.clone()
    exact[:3, :3] = left @ right
    exact[3] = torch.tensor([0.0, 0, 0, 1])
    return exact


def number(where: str, value: object) -> float:
    """A finite number out of a file, or an `InputError`."""
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: expected a number, got {_short(value)}") from error
    if not math.isfinite(result):
        raise InputError(f"{where}: expected a finite number, got {_short(value)}")
    return result


def _short(value: object) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) < 60 else f"{text[:57]}..."


def picture_file(folder: Path, name: str, where: str) -> Path:
    """The picture called `name` in `folder`; NeRF's files leave the suffix out."""
    given = folder / name
    for candidate in (given, *(given.with_name(given.name + suffix) for suffix in (".png", ".jpg", ".jpeg", ".webp"))):
        if candidate.is_file():
            return candidate
    raise InputError(f"{where} names {name}, and {given} does not exist")


def file_size(path: Path) -> tuple[int, int]:
    """(height, width) from the picture's header."""
    try:
        height, width, _ = picture_facts(path)
    except NotAPicture as error:
        raise InputError(f"{path}: not a picture that is known here") from error
    return height, width


def decoded_size(shots: Sequence[Shot], side: int | None) -> Size:
    """One size for all, read from their headers; mixed sizes are refused, too much for memory is shrunk."""
    if not shots:
        raise InputError("no pictures are named; nothing to fit")
    if len(shots) > MAX_SHOTS:
        raise InputError(f"{len(shots):,} pictures are named, at most {MAX_SHOTS:,} are read; take fewer")
    if side is not None and side < 8:
        raise InputError(f"pictures of {side} pixels are too small to fit; choose 8 or more")
    sizes = {shot.file: file_size(shot.file) for shot in shots}
    (height, width), _ = Counter(sizes.values()).most_common(1)[0]
    for file, size in sizes.items():
        if size != (height, width):
            raise InputError(
                f"{file}: is {size[1]} × {size[0]} pixels, others are {width} × {height}; all need one size"
            )
    scale = min(1.0, math.sqrt(MAX_PIXELS / (len(shots) * height * width)))
    if side is not None:
        scale = min(scale, side / max(height, width))
    kept = max(1, round(height * scale)), max(1, round(width * scale))
    return Size(*kept, scale, f"{width} × {height}", f"{kept[1]} × {kept[0]}")


def decoded(shot: Shot, size: Size) -> Float[Tensor, "4 height width"]:
    """The picture with straight alpha, its own or its mask's."""
    rgba = read_picture(shot.file, size.scale)
    if shot.mask is not None:
        if file_size(shot.mask) != file_size(shot.file):
            raise InputError(f"{shot.mask}: a mask of another size than {shot.file.name}")
        rgba = torch.cat([rgba[:3], read_picture(shot.mask, size.scale)[:3].mean(0, keepdim=True)])
    if rgba.shape[-2:] != (size.height, size.width):
        raise InputError(f"{shot.file}: decodes to another size than its header says")
    return rgba


def placement_of(path: Path, shots: Iterable[Shot]) -> Placement:
    """Where the box of the fit stands in the capture's world: around what the cameras look at."""
    cameras = stacked([shot.camera for shot in shots])
    centre = torch.zeros(3, dtype=torch.float64)
    for _ in range(4):  # far from the origin the region is first found a little too near to it
        x, y, z = (-centre).tolist()
        region = seen_region(Placement(1.0, (x, y, z)).cameras(cameras))
        centre = centre + region.centre.double()
    _, depth = cameras.project(centre.expand(*cameras.batch_shape, 1, 3))
    if not math.isfinite(region.half) or (depth > 0).float().mean() < 0.5:
        raise InputError(f"{path}: the cameras look away from each other; a fit needs them around one object")
    x, y, z = centre.tolist()
    return Placement(region.half / HALF, (x, y, z))


def stacked(cameras: Sequence[Cameras]) -> Cameras:
    return Cameras(
        torch.stack([camera.camera_from_world for camera in cameras]),
        torch.stack([camera.intrinsics for camera in cameras]),
    )


def arranged(shots: Sequence[Shot], size: Size, placement: Placement) -> ImageGrid:
    """Shots as a grid, their cameras moved by `placement`: views × frames where every instant has as many, with a
    camera that stands still in its own row; otherwise one row in the order of time, in which instants may repeat."""
    instants = merged_instants([shot.seconds for shot in shots])
    order = sorted(range(len(shots)), key=lambda index: instants[index])
    times = sorted(set(instants))
    views = len(shots) // len(times)
    cameras = placement.cameras(stacked([shots[index].camera for index in order])).to(torch.float32)
    if set(Counter(instants).values()) == {views}:
        rows = _rows(cameras.reshape(len(times), views))  # (frame, view) -> place in `order`
        order = [order[int(place)] for place in rows.mT.flatten()]
        cameras, seconds = cameras[rows.mT.flatten()].reshape(views, len(times)), times
    else:
        cameras, seconds = cameras.reshape(1, len(order)), [instants[index] for index in order]
    rgba = torch.empty(len(order), 4, size.height, size.width)
    for place, index in enumerate(order):
        rgba[place] = decoded(shots[index], size)
    return ImageGrid(rgba.reshape(*cameras.batch_shape, 4, size.height, size.width), cameras, torch.tensor(seconds))


def merged_instants(seconds: Sequence[float]) -> list[float]:
    """The same seconds, with those that rounding alone tells apart made equal."""
    order = sorted(range(len(seconds)), key=lambda index: seconds[index])
    tolerance = 1e-6 * max(1e-6, seconds[order[-1]] - seconds[order[0]])
    result = list(seconds)
    for before, index in pairwise(order):
        if result[index] - result[before] <= tolerance:
            result[index] = result[before]
    return result


def _rows(cameras: Cameras) -> Tensor:
    """(frame, view) -> flat index of cameras (frame, view), with rows that keep their pose where a rig stands still."""
    frames, views = cameras.batch_shape
    poses = cameras.camera_from_world.flatten(2)  # (F, V, 16)
    rows = []
    for frame in range(frames):
        difference = (poses[0][:, None] - poses[frame][None]).abs().amax(-1)  # (view of the first, view of this)
        nearest = difference.argmin(1)
        still = len(set(nearest.tolist())) == views and bool((difference.amin(1) < SAME_POSE).all())
        rows.append(frame * views + (nearest if still else torch.arange(views)))
    return torch.stack(rows)


def opaque(grid: ImageGrid) -> bool:
    """Whether no picture is transparent anywhere."""
    return bool((grid.rgba[:, :, 3] == 1).all())

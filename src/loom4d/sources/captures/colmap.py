"""COLMAP's text model: cameras.txt, images.txt and, where it is there, points3D.txt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import Cameras, colmap_pose
from loom4d.runs import InputError
from loom4d.sources.captures.shots import (
    Layout,
    Lens,
    Shot,
    checked_lens,
    checked_pose,
    number,
    picture_file,
    refuse_shape,
)

WORLD = "COLMAP's world turned half around z: (x, y, z) of the asset is (-x, -y, z) there; ply exports turn back"
PLACES = (".", "sparse/0", "sparse", "colmap/sparse/0", "colmap")  # of the model, below the folder
PICTURES = ("images", ".")  # of the pictures, below it
# model -> (parameters before the distortion, all parameters)
MODELS = {"SIMPLE_PINHOLE": (3, 3), "PINHOLE": (4, 4), "SIMPLE_RADIAL": (3, 4), "RADIAL": (3, 5), "OPENCV": (4, 8)}
FRAME = re.compile(r"(?:^|[/_.\-])(frame|time|f|t)[_\-]?(\d+(?:\.\d+)?)(?=[/_.\-]|$)", re.I)


def find_model(folder: Path) -> Path | None:
    """Where cameras.txt and images.txt are; a binary model there is refused with the way to convert it."""
    for place in PLACES:
        if (folder / place / "cameras.txt").is_file() and (folder / place / "images.txt").is_file():
            return folder / place
    for place in PLACES:
        if (folder / place / "cameras.bin").is_file():
            raise InputError(
                f"{folder / place}: a binary model; write it as text with "
                "`colmap model_converter --input_path . --output_path . --output_type TXT`"
            )
    return None


def has_model(path: Path) -> bool:
    return find_model(path) is not None


def read_colmap(path: Path, config: Any) -> Layout:
    """The registered pictures with their cameras, and the points as where a fit may begin.

    Times come from the pictures' names, see `seconds_of`. Masks are `masks/NAME`, or `masks/NAME.png` as COLMAP has it.
    """
    model = find_model(path)
    if model is None:
        raise InputError(f"{path}: no cameras.txt and images.txt")
    lenses = _lenses(model / "cameras.txt")
    shots = [
        Shot(picture, Cameras(pose, lens.intrinsics().double()), seconds, mask)
        for picture, pose, lens, seconds, mask in _pictures(path, model / "images.txt", lenses, config.fps)
    ]
    if not shots:
        raise InputError(f"{model / 'images.txt'}: registers no picture")
    points, rgb = _points(model / "points3D.txt") if (model / "points3D.txt").is_file() else (None, None)
    return Layout("COLMAP's images.txt", shots, WORLD, points, rgb)


def seconds_of(name: str, fps: float) -> float | None:
    """The time in a picture's name: the last part that is `frame` or `f` with a number of frames, or `time` or `t`
    with a number of seconds, set off by / _ - or a dot: cam3/frame_0012.png, left_t0.25.png. None without such a part.
    """
    found = FRAME.findall(name.rsplit(".", 1)[0])
    if not found:
        return None
    word, digits = found[-1]
    return float(digits) / (fps if word.lower().startswith("f") else 1.0)


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number from 1, words) of the lines that are no comments; empty lines are kept, for they mean no points."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as text ({error})") from error
    for place, line in enumerate(text.splitlines(), 1):
        if not line.startswith("#"):
            yield place, line.split()


def _lenses(file: Path) -> dict[str, Lens]:
    lenses = {}
    for place, words in _rows(file):
        if not words:
            continue
        where = f"{file}, line {place}"
        if len(words) < 5 or words[1] not in MODELS:
            raise InputError(
                f"{where}: camera model {words[1] if len(words) > 1 else ''!r} is not supported; undistort with "
                f"`colmap image_undistorter`, which writes one of {', '.join(list(MODELS)[:2])}"
            )
        plain, every = MODELS[words[1]]
        values = [number(where, word) for word in words[2:]]
        if len(values) != 2 + every:
            raise InputError(f"{where}: {words[1]} has {every} parameters, got {len(values) - 2}")
        if any(abs(value) > 1e-9 for value in values[2 + plain :]):
            raise InputError(f"{where}: a distorted lens is not supported; undistort with `colmap image_undistorter`")
        width, height, *rest = values
        fx, fy, cx, cy = (rest[0], rest[0], rest[1], rest[2]) if plain == 3 else rest[:4]
        lenses[words[0]] = checked_lens(where, fx, fy, cx, cy, width, height)
    return lenses


def _pictures(
    folder: Path, file: Path, lenses: dict[str, Lens], fps: float
) -> Iterator[tuple[Path, Float[Tensor, "4 4"], Lens, float, Path | None]]:
    if fps <= 0:
        raise InputError(f"{fps} frames a second; give a positive number")
    rows = list(_rows(file))
    while rows and not rows[0][1]:
        rows = rows[1:]
    heads = rows[::2]  # after each comes the line of its 2D points
    times = [seconds_of(words[-1], fps) for _, words in heads if words]
    if any(time is None for time in times) and any(time is not None for time in times):
        raise InputError(f"{file}: some names hold a time and some do not; name all pictures like cam_frame_0012.png")
    root = next(
        (folder / place for place in PICTURES if heads and (folder / place / heads[0][1][-1]).is_file()), folder
    )
    for place, words in heads:
        if not words:
            continue
        where = f"{file}, line {place}"
        if len(words) < 10 or words[8] not in lenses:
            raise InputError(f"{where}: expected id, quaternion, translation, a known camera and a name")
        quaternion, translation = ([number(where, word) for word in part] for part in (words[1:5], words[5:8]))
        name = " ".join(words[9:])
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = _rotation(where, quaternion), torch.tensor(translation, dtype=torch.float64)
        picture = picture_file(root, name, where)
        lens = lenses[words[8]]
        refuse_shape(where, lens.width, lens.height, picture)
        masks = (folder / "masks" / f"{name}.png", folder / "masks" / name)
        mask = next((candidate for candidate in masks if candidate.is_file()), None)
        yield (
            picture,
            colmap_pose(checked_pose(where, pose.tolist())),
            lenses[words[8]],
            seconds_of(name, fps) or 0.0,
            mask,
        )


def _rotation(where: str, quaternion: list[float]) -> Float[Tensor, "3 3"]:
    """I + 2 w [v]× + 2 [v]×² of the unit quaternion (w, v)."""
    q = torch.tensor(quaternion, dtype=torch.float64)
    if abs(float(q.norm()) - 1) > 0.01:
        raise InputError(f"{where}: the quaternion has length {float(q.norm()):.3f}, not 1")
    w, x, y, z = (q / q.norm()).tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + 2 * w * cross + 2 * cross @ cross


def _points(file: Path) -> tuple[Float[Tensor, "point 3"] | None, Float[Tensor, "point 3"] | None]:
    rows = []
    for place, words in _rows(file):
        if words:
            if len(words) < 7:
                raise InputError(f"{file}, line {place}: expected id, x, y, z, red, green, blue")
            rows.append([number(f"{file}, line {place}", word) for word in words[1:7]])
    if not rows:
        return None, None
    table = torch.tensor(rows, dtype=torch.float64)
    return table[:, :3] * torch.tensor([-1.0, -1.0, 1.0]), (table[:, 3:] / 255).clamp(0, 1).float()

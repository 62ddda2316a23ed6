"""`cameras.json`: a list of pictures, each with its camera and its second. The layout is ours and easy to write.

{
  "camera": {"fov_deg": 33.8, "radius": 2.0},
  "pictures": [
    {"file": "rgb/000_00.png", "time": 0.0, "camera": {"azimuth_deg": 0, "elevation_deg": 5}},
    {"file": "rgb/000_01.png", "time": 0.5, "camera": {"world_from_camera": [[...], [...], [...], [...]]}}
  ]
}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import FOV_DEG, RADIUS, Cameras, flip_yz, orbit, pinhole
from loom4d.runs import InputError
from loom4d.sources.captures.shots import (
    Layout,
    Shot,
    checked_lens,
    checked_pose,
    file_size,
    number,
    picture_file,
)
from loom4d.sources.captures.transforms import read_json

WORLD = "the file's own world, y up"
PLACES = ("azimuth_deg", "elevation_deg", "radius")
POSES = ("world_from_camera", "camera_from_world")
LENS = ("fov_deg", "fx", "fy", "cx", "cy")
KEYS = {*PLACES, *POSES, *LENS, "convention"}


def has_camera_list(path: Path) -> bool:
    return (path / "cameras.json").is_file()


def read_camera_list(path: Path, config: Any) -> Layout:
    """`pictures`: `file`, `time` in seconds, `camera`, and where wished `mask` and `held_out`. The `camera` beside
    them holds what all cameras share: a pose by angles on an orbit or as a matrix, and a lens."""
    file = path / "cameras.json"
    content = read_json(file)
    entries = content.get("pictures") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f'{file}: needs a list called pictures, of {{"file", "time", "camera"}}')
    shared = content.get("camera", {})
    shots = []
    for place, entry in enumerate(entries):
        where = f"{file}, picture {place}"
        unknown = set(entry) - {"file", "time", "camera", "mask", "held_out"}
        if unknown or not isinstance(entry.get("file"), str):
            raise InputError(f"{where}: needs file, may have time, camera, mask and held_out; got {', '.join(entry)}")
        picture = picture_file(path, entry["file"], where)
        mask = picture_file(path, entry["mask"], where) if entry.get("mask") else None
        camera = _camera({**_dict(where, shared), **_dict(where, entry.get("camera", {}))}, picture, where)
        seconds = number(where, entry.get("time", 0.0))
        shots.append(Shot(picture, camera, seconds, mask, bool(entry.get("held_out", False))))
    return Layout(file.name, shots, WORLD)


def _dict(where: str, value: Any) -> dict[str, Any]:
    unknown = set(value) - KEYS if isinstance(value, dict) else {"no object"}
    if unknown:
        raise InputError(f"{where}: a camera has {', '.join(sorted(KEYS))}; got {', '.join(sorted(unknown))}")
    return value


def _camera(facts: dict[str, Any], picture: Path, where: str) -> Cameras:
    given = [name for name in POSES if name in facts]
    if len(given) > 1 or (given and "azimuth_deg" in facts):
        raise InputError(f"{where}: one pose is wanted; got {', '.join(given)} and angles")
    if facts.get("convention", "opengl") not in ("opengl", "opencv"):
        raise InputError(f"{where}: convention {facts['convention']!r}; choose opengl (looks down -z) or opencv (+z)")
    if given:
        pose = checked_pose(where, facts[given[0]])
        pose = torch.linalg.inv(pose) if given[0] == "world_from_camera" else pose
        pose = flip_yz(pose) if facts.get("convention") == "opencv" else pose
    elif "azimuth_deg" in facts:
        azimuth, elevation = (number(where, facts.get(name, 0.0)) for name in ("azimuth_deg", "elevation_deg"))
        radius = number(where, facts.get("radius", RADIUS))
        if radius <= 0 or abs(elevation) >= 90:
            raise InputError(f"{where}: radius {radius:g} and elevation {elevation:g}; want > 0 and between ±90")
        pose = orbit(torch.tensor(azimuth, dtype=torch.float64), elevation, radius).camera_from_world
    else:
        raise InputError(f"{where}: no pose; give azimuth_deg and elevation_deg, or {' or '.join(POSES)}")
    return Cameras(pose, _intrinsics(facts, picture, where).double())


def _intrinsics(facts: dict[str, Any], picture: Path, where: str) -> Float[Tensor, "3 3"]:
    """From a vertical field of view, or from pixels of the picture's own size."""
    height, width = (float(side) for side in file_size(picture))
    if "fx" in facts or "fy" in facts:
        fx = number(where, facts.get("fx", facts.get("fy")))
        centre = (number(where, facts.get("cx", width / 2)), number(where, facts.get("cy", height / 2)))
        return checked_lens(
            where, fx, number(where, facts.get("fy", fx)), *centre, float(width), float(height)
        ).intrinsics()
    fov = number(where, facts.get("fov_deg", FOV_DEG))
    if not 0 < fov < 180:
        raise InputError(f"{where}: fov_deg is {fov:g}; it lies between 0 and 180")
    return pinhole(fov, width / height)

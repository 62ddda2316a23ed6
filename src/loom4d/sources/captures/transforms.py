"""`transforms.json` as NeRF, instant-ngp, nerfstudio and D-NeRF write it; `time` per frame makes it move."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from loom4d.cameras import Cameras, blender_pose
from loom4d.runs import InputError
from loom4d.sources.captures.shots import (
    Layout,
    Lens,
    Shot,
    checked_lens,
    checked_pose,
    file_size,
    number,
    picture_file,
    refuse_shape,
)

WORLD = "the file's world with y up: (x, y, z) of the asset is (x, -z, y) of transforms.json"
PINHOLES = (None, "PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")  # where distortion is zero
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def has_transforms(path: Path) -> bool:
    if path.is_file():
        return path.name.startswith("transforms") and path.suffix == ".json"
    return any((path / name).is_file() for name in ("transforms.json", "transforms_train.json"))


def read_transforms(path: Path, config: Any) -> Layout:
    """The frames of `transforms.json`, or of `transforms_train.json` with those of `transforms_test.json` held out."""
    folder = path if path.is_dir() else path.parent
    if path.is_file():
        main, tests = path, None
    elif (folder / "transforms_train.json").is_file():
        main, tests = folder / "transforms_train.json", folder / "transforms_test.json"
    else:
        main, tests = folder / "transforms.json", folder / "transforms_test.json"
    shots = _shots(main, config.seconds, False)
    if tests is not None and tests.is_file():
        shots += _shots(tests, config.seconds, True)
    return Layout(main.name, shots, WORLD)


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON ({' '.join(str(error).split())})") from error


def _shots(file: Path, clip_seconds: float, held_out: bool) -> list[Shot]:
    content = read_json(file)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise InputError(f"{file}: needs a list called frames, each with file_path and transform_matrix")
    if not frames:
        raise InputError(f"{file}: its list of frames is empty")
    key = "seconds" if all("seconds" in frame for frame in frames) else "time"
    timed = sum(key in frame for frame in frames)
    if timed not in (0, len(frames)):
        raise InputError(f"{file}: {timed} of {len(frames)} frames have a time; give it to all of them or to none")
    shots = []
    for place, frame in enumerate(frames):
        where = f"{file}, frame {place}"
        if not isinstance(frame.get("file_path"), str) or "transform_matrix" not in frame:
            raise InputError(f"{where}: needs file_path and transform_matrix")
        picture = picture_file(file.parent, frame["file_path"], where)
        pose = blender_pose(checked_pose(where, frame["transform_matrix"]))
        camera = Cameras(pose, _lens({**content, **frame}, picture, where).intrinsics().double())
        seconds = number(where, frame.get(key, 0.0)) * (1.0 if key == "seconds" else clip_seconds)
        mask = picture_file(file.parent, frame["mask_path"], where) if frame.get("mask_path") else None
        shots.append(Shot(picture, camera, seconds, mask, held_out))
    return shots


def _lens(facts: dict[str, Any], picture: Path, where: str) -> Lens:
    """From fl_x, fl_y, cx, cy, w, h in pixels, or from camera_angle_x in radians; pixels are square unless told."""
    model = facts.get("camera_model")
    bent = [name for name in DISTORTION if abs(number(where, facts.get(name) or 0.0)) > 1e-9]
    if model not in PINHOLES or bent or facts.get("is_fisheye"):
        raise InputError(
            f"{where}: a distorted lens ({', '.join([str(model), *bent])}) is not supported; undistort the pictures"
        )
    rows, columns = file_size(picture)
    width, height = number(where, facts.get("w", columns)), number(where, facts.get("h", rows))
    refuse_shape(where, width, height, picture)
    if "fl_x" in facts or "fl_y" in facts:
        fx = number(where, facts.get("fl_x", facts.get("fl_y")))
        fy = number(where, facts.get("fl_y", fx))
    elif "camera_angle_x" in facts:
        angle = number(where, facts["camera_angle_x"])
        if not 0 < angle < math.pi:
            raise InputError(f"{where}: camera_angle_x is {angle:g}; it is an angle in radians between 0 and π")
        fx = fy = 0.5 * width / math.tan(angle / 2)
        if "camera_angle_y" in facts:
            fy = 0.5 * height / math.tan(number(where, facts["camera_angle_y"]) / 2)
    else:
        raise InputError(f"{where}: no lens; give camera_angle_x, or fl_x, fl_y, cx, cy, w and h")
    cx, cy = number(where, facts.get("cx", width / 2)), number(where, facts.get("cy", height / 2))
    return checked_lens(where, fx, fy, cx, cy, width, height)

"""`.splatv`: a whole clip in 64 bytes per Gaussian, played by splaTV and gsplat.js.

After the magic number and the length of a JSON list comes that list, which describes one chunk of 32-bit words: a
texture of four texels of four words per Gaussian, 1024 Gaussians a row. The words of a Gaussian are

    0–2  position (float)                 8–12   velocity, then second and third order of the path (halves)
    3–6  quaternion, standard deviations  13–14  rate of change of the quaternion (halves)
         (halves)                         15     its own time and √2 times its duration, of a clip from 0 to 1 (halves)
    7    red, green, blue, opacity (bytes)

which is what a space-time Gaussian with one colour is: path and weight are exact up to the 16 bits of a half.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from loom4d.cameras import FOV_DEG, RADIUS, flip_yz, orbit
from loom4d.export.ply import half_turn
from loom4d.gaussians.gaussians import Ellipsoids, rgb_of
from loom4d.gaussians.motion.spacetime import Spacetime
from loom4d.options import Between
from loom4d.runs import write_atomically

MAGIC = 0x674B
ROW = 1024  # Gaussians


@dataclass(frozen=True)
class SplatvOptions:
    """The view that players start with."""

    azimuth_deg: float = 0.0
    elevation_deg: Annotated[float, Between(-90, 90)] = 10.0
    radius: Annotated[float, Between(0.01, 1000)] = RADIUS
    fov_deg: Annotated[float, Between(1, 170)] = FOV_DEG
    size: Annotated[int, Between(1, 8192)] = 1024  # pixels of the picture that the focal length is given for


def write_splatv(asset: Spacetime, path: Path | str, options: SplatvOptions | None = None) -> None:
    """Writes a space-time asset; its world is turned to y down, as players of this format expect.

    Only the mean colour is kept: what changes with the view or with time has no place in the format.
    """
    words = texture(asset)
    facts = {
        "type": "splat",
        "size": words.nbytes,
        "texwidth": 4 * ROW,
        "texheight": len(words) // ROW,
        "cameras": [_camera(options or SplatvOptions())],
    }
    text = json.dumps([facts]).encode()
    write_atomically(Path(path), struct.pack("<II", MAGIC, len(text)) + text + words.tobytes())


def texture(asset: Spacetime) -> np.ndarray:
    """Words (N rounded up to whole rows, 16), uint32; rows that fill up are transparent."""
    covariances = asset.covariances().detach().cpu().double()
    across, variance = covariances[:, :3, 3], covariances[:, 3, 3]
    velocity = across / variance[:, None]
    shapes = covariances[:, :3, :3] - across[:, :, None] * velocity[:, None, :]
    means, opacity = asset.means.detach().cpu().double(), asset.opacity_logits.detach().cpu().double().sigmoid()
    rgb = rgb_of(asset.colours[:, 0, :1].detach().cpu().double(), means, torch.zeros(3, dtype=torch.float64))
    still = half_turn(Ellipsoids(means, shapes, opacity, torch.zeros(len(means), 1, 3).double()).gaussians())
    whole = max((asset.end - asset.start) / asset.unit, 1e-6)
    count, turned = len(means), torch.tensor([-1.0, -1.0, 1.0])
    halves = torch.zeros(count, 32, dtype=torch.float64)  # two a word
    halves[:, 6:10] = still.quaternions
    halves[:, 10:13] = still.log_scales.exp()
    halves[:, 16:19] = velocity * whole * turned
    halves[:, 30] = asset.times.detach().cpu() / whole
    halves[:, 31] = math.sqrt(2) * variance.sqrt() / whole
    words = np.zeros((-(-max(count, 1) // ROW) * ROW, 16), "<u4")
    words[:count] = halves.numpy().clip(-65504, 65504).astype("<f2").view("<u4")
    words[count:, 15] = np.array([0, 1], "<f2").view("<u4")[0]  # a duration of 0 would divide by it
    words[:count, :3] = still.means.float().numpy().astype("<f4").view("<u4")
    bytes_ = torch.cat([rgb.clamp(0, 1), opacity[:, None]], 1).mul(255).round().byte().numpy()
    words[:count, 7] = np.ascontiguousarray(bytes_).view("<u4")[:, 0]
    return words


def _camera(options: SplatvOptions) -> dict:
    """As 3D Gaussian Splatting's `cameras.json`: position, world-from-camera rotation, x right, y down, z ahead."""
    camera = orbit(torch.tensor(options.azimuth_deg), options.elevation_deg, options.radius, options.fov_deg)
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    world_from_camera = turn @ torch.linalg.inv(flip_yz(camera.camera_from_world))
    focal = float(camera.intrinsics[1, 1]) * options.size
    return {
        "id": 0,
        "img_name": "0",
        "width": options.size,
        "height": options.size,
        "position": world_from_camera[:3, 3].tolist(),
        "rotation": world_from_camera[:3, :3].tolist(),
        "fx": focal,
        "fy": focal,
    }

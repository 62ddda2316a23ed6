"""A folder of PLY files in the layout of 3D Gaussian Splatting, one per instant, which splat tools play in order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.gaussians.gaussians import Gaussians, sh_basis, sh_degree
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.options import Between
from loom4d.runs import InputError, write_atomically, write_json

LEAST_OPACITY = 1 / 255  # fainter ones reach no pixel


@dataclass(frozen=True)
class PlyOptions:
    fps: Annotated[float, Between(0.1, 240)] = 24.0
    frames: Annotated[int | None, Between(1, 1000)] = None  # instants over the whole motion; None follows `fps`
    y_down: bool = True  # turned half around z: splat viewers expect scenes as COLMAP leaves them, and turn them back


def write_ply_sequence(asset: DynamicGaussians, path: Path | str, options: PlyOptions | None = None) -> None:
    """Writes `frame_0000.ply` and so on into the folder `path`, and `times.json` with their seconds.

    A Gaussian that cannot be seen at an instant is left out of its file.
    """
    path, options = Path(path), options or PlyOptions()
    refuse_file(path)
    times = sample_times(asset.time_range, options.fps, options.frames)
    for index, time in enumerate(times):
        gaussians = asset.at(time)
        gaussians = gaussians.select(gaussians.opacities >= LEAST_OPACITY)
        if options.y_down:
            gaussians = half_turn(gaussians)
        write_atomically(path / f"frame_{index:04}.ply", ply(gaussians))
    write_json(path / "times.json", {"seconds": times})


def refuse_file(path: Path) -> None:
    """For exports that are folders."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: this export is a folder, and a file stands there; choose another name")


def sample_times(time_range: tuple[float, float], fps: float, frames: int | None) -> list[float]:
    """Even instants from the first to the last second: `frames` of them, or as close to `fps` as fits the ends."""
    start, end = time_range
    if (frames is not None and frames < 1) or fps <= 0:
        raise InputError(f"an export needs at least one frame and a positive rate, got {frames} frames at {fps} fps")
    count = frames or max(1, round((end - start) * fps) + 1)
    if count == 1 or end <= start:
        return [start]
    return torch.linspace(start, end, count, dtype=torch.float64).tolist()


def ply(gaussians: Gaussians) -> bytes:
    """One instant: binary little-endian floats, colours channel by channel, opacity as a logit, logarithmic scales."""
    colours = gaussians.colours.detach().float().cpu()
    rest = rearrange(colours[:, 1:], "n basis rgb -> n (rgb basis)")
    opacity = gaussians.opacities.detach().float().cpu().clamp(1e-6, 1 - 1e-6)
    columns = {
        **_named("{}", ["x", "y", "z"], gaussians.means),
        **_named("n{}", ["x", "y", "z"], torch.zeros_like(gaussians.means)),
        **_named("f_dc_{}", range(3), colours[:, 0]),
        **_named("f_rest_{}", range(rest.shape[1]), rest),
        "opacity": torch.logit(opacity),
        **_named("scale_{}", range(3), gaussians.log_scales),
        **_named("rot_{}", range(4), torch.nn.functional.normalize(gaussians.quaternions, dim=-1)),
    }
    rows = np.stack([column.detach().float().cpu().numpy() for column in columns.values()], 1)
    lines = ["ply", "format binary_little_endian 1.0", "comment Loom4D", f"element vertex {len(rows)}"]
    lines += [f"property float {name}" for name in columns] + ["end_header", ""]
    return "\n".join(lines).encode() + rows.astype("<f4").tobytes()


def half_turn(gaussians: Gaussians) -> Gaussians:
    """The instant turned by 180° around z: x and y change their signs, y up becomes y down."""
    degree = sh_degree(gaussians.colours.shape[-2])
    probe = torch.tensor([0.31, 0.53, 0.79])
    probe = probe / probe.norm()
    sign = torch.tensor([-1.0, -1.0, 1.0])
    # every real spherical harmonic is even or odd under this turn
    parity = (sh_basis(probe * sign, degree) / sh_basis(probe, degree)).round().to(gaussians.colours)
    w, x, y, z = gaussians.quaternions.unbind(-1)
    return Gaussians(
        gaussians.means * sign.to(gaussians.means),
        torch.stack([-z, -y, x, w], -1),
        gaussians.log_scales,
        gaussians.opacities,
        gaussians.colours * parity[:, None],
    )


def _named(pattern: str, names, values: Float[Tensor, "n c"]) -> dict[str, Tensor]:
    return {pattern.format(name): values[:, index] for index, name in enumerate(names)}

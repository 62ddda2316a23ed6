"""Static and animated 3D models, from a path to an `ImageGrid`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import Cameras, turntable
from loom4d.grid import ImageGrid
from loom4d.runs import InputError
from loom4d.sources.gltf import read_gltf
from loom4d.sources.obj import read_obj
from loom4d.sources.posing import Asset, Mesh, pose
from loom4d.sources.procedural.generate import REACH
from loom4d.sources.render import render

FORMATS: dict[str, Callable[[Path], Asset]] = {".glb": read_gltf, ".gltf": read_gltf, ".obj": read_obj}
INSTANTS = 33  # of a clip, at which the object is measured
MAX_BYTES = 500_000_000


def is_asset(path: Path | str) -> bool:
    """Whether the name is that of a 3D model."""
    return Path(path).suffix.lower() in FORMATS


def read_asset(path: Path | str) -> Asset:
    """Reads a model. Raises `InputError` for what is none."""
    path = Path(path)
    if not is_asset(path):
        raise InputError(f"{path}: no 3D model; known are {', '.join(FORMATS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: too large ({path.stat().st_size / 1e6:.0f} MB, at most {MAX_BYTES / 1e6:.0f})")
    return FORMATS[path.suffix.lower()](path)


def first_clip(asset: Asset) -> str | None:
    """The clip that is taken when none is named."""
    return next(iter(asset.clips), None)


def asset_grid(
    path: Path | str,
    clip: str | None = None,
    views: int = 8,
    frames: int | None = None,
    resolution: int = 64,
    elevation_deg: float = 0.0,
    samples: int = 4,
    backend: str = "auto",
) -> ImageGrid:
    """Pictures of a model from a turntable, at even instants of a clip from its first to its last.

    The first clip unless one is named; a model without clips gives one frame. `frames` is 8 unless given; one frame is
    the clip's start. The model is normalised over the whole clip as the procedural objects are: its bounding box is
    centred, its longest side 1, or less where it would leave the picture from some direction.
    """
    asset = read_asset(path)
    clip = first_clip(asset) if clip is None else clip
    try:
        count = 1 if asset.seconds(clip) == 0 else (8 if frames is None else frames)
        cameras = turntable(views, count, elevation_deg)
        return drawn(asset, clip, cameras, resolution, samples=samples, backend=backend)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def drawn(
    asset: Asset,
    clip: str | None,
    cameras: Cameras,
    resolution: int,
    framing: tuple[float, Float[Tensor, " 3"]] | None = None,
    yaw_deg: float = 0.0,
    samples: int = 4,
    backend: str = "auto",
) -> ImageGrid:
    """Pictures of a model from a grid (view, frame) of cameras, at even instants of a clip from its first to its last.

    `framing` is the scale and centre that normalise the model, those of the whole clip unless given; it is then turned
    by `yaw_deg` around the vertical, to its own left.
    """
    scale, centre = framing or fit(asset, clip)
    frames = cameras.batch_shape[1]
    times = torch.linspace(0, asset.seconds(clip), frames)
    cosine, sine = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    turned = torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
    columns = []
    for frame, time in enumerate(times.tolist()):
        mesh = pose(asset, clip, time)
        placed = (mesh.vertices - centre) * scale @ turned.mT
        mesh = replace(mesh, vertices=placed, normals=mesh.normals @ turned.mT)
        columns.append(render(mesh, cameras[:, frame], resolution, resolution, samples, backend)[0])
    return ImageGrid(rearrange(columns, "frame view c h w -> view frame c h w"), cameras, times)


def fit(asset: Asset, clip: str | None, whole: bool = True) -> tuple[float, Float[Tensor, " 3"]]:
    """(scale, centre) such that (x − centre) · scale is normalised over the whole clip, or by its first instant."""
    seconds = asset.seconds(clip) if whole else 0.0
    instants = torch.linspace(0, seconds, INSTANTS).tolist() if seconds else [0.0]
    points = torch.cat([_used(pose(asset, clip, time)) for time in instants])
    if not torch.isfinite(points).all():
        raise InputError("a damaged model: some of its points are not finite")
    low, high = points.amin(0), points.amax(0)
    centre = (low + high) / 2
    reach = (points - centre).norm(dim=-1).max().item()
    if reach == 0:
        raise InputError("a model of size zero")
    return min(1 / (high - low).max().item(), REACH / reach), centre


def _used(mesh: Mesh) -> Tensor:
    """Points that a face has; stray ones count for nothing."""
    return mesh.vertices[mesh.faces.unique()]

"""Moving assets on disk, and as pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import Cameras, cells
from loom4d.gaussians.motion import MOTIONS, DynamicGaussians
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.grid import ImageGrid, straight
from loom4d.runs import InputError, load_tensors, save_tensors

FORMAT = 1  # of asset.safetensors


def motion_name(asset: DynamicGaussians) -> str:
    """The name under which the asset's motion is registered."""
    for name, motion in MOTIONS.items():
        if type(asset) is motion:
            return name
    raise ValueError(f"{type(asset).__name__} is not a registered motion; MOTIONS holds {', '.join(MOTIONS)}")


def save_asset(asset: DynamicGaussians, path: Path) -> None:
    """One safetensors file, written atomically. Numbers that are not finite are refused: they never reach a file."""
    for name, tensor in asset.tensors().items():
        if not tensor.isfinite().all():
            raise ValueError(f"the asset's {name} holds numbers that are not finite; nothing was written to {path}")
    save_tensors(path, asset.tensors(), {"format": FORMAT, "motion": motion_name(asset), "config": asset.config()})


def load_asset(path: Path) -> DynamicGaussians:
    """The inverse of `save_asset`, bit for bit."""
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT or metadata.get("motion") not in MOTIONS:
        raise InputError(
            f"{path}: not a moving asset that this version knows (format {metadata.get('format')}, "
            f"motion {metadata.get('motion')}); expected format {FORMAT} and one of {', '.join(MOTIONS)}"
        )
    try:
        return MOTIONS[metadata["motion"]].from_tensors(tensors, metadata["config"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: a damaged asset of motion {metadata['motion']} ({error})") from error


@torch.no_grad()
def render(
    asset: DynamicGaussians,
    cameras: Cameras,
    times: Float[Tensor, " frame"],
    height: int,
    width: int,
    backend: str | None = None,
) -> ImageGrid:
    """The asset as an image grid: `cameras` per (view, frame), `times` in seconds. It is drawn on the asset's device;
    the pictures are left where the cameras are."""
    views, frames = cameras.batch_shape
    device = asset.at(float(times[0])).means.device
    flat, seconds = cells(cameras).to(device), times.repeat(views).to(device)
    options = RasterOptions(height, width)
    chunk = max(1, 2**22 // (height * width))  # cells at a time, so that memory does not grow with the grid
    parts = [
        rasterize(asset.slices(seconds[first : first + chunk]), flat[first : first + chunk], options, backend)
        for first in range(0, views * frames, chunk)
    ]
    rgba = straight(torch.cat([part.premultiplied for part in parts]).clamp(0, 1)).to(cameras.intrinsics.device)
    return ImageGrid(rgba.reshape(views, frames, 4, height, width), cameras, times)

"""The file formats that an asset can leave in, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom4d.export.glb import write_glb
from loom4d.export.mesh import MeshOptions
from loom4d.export.ply import PlyOptions, write_ply_sequence
from loom4d.export.splatv import SplatvOptions, write_splatv
from loom4d.export.transforms import TransformsOptions, write_asset_transforms
from loom4d.export.usd import UsdOptions, write_usd
from loom4d.export.video import OrbitOptions, write_orbit
from loom4d.gaussians.motion import DynamicGaussians


@dataclass(frozen=True)
class Format:
    """`write(asset, path, options)` with a frozen `options` whose defaults serve most."""

    write: Callable[[DynamicGaussians, Path, Any], None]
    options: type
    suffix: str  # of the file; empty where a folder is written
    about: str


FORMATS: dict[str, Format] = {
    "mp4": Format(write_orbit, OrbitOptions, ".mp4", "clip for every player (H.264)"),
    "webp": Format(write_orbit, OrbitOptions, ".webp", "animated picture, transparent if wished"),
    "gif": Format(write_orbit, OrbitOptions, ".gif", "animated picture for where nothing else plays"),
    "glb": Format(write_glb, MeshOptions, ".glb", "animated mesh for Blender, Unity, Unreal and the web"),
    "usd": Format(write_usd, UsdOptions, ".usdc", "time-sampled splats, or a mesh, for film tools and Omniverse"),
    "ply": Format(write_ply_sequence, PlyOptions, "", "folder of splat files, one per instant"),
    "splatv": Format(write_splatv, SplatvOptions, ".splatv", "one small file for splaTV and gsplat.js"),
    "grid": Format(write_asset_transforms, TransformsOptions, "", "pictures and transforms.json for other trainers"),
}


def export(asset: DynamicGaussians, path: Path | str, name: str, options: Any = None) -> None:
    """Writes the asset in the format called `name`. Options of another format are refused."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; choose one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    options = chosen.options() if options is None else options
    if not isinstance(options, chosen.options):
        raise TypeError(f"format {name!r} takes {chosen.options.__name__}, got {type(options).__name__}")
    chosen.write(asset, Path(path), options)

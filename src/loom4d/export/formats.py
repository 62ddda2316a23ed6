"""The file formats that an asset can leave in, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loom4d.export.glb import GlbOptions, write_glb, write_glb_morph
from loom4d.export.ply import PlyOptions, write_ply_sequence
from loom4d.export.splatv import SplatvOptions, write_splatv
from loom4d.export.transforms import TransformsOptions, write_asset_transforms
from loom4d.export.usd import UsdOptions, write_usd
from loom4d.export.video import OrbitOptions, write_orbit
from loom4d.gaussians.motion import DynamicGaussians


@dataclass(frozen=True)
class Format:
    """`write(asset, path, options)` with a frozen `options` whose defaults serve most; it may return a line."""

    write: Callable[[DynamicGaussians, Path, Any], str | None]
    options: type
    suffix: str  # of the file; empty where a folder is written
    about: str


FORMATS: dict[str, Format] = {
    "mp4": Format(write_orbit, OrbitOptions, ".mp4", "clip for every player (H.264)"),
    "webp": Format(write_orbit, OrbitOptions, ".webp", "animated picture, transparent if wished"),
    "gif": Format(write_orbit, OrbitOptions, ".gif", "animated picture for where nothing else plays"),
    "glb": Format(write_glb, GlbOptions, ".glb", "mesh on a skeleton for Blender, Unity, Unreal and the web"),
    "glb-morph": Format(write_glb_morph, GlbOptions, ".glb", "the mesh with a morph target for every instant"),
    "usd": Format(write_usd, UsdOptions, ".usdc", "time-sampled splats, or a mesh, for film tools and Omniverse"),
    "ply": Format(write_ply_sequence, PlyOptions, "", "folder of splat files, one per instant"),
    "splatv": Format(write_splatv, SplatvOptions, ".splatv", "one small file for splaTV and gsplat.js"),
    "grid": Format(write_asset_transforms, TransformsOptions, "", "pictures and transforms.json for other trainers"),
}


def export(asset: DynamicGaussians, path: Path | str, name: str, options: Any = None) -> str:
    """Writes the asset in the format called `name`; returns what is to be said of the result, which may be nothing.

    Options of another format are refused.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; choose one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    options = chosen.options() if options is None else options
    if not isinstance(options, chosen.options):
        raise TypeError(f"format {name!r} takes {chosen.options.__name__}, got {type(options).__name__}")
    return chosen.write(asset, Path(path), options) or ""

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
from loom4d.export.usd import missing as missing_usd
from loom4d.export.video import OrbitOptions, write_orbit
from loom4d.gaussians.motion import MOTIONS, DynamicGaussians
from loom4d.options import wrong
from loom4d.runs import InputError


@dataclass(frozen=True)
class Format:
    """`write(asset, path, options)` with a frozen `options` whose defaults serve most; it may return a line."""

    write: Callable[[Any, Path, Any], str | None]
    options: type
    suffix: str  # of the file; empty where a folder is written
    about: str
    motions: tuple[str, ...] | None = None  # of MOTIONS, those that it can hold; None is all
    missing: Callable[[], str] = str  # what must be installed first, in words; empty where all is there

    def refusal(self, motion: str) -> str:
        """Why an asset of that motion cannot be written so here, in words; empty where it can."""
        if self.motions is not None and motion not in self.motions:
            return f"it holds {' and '.join(self.motions)} motion only, and this asset's is {motion}"
        return self.missing()


FORMATS: dict[str, Format] = {
    "mp4": Format(write_orbit, OrbitOptions, ".mp4", "clip for every player (H.264)"),
    "webp": Format(write_orbit, OrbitOptions, ".webp", "animated picture, transparent if wished"),
    "gif": Format(write_orbit, OrbitOptions, ".gif", "animated picture for where nothing else plays"),
    "glb": Format(write_glb, GlbOptions, ".glb", "mesh on a skeleton for Blender, Unity, Unreal and the web"),
    "glb-morph": Format(write_glb_morph, GlbOptions, ".glb", "the mesh with a morph target for every instant"),
    "usd": Format(
        write_usd,
        UsdOptions,
        ".usdc",
        "time-sampled splats, or a mesh, for film tools and Omniverse",
        missing=missing_usd,
    ),
    "ply": Format(write_ply_sequence, PlyOptions, "", "folder of splat files, one per instant"),
    "splatv": Format(
        write_splatv, SplatvOptions, ".splatv", "one small file for splaTV and gsplat.js", motions=("spacetime",)
    ),
    "grid": Format(write_asset_transforms, TransformsOptions, "", "pictures and transforms.json for other trainers"),
}


def export(asset: DynamicGaussians, path: Path | str, name: str, options: Any = None) -> str:
    """Writes the asset in the format called `name`; returns what is to be said of the result, which may be nothing.

    Options of another format are refused; values out of their range, and motions that the format cannot hold, are an
    `InputError`.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; choose one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    options = chosen.options() if options is None else options
    if not isinstance(options, chosen.options):
        raise TypeError(f"format {name!r} takes {chosen.options.__name__}, got {type(options).__name__}")
    motion = next((known for known, one in MOTIONS.items() if type(asset) is one), type(asset).__name__)
    if reason := chosen.refusal(motion) or wrong(options):
        raise InputError(f"{path} cannot be written as {name}: {reason}")
    return chosen.write(asset, Path(path), options) or ""

"""OpenUSD: the asset as time-sampled Gaussian splats (`ParticleField3DGaussianSplat`) or as a mesh with moving points.

Needs the extra `usd` (usd-core 26.03 or newer, which introduced the splat schema).
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from loom4d.export.glb import linear_rgb
from loom4d.export.mesh import MeshOptions, moving_mesh
from loom4d.export.ply import sample_times
from loom4d.gaussians.gaussians import sh_degree
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.options import Between
from loom4d.runs import InputError, write_atomically

SUFFIXES = (".usd", ".usda", ".usdc", ".usdz")


@dataclass(frozen=True)
class UsdOptions:
    content: Literal["splats", "mesh"] = "splats"  # every tool reads a mesh
    fps: Annotated[float, Between(0.1, 240)] = 24.0  # time codes per second
    frames: Annotated[int | None, Between(1, 1000)] = None  # instants over the whole motion; None follows `fps`
    mesh: MeshOptions = field(default_factory=MeshOptions)  # of the content "mesh"; its `frames` are the instants


def write_usd(asset: DynamicGaussians, path: Path | str, options: UsdOptions | None = None) -> None:
    """Writes one stage, y up, in metres, whose time codes start at 0 with the asset's first second."""
    path, options = Path(path), options or UsdOptions()
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: USD files end in {', '.join(SUFFIXES)}; choose one of these suffixes")
    pxr = _pxr()
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / f"asset{'.usdc' if path.suffix.lower() == '.usdz' else path.suffix.lower()}"
        stage = pxr.Usd.Stage.CreateNew(str(inner))
        pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
        pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetTimeCodesPerSecond(options.fps)
        root = pxr.UsdGeom.Xform.Define(stage, "/Asset")
        stage.SetDefaultPrim(root.GetPrim())
        last = {"splats": _splats, "mesh": _mesh}[options.content](pxr, stage, asset, options)
        stage.SetStartTimeCode(0)
        stage.SetEndTimeCode(last)
        stage.GetRootLayer().Save()
        if path.suffix.lower() == ".usdz":
            package = Path(folder) / "package.usdz"
            if not pxr.UsdUtils.CreateNewUsdzPackage(str(inner), str(package)):
                raise RuntimeError(f"usd-core could not pack {path}")
            inner = package
        content = inner.read_bytes()
    write_atomically(path, content)


def missing() -> str:
    """What must be installed first, in words; empty where all is there."""
    return "" if importlib.util.find_spec("pxr") else "USD needs the extra `usd`: pip install 'loom4d[usd]'"


def _pxr() -> Any:
    try:
        import pxr
        from pxr import Gf, Sdf, Usd, UsdGeom, UsdUtils, UsdVol, Vt  # noqa: F401 (made attributes of pxr)
    except ImportError as error:
        raise InputError(missing() or f"usd-core cannot be loaded ({error})") from error
    if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
        raise InputError("this usd-core is too old for Gaussian splats: pip install -U 'usd-core>=26.3'")
    return pxr


def _splats(pxr: Any, stage: Any, asset: DynamicGaussians, options: UsdOptions) -> float:
    """Adds the splats and returns the last time code. What does not change is written once."""
    times = sample_times(asset.time_range, options.fps, options.frames)
    codes = [(time - times[0]) * options.fps for time in times]
    instants = [asset.at(time) for time in times]
    splats = pxr.UsdVol.ParticleField3DGaussianSplat.Define(stage, "/Asset/Splats")
    unit = lambda one: torch.nn.functional.normalize(one.quaternions, dim=-1)  # noqa: E731
    fields = {
        splats.CreatePositionsAttr(): (pxr.Vt.Vec3fArray, [one.means for one in instants]),
        splats.CreateOrientationsAttr(): (pxr.Vt.QuatfArray, [unit(one)[:, [1, 2, 3, 0]] for one in instants]),
        splats.CreateScalesAttr(): (pxr.Vt.Vec3fArray, [one.log_scales.exp() for one in instants]),
        splats.CreateOpacitiesAttr(): (pxr.Vt.FloatArray, [one.opacities for one in instants]),
        splats.CreateRadianceSphericalHarmonicsCoefficientsAttr(): (
            pxr.Vt.Vec3fArray,
            [one.colours.flatten(0, 1) for one in instants],
        ),
    }
    splats.CreateRadianceSphericalHarmonicsDegreeAttr(sh_degree(instants[0].colours.shape[1]))
    for attribute, (kind, values) in fields.items():
        _sampled(attribute, kind, [value.detach().float().cpu().numpy() for value in values], codes)
    reaches = [3 * one.log_scales.amax(-1, keepdim=True).exp() for one in instants]
    extents = [
        torch.stack([(one.means - reach).amin(0), (one.means + reach).amax(0)]).detach().float().cpu().numpy()
        for one, reach in zip(instants, reaches, strict=True)
    ]
    _sampled(splats.CreateExtentAttr(), pxr.Vt.Vec3fArray, extents, codes)
    return codes[-1]


def _mesh(pxr: Any, stage: Any, asset: DynamicGaussians, options: UsdOptions) -> float:
    moving = moving_mesh(asset, options.mesh)
    codes = ((moving.times - moving.times[0]) * options.fps).tolist()
    mesh = pxr.UsdGeom.Mesh.Define(stage, "/Asset/Mesh")
    mesh.CreateSubdivisionSchemeAttr(pxr.UsdGeom.Tokens.none)
    mesh.CreateFaceVertexCountsAttr(pxr.Vt.IntArray.FromNumpy(np.full(len(moving.faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(pxr.Vt.IntArray.FromNumpy(moving.faces.numpy().astype(np.int32).reshape(-1)))
    _sampled(mesh.CreatePointsAttr(), pxr.Vt.Vec3fArray, list(moving.vertices.float().numpy()), codes)
    extents = torch.stack([moving.vertices.amin(1), moving.vertices.amax(1)], 1)
    _sampled(mesh.CreateExtentAttr(), pxr.Vt.Vec3fArray, list(extents.float().numpy()), codes)
    shades = linear_rgb(moving.colours.double().numpy()).astype(np.float32)
    primvar = mesh.CreateDisplayColorPrimvar(pxr.UsdGeom.Tokens.vertex)
    primvar.Set(pxr.Vt.Vec3fArray.FromNumpy(shades))
    return codes[-1]


def _sampled(attribute: Any, kind: Any, values: list[np.ndarray], codes: list[float]) -> None:
    """One value where all are the same, else a value per time code."""
    if all(np.array_equal(value, values[0]) for value in values):
        attribute.Set(kind.FromNumpy(np.ascontiguousarray(values[0])))
        return
    for value, code in zip(values, codes, strict=True):
        attribute.Set(kind.FromNumpy(np.ascontiguousarray(value)), code)

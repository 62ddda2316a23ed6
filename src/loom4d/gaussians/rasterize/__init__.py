"""`rasterize(gaussians, cameras, options, backend)`: Gaussians and cameras to colour, alpha and depth."""

from __future__ import annotations

import importlib.util

from loom4d import native
from loom4d.cameras import Cameras
from loom4d.gaussians.gaussians import Ellipsoids, Gaussians
from loom4d.gaussians.rasterize.cpu import rasterize_cpu
from loom4d.gaussians.rasterize.gsplat import rasterize_gsplat
from loom4d.gaussians.rasterize.pictures import Backend, RasterOptions, Rendering
from loom4d.gaussians.rasterize.reference import rasterize_reference

BACKENDS: dict[str, Backend] = {"reference": rasterize_reference, "cpu": rasterize_cpu, "gsplat": rasterize_gsplat}

__all__ = ["BACKENDS", "Backend", "RasterOptions", "Rendering", "default_backend", "rasterize"]


def default_backend(device: str = "cpu") -> str:
    """ "cpu", or "gsplat" for tensors on a GPU; where these are not there "reference", which is some 30 times slower:
    long work says so."""
    if device != "cpu":
        return "reference" if importlib.util.find_spec("gsplat") is None else "gsplat"
    return "reference" if native.load() is None else "cpu"


def rasterize(
    gaussians: Gaussians | Ellipsoids, cameras: Cameras, options: RasterOptions, backend: str | None = None
) -> Rendering:
    """One picture per camera. Fields with batch axes (as the cameras) give each picture its own instant."""
    name = backend or default_backend(gaussians.means.device.type)
    if name not in BACKENDS:
        raise ValueError(f"unknown rasteriser {name!r}; choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name](gaussians, cameras, options)

"""Loom4D turns a picture, a clip or a static object into a moving 3D asset.

   import loom4d
   asset = loom4d.generate("turtle.webp", "runs/turtle")    # DynamicGaussians
   asset.at(0.5)                                     # Gaussians at half a second

photo · clip · orbit ── sources ──▶ ImageGrid 1×1, 1×F, V×1
                                        │ methods: imagine, with a family of priors
                                    ImageGrid V×F
                                        │ gaussians: fit
                                    DynamicGaussians ──▶ export, viewer
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loom4d.cameras import Cameras as Cameras
    from loom4d.export.video import OrbitOptions as OrbitOptions
    from loom4d.gaussians.asset import load_asset as load_asset
    from loom4d.gaussians.asset import render as render
    from loom4d.gaussians.fit import fit as fit
    from loom4d.gaussians.fit_config import FitConfig as FitConfig
    from loom4d.grid import ImageGrid as ImageGrid
    from loom4d.grid import load_grid as load_grid
    from loom4d.methods.diffusion_squared import DiffusionSquaredConfig as DiffusionSquaredConfig
    from loom4d.pipeline import GenerateConfig as GenerateConfig
    from loom4d.pipeline import generate as generate
    from loom4d.runs import Event as Event
    from loom4d.runs import InputError as InputError
    from loom4d.runs import result_of as result_of

PUBLIC = {
    "Cameras": "cameras",
    "DiffusionSquaredConfig": "methods.diffusion_squared",
    "Event": "runs",
    "FitConfig": "gaussians.fit_config",
    "GenerateConfig": "pipeline",
    "ImageGrid": "grid",
    "InputError": "runs",
    "OrbitOptions": "export.video",
    "fit": "gaussians.fit",
    "generate": "pipeline",
    "load_asset": "gaussians.asset",
    "load_grid": "grid",
    "render": "gaussians.asset",
    "result_of": "runs",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for, so that `import loom4d` costs nothing."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'loom4d' has no attribute {name!r}; it has {', '.join(PUBLIC)}")
    return getattr(import_module(f"loom4d.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(PUBLIC)

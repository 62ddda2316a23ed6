"""An extension for the web app's tests: a method and qualities that take a moment, or very long.

It registers what it brings, so only servers import it, never the tests themselves.
"""

from __future__ import annotations

from dataclasses import replace

from loom4d.export.video import OrbitOptions
from loom4d.gaussians.fit_config import PRESETS, FitConfig
from loom4d.methods import METHODS, Method
from loom4d.methods.diffusion_squared import default
from loom4d.serve import choices

choices.FILM = OrbitOptions(seconds=0.2, size=32)
METHODS["tiny"] = Method(
    METHODS["diffusion-squared"].imagine,
    {
        "quick": lambda seed: replace(default(), steps=2, views=2, frames=2, correction=0.0, seed=seed),
        "slow": lambda seed: replace(default(), steps=16, views=2, frames=2, correction=0.0, seed=seed),
        "slower": lambda seed: replace(default(), steps=48, views=3, frames=3, correction=0.0, seed=seed),
    },
)
PRESETS["tiny"] = lambda: FitConfig(iterations=4, count=60, hull_resolution=12)
PRESETS["long"] = lambda: FitConfig(iterations=20_000, count=60, hull_resolution=12, state_every=50)

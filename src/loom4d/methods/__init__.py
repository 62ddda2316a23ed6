"""The published methods, one paper a file, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from loom4d.methods import diffusion_squared


@dataclass(frozen=True)
class Method:
    """How a method makes a grid, and its presets: name -> configuration for a seed."""

    imagine: Callable[..., Any]  # (given, family, config, memory) -> Work[ImageGrid]
    presets: dict[str, Callable[[int], Any]]
    defaults: dict[str, str] = field(default_factory=dict)  # family -> the preset that "default" means with it

    def meant(self, preset: str, family: str, quality: str = "balanced") -> str:
        """The preset that a name stands for with these priors: "default" is the family's own, or that of the quality
        where the method has one by its name."""
        if preset != "default":
            return preset
        return self.defaults.get(family) or (quality if quality in self.presets else preset)


def seeded(presets: dict[str, Callable[[], Any]]) -> dict[str, Callable[[int], Any]]:
    """Presets that take the run's seed."""

    def with_seed(preset: Callable[[], Any]) -> Callable[[int], Any]:
        return lambda seed: replace(preset(), seed=seed)

    return {name: with_seed(preset) for name, preset in presets.items()}


METHODS: dict[str, Method] = {
    # Ours was chosen on the built-in priors; full-size ones are run as they were published.
    "diffusion-squared": Method(
        diffusion_squared.imagine, seeded(diffusion_squared.PRESETS), defaults={"svd-sv3d": "paper"}
    ),
}

"""The published methods, one paper a file, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from loom4d.methods import diffusion_squared


@dataclass(frozen=True)
class Method:
    """How a method makes a grid, and its presets: name -> configuration for a seed."""

    imagine: Callable[..., Any]  # (given, family, config, memory) -> Work[ImageGrid]
    presets: dict[str, Callable[[int], Any]]


def seeded(presets: dict[str, Callable[[], Any]]) -> dict[str, Callable[[int], Any]]:
    """Presets that take the run's seed."""

    def with_seed(preset: Callable[[], Any]) -> Callable[[int], Any]:
        return lambda seed: replace(preset(), seed=seed)

    return {name: with_seed(preset) for name, preset in presets.items()}


METHODS: dict[str, Method] = {
    "diffusion-squared": Method(diffusion_squared.imagine, seeded(diffusion_squared.PRESETS)),
}

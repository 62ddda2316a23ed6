"""How a fit runs: its choices and their presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from loom4d.gaussians.densify import DensifyConfig
from loom4d.gaussians.motion import LEADERS
from loom4d.gaussians.objective import LossWeights
from loom4d.gaussians.state import FitState


@dataclass(frozen=True)
class Stage:
    """Part of a fit, from where the one before ended."""

    until: float = 1.0  # share of the iterations
    scale: float = 1.0  # of the pictures' sides


@dataclass(frozen=True)
class FitConfig:
    """How a fit runs; `preview()`, `balanced()` and `full()` are the presets."""

    motion: str = "controlled"  # stays one object between the frames; "spacetime" where parts come and go
    count: int = 5000  # Gaussians at the start; where "spacetime" is led, half as many, which become a multiple
    dense: float = 3.5  # of them at most for a covered pixel: more would learn how views contradict each other
    iterations: int = 1300
    lead: float = 0.85  # share of them in which "spacetime" is led by "controlled"; 0 where parts come and go
    batch: int = 4  # pictures per iteration
    instants: int = 2  # moments that these show; fewer are faster
    rate: float = 6.0  # multiplies the motion's learning rates
    final_rate: float = 0.06  # what is left of them at the end; they fall exponentially
    settled: float = 0.35  # multiplies them for a motion that was led, which begins near its goal
    stages: tuple[Stage, ...] = (Stage(0.4, 0.5), Stage())  # coarse to fine
    hull_resolution: int = 48  # voxels per side
    thinnest: float = 0.2  # no axis of a Gaussian gets shorter than so many pixels at the object's distance
    needle: float = 4.0  # nor the longest longer than so many times the middle one
    confidence: bool = False  # trust a cell by its similarity to the render (Diffusion²), against inconsistent grids
    perceptual: Literal["autoencoder", "lpips-vgg", "lpips-alexnet"] = "autoencoder"  # what weights.perceptual weighs
    weights: LossWeights = field(default_factory=LossWeights)
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    seed: int = 0
    backend: str | None = None  # of the rasteriser
    preview_every: int = 100  # iterations; 0 for none
    state_every: int = 100  # iterations between calls of `on_state`

    @property
    def handover(self) -> int:
        """The iteration at which a motion takes over from the one that leads it; 0 where none does."""
        return int(self.lead * self.iterations) if self.motion in LEADERS else 0

    def motion_at(self, step: int) -> str:
        """The motion that an iteration improves."""
        return LEADERS[self.motion] if step < self.handover else self.motion

    def motion_of(self, state: FitState) -> str:
        """The motion whose asset is in a state; at the handover still the leader's."""
        return self.motion_at(max(state.step - 1, 0))

    def stage_at(self, step: int) -> int:
        """Index of the stage to which an iteration belongs."""
        return next(
            (index for index, stage in enumerate(self.stages) if step < stage.until * self.iterations),
            len(self.stages) - 1,
        )


def preview() -> FitConfig:
    return FitConfig(count=2500, iterations=300, settled=1.0)


def balanced() -> FitConfig:
    return thrifty(FitConfig(iterations=1700))


def full() -> FitConfig:
    return thrifty(FitConfig(count=9000, dense=7.0, iterations=5000), top=0.2, times=20)


def thrifty(config: FitConfig, top: float = 0.12, times: int = 10) -> FitConfig:
    """The same fit with a price on opacity at first: what pictures do not need fades and goes, above all in the hull's
    excess, where none looks well. What they need multiplies instead, so many times and this share at a time, up to as
    many as there were."""
    every = max(1, config.iterations // (2 * times))
    again = DensifyConfig(policy="percentile", start=0.2, end=0.7, every=every, top=top, most=0)
    return replace(config, weights=replace(config.weights, opacity=0.08), densify=again)


def forgiving(config: FitConfig) -> FitConfig:
    """The same fit for pictures that contradict each other, as generated ones do. Thin Gaussians would stand on edge
    to all views but their own, as fur; what multiplied would be what explains one view, as would many Gaussians for a
    pixel; and a cell that is unlike the render pulls less."""
    weights = replace(config.weights, opacity=0.0)
    round_ones = replace(config, thinnest=0.5, needle=2.0, dense=min(config.dense, FitConfig.dense))
    return replace(round_ones, confidence=True, weights=weights, densify=DensifyConfig())


PRESETS: dict[str, Callable[[], FitConfig]] = {"preview": preview, "balanced": balanced, "full": full}

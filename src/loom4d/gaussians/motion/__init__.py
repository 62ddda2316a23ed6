"""What moves Gaussians: every motion gives the instant at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.gaussians.gaussians import Ellipsoids, Gaussians
from loom4d.gaussians.initial import Cloud
from loom4d.gaussians.motion.controlled import Controlled
from loom4d.gaussians.motion.deformed import Deformed
from loom4d.gaussians.motion.spacetime import Spacetime


@runtime_checkable
class DynamicGaussians(Protocol):
    """A moving asset: tensors that are learnt, a few plain numbers, and a function of time.

    Among the tensors are `means`, `log_scales` (point, 3) and `opacity_logits` (point), which regularisers read.
    """

    @property
    def time_range(self) -> tuple[float, float]:
        """First and last second that was seen."""

    def at(self, time: float) -> Gaussians:
        """One instant, at a time in seconds; points keep their number and order."""

    def slices(self, times: Float[Tensor, " batch"]) -> Gaussians | Ellipsoids:
        """Several instants at once, differentiable in the tensors; fields that do not move have no batch axis."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is learnt, by name."""

    def config(self) -> dict[str, Any]:
        """What else `from_tensors` needs, as JSON."""

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], config: dict[str, Any]) -> DynamicGaussians:
        """The inverse of `tensors` and `config`."""

    @staticmethod
    def initial(
        cloud: Cloud, times: Float[Tensor, " frame"], count: int, generator: torch.Generator
    ) -> DynamicGaussians:
        """Where a fit starts: about `count` Gaussians for a moment, out of a cloud with as many at every moment;
        `times` in seconds."""

    @staticmethod
    def rates() -> dict[str, float]:
        """Adam's learning rate for each tensor at the start of a fit."""

    @staticmethod
    def point_fields() -> tuple[str, ...]:
        """Names of the tensors with one row per Gaussian, which multiply with them."""

    def split(self, chosen: Int[Tensor, " point"], generator: torch.Generator) -> dict[str, Tensor]:
        """Those fields of two smaller Gaussians, drawn from it, in the place of each chosen one."""

    def finished(self) -> DynamicGaussians:
        """What a fit hands out in the end: the same at the moments that were seen, made good between them."""

    def penalty(self) -> Float[Tensor, ""]:
        """What this motion should not do where no picture forbids it."""


MOTIONS: dict[str, type[DynamicGaussians]] = {
    "spacetime": Spacetime,
    "controlled": Controlled,
    "deformed": Deformed,
}
# what leads a motion that knows nothing of surfaces, and how it takes over: (leader's asset, seconds of frames) -> own
LEADERS: dict[str, str] = {"spacetime": "controlled"}
FOLLOWING: dict[str, Callable[[DynamicGaussians, Tensor], DynamicGaussians]] = {"spacetime": Spacetime.following}

"""What a fit learns and remembers, and one step of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.gaussians.motion import MOTIONS, DynamicGaussians

MOMENTUM, SQUARES = 0.9, 0.99  # Adam's averages, over the last 10 and 100 steps
LATELY = 0.98  # average of what is learnt, over the last 50 steps


@dataclass(frozen=True)
class FitState:
    """What a killed fit needs to go on to the same bytes: everything that is learnt, its average over the last steps,
    and Adam's averages."""

    step: int  # iterations done
    # "asset.NAME", "lately.NAME", "mean.NAME", "square.NAME"; "growth.NAME" while Gaussians multiply
    tensors: dict[str, Tensor]
    motion: dict[str, Any]  # the motion's config

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        prefix = f"{name}."
        found = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        return {key: value.detach() for key, value in found.items()}

    def to(self, device: torch.device | str) -> FitState:
        return FitState(self.step, {name: tensor.to(device) for name, tensor in self.tensors.items()}, self.motion)

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.tensors.values())


def state_of(asset: DynamicGaussians) -> FitState:
    """A state in which nothing is learnt yet."""
    tensors = {name: tensor.detach().clone() for name, tensor in asset.tensors().items()}
    learnt = {name: tensors[name] for name in asset.rates()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in learnt.items()}
    return FitState(0, named(asset=tensors, lately=learnt, mean=zeros, square=zeros), asset.config())


def named(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Groups of tensors as one, each name under its group's."""
    return {f"{part}.{name}": tensor for part, group in parts.items() for name, tensor in group.items()}


def asset_of(state: FitState, motion: str) -> DynamicGaussians:
    """The asset in a state, of the motion by that name: the average of the last steps, which is nearer the goal than
    any of them, since each follows the few pictures of one batch."""
    return MOTIONS[motion].from_tensors(state.part("asset") | state.part("lately"), state.motion)


@torch.no_grad()
def adam(state: FitState, gradients: dict[str, Tensor], rates: dict[str, float]) -> FitState:
    """One step of Adam (ε as small as in 3DGS: a Gaussian seen rarely moves as far as one seen often)."""
    tensors, count = dict(state.tensors), state.step + 1
    for name, gradient in gradients.items():
        mean = tensors[f"mean.{name}"].lerp(gradient, 1 - MOMENTUM)
        square = torch.lerp(tensors[f"square.{name}"], gradient**2, 1 - SQUARES)
        scale = (square / (1 - SQUARES**count)).sqrt_().add_(1e-15)
        step = rates[name] / (1 - MOMENTUM**count)
        tensors[f"asset.{name}"] = torch.addcdiv(tensors[f"asset.{name}"], mean, scale, value=-step)
        tensors[f"mean.{name}"], tensors[f"square.{name}"] = mean, square
    return FitState(count, tensors, state.motion)


def averaged(state: FitState) -> FitState:
    """With what was just learnt in the averages: over the last 50 steps, early in a fit over the last tenth of them."""
    now, before = state.part("asset"), state.part("lately")
    weight = max(1 - LATELY, 10 / (10 + state.step))
    lately = {name: tensor.lerp(now[name], weight) for name, tensor in before.items()}
    return replace(state, tensors=state.tensors | named(lately=lately))


def bounded_shapes(log_scales: Float[Tensor, "point 3"], thinnest: float, needle: float) -> None:
    """Brings shapes back, in place, to those that look right from sides and at sizes that no picture showed."""
    if thinnest > 0:
        log_scales.clamp_min_(math.log(thinnest))
    middle = log_scales.median(-1, keepdim=True).values
    torch.minimum(log_scales, middle + math.log(needle), out=log_scales)

"""Where Gaussians multiply and vanish while they are fitted: pure steps from one state to the next.

The measure is the gradient of the loss with respect to a Gaussian's place in the pictures, in units of half a picture
(3DGS): where it stays large, one Gaussian cannot be at two places at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loom4d.gaussians.motion import MOTIONS
from loom4d.gaussians.state import FitState, named


@dataclass(frozen=True)
class DensifyConfig:
    """When and how; lengths are shares of half the side of the region that the cameras see."""

    policy: str = "none"  # of POLICIES
    start: float = 0.15  # shares of the iterations between which Gaussians multiply
    end: float = 0.6
    every: int = 50  # iterations between events
    threshold: float = 2e-4  # of policy "threshold"
    top: float = 0.025  # of policy "percentile" (STAG4D): so many of those that moved
    large: float = 0.02  # longest deviation above which a Gaussian is split and not copied
    most: int = 20_000  # Gaussians, of which those with the largest gradients multiply first; 0: as many as at first
    faint: float = 0.01  # opacity below which one is removed
    huge: float = 0.25  # longest deviation above which one is removed
    tiny: float = 0.0  # the same, below
    reset_every: int = 0  # iterations between resets of opacity; 0 for none
    reset_to: float = 0.05  # the largest opacity after a reset


@dataclass(frozen=True)
class Growth:
    """What was seen of each Gaussian since the last event."""

    sums: Float[Tensor, " point"]  # of gradient norms
    steps: Float[Tensor, " point"]  # in which it was visible

    @property
    def mean(self) -> Float[Tensor, " point"]:
        return self.sums / self.steps.clamp_min(1)


def nothing_seen(points: int) -> Growth:
    return Growth(torch.zeros(points), torch.zeros(points))


def observed(
    growth: Growth,
    gradients: Float[Tensor, "picture point 2"],
    visible: Bool[Tensor, "picture point"],
    size: tuple[int, int],
) -> Growth:
    """One step more: the norm of the sum over the pictures, where any of them shows the Gaussian (STAG4D). `gradients`
    are by pixels of pictures of `size` (height, width)."""
    half = torch.tensor([size[1], size[0]]).to(gradients) / 2
    seen = visible.any(0).to(gradients)
    return Growth(growth.sums + (gradients.sum(0) * half).norm(dim=-1) * seen, growth.steps + seen)


# --- policies -------------------------------------------------------------------------------------------------------


def nobody(mean: Float[Tensor, " point"], config: DensifyConfig) -> Bool[Tensor, " point"]:
    return torch.zeros_like(mean, dtype=torch.bool)


def above_threshold(mean: Float[Tensor, " point"], config: DensifyConfig) -> Bool[Tensor, " point"]:
    """3DGS: a fixed gradient, which suits one object and fails on another."""
    return mean >= config.threshold


def top_share(mean: Float[Tensor, " point"], config: DensifyConfig) -> Bool[Tensor, " point"]:
    """STAG4D: of the n Gaussians with a gradient, those above the value at rank ⌊top · n⌋ in descending order."""
    moved = mean[mean > 0].sort(descending=True).values
    rank = int(config.top * len(moved))
    if rank == 0:
        return nobody(mean, config)
    return mean > moved[rank]


Policy = Callable[[Tensor, DensifyConfig], Tensor]
POLICIES: dict[str, Policy] = {"none": nobody, "threshold": above_threshold, "percentile": top_share}


# --- steps ----------------------------------------------------------------------------------------------------------


def multiplied(
    state: FitState, motion: str, config: DensifyConfig, half: float, generator: torch.Generator
) -> FitState:
    """Copies the small and splits the large among those that the policy chooses, then removes what is not needed.

    A copy starts where its original is and a split Gaussian's two halves are drawn from it, 1.6 times smaller. Averages
    stay with the Gaussians that stay; those of new ones begin anew. What was seen is forgotten.
    """
    growth = Growth(state.tensors["growth.sums"], state.tensors["growth.steps"])
    if config.policy not in POLICIES:
        raise ValueError(f"unknown policy {config.policy!r}; choose one of {', '.join(POLICIES)}")
    tensors = state.part("asset")
    asset = MOTIONS[motion].from_tensors(tensors, state.motion)
    points = len(tensors["means"])
    chosen = POLICIES[config.policy](growth.mean, config)
    room = max(0, config.most - points)
    if int(chosen.sum()) > room:
        best = growth.mean.masked_fill(~chosen, -1.0).argsort(descending=True, stable=True)[:room]
        chosen = torch.zeros_like(chosen).index_fill(0, best, True)
    large = tensors["log_scales"].amax(-1) > math.log(config.large * half)
    copied, split = (chosen & ~large).nonzero()[:, 0], (chosen & large).nonzero()[:, 0]
    kept = (~(chosen & large)).nonzero()[:, 0]
    halves = asset.split(split, generator)
    grown = dict(state.tensors)
    for name in MOTIONS[motion].point_fields():
        new = torch.cat([tensors[name][copied], halves[name]])
        grown[f"asset.{name}"] = torch.cat([tensors[name][kept], new])
        for average, first in (("lately", new), ("mean", torch.zeros_like(new)), ("square", torch.zeros_like(new))):
            if f"{average}.{name}" in grown:
                grown[f"{average}.{name}"] = torch.cat([grown[f"{average}.{name}"][kept], first])
    return pruned(replace(state, tensors=grown), motion, config, half)


def pruned(state: FitState, motion: str, config: DensifyConfig, half: float) -> FitState:
    """Without what is too faint, too large or too small; one at least stays. What was seen is forgotten."""
    opacity = torch.sigmoid(state.tensors["asset.opacity_logits"])
    longest = state.tensors["asset.log_scales"].amax(-1).exp() / half
    stays = (opacity >= config.faint) & (longest <= config.huge) & (longest >= config.tiny)
    if not stays.any():
        stays = opacity == opacity.max()
    tensors = dict(state.tensors)
    for name in MOTIONS[motion].point_fields():
        for part in ("asset", "lately", "mean", "square"):
            if f"{part}.{name}" in tensors:
                tensors[f"{part}.{name}"] = tensors[f"{part}.{name}"][stays]
    tensors |= named(growth=vars(nothing_seen(int(stays.sum()))))
    return replace(state, tensors=tensors)


def reset_opacities(state: FitState, config: DensifyConfig) -> FitState:
    """No Gaussian more opaque than `reset_to`: those that are needed come back, the others are pruned later."""
    most = math.log(config.reset_to / (1 - config.reset_to))
    tensors = dict(state.tensors)
    for part in ("asset", "lately"):
        tensors[f"{part}.opacity_logits"] = tensors[f"{part}.opacity_logits"].clamp_max(most)
    for average in ("mean", "square"):
        tensors[f"{average}.opacity_logits"] = torch.zeros_like(tensors[f"{average}.opacity_logits"])
    return replace(state, tensors=tensors)


def active(config: DensifyConfig, step: int, iterations: int) -> bool:
    """Whether gradients on screen are to be collected in this step."""
    return config.policy != "none" and config.start * iterations <= step < config.end * iterations


def densified(
    state: FitState,
    motion: str,
    config: DensifyConfig,
    iterations: int,
    half: float,
    generator: torch.Generator,
) -> FitState:
    """After step number `state.step`: the event that is due, if any."""
    begun = int(config.start * iterations)
    if not active(config, state.step - 1, iterations):
        return state
    if (state.step - begun) % config.every == 0:
        state = multiplied(state, motion, config, half, generator)
    if config.reset_every and (state.step - begun) % config.reset_every == 0:
        state = reset_opacities(state, config)
    return state

"""Sigma sequences: from pure noise down to 0. `steps` numbers and a final 0, float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Sigmas = Float[Tensor, " step"]  # falling; the last one is 0 unless a trajectory is meant to stop earlier

SIGMA_MIN, SIGMA_MAX = 0.002, 700.0  # of SVD and SV3D

# Optimised for SVD by "Align Your Steps" (2404.14507). Published with a last value of 0 for ten steps; on a logarithmic
# scale that place belongs to SVD's smallest sigma.
ALIGNED_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)

# ln σ that cut the density of steps into equal parts, for the built-in priors and a second-order sampler; learned by
# benchmarks/learn_schedule.py, which wrote the same numbers to benchmarks/results/schedule.json.
LEARNED_SMALL = (
    *(4.382, 4.0093, 3.7288, 3.4622, 3.184, 2.8374, 2.4775, 2.1235),
    *(1.7677, 1.3938, 0.9901, 0.5238, -0.0226, -0.6647, -1.4392, -2.4415, -3.912),
)


def karras(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = 7.0) -> Sigmas:
    """σᵢ = (σ_max^{1/ρ} + i/(N−1) · (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ, then 0 (EDM, Equation 5)."""
    _check(steps, sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, ramp.new_zeros(1)])


def align_your_steps_svd(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Sigmas:
    """SVD's ten aligned steps, interpolated linearly in ln σ to any number of steps.

    With another range than SVD's the curve is stretched in ln σ to meet it; it is then a good guess, no optimum.
    """
    return _stretched(torch.tensor(ALIGNED_SVD, dtype=torch.float64).log(), steps, sigma_min, sigma_max)


def learned_small(steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Sigmas:
    """Steps that err alike under the built-in priors, at any number of them; stretched to other ranges likewise."""
    return _stretched(torch.tensor(LEARNED_SMALL, dtype=torch.float64), steps, sigma_min, sigma_max)


def _stretched(knots: Float[Tensor, " knot"], steps: int, sigma_min: float, sigma_max: float) -> Sigmas:
    """`knots` in ln σ moved linearly to the range's ends and interpolated to `steps` + 1 places; the last becomes 0."""
    _check(steps, sigma_min, sigma_max)
    high, low = torch.tensor([sigma_max, sigma_min], dtype=torch.float64).log()
    knots = low + (knots - knots[-1]) * (high - low) / (knots[0] - knots[-1])
    place = torch.linspace(0, len(knots) - 1, steps + 1, dtype=torch.float64)[:-1]
    left = place.floor().long()
    sigmas = torch.lerp(knots[left], knots[left + 1], place - left).exp()
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def trained_ladder(beta_first: float = 0.00085, beta_last: float = 0.012, steps: int = 1000) -> Sigmas:
    """Growing sigmas √((1−ᾱ)/ᾱ) of latent diffusion's "scaled linear" betas, by which its checkpoints are labelled."""
    betas = torch.linspace(beta_first**0.5, beta_last**0.5, steps, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)  # ᾱ
    return ((1 - kept) / kept).sqrt()


SCHEDULES: dict[str, Callable[[int, float, float], Sigmas]] = {
    "karras": karras,
    "align_your_steps_svd": align_your_steps_svd,
    "learned_small": learned_small,
}


def schedule(name: str, steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Sigmas:
    """The named sequence; an unknown name raises with the known ones."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name](steps, sigma_min, sigma_max)


def leaping(name: str, steps: int, to: float, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Sigmas:
    """σ_max, and then at once the named sequence from `to` on down. The first step leaves x = D(σ_max) + `to` · noise:
    what is decided above `to` is not drawn, it stays the mean of all that is possible."""
    if steps < 2 or not sigma_min < to < sigma_max:
        raise ValueError(f"needs steps >= 2 and {sigma_min} < to < {sigma_max}, got {steps} and {to}")
    rest = schedule(name, steps - 1, sigma_min, to)
    return torch.cat([rest.new_full((1,), sigma_max), rest])


def _check(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"needs steps >= 1 and 0 < sigma_min < sigma_max, got {steps}, {sigma_min}, {sigma_max}")

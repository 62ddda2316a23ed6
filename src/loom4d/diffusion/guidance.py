"""Classifier-free guidance (2207.12598), a scale per picture of the clip, in an interval of sigma (2404.07724)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.diffusion.denoiser import Denoiser, Latents, Sigma

Scale = float | Float[Tensor, " picture"]  # one number, or one per position in the clip
EVERYWHERE = (0.0, math.inf)


def guided(
    conditional: Denoiser, unconditional: Denoiser, scale: Scale, interval: tuple[float, float] = EVERYWHERE
) -> Denoiser:
    """D = D_u + scale · (D_c − D_u) while interval[0] <= σ <= interval[1], and D_c alone elsewhere.

    A scale of 1 in every place never asks the unconditional denoiser, a scale of 0 never the other. Clips are (clip,
    picture, c, h, w), or a grid: `guided(composed(…), columns(unconditional), scale)` is guidance after composition,
    with one background that both priors share.
    """

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        if _is(scale, 0) and _inside(sigma, interval):
            return unconditional(x, sigma)
        strong = conditional(x, sigma)
        if _is(scale, 1) or not _inside(sigma, interval):
            return strong
        weak = unconditional(x, sigma)
        return weak + _along_clip(scale, x) * (strong - weak)

    return denoise


def guided_together(
    conditional: Denoiser, pair: Denoiser, scale: Scale, interval: tuple[float, float] = EVERYWHERE
) -> Denoiser:
    """`guided` with one call for both halves: `pair` takes twice the clips, the conditional half first."""

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        if _is(scale, 1) or not _inside(sigma, interval):
            return conditional(x, sigma)
        strong, weak = pair(torch.cat([x, x]), sigma).chunk(2)
        return weak + _along_clip(scale, x) * (strong - weak)

    return denoise


def constant(scale: float, length: int) -> Float[Tensor, " picture"]:
    """The same scale in every place (SV3D as Diffusion² uses it: 2.5)."""
    return torch.full((length,), scale)


def linear(first: float, last: float, length: int) -> Float[Tensor, " picture"]:
    """From `first` at the clip's start to `last` at its end (SVD: 1 to 3, Diffusion²: 1.5 to 3)."""
    return torch.linspace(first, last, length)


def triangular(ends: float, peak: float, length: int) -> Float[Tensor, " picture"]:
    """`ends` at both ends and `peak` half-way, for closed orbits whose end is the given view (SV3D: 1, 2.5)."""
    return ends + (peak - ends) * (1 - torch.linspace(-1, 1, length).abs())


def _is(scale: Scale, number: int) -> bool:
    return bool((torch.as_tensor(scale) == number).all())


def _inside(sigma: Sigma, interval: tuple[float, float]) -> bool:
    return interval[0] <= float(sigma) <= interval[1]


def _along_clip(scale: Scale, x: Latents) -> Float[Tensor, ...]:
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    if scale.ndim == 0:
        return scale
    if x.ndim != 5 or x.shape[1] != len(scale):
        raise ValueError(f"{len(scale)} guidance scales need clips (clip, {len(scale)}, c, h, w), got {tuple(x.shape)}")
    return scale[:, None, None, None]

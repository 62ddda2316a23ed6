"""Two priors of clips become one denoiser of the whole grid (Diffusion², 2404.02148).

A grid is (view, frame, c, h, w). A row is one view over time and belongs to the video prior; a column is one instant
over all views and belongs to the multi-view prior. Everything here takes denoisers and returns one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from loom4d.diffusion.denoiser import Denoiser, Latents, Sigma
from loom4d.diffusion.schedules import Sigmas

NEGLIGIBLE = 1e-3  # a prior that weighs no more than this in every cell is not evaluated; the other one counts fully

Share = float | Float[Tensor, ""] | Float[Tensor, " view"] | Float[Tensor, "view frame"]
Weight = Callable[[Sigma], Share]  # the multi-view prior's share W; the video prior has 1 − W
Observer = Callable[[Sigma, Latents], None]  # told D_mv − D_vid of the whole grid at each sigma


@dataclass(frozen=True)
class Bands:
    """Two bands of frequencies, over space or time: what `lowpass` keeps goes by the blend's own weight, the rest
    by `fine`."""

    fine: Weight
    lowpass: Callable[[Latents], Latents]  # linear; loom4d.diffusion.frequency has them


# --- clips and grids -----------------------------------------------------------------------------------------------


def rows(video: Denoiser, asked: Sequence[int] | None = None) -> Denoiser:
    """A denoiser of clips read along time: clip = view, picture = frame.

    With `asked`, `video` holds these views only, and the others come out as 0: for rows that are known anyway.
    """

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        if asked is None:
            return video(x, sigma)  # (view frame c h w) is (clip picture c h w) already
        clean = torch.zeros_like(x)
        clean[list(asked)] = video(x[list(asked)], sigma).to(x)
        return clean

    return denoise


def columns(multiview: Denoiser, asked: Sequence[int] | None = None) -> Denoiser:
    """A denoiser of clips read around the object: clip = frame, picture = view. `asked`, as in `rows`, names frames."""
    by_frame = rows(multiview, asked)

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        clips = rearrange(x, "view frame ... -> frame view ...")
        return rearrange(by_frame(clips, sigma), "frame view ... -> view frame ...")

    return denoise


def cells(image: Denoiser, asked: Bool[Tensor, "view frame"] | None = None) -> Denoiser:
    """A denoiser of clips given every cell as a clip of one picture: the marginal that both priors share.

    With `asked`, `image` holds these cells only, in reading order, and the others come out as 0.
    """

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        chosen = torch.ones(x.shape[:2], dtype=torch.bool) if asked is None else asked
        clean = torch.zeros_like(x)
        clean[chosen] = image(x[chosen][:, None], sigma)[:, 0].to(x)
        return clean

    return denoise


# --- composition ---------------------------------------------------------------------------------------------------


def composed(
    multiview: Denoiser,
    video: Denoiser,
    weight: Weight,
    negligible: float = NEGLIGIBLE,
    observe: Observer | None = None,
    bands: Bands | None = None,
) -> Denoiser:
    """D = W · D_mv + (1 − W) · D_vid, with W a number, (view,) or (view, frame) at each sigma.

    Both arguments are denoisers of grids: `composed(columns(multiview), rows(video), weight)`. A prior whose weight is
    at most `negligible` in every cell is not evaluated. Where both are, `observe` is told their difference Δ. With
    `bands`, D = D_vid + W · L(Δ) + W_fine · (Δ − L(Δ)): each band of frequencies by its own weight.
    """

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        shares = [per_cell(one(sigma), x) for one in ([weight] if bands is None else [weight, bands.fine])]
        if all(bool((share <= negligible).all()) for share in shares):
            return video(x, sigma)
        if all(bool((share >= 1 - negligible).all()) for share in shares):
            return multiview(x, sigma)
        around, along = multiview(x, sigma), video(x, sigma)
        difference = around - along
        if observe is not None:
            observe(sigma, difference)
        if bands is None:
            return along + shares[0] * difference
        coarse = bands.lowpass(difference)
        return along + shares[0] * coarse + shares[1] * (difference - coarse)

    return denoise


def marginal_corrected(blend: Denoiser, image: Denoiser, gamma: Callable[[Sigma], float]) -> Denoiser:
    """D = (1 + γ) · D_blend − γ · D_cell; with an even blend, ½(1+γ)(D_mv + D_vid) − γ · D_cell.

    γ = 0 is the blend of Diffusion²; γ = 1 with an even blend is the sum of both scores less the cell's, its
    Theorem 3.1. The cells are not evaluated where γ is 0.
    """

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        excess = gamma(sigma)
        clean = blend(x, sigma)
        return clean if excess == 0 else clean + excess * (clean - image(x, sigma))

    return denoise


def alternating(even: Denoiser, odd: Denoiser, sigmas: Sigmas) -> Denoiser:
    """`even` at sigmas[0], sigmas[2], …, `odd` at the others; between two of them, the nearest in ln σ decides."""
    knots = _depths(sigmas)

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        nearest = int(np.abs(knots - _depth(sigma)).argmin())
        return (odd if nearest % 2 else even)(x, sigma)

    return denoise


def switched(high: Denoiser, low: Denoiser, sigma_switch: float) -> Denoiser:
    """`high` while σ >= sigma_switch, `low` below it."""

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        return (high if float(sigma) >= sigma_switch else low)(x, sigma)

    return denoise


def clamped(denoise: Denoiser, known: Latents, mask: Bool[Tensor, "view frame"]) -> Denoiser:
    """The clean estimate with the `known` latents in the cells of `mask`: a sample ends exactly in them."""

    def imposed(x: Latents, sigma: Sigma) -> Latents:
        given = rearrange(mask.to(x.device), "view frame -> view frame 1 1 1")
        return torch.where(given, known.to(x), denoise(x, sigma))

    return imposed


def per_cell(share: Share, x: Latents) -> Float[Tensor, ...]:
    """A share shaped to multiply a grid: a number, or one per view, or one per cell."""
    share = torch.as_tensor(share, dtype=x.dtype, device=x.device)
    if share.ndim and share.shape != x.shape[: share.ndim]:
        raise ValueError(f"weights {tuple(share.shape)} do not fit the grid's (view, frame) {tuple(x.shape[:2])}")
    return share.reshape(*share.shape, *[1] * (x.ndim - share.ndim)) if share.ndim else share


# --- weights -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """σ -> t in 0..1 on the way down a sequence: t = i/(N−1) at its i-th of N positive sigmas.

    Exact at the sequence's own numbers (to a millionth, so that float32 sigmas match), linear in ln σ between them,
    and constant beyond both ends: samplers that look between two steps, as Heun's, see a smooth weight.
    """

    sigmas: Sigmas

    def __call__(self, sigma: Sigma) -> float:
        place, knots = _depth(sigma), _depths(self.sigmas)
        nearest = int(np.abs(knots - place).argmin())
        exact = abs(knots[nearest] - place) < 1e-6
        step = nearest if exact else float(np.interp(place, knots, np.arange(len(knots))))
        return step / max(len(knots) - 1, 1)


@dataclass(frozen=True)
class Curve:
    """How the multi-view prior's share s falls from `high` to `low` over the progress t: geometry first, time last."""

    shape: str = "logistic"  # of WEIGHTS
    high: float = 1.0
    low: float = 0.0
    midpoint: float = 0.5  # logistic: where half of the way is done, s₀ of Diffusion²; log_sigma: the σ of half
    steepness: float = 20.0  # logistic: k of Diffusion²; log_sigma: the power of σ that it falls with

    def __call__(self, t: float, sigma: float = math.nan) -> float:
        """The share at progress t and noise `sigma`, which "log_sigma" alone looks at."""
        if self.shape not in WEIGHTS:
            raise ValueError(f"unknown weight {self.shape!r}; choose one of {', '.join(WEIGHTS)}")
        return self.low + (self.high - self.low) * WEIGHTS[self.shape](t, sigma, self)


def constant(t: float, sigma: float, curve: Curve) -> float:
    return 1.0


def linear(t: float, sigma: float, curve: Curve) -> float:
    return 1 - t


def cosine(t: float, sigma: float, curve: Curve) -> float:
    return (1 + math.cos(math.pi * t)) / 2


def logistic(t: float, sigma: float, curve: Curve) -> float:
    """1/(1 + e^{k(t−s₀)}): the falling sign that the paper's words and code agree on, not the one it prints."""
    return 1 / (1 + math.exp(curve.steepness * (t - curve.midpoint)))


def log_sigma(t: float, sigma: float, curve: Curve) -> float:
    """1/(1 + (σ₀/σ)ᵏ): logistic in ln σ, so that it means the same under every schedule and number of steps."""
    return 1 / (1 + math.exp(min(700.0, curve.steepness * math.log(curve.midpoint / sigma))))


WEIGHTS: dict[str, Callable[[float, float, Curve], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "logistic": logistic,
    "log_sigma": log_sigma,
}


def view_trust(azimuths_deg: Float[Tensor, " view"]) -> Float[Tensor, " view"]:
    """u = 1 − ¾ sin² azimuth: how far each view trusts the video prior; least from the side (Diffusion²'s code)."""
    return 1 - 0.75 * torch.deg2rad(azimuths_deg.double()).sin() ** 2


def weight_over(curve: Curve, sigmas: Sigmas, trust: Float[Tensor, "*cell"] | None = None) -> Weight:
    """W(σ) = 1 − u · (1 − s(t(σ))): s itself, or with a `trust` u of (view,) or (view, frame), one share for each."""
    progress = Progress(sigmas)

    def weight(sigma: Sigma) -> Share:
        share = curve(progress(sigma), float(sigma))
        return share if trust is None else 1 - trust * (1 - share)

    return weight


def _depths(sigmas: Sigmas) -> np.ndarray:
    return -sigmas[sigmas > 0].double().log().cpu().numpy()


def _depth(sigma: Sigma) -> float:
    return -math.log(float(sigma))  # grows along a trajectory

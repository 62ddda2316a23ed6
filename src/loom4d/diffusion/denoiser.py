"""What every other module of this package takes and returns: the denoiser. Adapters, chunks and cell noise.

A denoiser maps noisy latents x = clean + sigma · noise to the mean of the clean latents given x (EDM, 2206.00364).
A network is what a checkpoint holds: (scaled x, noise label) -> whatever it was trained to predict. Its condition is
bound before it gets here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "..."]  # a grid is (view, frame, c, h, w), a batch of clips (clip, picture, c, h, w)
Sigma = float | Float[Tensor, "..."]  # > 0; one number, or (in training) anything that broadcasts against x
Denoiser = Callable[[Latents, Sigma], Latents]
Network = Callable[[Latents, Float[Tensor, "..."]], Latents]
Label = Callable[[Float[Tensor, "..."]], Float[Tensor, "..."]]  # sigma -> what the network is told instead


def quarter_log(sigma: Float[Tensor, "*sigma"]) -> Float[Tensor, "*sigma"]:
    """c_noise = ¼ ln σ (EDM, Table 1): the label of SVD, SV3D and our own networks."""
    return sigma.log() / 4


def timestep_of(ladder: Float[Tensor, " step"]) -> Label:
    """Label of a network trained on a discrete, growing ladder of sigmas: the (fractional) index, linear in ln σ."""
    knots = ladder.double().log()

    def label(sigma: Float[Tensor, ...]) -> Float[Tensor, ...]:
        place = np.interp(sigma.double().log().cpu().numpy(), knots.cpu().numpy(), np.arange(len(knots)))
        return torch.as_tensor(place).to(sigma)

    return label


def from_velocity(network: Network, label: Label = quarter_log) -> Denoiser:
    """D = x/(σ²+1) − σ/√(σ²+1) · network(x/√(σ²+1), label): v-prediction (2202.00512), as SVD and SV3D."""

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        unit = (sigma**2 + 1) ** -0.5
        return unit**2 * x - sigma * unit * network(unit * x, label(sigma)).to(x)

    return denoise


def from_edm(network: Network, sigma_data: float, label: Label = quarter_log) -> Denoiser:
    """D = s²/(σ²+s²) · x + σs/√(σ²+s²) · network(x/√(σ²+s²), label), s the data's standard deviation (EDM)."""

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        unit = (sigma**2 + sigma_data**2) ** -0.5
        return (sigma_data * unit) ** 2 * x + sigma * sigma_data * unit * network(unit * x, label(sigma)).to(x)

    return denoise


def from_epsilon(network: Network, label: Label = quarter_log) -> Denoiser:
    """D = x − σ · network(x/√(σ²+1), label): the network predicts the unit noise (DDPM), in variance-exploding form."""

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        return x - sigma * network((sigma**2 + 1) ** -0.5 * x, label(sigma)).to(x)

    return denoise


def chunked(denoise: Denoiser, size: int) -> Denoiser:
    """The same denoiser, given at most `size` clips (first axis) at a time. Its condition must not vary over them."""
    return chunked_clips(lambda clips: denoise, size)


def chunked_clips(bind: Callable[[slice], Denoiser], size: int) -> Denoiser:
    """One denoiser out of `bind(clips)`, which binds the conditions of a slice of clips; at most `size` at a time."""
    if size < 1:
        raise ValueError(f"a chunk holds at least one clip, got size {size}")

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        starts = range(0, len(x), size)
        return torch.cat([bind(slice(start, start + size))(x[start : start + size], sigma) for start in starts])

    return denoise


def cell_noise(seed: int, view: int, frame: int, shape: tuple[int, ...], stream: int = 0) -> Float[Tensor, ...]:
    """Unit normal float32 noise that belongs to (seed, stream, view, frame) alone, drawn on the CPU.

    Any split of a grid over batches, ranks or devices therefore sees the same noise. Stream 0 starts a trajectory;
    stream i + 1 is the fresh noise of its step i. torch's CPU generator keeps only 32 bits of its seed, too few to
    name a cell, so the generator is numpy's Philox, whose 128-bit key holds all four numbers without collisions.
    """
    for name, number in (("seed", seed), ("view", view), ("frame", frame), ("stream", stream)):
        if not 0 <= number < 2**32:
            raise ValueError(f"{name} must lie in 0 … 2³²−1, got {number}")
    philox = np.random.Philox(key=np.array([(seed << 32) + stream, (view << 32) + frame], np.uint64))
    return torch.from_numpy(np.random.Generator(philox).standard_normal(shape, np.float32))


def grid_noise(
    seed: int, views: int, frames: int, shape: tuple[int, ...], stream: int = 0
) -> Float[Tensor, "view frame *shape"]:
    """The noise of every cell of a grid, on the CPU."""
    return torch.stack(
        [torch.stack([cell_noise(seed, v, f, shape, stream) for f in range(frames)]) for v in range(views)]
    )

"""Low and high frequencies of a grid, over the picture or over time: linear filters for `composition.Bands`.

Pictures and clips have ends, so the waves are cosines (DCT-II): the k-th turns k/2 times over the whole length.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.diffusion.denoiser import Latents


@functools.lru_cache(maxsize=16)
def cosines(size: int) -> Float[Tensor, "wave place"]:
    """Orthonormal DCT-II: row k is the wave of k/2 turns; float64."""
    place, wave = torch.arange(size, dtype=torch.float64) + 0.5, torch.arange(size, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi / size * wave * place) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def passed(turns: Float[Tensor, "*waves"], cutoff: float) -> Float[Tensor, "*waves"]:
    """What is kept of a wave: 2^−(turns/cutoff)², all of the mean and half of the amplitude at the cutoff."""
    if cutoff <= 0:
        raise ValueError(f"a cutoff is a positive number of turns, got {cutoff}")
    return torch.exp2(-((turns / cutoff) ** 2))


def over_space(x: Latents, cutoff: float) -> Latents:
    """Waves of each picture (…, h, w) below `cutoff` turns over its whole length, in any direction."""
    down, across = (cosines(size).to(x) for size in x.shape[-2:])
    rows, columns = (torch.arange(size, dtype=x.dtype, device=x.device) / 2 for size in x.shape[-2:])
    kept = passed(torch.hypot(rows[:, None], columns), cutoff)
    return down.mT @ (kept * (down @ x @ across.mT)) @ across


def over_time(x: Latents, cutoff: float) -> Latents:
    """Waves along the frames of a grid (view, frame, …) below `cutoff` turns over the whole clip; its mean always."""
    basis = cosines(x.shape[1]).to(x)
    kept = passed(torch.arange(x.shape[1], dtype=x.dtype, device=x.device) / 2, cutoff)
    kernel = basis.mT @ (kept[:, None] * basis)  # (frame, frame)
    return torch.einsum("fg,vg...->vf...", kernel, x)


FILTERS = {"space": over_space, "time": over_time}

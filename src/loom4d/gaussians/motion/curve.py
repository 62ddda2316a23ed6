"""Smooth curves through values at given times."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def hermite(times: Float[Tensor, " batch"], keys: Float[Tensor, " key"]) -> Float[Tensor, "batch key"]:
    """Weights of the keys in a cubic curve through them; slopes are central differences, one-sided at the ends."""
    count = len(keys)
    if count == 1:
        return torch.ones(len(times), 1).to(times)
    times = times.clamp(keys[0], keys[-1])
    left = (torch.searchsorted(keys, times, right=True) - 1).clamp(0, count - 2)
    span = keys[left + 1] - keys[left]
    u = ((times - keys[left]) / span)[:, None]
    unit, index = torch.eye(count).to(times), torch.arange(count)
    low, high = (index - 1).clamp_min(0), (index + 1).clamp_max(count - 1)
    slopes = (unit[high] - unit[low]) / (keys[high] - keys[low])[:, None]  # (key, key): slope at each key
    return (
        (2 * u**3 - 3 * u**2 + 1) * unit[left]
        + (3 * u**2 - 2 * u**3) * unit[left + 1]
        + (u**3 - 2 * u**2 + u) * span[:, None] * slopes[left]
        + (u**3 - u**2) * span[:, None] * slopes[left + 1]
    )

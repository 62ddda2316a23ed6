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


def spline(times: Float[Tensor, " batch"], keys: Float[Tensor, " key"]) -> Float[Tensor, "batch key"]:
    """Weights of the keys in the natural cubic spline through them: of all curves the one that bends least. It follows
    a swing of few keys better than `hermite`, and every key has a say at every time."""
    count = len(keys)
    if count < 3:
        return hermite(times, keys)
    times, span = times.clamp(keys[0], keys[-1]), keys.diff()
    bending, differences = torch.eye(count).to(keys), torch.zeros(count, count).to(keys)
    for i in range(1, count - 1):
        before, after = span[i - 1], span[i]
        bending[i, i - 1 : i + 2] = torch.stack([before, 2 * (before + after), after]) / 6
        differences[i, i - 1 : i + 2] = torch.stack([1 / before, -1 / before - 1 / after, 1 / after])
    seconds = torch.linalg.solve(bending, differences)  # (key, key): second derivative at each key
    left = (torch.searchsorted(keys, times, right=True) - 1).clamp(0, count - 2)
    length, unit = span[left][:, None], torch.eye(count).to(times)
    u = ((times - keys[left]) / span[left])[:, None]
    bent = ((1 - u) ** 3 - (1 - u)) * seconds[left] + (u**3 - u) * seconds[left + 1]
    return (1 - u) * unit[left] + u * unit[left + 1] + bent * length**2 / 6

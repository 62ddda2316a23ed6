"""Estimates used again: at some steps a denoiser, or some of its clips, answers with what it said before.

What is remembered lies in a dictionary of the caller, so that a trajectory can be stopped and taken up again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from loom4d.diffusion.denoiser import Denoiser, Latents, Sigma
from loom4d.diffusion.schedules import Sigmas

Held = dict[str, Tensor]
When = Callable[[Sigma], int]


def step_of(sigmas: Sigmas) -> When:
    """σ -> the number of the step whose sigma is nearest in ln σ."""
    knots = sigmas[sigmas > 0].double().log().cpu().numpy()
    return lambda sigma: int(np.abs(knots - math.log(float(sigma))).argmin())


def reused(denoise: Denoiser, every: int, sigmas: Sigmas, held: Held, name: str) -> Denoiser:
    """`denoise` at steps 0, every, 2 · every, …; between them, its last answer. An `every` of 1 changes nothing."""
    if every < 1:
        raise ValueError(f"reuse every 1, 2, … steps, got {every}")
    step = step_of(sigmas)

    def recalled(x: Latents, sigma: Sigma) -> Latents:
        if step(sigma) % every == 0 or name not in held:
            held[name] = denoise(x, sigma)
        return held[name].to(x)

    return denoise if every == 1 else recalled


def by_turns(
    bind: Callable[[Sequence[int]], Denoiser], clips: Sequence[int], every: int, sigmas: Sigmas, held: Held, name: str
) -> Denoiser:
    """One denoiser of `clips` out of `bind(some)`, which binds the conditions of some of them.

    Step 0 asks all clips, step i those whose place is i modulo `every`; the others answer as they last did.
    """
    if every < 1:
        raise ValueError(f"clips take turns over 1, 2, … steps, got {every}")
    step, whole = step_of(sigmas), bind(clips)
    if every == 1 or len(clips) < 2:
        return whole
    parts = {turn: bind(clips[turn::every]) for turn in range(every) if clips[turn::every]}

    def denoise(x: Latents, sigma: Sigma) -> Latents:
        turn = step(sigma) % every
        if step(sigma) == 0 or name not in held:
            held[name] = whole(x, sigma)
        elif turn in parts:
            clean = held[name].to(x, copy=True)
            clean[turn::every] = parts[turn](x[turn::every], sigma).to(x)
            held[name] = clean
        return held[name].to(x)

    return denoise

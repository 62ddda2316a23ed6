"""One trajectory of a method as resumable work: its state goes to memory after every step and is found there again."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.diffusion.denoiser import Denoiser, Latents
from loom4d.diffusion.disagreement import Disagreement
from loom4d.diffusion.reuse import Held
from loom4d.diffusion.samplers import Sampling, State, sample, start
from loom4d.diffusion.schedules import Sigmas
from loom4d.grid import png, straight
from loom4d.runs import Event, Memory, Work

Decode = Callable[[Latents], Float[Tensor, "view frame 4 height width"]]  # to premultiplied pictures


@dataclass(frozen=True)
class Walk:
    """How one stage's trajectory is walked, and what it remembers besides its state."""

    stage: str
    sigmas: Sigmas
    sampling: Sampling
    watch: Disagreement = field(default_factory=Disagreement)
    held: Held = field(default_factory=dict)
    preview: Decode | None = None  # shows the clean estimate
    preview_every: int = 0  # steps; 0 for never
    saved_every: int = 1  # steps; where networks remember on their own, those at which they start anew


def walked(walk: Walk, denoise: Denoiser, noise: Latents, memory: Memory | None) -> Work[Latents]:
    """The sample that unit `noise` leads to; an earlier state in memory is taken up."""
    begun = recalled(memory, walk) or start(noise, walk.sigmas)
    total = len(walk.sigmas) - 1
    yield Event(walk.stage, "start", f"{noise.shape[0]} × {noise.shape[1]} pictures", begun.step, total)
    before = state = begun
    for state in states(walk, denoise, begun):
        if memory is not None and (state.step % walk.saved_every == 0 or state.step == total):
            memory.save_state(walk.stage, remembered(state, walk), step=state.step)
        data: dict[str, Any] = {"sigma": round(walk.sigmas[state.step].item(), 4)}
        yield Event(walk.stage, "progress", "", state.step, total, data)
        shown = walk.preview_every and state.step % walk.preview_every == 0 and state.step < total
        if shown and walk.preview is not None:
            picture = pictured(walk.preview(clean_estimate(before, state, walk.sigmas).float()))
            data = {"png": picture, "views": noise.shape[0], "frames": noise.shape[1]}
            yield Event(walk.stage, "preview", "", state.step, total, data)
        before = state
    return state.x.float()


def states(walk: Walk, denoise: Denoiser, begun: State) -> Iterator[State]:
    """The remaining states. Inference mode holds inside each step only: a generator would leak it to its reader."""
    with torch.inference_mode():
        steps = sample(denoise, begun, walk.sigmas, walk.sampling, lambda: walk.watch.last)
    while True:
        with torch.inference_mode():
            following = next(steps, None)
        if following is None:
            return
        yield following


def clean_estimate(before: State, after: State, sigmas: Sigmas) -> Latents:
    """What was taken for clean in the step between two states: kept by multistep methods, else where the line through
    both ends at σ = 0, x − σ dx/dσ."""
    if after.denoised is not None:
        return after.denoised
    high, low = float(sigmas[before.step]), float(sigmas[after.step])
    return after.x - low * (before.x - after.x) / (high - low)


def pictured(premultiplied: Float[Tensor, "view frame 4 height width"]) -> str:
    """A grid as one PNG in base64, a row of pictures for each view: events hold JSON only."""
    flat = rearrange(straight(premultiplied.clamp(0, 1)), "view frame c h w -> c (view h) (frame w)")
    return base64.b64encode(png(flat)).decode()


def remembered(state: State, walk: Walk) -> dict[str, Tensor]:
    """All that a trajectory needs to go on, under names that tell whose it is."""
    own = {"x": state.x} | ({} if state.denoised is None else {"denoised": state.denoised})
    watched = {f"watch.{name}": tensor for name, tensor in walk.watch.tensors().items()}
    return own | watched | {f"held.{name}": tensor for name, tensor in walk.held.items()}


def recalled(memory: Memory | None, walk: Walk) -> State | None:
    """The stage's last state in memory, if any; what was watched and held goes back where it belongs."""
    saved = memory.load_state(walk.stage) if memory is not None else None
    if saved is None:
        return None
    tensors, facts = saved
    walk.watch.restore({name.removeprefix("watch."): one for name, one in tensors.items() if name.startswith("watch.")})
    walk.held.update({name.removeprefix("held."): one for name, one in tensors.items() if name.startswith("held.")})
    return State(facts["step"], tensors["x"], tensors.get("denoised"))

"""From noise to a sample along the probability-flow ODE dx/dσ = (x − D(x, σ))/σ.

A step maps a `State` to the next one, a trajectory is a generator of states, and a state is all that a trajectory
needs: whoever saves one and starts from it again gets the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from loom4d.diffusion.denoiser import Denoiser, Latents, cell_noise, grid_noise
from loom4d.diffusion.schedules import Sigmas


def euler(denoise: Denoiser, x: Latents, sigmas: Sigmas) -> Latents:
    """The sample that Euler's method reaches from x at sigmas[0]."""
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        clean = denoise(x, sigma)
        x = clean + (sigma_next / sigma) * (x - clean)  # = x + (σ' − σ) · dx/dσ, and exactly D at σ' = 0
    return x


@dataclass(frozen=True)
class State:
    """Where a trajectory stands: x has noise sigmas[step]. `denoised` is the step's history, for multistep methods."""

    step: int
    x: Latents
    denoised: Latents | None = None


Step = Callable[[Denoiser, State, Sigmas], State]


def start(noise: Latents, sigmas: Sigmas) -> State:
    """The first state from unit noise, scaled to the spread of unit data under noise: √(1 + σ₀²)."""
    return State(0, noise * math.sqrt(1 + float(sigmas[0]) ** 2))


def trajectory(step: Step, denoise: Denoiser, state: State, sigmas: Sigmas) -> Iterator[State]:
    """The states after each remaining step; the last one holds the sample."""
    while state.step < len(sigmas) - 1:
        state = step(denoise, state, sigmas)
        yield state


def euler_steps(denoise: Denoiser, state: State, sigmas: Sigmas) -> Iterator[State]:
    return trajectory(euler_step, denoise, state, sigmas)


def heun_steps(denoise: Denoiser, state: State, sigmas: Sigmas) -> Iterator[State]:
    return trajectory(heun_step, denoise, state, sigmas)


def dpmpp_2m_steps(denoise: Denoiser, state: State, sigmas: Sigmas) -> Iterator[State]:
    return trajectory(dpmpp_2m_step, denoise, state, sigmas)


# --- steps ---------------------------------------------------------------------------------------------------------


def euler_step(denoise: Denoiser, state: State, sigmas: Sigmas) -> State:
    """First order, one evaluation."""
    sigma, sigma_next = levels(state, sigmas)
    clean = denoise(state.x, sigma)
    return State(state.step + 1, clean + (sigma_next / sigma) * (state.x - clean), clean)


def heun_step(denoise: Denoiser, state: State, sigmas: Sigmas) -> State:
    """Second order, two evaluations (EDM, Algorithm 1 without churn); Euler's step when it ends in 0."""
    sigma, sigma_next = levels(state, sigmas)
    clean = denoise(state.x, sigma)
    x = clean + (sigma_next / sigma) * (state.x - clean)
    if sigma_next > 0:
        slope, slope_next = (state.x - clean) / sigma, (x - denoise(x, sigma_next)) / sigma_next
        x = state.x + (sigma_next - sigma) * (slope + slope_next) / 2
    return State(state.step + 1, x, clean)


def dpmpp_2m_step(denoise: Denoiser, state: State, sigmas: Sigmas) -> State:
    """Second order, one evaluation and the last clean estimate (DPM-Solver++ 2M, 2211.01095, Algorithm 2).

    Euler's step where there is no history, and when it ends in 0.
    """
    sigma, sigma_next = levels(state, sigmas)
    clean = denoise(state.x, sigma)
    ahead = clean
    if state.denoised is not None and sigma_next > 0:
        past = math.log(float(sigmas[state.step - 1]) / sigma)  # step in λ = −ln σ
        ahead = clean + math.log(sigma / sigma_next) / (2 * past) * (clean - state.denoised)
    return State(state.step + 1, ahead + (sigma_next / sigma) * (state.x - ahead), clean)


SAMPLERS: dict[str, Step] = {"euler": euler_step, "heun": heun_step, "dpmpp_2m": dpmpp_2m_step}


def levels(state: State, sigmas: Sigmas) -> tuple[float, float]:
    """Noise before and after the state's next step."""
    sigma, sigma_next = sigmas[state.step : state.step + 2].tolist()
    return sigma, sigma_next


# --- re-noising ----------------------------------------------------------------------------------------------------


def exact(sigma: float, sigma_next: float) -> float:
    """The noise that leads from σ' back to σ, so that the step starts from the same marginal again (RePaint)."""
    return math.sqrt(sigma**2 - sigma_next**2)


def released(sigma: float, sigma_next: float) -> float:
    """What Diffusion²'s code adds ("variance-reducing sampling"): too little, the sample loses most of its variance."""
    return sigma - sigma_next


def off(sigma: float, sigma_next: float) -> float:
    return 0.0


RENOISING: dict[str, Callable[[float, float], float]] = {"off": off, "exact": exact, "released": released}
Noise = Callable[[int, Latents], Latents]  # (step, x) -> unit noise shaped as x


def renoised(step: Step, mode: str, where: int | Callable[[int], bool], noise: Noise) -> Step:
    """Some steps are taken twice, with the mode's noise added in between: the first so many, or those for which
    `where(number)`, asked after the first attempt, holds.

    The second attempt starts without history: the one it had belongs to another trajectory.
    """
    if mode not in RENOISING:
        raise ValueError(f"unknown re-noising {mode!r}; choose one of {', '.join(RENOISING)}")

    def repeated(denoise: Denoiser, state: State, sigmas: Sigmas) -> State:
        after = step(denoise, state, sigmas)
        spread = RENOISING[mode](*levels(state, sigmas))
        wanted = where(state.step) if callable(where) else state.step < where
        if not wanted or spread == 0:
            return after
        return step(denoise, State(state.step, after.x + spread * noise(state.step, after.x)), sigmas)

    return repeated


def seeded(seed: int) -> Noise:
    """Fresh noise for each step that depends on (seed, step, view, frame) only; x that is no grid is one cell."""

    def noise(step: int, x: Latents) -> Latents:
        if x.ndim == 5:
            return grid_noise(seed, x.shape[0], x.shape[1], tuple(x.shape[2:]), stream=step + 1).to(x)
        return cell_noise(seed, 0, 0, tuple(x.shape), stream=step + 1).to(x)

    return noise


@dataclass(frozen=True)
class Sampling:
    """How a trajectory is walked."""

    sampler: str = "euler"  # of SAMPLERS
    renoising: str = "off"  # of RENOISING
    renoised_share: float = 0.2  # of the steps, from the first on; Diffusion²'s code has 10 of 50
    renoised_above: float = 0.0  # instead, where the priors disagree by more (rms, in latents' deviations); 0 is off
    seed: int = 0

    def step(self, steps: int, disagreement: Callable[[], float] | None = None) -> Step:
        """The step for a sequence of so many steps. `disagreement` is asked after a step's first attempt."""
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        where: int | Callable[[int], bool] = round(self.renoised_share * steps)
        if self.renoised_above > 0 and disagreement is not None:
            told = disagreement
            where = lambda step: told() > self.renoised_above  # noqa: E731
        return renoised(SAMPLERS[self.sampler], self.renoising, where, seeded(self.seed))


def sample(
    denoise: Denoiser,
    state: State,
    sigmas: Sigmas,
    sampling: Sampling | None = None,
    disagreement: Callable[[], float] | None = None,
) -> Iterator[State]:
    """The states of a configured trajectory, from any of its states on."""
    return trajectory((sampling or Sampling()).step(len(sigmas) - 1, disagreement), denoise, state, sigmas)

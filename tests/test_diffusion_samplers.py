"""Samplers against the closed-form probability flow of Gaussian data; re-noising; resuming."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from loom4d.diffusion.denoiser import cell_noise, chunked, grid_noise
from loom4d.diffusion.samplers import (
    RENOISING,
    SAMPLERS,
    Sampling,
    State,
    dpmpp_2m_steps,
    euler,
    euler_step,
    euler_steps,
    heun_steps,
    renoised,
    sample,
    seeded,
    start,
    trajectory,
)
from loom4d.diffusion.schedules import karras

MEAN, VARIANCE = 0.7, 1.9


def gaussian(x, sigma):
    return MEAN + VARIANCE / (VARIANCE + sigma**2) * (x - MEAN)


def flow(x, sigma, sigma_next):
    """The probability flow of N(MEAN, VARIANCE): x − μ shrinks with the total standard deviation."""
    return MEAN + math.sqrt((VARIANCE + sigma_next**2) / (VARIANCE + sigma**2)) * (x - MEAN)


def last(states):
    *_, state = states
    return state


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order):
    x = torch.linspace(-20, 20, 9, dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64)
        reached = last(trajectory(SAMPLERS[name], gaussian, State(0, x), sigmas)).x
        errors.append((reached - flow(x, 10.0, 0.1)).abs().max().item())
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15
    assert abs(math.log2(errors[1] / errors[2]) - order) < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_data_from_noise(name):
    x = torch.linspace(-3, 3, 11, dtype=torch.float64)
    sigmas = karras(400)
    reached = last(trajectory(SAMPLERS[name], gaussian, start(x, sigmas), sigmas)).x
    assert_close(reached, flow(start(x, sigmas).x, 700.0, 0.0), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", SAMPLERS)
@settings(deadline=None, max_examples=30)
@given(target=st.floats(-5, 5), steps=st.integers(1, 12))
def test_every_sampler_ends_exactly_in_a_constant_estimate(name, target, steps):
    x = torch.linspace(-3, 3, 7)
    sigmas = karras(steps)
    constant = lambda x, sigma: torch.full_like(x, target)  # noqa: E731
    assert torch.equal(last(trajectory(SAMPLERS[name], constant, start(x, sigmas), sigmas)).x, torch.full((7,), target))


def test_the_trajectory_of_euler_is_the_function_euler():
    x, sigmas = torch.randn(2, 3, 4, 5, 5), karras(12)
    assert torch.equal(last(euler_steps(gaussian, State(0, x), sigmas)).x, euler(gaussian, x, sigmas))


def test_the_generators_are_the_registered_steps():
    x, sigmas = torch.randn(6), karras(9)
    for steps, name in ((euler_steps, "euler"), (heun_steps, "heun"), (dpmpp_2m_steps, "dpmpp_2m")):
        expected = last(trajectory(SAMPLERS[name], gaussian, State(0, x), sigmas)).x
        assert torch.equal(last(steps(gaussian, State(0, x), sigmas)).x, expected)


@pytest.mark.parametrize(("name", "calls"), [("euler", 10), ("heun", 19), ("dpmpp_2m", 10)])
def test_number_of_evaluations(name, calls):
    seen = []
    counting = lambda x, sigma: (seen.append(sigma), gaussian(x, sigma))[1]  # noqa: E731
    last(trajectory(SAMPLERS[name], counting, State(0, torch.ones(1)), karras(10)))
    assert len(seen) == calls and min(seen) > 0


def test_the_start_has_the_spread_of_noisy_unit_data():
    assert_close(start(torch.ones(1, dtype=torch.float64), karras(50)).x.item(), 700.00071428535, rtol=1e-12, atol=0)


# --- re-noising: a linear denoiser acts on each number alone, so the numbers can hold the coefficients of independent
# unit noises; the standard deviation of the sample is then the norm, without sampling anything.


def fresh(step, x):
    unit = torch.zeros_like(x)
    unit[step + 1] = 1
    return unit


def spreads(denoise, mode, first=10, steps=50):
    """Standard deviation over sigma after each step, and that of the sample."""
    x, sigmas = torch.zeros(steps + 1, dtype=torch.float64), karras(steps)
    x[0] = 1
    states = trajectory(renoised(euler_step, mode, first, fresh), denoise, start(x, sigmas), sigmas)
    norms = [state.x.norm().item() for state in states]
    return [norm / sigma for norm, sigma in zip(norms, sigmas[1:-1].tolist(), strict=False)], norms[-1]


def nothing(x, sigma):
    return torch.zeros_like(x)


def unit_gaussian(x, sigma):
    return x / (1 + sigma**2)


def test_released_renoising_leaves_a_third_of_the_noise():
    ratios, _ = spreads(nothing, "released")
    published = (0.894, 0.799, 0.715, 0.641, 0.576, 0.520, 0.472, 0.431, 0.397, 0.369)
    for ours, theirs in zip(ratios, published, strict=False):
        assert abs(ours - theirs) < 1.5e-3
    assert max(ratios[10:]) - min(ratios[9:]) < 1e-9  # and it stays there

    ratio, sigmas = 1.0, karras(50).tolist()
    for step in range(10):
        ratio = math.hypot(ratio * sigmas[step + 1], sigmas[step] - sigmas[step + 1]) / sigmas[step]
        assert abs(ratios[step] - ratio) < 1e-6


def test_exact_renoising_keeps_the_noise_level():
    for ratio in spreads(nothing, "exact")[0]:
        assert abs(ratio - 1) < 2e-6


@pytest.mark.parametrize(("mode", "spread"), [("off", 0.926), ("exact", 0.926), ("released", 0.341)])
def test_standard_deviation_of_unit_gaussian_samples(mode, spread):
    assert abs(spreads(unit_gaussian, mode)[1] - spread) < 1e-3


@pytest.mark.parametrize("mode", RENOISING)
def test_renoising_repeats_the_first_steps_only(mode):
    seen = []
    counting = lambda x, sigma: (seen.append(sigma), gaussian(x, sigma))[1]  # noqa: E731
    sigmas = karras(20)
    last(sample(counting, State(0, torch.ones(3)), sigmas, Sampling(renoising=mode)))  # a fifth of 20
    repeats = 0 if mode == "off" else 4
    assert seen == [s for i, s in enumerate(sigmas[:-1].tolist()) for _ in range(2 if i < repeats else 1)]


def test_fresh_noise_is_that_of_step_and_cell():
    x = torch.zeros(2, 3, 4, 2, 2, dtype=torch.float64)
    assert torch.equal(seeded(5)(7, x), grid_noise(5, 2, 3, (4, 2, 2), stream=8).double())
    assert torch.equal(seeded(5)(7, x[0]), cell_noise(5, 0, 0, (3, 4, 2, 2), stream=8).double())


CONFIGURATIONS = [(sampler, renoising) for sampler in SAMPLERS for renoising in RENOISING]


def clipwise(x, sigma):
    return torch.tanh(x.mean(1, keepdim=True) + x / (1 + sigma**2))


@pytest.mark.parametrize(("sampler", "renoising"), CONFIGURATIONS)
@settings(deadline=None, max_examples=5)
@given(stop=st.integers(0, 9))
def test_a_trajectory_resumes_from_any_state_bit_for_bit(sampler, renoising, stop):
    sigmas, sampling = karras(10), Sampling(sampler, renoising, seed=3)
    walk = partial(sample, clipwise, sigmas=sigmas, sampling=sampling)
    states = [start(grid_noise(3, 2, 3, (1, 2, 2)), sigmas)]
    states += walk(states[0])
    resumed = [states[stop], *walk(states[stop])]
    assert len(states) == 11 and states[-1].step == 10
    for one, other in zip(states[stop:], resumed, strict=True):
        assert one.step == other.step and torch.equal(one.x, other.x)


@pytest.mark.parametrize(("sampler", "renoising"), CONFIGURATIONS)
def test_chunks_of_clips_do_not_change_a_sample(sampler, renoising):
    sigmas, sampling = karras(8), Sampling(sampler, renoising, seed=1)
    noise = start(grid_noise(1, 5, 2, (1, 2, 2)), sigmas)
    whole = last(sample(clipwise, noise, sigmas, sampling)).x
    for size in (1, 2, 5):
        assert torch.equal(last(sample(chunked(clipwise, size), noise, sigmas, sampling)).x, whole)


def test_views_of_a_smaller_grid_are_views_of_a_larger_one():
    sigmas, sampling = karras(8), Sampling(renoising="exact", seed=1)
    few, many = (start(grid_noise(1, views, 2, (1, 2, 2)), sigmas) for views in (2, 4))
    small = last(sample(clipwise, few, sigmas, sampling)).x
    assert torch.equal(small, last(sample(clipwise, many, sigmas, sampling)).x[:2])


def test_the_default_is_eulers_method():
    noise, sigmas = torch.randn(3, 2, 1, 2, 2), karras(6)
    assert torch.equal(last(sample(clipwise, State(0, noise), sigmas)).x, euler(clipwise, noise, sigmas))


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="choose one of euler, heun, dpmpp_2m"):
        Sampling("ddim").step(10)
    with pytest.raises(ValueError, match="choose one of off, exact, released"):
        Sampling(renoising="half").step(10)

"""Sigma sequences against their published numbers and their laws."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from loom4d.diffusion.samplers import euler
from loom4d.diffusion.schedules import (
    ALIGNED_SVD,
    LEARNED_SMALL,
    SCHEDULES,
    align_your_steps_svd,
    karras,
    leaping,
    learned_small,
    schedule,
    trained_ladder,
)

LEARNED = Path(__file__).parent.parent / "benchmarks" / "results" / "schedule.json"


def test_karras_has_the_numbers_of_svd_at_fifty_steps():
    known = {0: 700, 1: 620.3, 5: 374.2, 10: 188.1, 20: 37.3, 25: 14.05, 30: 4.52, 35: 1.168, 40: 0.218, 45: 0.0238}
    sigmas = karras(50)
    for step, value in known.items():
        assert abs(sigmas[step] / value - 1) < 2.5e-3
    assert_close(sigmas[49:], torch.tensor([0.002, 0], dtype=torch.float64))


def test_aligned_steps_are_the_published_ones_at_ten():
    assert_close(align_your_steps_svd(10)[:10], torch.tensor(ALIGNED_SVD[:10], dtype=torch.float64))


def test_aligned_steps_at_twenty_are_geometric_means_in_between():
    knots, sigmas = torch.tensor(ALIGNED_SVD, dtype=torch.float64), align_your_steps_svd(20)
    assert_close(sigmas[:20:2], knots[:10])
    assert_close(sigmas[1::2], (knots[1:] * knots[:-1]).sqrt())


@pytest.mark.parametrize("name", SCHEDULES)
@settings(deadline=None, max_examples=30)
@given(steps=st.integers(2, 80), sigma_min=st.floats(0.001, 0.1), sigma_max=st.floats(1, 700))
def test_every_schedule_falls_from_sigma_max_to_zero(name, steps, sigma_min, sigma_max):
    sigmas = schedule(name, steps, sigma_min, sigma_max)
    assert sigmas.dtype == torch.float64 and len(sigmas) == steps + 1
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0
    assert abs(sigmas[0] / sigma_max - 1) < 1e-9
    assert sigmas[-2] >= sigma_min * (1 - 1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_step_starts_at_sigma_max(name):
    assert_close(schedule(name, 1), torch.tensor([700.0, 0.0], dtype=torch.float64))


@given(name=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(2, 40), to=st.floats(0.1, 50))
def test_a_leap_goes_straight_to_where_the_schedule_begins(name, steps, to):
    sigmas = leaping(name, steps, to, 0.02, 80.0)
    assert len(sigmas) == steps + 1 and sigmas[0] == 80 and sigmas[-1] == 0
    assert_close(sigmas[1:], schedule(name, steps - 1, 0.02, to))
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps, to", [(1, 1.0), (8, 0.02), (8, 80.0), (8, 0.0)])
def test_a_leap_to_nowhere_is_refused(steps, to):
    with pytest.raises(ValueError, match="needs steps >= 2"):
        leaping("karras", steps, to, 0.02, 80.0)


@pytest.mark.parametrize("to", [0.5, 1.0, 4.0])
def test_what_a_leap_keeps_of_the_variance(to):
    """Of a Gaussian of deviation s, whose denoiser is s² x / (s² + σ²), it draws the share to² / (s² + to²)."""
    deviation, start = 0.7, torch.tensor([1e4], dtype=torch.float64)

    def denoise(x, sigma):
        return deviation**2 * x / (deviation**2 + sigma**2)

    drawn = euler(denoise, start, leaping("karras", 2000, to, 1e-4, 1e4))  # from noise of one deviation
    kept = float(drawn / deviation) ** 2
    assert kept == pytest.approx(to**2 / (deviation**2 + to**2), rel=5e-3)


def test_the_trained_ladder_of_latent_diffusion():
    ladder = trained_ladder()
    assert (ladder.diff() > 0).all()
    assert_close(ladder[[0, -1]], torch.tensor([0.02917, 14.6146], dtype=torch.float64), rtol=1e-3, atol=0)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(ValueError, match="choose one of karras"):
        schedule("linear", 10)
    for steps, low, high in ((0, 0.1, 1.0), (5, 1.0, 0.5), (5, 0.0, 1.0)):
        with pytest.raises(ValueError, match="needs steps"):
            karras(steps, low, high)


def test_learned_steps_are_those_of_the_recorded_measurement():
    """The knots cut the measured density, curvature^⅓ over ln σ, into equal parts."""
    record = json.loads(LEARNED.read_text())
    assert list(LEARNED_SMALL) == record["knots_ln_sigma"]
    depths, curvature = -np.array(record["measured"]["ln_sigma"]), record["measured"]["curvature"][1:-1]
    density = np.array([curvature[0], *curvature, curvature[-1]]) ** (1 / 3)
    area = np.concatenate([[0], np.cumsum(np.diff(depths) * (density[1:] + density[:-1]) / 2)])
    parts = np.diff(np.interp(-np.array(LEARNED_SMALL), depths, area))
    assert np.allclose(parts, area[-1] / 16, rtol=5e-3)
    knots = torch.tensor(LEARNED_SMALL, dtype=torch.float64).exp()
    assert_close(learned_small(16, 0.02, 80.0)[:16], knots[:16], rtol=1e-3, atol=0)

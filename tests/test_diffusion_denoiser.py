"""Adapters are exact for exact networks; noise belongs to a cell."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from loom4d.diffusion.denoiser import (
    cell_noise,
    chunked,
    chunked_clips,
    from_edm,
    from_epsilon,
    from_velocity,
    grid_noise,
    timestep_of,
)
from loom4d.diffusion.schedules import trained_ladder

SPREAD, MEAN = 1.7, 0.3  # the data: N(MEAN, SPREAD²) in every number
SIGMAS = st.floats(0.002, 700)


def gaussian(x, sigma):
    """The exact denoiser of the data."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def sigma_of(label):
    return torch.exp(4 * label)


@settings(deadline=None, max_examples=30)
@given(sigma=SIGMAS)
def test_an_exact_velocity_network_gives_the_exact_denoiser(sigma):
    def velocity(scaled, label):  # v = (noise − σ · clean)/√(1+σ²) at unit total variance, given x
        sigma = sigma_of(label)
        x = scaled * (1 + sigma**2).sqrt()
        clean = gaussian(x, sigma)
        return ((x - clean) / sigma - sigma * clean) / (1 + sigma**2).sqrt()

    x = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(2, 3, 4) * max(sigma, 1)
    assert_close(from_velocity(velocity)(x, sigma), gaussian(x, sigma), rtol=1e-9, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(sigma=SIGMAS, sigma_data=st.floats(0.2, 5))
def test_an_exact_edm_network_gives_the_exact_denoiser(sigma, sigma_data):
    def network(scaled, label):  # EDM, Equation 8: what the loss makes of F
        sigma = sigma_of(label)
        total = (sigma**2 + sigma_data**2).sqrt()
        return (gaussian(scaled * total, sigma) - sigma_data**2 / total * scaled) * total / (sigma * sigma_data)

    x = torch.linspace(-3, 3, 24, dtype=torch.float64) * max(sigma, 1)
    assert_close(from_edm(network, sigma_data)(x, sigma), gaussian(x, sigma), rtol=1e-9, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(sigma=SIGMAS)
def test_an_exact_noise_network_gives_the_exact_denoiser(sigma):
    def epsilon(scaled, label):
        sigma = sigma_of(label)
        x = scaled * (1 + sigma**2).sqrt()
        return (x - gaussian(x, sigma)) / sigma

    x = torch.linspace(-3, 3, 24, dtype=torch.float64) * max(sigma, 1)
    assert_close(from_epsilon(epsilon)(x, sigma), gaussian(x, sigma), rtol=1e-9, atol=1e-10)


def test_the_velocity_preconditioning_is_edms_with_unit_data_and_the_opposite_sign():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 5)
    ours = from_velocity(lambda x, label: x.sin() * label)(x, 3.0)
    assert_close(ours, from_edm(lambda x, label: -x.sin() * label, 1.0)(x, 3.0))


def test_the_network_is_told_a_quarter_of_the_logarithm_in_its_input_dtype():
    told = []
    from_velocity(lambda x, label: (told.append(label), x)[1])(torch.zeros(1, 4, dtype=torch.float32), 700.0)
    assert told[0].dtype == torch.float32 and told[0].shape == ()
    assert math.isclose(told[0], 1.638, abs_tol=5e-4)  # 700 is the first sigma of SVD


def test_half_precision_networks_give_full_precision_estimates():
    denoise = from_velocity(lambda x, label: x.half())
    assert denoise(torch.ones(1, 1, 4, 2, 2), 1.0).dtype == torch.float32


def test_a_sigma_per_clip_equals_one_clip_at_a_time():
    denoise = from_velocity(lambda x, label: (x + label).sin())
    x, sigmas = torch.randn(3, 2, 4, 5, 5), torch.tensor([0.1, 1.0, 40.0])
    together = denoise(x, sigmas[:, None, None, None, None])
    assert_close(together, torch.stack([denoise(clip, sigma) for clip, sigma in zip(x, sigmas, strict=True)]))


def test_discrete_labels_count_the_ladder_and_are_linear_in_the_logarithm_between():
    ladder = trained_ladder()
    label = timestep_of(ladder)
    assert_close(label(ladder), torch.arange(1000).double(), rtol=0, atol=1e-9)
    middle = (ladder[500] * ladder[501]).sqrt()
    assert_close(label(middle), torch.tensor(500.5, dtype=torch.float64))
    assert label(ladder[-1] * 10) == 999


@settings(deadline=None, max_examples=30)
@given(clips=st.integers(1, 7), size=st.integers(1, 9))
def test_chunks_change_nothing(clips, size):
    x = torch.linspace(-1, 1, clips * 6).reshape(clips, 2, 3)
    seen = []

    def denoise(x, sigma):
        seen.append(len(x))
        return x.sin() * sigma

    assert torch.equal(chunked(denoise, size)(x, 2.0), x.sin() * 2.0)
    assert max(seen) <= size and sum(seen) == clips


def test_chunks_bind_the_conditions_of_their_own_clips():
    conditions = torch.arange(5.0)

    def bind(clips):
        return lambda x, sigma: x + conditions[clips, None]

    assert torch.equal(chunked_clips(bind, 2)(torch.zeros(5, 3), 1.0), conditions[:, None].expand(5, 3))


def test_an_empty_chunk_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        chunked(gaussian, 0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), views=st.integers(1, 4), frames=st.integers(1, 4))
def test_noise_of_a_grid_is_the_noise_of_its_cells(seed, views, frames):
    grid = grid_noise(seed, views, frames, (2, 3, 3))
    assert grid.shape == (views, frames, 2, 3, 3) and grid.dtype == torch.float32
    assert torch.equal(grid[-1, -1], cell_noise(seed, views - 1, frames - 1, (2, 3, 3)))
    assert torch.equal(grid, grid_noise(seed, views + 1, frames + 2, (2, 3, 3))[:views, :frames])


def test_every_name_of_a_cell_changes_its_noise():
    names = list(product((0, 1, 7), (0, 1), (0, 1), (0, 1)))
    cells = torch.stack([cell_noise(seed, view, frame, (64,), stream) for seed, view, frame, stream in names])
    correlation = torch.corrcoef(cells)
    assert (correlation - torch.eye(len(names))).abs().max() < 0.6  # 64 numbers: chance stays below


def test_noise_is_unit_normal():
    noise = grid_noise(3, 5, 5, (4, 32, 32)).double()
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5
    assert abs(noise.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / count) ** 0.5


@pytest.mark.parametrize("name", ["seed", "view", "frame", "stream"])
@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_number_that_names_no_cell_is_refused(name, number):
    with pytest.raises(ValueError, match=name):
        cell_noise(**{"seed": 0, "view": 0, "frame": 0, "shape": (1,), "stream": 0, name: number})

"""Bands of frequency: pure waves are scaled by what the filter passes, and equal weights are the plain blend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from loom4d.diffusion.composition import Bands, composed
from loom4d.diffusion.frequency import FILTERS, cosines, over_space, over_time, passed

VIEWS, FRAMES, SIDE = 2, 5, 6


def never(x, sigma):
    raise AssertionError("this denoiser must not be evaluated")


def grid(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VIEWS, FRAMES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_cosines_are_an_orthonormal_basis_of_growing_waves(size):
    basis = cosines(size)
    assert_close(basis @ basis.mT, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    for wave, values in enumerate(basis):
        assert int((values.sign().diff() != 0).sum()) == wave  # k/2 turns cross zero k times


@settings(deadline=None, max_examples=20)
@given(down=st.integers(0, SIDE - 1), across=st.integers(0, SIDE - 1), cutoff=st.floats(0.1, 5))
def test_a_wave_over_the_picture_keeps_what_the_filter_passes(down, across, cutoff):
    wave = cosines(SIDE)[down][:, None] * cosines(SIDE)[across]
    x = wave.expand(VIEWS, FRAMES, 3, SIDE, SIDE)
    turns = torch.tensor((down**2 + across**2) ** 0.5 / 2, dtype=torch.float64)
    assert_close(over_space(x, cutoff), 2.0 ** -((turns / cutoff) ** 2) * x)


@settings(deadline=None, max_examples=20)
@given(wave=st.integers(0, FRAMES - 1), cutoff=st.floats(0.1, 5))
def test_a_wave_over_time_keeps_what_the_filter_passes(wave, cutoff):
    x = cosines(FRAMES)[wave][:, None, None, None] * grid()[:, :1]
    assert_close(over_time(x, cutoff), 2.0 ** -((wave / 2 / cutoff) ** 2) * x)


def test_the_cutoff_passes_half_and_must_be_positive():
    assert passed(torch.tensor(3.0), 3.0) == 0.5 and passed(torch.tensor(0.0), 3.0) == 1
    with pytest.raises(ValueError, match="positive number of turns"):
        over_space(grid(), 0.0)


@pytest.mark.parametrize("over", FILTERS)
@settings(deadline=None, max_examples=10)
@given(share=st.floats(0.01, 0.99), cutoff=st.floats(0.1, 5))
def test_equal_weights_in_both_bands_are_the_plain_blend(over, share, cutoff):
    bands = Bands(lambda _: share, lambda x: FILTERS[over](x, cutoff))
    split = composed(lambda x, s: x.sin(), lambda x, s: x.cos(), lambda _: share, bands=bands)
    assert_close(split(grid(), 1.0), composed(lambda x, s: x.sin(), lambda x, s: x.cos(), lambda _: share)(grid(), 1.0))


@pytest.mark.parametrize("over", FILTERS)
def test_each_band_goes_by_its_own_weight(over):
    """The multi-view prior's low frequencies and the video prior's high ones, each whole."""
    around, along, keep = grid(1), grid(2), lambda x: FILTERS[over](x, 0.8)
    bands = Bands(lambda _: 0.0, keep)
    result = composed(lambda x, s: around, lambda x, s: along, lambda _: 1.0, bands=bands)(grid(), 1.0)
    assert_close(result, keep(around) + along - keep(along))


def test_a_prior_without_weight_in_either_band_is_not_asked():
    bands = Bands(lambda _: 0.0, lambda x: over_time(x, 1.0))
    assert torch.equal(composed(never, lambda x, s: x, lambda _: 0.0, bands=bands)(grid(), 1.0), grid())
    asked = []
    wanted = composed(lambda x, s: asked.append("mv") or x, lambda x, s: x, lambda _: 0.5, bands=bands)
    wanted(grid(), 1.0)
    assert asked == ["mv"]

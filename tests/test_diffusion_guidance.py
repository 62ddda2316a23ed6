"""Laws of guidance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from loom4d.diffusion.guidance import constant, guided, guided_together, linear, triangular

X = torch.linspace(-2, 2, 2 * 5 * 3 * 4).reshape(2, 5, 3, 2, 2)


def strong(x, sigma):
    return x.sin() / (1 + sigma)


def weak(x, sigma):
    return x.cos() / (1 + sigma)


def never(x, sigma):
    raise AssertionError("this denoiser must not be evaluated")


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0, 10), sigma=st.floats(0.01, 80))
def test_guidance_between_equal_denoisers_is_no_guidance(scale, sigma):
    assert torch.equal(guided(strong, strong, scale)(X, sigma), strong(X, sigma))


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0, 10).filter(lambda scale: scale != 1), sigma=st.floats(0.01, 80))
def test_guidance_extrapolates_from_the_unconditional_estimate(scale, sigma):
    assert_close(guided(strong, weak, scale)(X, sigma), torch.lerp(weak(X, sigma), strong(X, sigma), scale))


@pytest.mark.parametrize("scale", [1.0, torch.ones(5)])
def test_a_scale_of_one_asks_only_the_conditional_denoiser(scale):
    assert torch.equal(guided(strong, never, scale)(X, 3.0), strong(X, 3.0))
    assert torch.equal(guided_together(strong, never, scale)(X, 3.0), strong(X, 3.0))


def test_a_scale_of_zero_is_the_unconditional_estimate():
    assert torch.equal(guided(strong, weak, 0.0)(X, 3.0), weak(X, 3.0))


def test_a_curve_guides_each_picture_by_its_own_scale():
    scales = linear(1.5, 3.0, 5)
    together = guided(strong, weak, scales)(X, 2.0)
    for picture, scale in enumerate(scales):
        alone = guided(strong, weak, scale.item())(X[:, picture : picture + 1], 2.0)
        assert_close(together[:, picture : picture + 1], alone)


@settings(deadline=None, max_examples=30)
@given(sigma=st.floats(0.01, 80))
def test_guidance_acts_inside_its_interval_only(sigma):
    inside = 0.3 <= sigma <= 5
    result = guided(strong, weak if inside else never, 2.5, (0.3, 5.0))(X, sigma)
    assert torch.equal(result, guided(strong, weak, 2.5)(X, sigma) if inside else strong(X, sigma))


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0, 10).filter(lambda scale: scale != 1), sigma=st.floats(0.01, 80))
def test_both_halves_in_one_call_are_the_same_guidance(scale, sigma):
    def pair(x, sigma):
        assert len(x) == 2 * len(X)
        return torch.cat([strong(x[: len(X)], sigma), weak(x[len(X) :], sigma)])

    interval = (0.1, math.inf)
    together = guided_together(strong, pair, scale, interval)(X, sigma)
    assert_close(together, guided(strong, weak, scale, interval)(X, sigma))


def test_curves_end_where_they_say():
    assert torch.equal(constant(2.5, 21), torch.full((21,), 2.5))
    ramp = linear(1.5, 3.0, 25)
    assert ramp[0] == 1.5 and ramp[-1] == 3.0 and ramp[12] == 2.25
    tent = triangular(1.0, 2.5, 21)
    assert tent[0] == tent[-1] == 1.0 and tent[10] == tent.max() == 2.5
    assert_close(tent, tent.flip(0))


def test_scales_that_fit_no_clip_are_refused():
    with pytest.raises(ValueError, match=r"4 guidance scales need clips \(clip, 4"):
        guided(strong, weak, linear(1.0, 2.0, 4))(X, 1.0)

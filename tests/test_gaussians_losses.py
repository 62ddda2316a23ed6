"""SSIM against the windowed convolution it replaces; regularisers against their definitions."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loom4d.gaussians import losses


def convolved_ssim(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The textbook form: 11 × 11 Gaussian window, σ 1.5, zero padding."""
    taps = torch.exp(-0.5 * (torch.arange(-5, 6).double() / 1.5) ** 2)
    taps = taps / taps.sum()
    window = (taps[:, None] * taps)[None, None]
    blur = lambda x: torch.nn.functional.conv2d(x[:, None], window, padding=5)[:, 0]  # noqa: E731
    a, b = blur(first), blur(second)
    va, vb, vab = blur(first**2) - a**2, blur(second**2) - b**2, blur(first * second) - a * b
    return ((2 * a * b + 1e-4) * (2 * vab + 9e-4)) / ((a**2 + b**2 + 1e-4) * (va + vb + 9e-4))


def test_two_band_matrices_equal_the_window():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 4, 37, 52, generator=generator, dtype=torch.float64)
    ours = losses.ssim_map(first, losses.statistics(second))
    assert (ours - convolved_ssim(first, second)).abs().max() < 1e-9
    single = losses.ssim_map(first.float(), losses.statistics(second.float()))
    assert (single - ours).abs().max() < 1e-4 and abs(float(single.mean() - ours.mean())) < 1e-6


def test_a_picture_is_like_itself_and_trusted():
    pictures = torch.rand(3, 4, 20, 20)
    similarity = losses.ssim(pictures, losses.statistics(pictures))
    torch.testing.assert_close(similarity, torch.ones(3))
    torch.testing.assert_close(losses.confidence(similarity), torch.ones(3))
    worse = losses.ssim((pictures + 0.3 * torch.randn(3, 4, 20, 20)).requires_grad_(), losses.statistics(pictures))
    assert (losses.confidence(worse) < 0.9).all() and not losses.confidence(worse).requires_grad


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), grey=st.floats(0, 1))
def test_comparing_premultiplied_is_comparing_over_the_background(seed, grey):
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.rand(2, 1, 1, 6, 6, generator=generator)
    first, second = torch.cat([torch.rand(2, 1, 3, 6, 6, generator=generator) * alpha, alpha], 2)
    over = lambda p: p[:, :3] + (1 - p[:, 3:]) * grey  # noqa: E731
    expected = (over(first) - over(second)).abs().mean((1, 2, 3))
    torch.testing.assert_close(losses.composite_l1(first, second, torch.full((1, 3), grey)), expected)


def test_psnr_of_a_known_error():
    black = torch.zeros(1, 4, 8, 8)
    black[:, 3] = 1
    grey = black.clone()
    grey[:, :3] = 0.1
    torch.testing.assert_close(losses.psnr(grey, black), torch.tensor([20.0]))


def test_regularisers_vanish_where_they_should_and_only_there():
    assert losses.opacity_entropy(torch.tensor([0.0, 1.0])) < 1e-4
    torch.testing.assert_close(losses.opacity_entropy(torch.tensor([0.5])), torch.tensor(math.log(2)))
    scales = torch.tensor([[0.1, 0.1, 0.1], [0.8, 0.1, 0.1]]).log()
    torch.testing.assert_close(losses.anisotropy(scales, 5.0), torch.tensor(1.5))
    torch.testing.assert_close(losses.oversize(scales, 0.4), torch.tensor(0.5))
    ramp = torch.arange(5.0)[None, :, None].expand(2, 5, 3)
    assert losses.plane_smoothness(ramp) == 0
    torch.testing.assert_close(losses.plane_smoothness(ramp**2), torch.tensor(4.0))

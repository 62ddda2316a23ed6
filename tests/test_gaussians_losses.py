"""SSIM against the windowed convolution it replaces; regularisers against their definitions."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loom4d.gaussians import losses
from loom4d.gaussians.gaussians import rotations


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


def with_gaps(seed: int) -> torch.Tensor:
    """Pictures that are zero over wide parts, one of them everywhere."""
    pictures = torch.rand(5, 4, 40, 50, generator=torch.Generator().manual_seed(seed))
    pictures[0] = 0
    pictures[1, :, : 20 + seed] = 0
    pictures[2, :, :, 12:] = 0
    pictures[3, :3] = 0
    return pictures


def test_the_native_kernels_equal_the_tensors():
    first, second = with_gaps(0).requires_grad_(), with_gaps(3)
    weigh = torch.randn(first.shape, generator=torch.Generator().manual_seed(9))
    background, maps = torch.rand(5, 3), torch.rand(5, 40, 50)
    difference = lambda p: (p - second) * maps[:, None]  # noqa: E731
    pairs = [
        (losses.ssim_map(first, losses.statistics(second)) * weigh).sum((1, 2, 3)),
        (losses.ssim_map_reference(first, losses.statistics(second)) * weigh).sum((1, 2, 3)),
        losses.absolute(first, second, background, (0.7, 0.2), maps),
        0.7 * losses.composite_l1(difference(first), torch.zeros(5, 4, 40, 50), background)
        + 0.2 * losses.alpha_l1(difference(first), torch.zeros(5, 4, 40, 50)),
    ]
    slopes = [torch.autograd.grad((loss * torch.arange(1, 6)).sum(), first)[0] for loss in pairs]
    for ours, twin in ((0, 1), (2, 3)):
        torch.testing.assert_close(pairs[ours], pairs[twin], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(slopes[ours], slopes[twin], rtol=1e-4, atol=1e-5)
    doubles = losses.absolute(first.double(), second.double(), background.double(), (0.7, 0.2), maps.double())
    torch.testing.assert_close(doubles.float(), pairs[2])


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


def test_depth_may_jump_where_colour_does_and_where_nothing_is():
    depth, alpha, guide = torch.ones(1, 8, 8), torch.ones(1, 8, 8), torch.zeros(3, 8, 8)
    assert losses.depth_smoothness(depth, alpha, guide, 1.0) == 0
    depth[:, :, 4:] = 3.0
    step = losses.depth_smoothness(depth, alpha, guide, 2.0)
    torch.testing.assert_close(step, torch.tensor(8 / 56))  # eight of the 56 horizontal pairs jump by one unit
    guide[:, :, 4:] = 1.0
    assert losses.depth_smoothness(depth, alpha, guide, 2.0) < 1e-3 * step
    alpha[:, :, 3:5] = 0
    assert losses.depth_smoothness(depth, alpha, torch.zeros(3, 8, 8), 2.0) == 0


def test_rigid_motion_costs_no_arap_and_shear_does():
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(30, 3, generator=generator)
    edges = torch.cdist(rest, rest).topk(7, largest=False).indices[:, 1:]
    turn = rotations(torch.randn(2, 4, generator=generator))
    moved = torch.einsum("tij,nj->tni", turn, rest) + torch.randn(2, 1, 3, generator=generator)
    assert losses.arap(rest, moved, edges) < 1e-10
    shear = torch.eye(3) + 0.3 * torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]])
    sheared = (rest @ shear.mT).requires_grad_()
    losses.arap(rest, sheared, edges).backward()
    assert losses.arap(rest, sheared, edges) > 1e-3 and sheared.grad is not None and sheared.grad.isfinite().all()


def test_even_motion_is_steady():
    path = torch.arange(4.0)[:, None, None] * torch.randn(1, 5, 3)
    assert losses.acceleration(path, 1.0) < 1e-10
    torch.testing.assert_close(
        losses.acceleration(path + torch.arange(4.0)[:, None, None] ** 2, 2.0), torch.tensor(3.0)
    )

"""Laws of composition, the weights of Diffusion² as numbers, and whole composed trajectories in closed form."""

import math

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from loom4d.diffusion.composition import (
    WEIGHTS,
    Curve,
    Progress,
    alternating,
    cells,
    clamped,
    columns,
    composed,
    marginal_corrected,
    rows,
    switched,
    view_trust,
    weight_over,
)
from loom4d.diffusion.samplers import State, euler, heun_steps, start
from loom4d.diffusion.schedules import karras

VIEWS, FRAMES = 3, 4
SHARES = st.floats(0.01, 0.99)
SIGMAS = st.floats(0.002, 700)


def grid(seed=0, dtype=torch.float64):
    return torch.randn(VIEWS, FRAMES, 2, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def around(x, sigma):
    return x.sin() / (1 + sigma)


def along(x, sigma):
    return (2 * x).cos() / (1 + sigma)


def never(x, sigma):
    raise AssertionError("this denoiser must not be evaluated")


# --- clips and grids ---


def test_rows_are_views_and_columns_are_instants():
    mean_over_clip = lambda x, sigma: x.mean(1, keepdim=True).expand_as(x)  # noqa: E731
    x = grid()
    assert_close(rows(mean_over_clip)(x, 1.0), x.mean(1, keepdim=True).expand_as(x))
    assert_close(columns(mean_over_clip)(x, 1.0), x.mean(0, keepdim=True).expand_as(x))
    assert_close(cells(mean_over_clip)(x, 1.0), x)


def test_the_transposed_grid_swaps_rows_and_columns():
    running = lambda x, sigma: x.cumsum(1) / sigma  # noqa: E731
    swapped = rearrange(grid(), "view frame ... -> frame view ...")
    there_and_back = rearrange(rows(running)(swapped, 2.0), "frame view ... -> view frame ...")
    assert torch.equal(columns(running)(grid(), 2.0), there_and_back)


def test_clips_have_the_axes_that_priors_expect():
    shapes = []
    note = lambda x, sigma: (shapes.append(tuple(x.shape)), x)[1]  # noqa: E731
    for lift in (rows, columns, cells):
        lift(note)(grid(), 1.0)
    assert shapes == [(3, 4, 2, 2, 2), (4, 3, 2, 2, 2), (12, 1, 2, 2, 2)]


# --- composition ---


@settings(deadline=None, max_examples=30)
@given(share=SHARES, sigma=SIGMAS)
def test_equal_denoisers_compose_to_themselves(share, sigma):
    assert torch.equal(composed(around, around, lambda _: share)(grid(), sigma), around(grid(), sigma))


@settings(deadline=None, max_examples=30)
@given(share=SHARES, sigma=SIGMAS)
def test_composition_is_the_weighted_mean(share, sigma):
    expected = share * around(grid(), sigma) + (1 - share) * along(grid(), sigma)
    assert_close(composed(around, along, lambda _: share)(grid(), sigma), expected)


@pytest.mark.parametrize("shape", [(), (VIEWS,), (VIEWS, FRAMES)])
def test_a_prior_without_weight_is_not_evaluated(shape):
    x = grid()
    assert torch.equal(composed(around, never, lambda _: torch.ones(shape))(x, 2.0), around(x, 2.0))
    assert torch.equal(composed(never, along, lambda _: torch.zeros(shape))(x, 2.0), along(x, 2.0))


def test_a_prior_with_weight_in_a_single_cell_is_evaluated():
    share = torch.zeros(VIEWS, FRAMES)
    share[1, 2] = 1
    result = composed(around, along, lambda _: share)(grid(), 2.0)
    assert_close(result[1, 2], around(grid(), 2.0)[1, 2])
    assert torch.equal(result[0], along(grid(), 2.0)[0])


def test_the_negligible_weight_is_the_callers_choice():
    assert torch.equal(composed(never, along, lambda _: 0.02, negligible=0.02)(grid(), 1.0), along(grid(), 1.0))
    with pytest.raises(AssertionError):
        composed(never, along, lambda _: 1e-9, negligible=0.0)(grid(), 1.0)


def test_weights_per_view_and_per_cell_scale_their_own_cells():
    x = grid()
    per_view, per_frame = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.4, 0.6, 0.8])
    result = composed(around, along, lambda _: per_view[:, None] * per_frame)(x, 1.5)
    for view, a in enumerate(per_view):
        for frame, b in enumerate(per_frame):
            expected = torch.lerp(along(x, 1.5), around(x, 1.5), (a * b).item())[view, frame]
            assert_close(result[view, frame], expected)


def test_weights_that_fit_no_grid_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        composed(around, along, lambda _: torch.full((FRAMES,), 0.5))(grid(), 1.0)


def test_an_observer_sees_where_the_priors_disagree():
    seen = {}
    composed(around, along, lambda _: 0.5, observe=seen.__setitem__)(grid(), 2.0)
    assert_close(seen[2.0], around(grid(), 2.0) - along(grid(), 2.0))


@settings(deadline=None, max_examples=30)
@given(gamma=st.floats(-1, 1), sigma=SIGMAS)
def test_the_corrected_even_blend_is_the_partial_sum_of_scores(gamma, sigma):
    x, cell = grid(), lambda x, sigma: x.tanh()
    blend = composed(around, along, lambda _: 0.5)
    expected = (1 + gamma) / 2 * (around(x, sigma) + along(x, sigma)) - gamma * cell(x, sigma)
    assert_close(marginal_corrected(blend, cell, lambda _: gamma)(x, sigma), expected)


def test_without_correction_the_cells_are_not_evaluated():
    assert torch.equal(marginal_corrected(along, never, lambda _: 0.0)(grid(), 1.0), along(grid(), 1.0))


def test_alternation_takes_turns_step_by_step():
    sigmas = karras(7)
    turns = alternating(around, along, sigmas)
    for step, sigma in enumerate(sigmas[:-1].tolist()):
        for close in (sigma, sigma * 1.01, sigma / 1.01):
            assert torch.equal(turns(grid(), close), (along if step % 2 else around)(grid(), close))


def test_a_switch_keeps_its_threshold_high():
    both = switched(around, along, 2.0)
    assert torch.equal(both(grid(), 2.0), around(grid(), 2.0))
    assert torch.equal(both(grid(), 1.999), along(grid(), 1.999))


def test_given_pictures_stand_in_the_sample_as_given():
    known, mask = grid(5, torch.float32), torch.zeros(VIEWS, FRAMES, dtype=torch.bool)
    mask[0], mask[:, 0] = True, True
    x = euler(clamped(around, known, mask), 700 * grid(dtype=torch.float32), karras(20))
    assert torch.equal(x[mask], known[mask])
    free = euler(around, 700 * grid(dtype=torch.float32), karras(20))
    assert torch.equal(x[~mask], free[~mask])  # `around` looks at each cell alone


# --- weights ---


SPEC = {  # step of 50 -> logistic(0.5, 20), logistic(0.6, 15), linear, cosine
    0: (0.99995, 0.99988, 1.000, 1.000),
    10: (0.9973, 0.9974, 0.796, 0.901),
    20: (0.8626, 0.9467, 0.592, 0.642),
    25: (0.4492, 0.7936, 0.490, 0.484),
    30: (0.0958, 0.4542, 0.388, 0.327),
    40: (0.0018, 0.0375, 0.184, 0.081),
    49: (0.00005, 0.0025, 0.000, 0.000),
}
CURVES = (Curve(), Curve(midpoint=0.6, steepness=15.0), Curve("linear"), Curve("cosine"))


@pytest.mark.parametrize("step", SPEC)
def test_weights_of_diffusion_squared_over_fifty_steps(step):
    sigmas = karras(50)
    for curve, expected in zip(CURVES, SPEC[step], strict=True):
        assert abs(weight_over(curve, sigmas)(sigmas[step]) - expected) <= 5.1e-4
    assert weight_over(Curve("constant", high=0.6), sigmas)(sigmas[step]) == 0.6


TRUST = {  # view of 21 -> trust in the video prior, total multi-view weight at s = 0.6
    20: (1.000, 0.600),
    0: (0.935, 0.626),
    1: (0.762, 0.695),
    2: (0.542, 0.783),
    3: (0.350, 0.860),
    4: (0.254, 0.898),
    5: (0.287, 0.885),
    6: (0.438, 0.825),
    7: (0.653, 0.739),
    8: (0.859, 0.656),
    9: (0.983, 0.607),
}


def test_trust_and_total_weight_of_every_view():
    trust = view_trust(torch.arange(1, 22) * 360 / 21)
    for view, (expected, total) in TRUST.items():
        for place in {view, (19 - view) % 21}:  # the orbit is symmetric
            assert abs(trust[place] - expected) <= 5.1e-4
            for share, known in ((1.0, 1.0), (0.6, total), (0.0, 1 - expected)):
                weight = weight_over(Curve("constant", high=share), karras(5), trust)(1.0)
                assert abs(weight[place] - known) <= 5.1e-4


@pytest.mark.parametrize("shape", WEIGHTS)
@settings(deadline=None, max_examples=30)
@given(t=st.floats(0, 1), later=st.floats(0, 1), low=st.floats(0, 0.5), high=st.floats(0.5, 1))
def test_every_weight_falls_within_its_range(shape, t, later, low, high):
    curve = Curve(shape, high, low)
    early, late = (curve(one, sigma=80 ** (1 - 2 * one)) for one in sorted((t, later)))
    assert low - 1e-9 <= late <= early + 1e-12 and early <= high + 1e-9


def test_an_unknown_weight_names_the_known_ones():
    with pytest.raises(ValueError, match="choose one of constant, linear, cosine, logistic, log_sigma"):
        Curve("quadratic")(0.5)


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(2, 60), pick=st.floats(0, 1), between=st.floats(0, 1))
def test_progress_counts_steps_and_is_linear_in_the_logarithm_between(steps, pick, between):
    sigmas = karras(steps)
    progress, step = Progress(sigmas), round(pick * (steps - 1))
    assert progress(sigmas[step]) == progress(sigmas[step].float()) == step / (steps - 1)
    if step + 1 < steps:
        sigma = math.exp(torch.lerp(sigmas[step].log(), sigmas[step + 1].log(), between).item())
        assert abs(progress(sigma) - (step + between) / (steps - 1)) < 1e-5
    assert progress(1e6) == 0 and progress(1e-6) == 1


def test_progress_of_a_single_step_is_none():
    assert Progress(karras(1))(700.0) == 0


# --- whole trajectories on separable Gaussian fields ---------------------------------------------------------------
#
# A prior that knows the covariance C along its own axis has D = C (C + σ²)⁻¹ x. Where C_v has the eigenvalue a and C_f
# the eigenvalue b, a constant share W makes dx/dσ = σ (W/(a+σ²) + (1−W)/(b+σ²)) x, hence
# x(σ) ∝ (a+σ²)^{W/2} (b+σ²)^{(1−W)/2}: the composed sample has variance a^W b^{1−W} in that mode.


def covariance(size, length):
    places = torch.arange(size, dtype=torch.float64)
    return torch.exp(-(places[:, None] - places).abs() / length)


def exact(c):
    """The exact denoiser of clips whose pictures have covariance c, in each latent number."""

    def denoise(x, sigma):
        kernel = c @ torch.linalg.inv(c + sigma**2 * torch.eye(len(c), dtype=c.dtype))
        return torch.einsum("pq,bq...->bp...", kernel, x)

    return denoise


def power(c, exponent):
    values, vectors = torch.linalg.eigh(c)
    return vectors @ torch.diag(values**exponent) @ vectors.mT


def shrink(c, exponent, high, low):
    """((C + low²)(C + high²)⁻¹)^{exponent/2}"""
    one = torch.eye(len(c), dtype=c.dtype)
    return power(c + low**2 * one, exponent / 2) @ power(c + high**2 * one, -exponent / 2)


OVER_VIEWS, OVER_TIME = covariance(VIEWS, 2.0), covariance(FRAMES, 3.0)


@settings(deadline=None, max_examples=8)
@given(share=st.floats(0, 1))
def test_a_composed_trajectory_has_its_closed_form(share):
    denoise = composed(columns(exact(OVER_VIEWS)), rows(exact(OVER_TIME)), lambda _: share, negligible=0.0)
    sigmas = torch.logspace(1, -1, 201, dtype=torch.float64)  # 10 to 0.1
    *_, last = heun_steps(denoise, State(0, grid()), sigmas)
    views, times = shrink(OVER_VIEWS, share, 10.0, 0.1), shrink(OVER_TIME, 1 - share, 10.0, 0.1)
    assert_close(last.x, torch.einsum("uv,fg,vg...->uf...", views, times, grid()), rtol=1e-3, atol=1e-4)


def test_the_sum_of_scores_less_the_cells_has_the_covariance_of_both():
    even = composed(columns(exact(OVER_VIEWS)), rows(exact(OVER_TIME)), lambda _: 0.5)
    unit = torch.eye(1, dtype=torch.float64)
    denoise = marginal_corrected(even, cells(exact(unit)), lambda _: 1.0)
    sigmas = torch.cat([torch.logspace(3, -3, 401, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    maps = torch.eye(VIEWS * FRAMES, dtype=torch.float64).reshape(VIEWS, FRAMES, -1, 1, 1)  # one channel per noise
    *_, last = heun_steps(denoise, start(maps, sigmas), sigmas)
    root = rearrange(last.x, "view frame noise 1 1 -> (view frame) noise")
    assert_close(root @ root.mT, torch.kron(OVER_VIEWS, OVER_TIME), rtol=2e-3, atol=2e-3)


def test_a_trajectory_under_a_moving_weight_follows_its_integral():
    sigmas = torch.cat([torch.logspace(2, -2, 801, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    weight = weight_over(Curve(), sigmas)
    a, b = 0.2, 2.5  # one mode of each prior
    denoise = composed(
        lambda x, sigma: a / (a + sigma**2) * x, lambda x, sigma: b / (b + sigma**2) * x, weight, negligible=0.0
    )
    *_, last = heun_steps(denoise, State(0, grid()), sigmas[:-1])
    depth = torch.linspace(math.log(100), math.log(0.01), 20001, dtype=torch.float64)
    slope = [
        sigma**2 * (weight(sigma) / (a + sigma**2) + (1 - weight(sigma)) / (b + sigma**2))
        for sigma in depth.exp().tolist()
    ]
    factor = torch.trapezoid(torch.tensor(slope, dtype=torch.float64), depth).exp()
    assert_close(last.x, factor * grid(), rtol=1e-3, atol=0)

"""The Gaussian field: its exact priors, and what composition rules do to it, against closed forms and by sampling."""

import math

import pytest
import torch
from einops import rearrange
from torch.testing import assert_close

from loom4d.diffusion.composition import Curve, composed, marginal_corrected, weight_over
from loom4d.diffusion.samplers import Step, euler, euler_step, heun_step, renoised, start, trajectory
from loom4d.diffusion.schedules import karras
from loom4d.evaluation.gaussian_field import (
    KNOWN,
    GivenField,
    along_time,
    around_orbit,
    judged,
    neighbour_correlations,
    one_sigma_error,
    response,
    symbolic,
    symbolic_noise,
    symbolic_renoising,
    wasserstein_squared,
)

OVER_VIEWS, OVER_TIME = around_orbit(5, 3.0), along_time(6, 4.0)
VIEWS, FRAMES = 4, 5  # of the grid
CELLS = VIEWS * FRAMES


def small():
    return symbolic(OVER_VIEWS, OVER_TIME)


def walked(field, denoise, sigmas, step: Step = euler_step):
    *_, last = trajectory(step, denoise, start(symbolic_noise(field), sigmas), sigmas)
    return last.x


def even(field):
    return composed(field.multiview(), field.video(), lambda sigma: 0.5)


def fine(steps=400):
    return torch.cat([torch.logspace(3.5, -3.5, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def conditioned(known, wanted):
    """Gain and conditional covariance of the field's cells `wanted` given `known`, from the full covariance."""
    joint = torch.kron(OVER_VIEWS, OVER_TIME)
    gain = joint[wanted][:, known] @ torch.linalg.inv(joint[known][:, known])
    return gain, joint[wanted][:, wanted] - gain @ joint[known][:, wanted]


def number(view, frame):
    return view * (FRAMES + 1) + frame


GIVEN = [number(0, f) for f in range(FRAMES + 1)] + [number(v, 0) for v in range(1, VIEWS + 1)]  # coefficients' order
GRID = [number(v, f) for v in range(1, VIEWS + 1) for f in range(1, FRAMES + 1)]


def posterior(gain, covariance, sigma):
    """The denoiser of x ~ N(gain · given, covariance) + noise on the symbolic start, as (cell, given + noise) map."""
    kernel = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64))
    return torch.cat([gain - kernel @ gain, kernel], 1)


def as_map(x):
    return rearrange(x, "view frame source 1 1 -> (view frame) source")


# --- the priors are the conditional distributions of the field ---


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_the_joint_prior_is_the_field_given_first_view_and_frame(sigma):
    field = small()
    gain, covariance = conditioned(GIVEN, GRID)
    assert_close(field.covariance, covariance)
    assert_close(as_map(field.mean)[:, : len(GIVEN)], gain)
    ours = field.joint()(symbolic_noise(field), sigma)
    assert_close(as_map(ours), posterior(gain, covariance, sigma))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_each_row_and_column_is_given_its_own_first_picture(sigma):
    field, noise = small(), symbolic_noise(small())
    rows, columns = field.video()(noise, sigma), field.multiview()(noise, sigma)
    for v in range(1, VIEWS + 1):
        wanted, known = [number(v, f) for f in range(1, FRAMES + 1)], number(v, 0)
        assert_close(rows[v - 1][..., 0, 0], estimate_of_clip(wanted, known, sigma))
    for f in range(1, FRAMES + 1):
        wanted, known = [number(v, f) for v in range(1, VIEWS + 1)], number(0, f)
        assert_close(columns[:, f - 1][..., 0, 0], estimate_of_clip(wanted, known, sigma))


def estimate_of_clip(wanted, known, sigma):
    expected = torch.zeros(len(wanted), len(GIVEN) + CELLS, dtype=torch.float64)
    places = [GIVEN.index(known)] + [len(GIVEN) + GRID.index(cell) for cell in wanted]
    expected[:, places] = posterior(*conditioned([known], wanted), sigma)
    return expected


@pytest.mark.parametrize("knows", [(), ("corner",), ("row",), ("column",), ("column", "row"), tuple(KNOWN)])
def test_a_cell_is_given_what_it_knows(knows):
    field, sigma = small(), 0.7
    cells = field.cell(*knows)(symbolic_noise(field), sigma)
    for v in range(1, VIEWS + 1):
        for f in range(1, FRAMES + 1):
            known = [{"row": number(v, 0), "column": number(0, f), "corner": number(0, 0)}[name] for name in knows]
            expected = torch.zeros(len(GIVEN) + CELLS, dtype=torch.float64)
            places = [GIVEN.index(cell) for cell in known] + [len(GIVEN) + GRID.index(number(v, f))]
            expected[places] = posterior(*conditioned(known, [number(v, f)]), sigma)[0]
            assert_close(cells[v - 1, f - 1, :, 0, 0], expected)


def test_a_cell_cannot_know_what_is_not_given():
    with pytest.raises(ValueError, match="row, column, corner"):
        small().cell("everything")


def test_the_field_denoises_pictures_as_it_denoises_coefficients():
    torch.manual_seed(0)
    symbols = small()
    given = torch.linalg.cholesky(symbols.covariance_of_given) @ torch.randn(len(GIVEN), 6, dtype=torch.float64)
    pictures = rearrange(given, "given (c h w) -> given c h w", c=1, h=2)
    first_frame = torch.cat([pictures[:1], pictures[FRAMES + 1 :]])
    field = GivenField(OVER_VIEWS, OVER_TIME, pictures[: FRAMES + 1], first_frame)
    noise = torch.randn(VIEWS, FRAMES, 1, 2, 3, dtype=torch.float64)
    draws = torch.cat([given, rearrange(noise, "v f c h w -> (v f) (c h w)")])
    for drawn, symbol in ((field.joint(), symbols.joint()), (even(field), even(symbols))):
        expected = as_map(walked(symbols, symbol, karras(15))) @ draws
        x = euler(drawn, start(noise, karras(15)).x, karras(15))
        assert_close(rearrange(x, "v f c h w -> (v f) (c h w)"), expected)


def test_correlations_of_neighbours():
    field = symbolic(around_orbit(21, 6.0), along_time(25, 12.0))
    views, times = neighbour_correlations(field.covariance, 20)
    assert abs(views - 0.796) < 5e-4 and abs(times - 0.886) < 5e-4
    _, along = neighbour_correlations(torch.kron(OVER_VIEWS, OVER_TIME), VIEWS + 1)
    assert abs(along - math.exp(-1 / 4)) < 1e-12


def test_wasserstein_distance_of_commuting_and_of_shifted_scales():
    a, b = torch.diag(torch.tensor([1.0, 4.0, 9.0])), torch.diag(torch.tensor([4.0, 4.0, 0.0]))
    assert abs(wasserstein_squared(a, b) - (1 + 0 + 9)) < 1e-5
    covariance = OVER_TIME
    assert abs(wasserstein_squared(covariance, covariance)) < 1e-9
    assert abs(wasserstein_squared(covariance, 9 * covariance) - 4 * covariance.trace()) < 1e-9


# --- whole trajectories ---


def test_the_exact_prior_reaches_the_field():
    field = small()
    result = judged(field, walked(field, field.joint(), fine(), heun_step))
    assert result.spread_error < 1e-5 and result.mean_error < 1e-6 and abs(result.variance_kept - 1) < 1e-3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_constant_share_draws_the_geometric_mean_of_both_priors(share):
    """Covariance C_v^W ⊗ C_f^(1−W): an even blend keeps the square root of what it should (and its mean is off)."""
    field = small()
    denoise = composed(field.multiview(), field.video(), lambda sigma: share, negligible=0.0)
    maps = as_map(walked(field, denoise, fine(), heun_step))[:, len(GIVEN) :]
    expected = torch.kron(power(field.by_views, share), power(field.by_time, 1 - share))
    assert_close(maps @ maps.mT, expected, rtol=2e-3, atol=2e-3)


def power(c, exponent):
    values, vectors = torch.linalg.eigh(c)
    return vectors @ torch.diag(values**exponent) @ vectors.mT


def test_the_sum_of_scores_less_ignorant_cells_has_the_right_covariance_and_a_wrong_mean():
    field = small()
    denoise = marginal_corrected(even(field), field.cell(), lambda sigma: 1.0)
    result = judged(field, walked(field, denoise, fine(), heun_step))
    assert result.spread_error < 1e-4 and abs(result.variance_kept - 1) < 5e-3
    assert result.mean_error > 0.1


FULL = (around_orbit(21, 6.0), along_time(25, 12.0))  # the field of benchmarks/laboratory.py
KNOWN_RESULTS = {  # rule -> error of the spread, variance kept, correlation of views, of times
    "joint": (0.004, 0.875, 0.800, 0.889),
    "video": (0.535, 1.149, 0.000, 0.890),
    "multiview": (0.760, 1.116, 0.801, 0.000),
    "half": (0.296, 0.558, 0.455, 0.537),
    "logistic": (0.481, 1.033, 0.017, 0.878),
    "sum": (0.069, 1.308, 0.770, 0.871),
}


@pytest.mark.parametrize("rule", KNOWN_RESULTS)
def test_the_toy_of_the_design_notes(rule):
    """Reproduced to their digits: fifty Euler steps, cells that know the first picture of their row and column."""
    field, sigmas = symbolic(*FULL), karras(50)
    denoise = {
        "joint": field.joint(),
        "video": field.video(),
        "multiview": field.multiview(),
        "half": even(field),
        "logistic": composed(field.multiview(), field.video(), weight_over(Curve(), sigmas)),
        "sum": marginal_corrected(even(field), field.cell("row", "column"), lambda sigma: 1.0),
    }[rule]
    result = judged(field, walked(field, denoise, sigmas))
    ours = (result.spread_error, result.variance_kept, result.view_correlation, result.time_correlation)
    for value, known in zip(ours, KNOWN_RESULTS[rule], strict=True):
        assert abs(value - known) < 6e-4


@pytest.mark.parametrize(("mode", "kept", "error"), [("exact", 0.875, 0.004), ("released", 0.119, 0.430)])
def test_renoising_on_the_exact_prior(mode, kept, error):
    field, sigmas = symbolic(*FULL), karras(50)
    step = renoised(euler_step, mode, 10, symbolic_renoising(field, mode, sigmas))
    result = judged(field, walked(field, field.joint(), sigmas, step))
    assert abs(result.variance_kept - kept) < 6e-4 and abs(result.spread_error - error) < 6e-4


def test_scores_at_one_noise_level():
    field = symbolic(*FULL)
    total = marginal_corrected(even(field), field.cell("row", "column"), lambda sigma: 1.0)
    for sigma, half, summed in ((0.3, 0.231, 0.165), (1.0, 0.034, 0.0855), (5.0, 0.0041, 0.0043)):
        assert abs(one_sigma_error(field, even(field), sigma) - half) < 5.1e-4
        assert abs(one_sigma_error(field, total, sigma) - summed) < 5.1e-4
    assert one_sigma_error(field, field.joint(), 1.0) < 1e-20


def test_symbolic_renoising_has_the_covariance_of_drawn_noise():
    field, sigmas = small(), karras(5)
    x = walked(field, even(field), torch.tensor([700.0, 30.0], dtype=torch.float64))
    for mode, spread in (("exact", (sigmas[1] ** 2 - sigmas[2] ** 2).sqrt()), ("released", sigmas[1] - sigmas[2])):
        after = x + spread * symbolic_renoising(field, mode, sigmas)(1, x)
        before_map, after_map = as_map(x)[:, len(GIVEN) :], as_map(after)[:, len(GIVEN) :]
        expected = before_map @ before_map.mT + spread**2 * torch.eye(CELLS, dtype=torch.float64)
        assert_close(after_map @ after_map.mT, expected)
        assert torch.equal(as_map(after)[:, : len(GIVEN)], as_map(x)[:, : len(GIVEN)])


def test_the_response_to_a_wrong_mean_is_the_sample_it_moves():
    """A prior alone carries its mean into the sample whole; of two equal ones at half weight, each carries a half."""
    field, sigmas = small(), fine()
    assert_close(response(field, lambda video: video, [field.video()], 0, sigmas), 1.0, rtol=2e-2, atol=0)

    def half(one, other):
        return composed(one, other, lambda sigma: 0.5)

    assert_close(response(field, half, [field.video(), field.video()], 1, sigmas), 0.25, rtol=2e-2, atol=0)

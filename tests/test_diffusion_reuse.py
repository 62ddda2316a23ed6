"""What is used again: who is asked at which step, and that a stopped trajectory goes on to the same numbers."""

import pytest
import torch
from torch.testing import assert_close

from loom4d.diffusion.composition import Curve, composed, rows, weight_over
from loom4d.diffusion.disagreement import Disagreement
from loom4d.diffusion.guidance import guided
from loom4d.diffusion.reuse import by_turns, reused, step_of
from loom4d.diffusion.samplers import Sampling, euler_step, renoised, sample, start, trajectory
from loom4d.diffusion.schedules import karras

SIGMAS = karras(7, 0.02, 80.0)
X = torch.randn(4, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))


def never(x, sigma):
    raise AssertionError("this denoiser must not be evaluated")


def walk(denoise, state=None):
    *_, last = trajectory(euler_step, denoise, state or start(X, SIGMAS), SIGMAS)
    return last


def test_the_step_is_the_one_with_the_nearest_sigma():
    step = step_of(SIGMAS)
    assert [step(sigma) for sigma in SIGMAS[:-1]] == list(range(7))
    assert step(1e5) == 0 and step(1e-5) == 6 and step(float(SIGMAS[3]) * 1.01) == 3


def test_an_estimate_is_asked_for_at_every_so_manieth_step_and_stands_in_between():
    asked = []

    def denoise(x, sigma):
        asked.append(round(float(sigma), 6))
        return 0.9 * x

    seen, again = [], reused(denoise, 3, SIGMAS, {}, "it")
    walk(lambda x, sigma: (seen.append(again(x, sigma)), seen[-1])[1])
    assert asked == [round(float(SIGMAS[step]), 6) for step in (0, 3, 6)]
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[3], seen[5]) and not torch.equal(seen[2], seen[3])
    assert reused(denoise, 1, SIGMAS, {}, "it") is denoise
    with pytest.raises(ValueError, match="every 1, 2"):
        reused(denoise, 0, SIGMAS, {}, "it")


def test_clips_take_turns():
    asked = []

    def bind(clips):
        def denoise(x, sigma):
            assert len(x) == len(clips)
            asked.append(list(clips))
            return torch.stack([x[place] * (1 + clip) for place, clip in enumerate(clips)])

        return denoise

    turning = by_turns(bind, [1, 3, 2, 0], 2, SIGMAS, {}, "rows")
    first = turning(X, float(SIGMAS[0]))
    second = turning(2 * X, float(SIGMAS[1]))
    turning(X, float(SIGMAS[2]))
    assert asked == [[1, 3, 2, 0], [3, 0], [1, 2]]
    factors = torch.tensor([2.0, 4.0, 3.0, 1.0])[:, None, None, None, None]
    assert_close(first, X * factors)
    assert_close(second[[0, 2]], first[[0, 2]])
    assert_close(second[[1, 3]], (2 * X * factors)[[1, 3]])


def test_denoisers_that_know_the_sample_lose_nothing():
    """An estimate that does not depend on x may be used again at no price."""
    sure = lambda x, sigma: torch.ones_like(x)  # noqa: E731
    bind = lambda clips: sure  # noqa: E731
    assert_close(walk(reused(sure, 4, SIGMAS, {}, "it")).x, walk(sure).x)
    assert_close(walk(by_turns(bind, range(4), 3, SIGMAS, {}, "it")).x, walk(sure).x)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_what_is_held_makes_a_stopped_trajectory_go_on_to_the_same_numbers(stop):
    def made(held):
        old = reused(lambda x, sigma: x.sin(), 3, SIGMAS, held, "sin")
        turn = by_turns(lambda clips: lambda x, sigma: x.cos() / len(clips), range(4), 2, SIGMAS, held, "rows")
        return lambda x, sigma: old(x, sigma) + rows(turn)(x, sigma)

    whole, held = walk(made({})), {}
    states = trajectory(euler_step, made(held), start(X, SIGMAS), SIGMAS)
    state = [next(states) for _ in range(stop)][-1]
    assert torch.equal(walk(made(dict(held)), state).x, whole.x)
    assert not torch.equal(walk(made({}), state).x, whole.x)


# --- guidance after composition, re-noising where priors differ, disagreement ---


def test_guiding_the_composition_is_composing_the_guided_with_one_background():
    around, along, nothing = (lambda x, s, k=k: (k * x).sin() / (1 + s) for k in (1.0, 2.0, 3.0))
    scale, share = torch.linspace(1, 3, X.shape[1]), lambda sigma: 0.3
    after = guided(composed(around, along, share), nothing, scale)(X, 2.0)
    before = composed(guided(around, nothing, scale), guided(along, nothing, scale), share)(X, 2.0)
    assert_close(after, before)


def test_a_scale_of_nothing_asks_the_background_alone():
    assert torch.equal(guided(never, lambda x, s: x, 0.0)(X, 1.0), X)
    outside = guided(lambda x, s: 2 * x, never, 0.0, (0.0, 0.5))
    assert torch.equal(outside(X, 1.0), 2 * X)


def test_steps_are_repeated_where_the_priors_differ():
    differences = iter([0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1])
    drawn, level = [], [0.0]

    def denoise(x, sigma):
        return 0.5 * x

    def told():
        level[0] = next(differences)
        return level[0]

    sampling = Sampling("euler", "exact", renoised_above=0.5)
    *_, last = sample(denoise, start(X, SIGMAS), SIGMAS, sampling, told)
    noise = lambda step, x: (drawn.append(step), torch.zeros_like(x))[1]  # noqa: E731
    walk_twice = renoised(euler_step, "exact", lambda step: step in (0, 2), noise)
    list(trajectory(walk_twice, denoise, start(X, SIGMAS), SIGMAS))
    assert drawn == [0, 2] and last.step == 7
    plain = list(sample(denoise, start(X, SIGMAS), SIGMAS, Sampling("euler", "exact", renoised_above=9.0), lambda: 1.0))
    assert torch.equal(plain[-1].x, walk(denoise).x) and not torch.equal(last.x, plain[-1].x)


def test_disagreement_is_the_share_of_variance_in_each_cell():
    watch = Disagreement((0.1, 5.0))
    assert watch.map() is None and watch.tensors() == {}
    for sigma, size in ((80.0, 9.0), (5.0, 1.0), (0.1, 2.0), (0.05, 9.0)):
        watch(sigma, torch.full_like(X, size))
        assert abs(watch.last - size) < 1e-6
    mean = (1.0**2 + 2.0**2) / 2
    assert_close(watch.map(), torch.full((4, 3, 2, 2), mean / (1 + mean)))
    other = Disagreement((0.1, 5.0))
    other.restore(watch.tensors())
    assert torch.equal(other.map(), watch.map()) and other.evaluations == 2


# --- weights over ln sigma ---


@pytest.mark.parametrize("steps", [5, 50])
def test_a_share_over_log_sigma_is_the_same_under_every_schedule(steps):
    weight = weight_over(Curve("log_sigma", 0.8, 0.2, midpoint=2.0, steepness=3.0), karras(steps))
    assert abs(weight(2.0) - 0.5) < 1e-9
    for sigma in (700.0, 10.0, 0.3, 0.002):
        assert abs(weight(sigma) - (0.2 + 0.6 / (1 + (2.0 / sigma) ** 3))) < 1e-9

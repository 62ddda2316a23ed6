"""Gaussians that multiply: the policies' exact rules, what a step keeps, and a fit that grows and can be resumed."""

import math
from dataclasses import replace

import pytest
import torch

from loom4d.gaussians.densify import (
    POLICIES,
    DensifyConfig,
    Growth,
    above_threshold,
    multiplied,
    nothing_seen,
    observed,
    pruned,
    reset_opacities,
    top_share,
)
from loom4d.gaussians.fit import fit, initial_state
from loom4d.gaussians.motion import MOTIONS
from loom4d.gaussians.state import FitState, asset_of, named
from loom4d.runs import result_of
from test_fit import QUICK, bytes_of, picture_grid

GROWING = DensifyConfig(policy="percentile", top=0.1, start=0.0, end=1.0, every=10)


def grown_state(motion: str, seen: torch.Tensor | None = None) -> FitState:
    """A fit's start of which some Gaussians have been seen to pull."""
    state = initial_state(picture_grid(4, 3), replace(QUICK, motion=motion, count=60, lead=0.0))
    points = len(state.tensors["asset.means"])
    averages = {k: torch.full_like(t, 0.25) for k, t in state.tensors.items() if not k.startswith("asset.")}
    sums = 1 + torch.arange(points).float() if seen is None else seen
    return replace(state, tensors=state.tensors | averages | named(growth=vars(Growth(sums, torch.ones(points)))))


def test_the_top_share_is_counted_among_those_that_moved():
    mean = torch.cat([torch.zeros(100), torch.arange(1, 201).float()])[torch.randperm(300)]
    chosen = top_share(mean, DensifyConfig(top=0.025))
    assert chosen.sum() == 5 and mean[chosen].min() == 196  # the value at rank ⌊0.025 · 200⌋ = 5 is 195
    assert not top_share(torch.tensor([0.0, 1.0, 2.0]), DensifyConfig(top=0.025)).any()
    assert above_threshold(torch.tensor([1e-4, 2e-4, 3e-4]), DensifyConfig()).tolist() == [False, True, True]
    assert not POLICIES["none"](mean, DensifyConfig()).any()


def test_gradients_of_several_pictures_add_up_before_their_length_is_taken():
    gradients = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]], [[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    visible = torch.tensor([[True, True, False], [True, False, False]])
    growth = observed(observed(nothing_seen(3), gradients, visible, (2, 2)), gradients, visible, (2, 2))
    assert growth.sums.tolist() == [0.0, 4.0, 0.0] and growth.steps.tolist() == [2.0, 2.0, 0.0]
    wide = observed(nothing_seen(3), gradients, visible, (2, 20))  # by halves of the picture's sides
    assert growth.mean.tolist() == [0.0, 2.0, 0.0] and wide.mean.tolist() == [0.0, 20.0, 0.0]


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_small_are_copied_and_the_large_are_split(motion):
    state = grown_state(motion)
    points = len(state.tensors["asset.means"])
    state.tensors["asset.log_scales"][-3:] = math.log(0.2)  # of the six chosen, three are large
    config = replace(GROWING, huge=9.0, large=0.15)
    after = multiplied(state, motion, config, 1.0, torch.Generator().manual_seed(0))
    old, new = state.part("asset"), after.part("asset")
    assert len(new["means"]) == points + 3 + 3  # three copies; three split ones make room for six
    for name in MOTIONS[motion].point_fields():
        assert torch.equal(new[name][: points - 3], old[name][:-3]), name
        assert torch.equal(new[name][points - 3 : points], old[name][-6:-3]), name
        if f"mean.{name}" in after.tensors:
            assert (after.tensors[f"mean.{name}"][: points - 3] == 0.25).all()
            assert not after.tensors[f"square.{name}"][points - 3 :].any()
            assert (after.tensors[f"lately.{name}"][: points - 3] == 0.25).all()
            assert torch.equal(after.tensors[f"lately.{name}"][points - 3 :], new[name][points - 3 :])
    halves = slice(points, points + 6)
    torch.testing.assert_close(new["log_scales"][halves], torch.full((6, 3), math.log(0.2 / 1.6)))
    moved = (new["means"][halves] - old["means"][-3:].repeat_interleave(2, 0)).norm(dim=-1)
    assert (moved > 0).all() and (moved < 0.2 * 5).all()
    assert len(after.tensors["growth.sums"]) == points + 6 and not after.tensors["growth.sums"].any()
    again = multiplied(state, motion, config, 1.0, torch.Generator().manual_seed(0))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in after.tensors.items())
    assert asset_of(after, motion).at(0.4).means.isfinite().all()


def test_there_is_never_more_than_there_may_be():
    state = grown_state("spacetime")
    few = multiplied(state, "spacetime", replace(GROWING, most=62, large=9.0, huge=9.0), 1.0, torch.Generator())
    assert len(few.tensors["asset.means"]) == 62
    assert torch.equal(few.tensors["asset.colours"][-2:], state.tensors["asset.colours"][-2:])  # those that pull most


def test_what_is_faint_huge_or_tiny_goes_and_one_stays():
    state = grown_state("controlled")
    state.tensors["asset.opacity_logits"][0] = -9.0
    state.tensors["asset.log_scales"][1] = math.log(0.5)
    state.tensors["asset.log_scales"][2] = math.log(1e-4)
    after = pruned(state, "controlled", replace(GROWING, huge=0.3, tiny=1e-3), 1.0)
    assert torch.equal(after.tensors["asset.means"], state.tensors["asset.means"][3:])
    state.tensors["asset.opacity_logits"][:] = -9.0
    state.tensors["asset.opacity_logits"][7] = -8.0
    assert len(pruned(state, "controlled", GROWING, 1.0).tensors["asset.means"]) == 1


def test_a_reset_lowers_opacities_and_forgets_their_momentum():
    state = grown_state("deformed")
    state.tensors["asset.opacity_logits"][:5] = -6.0
    after = reset_opacities(state, GROWING)
    opacity = torch.sigmoid(after.tensors["asset.opacity_logits"])
    torch.testing.assert_close(opacity.max(), torch.tensor(GROWING.reset_to))
    assert (after.tensors["asset.opacity_logits"][:5] == -6).all() and not after.tensors["mean.opacity_logits"].any()
    assert (after.tensors["mean.means"] == 0.25).all()


def test_a_fit_that_grows_can_be_resumed_between_two_events():
    config = replace(QUICK, count=80, iterations=30, densify=replace(GROWING, reset_every=20), state_every=15)
    states: list[FitState] = []
    whole = result_of(fit(picture_grid(), config, on_state=states.append))
    assert len(whole.tensors()["means"]) > 80
    assert bytes_of(result_of(fit(picture_grid(), config, resume=states[0]))) == bytes_of(whole)

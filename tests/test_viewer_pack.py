"""Packing keeps the motion: what the page unpacks is the asset, within the stated tolerances."""

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loom4d.gaussians.gaussians import rotations
from loom4d.gaussians.motion.controlled import hermite
from loom4d.gaussians.motion.skinning import posed, skinned_reference
from loom4d.viewer.pack import (
    BAKED_ERROR,
    TOLERANCES,
    Packed,
    continuous,
    interpolated,
    pack,
    quantise,
    unquantise,
)
from moving_assets import Swinging, bending, spacetime_asset


def fields_of(packed: Packed) -> dict[str, torch.Tensor]:
    data = gzip.decompress(packed.data)
    fields = {}
    for entry in packed.header["fields"]:
        fields[entry["name"]] = torch.from_numpy(unquantise(entry, data, entry["rows"]))
    return fields


def shuffled_to(fields: dict[str, torch.Tensor], means: torch.Tensor) -> torch.Tensor:
    """Which packed Gaussian each mean became (packing reorders them)."""
    return torch.cdist(means.double(), fields["position"][0]).argmin(1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(0, 30),
    st.integers(1, 4),
    st.sampled_from([1e-6, 1e-4, 1e-2, 1.0]),
    st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
)
def test_every_number_comes_back_within_its_tolerance(instants, count, width, tolerance, spread):
    values = spread * np.random.default_rng(0).standard_normal((instants, count, width))
    entry, data = quantise(values, tolerance)
    back = unquantise(entry, data, count)
    assert back.shape == values.shape
    rounding = 6e-8 * spread * 10 if entry["kind"] == "f32" else 1e-12
    np.testing.assert_array_less(np.abs(back - values), tolerance + rounding + 1e-300)


def test_fewer_bits_where_fewer_do():
    values = np.linspace(0, 1, 50).reshape(1, 50, 1)
    kinds = [quantise(values, tolerance)[0]["kind"] for tolerance in (1e-2, 1e-4, 1e-9)]
    assert kinds == ["u8", "u16", "f32"]


def test_undefined_numbers_are_refused():
    with pytest.raises(ValueError, match="infinite or undefined"):
        quantise(np.array([[[np.nan]]]), 1.0)


@pytest.mark.parametrize(("harmonics", "degree"), [(1, 0), (3, 1)])
def test_spacetime_stays_the_same_motion(harmonics, degree):
    asset = spacetime_asset(200, harmonics, degree)
    packed = pack(asset, asset.time_range, alpha_min=0.0)
    fields = fields_of(packed)
    assert packed.header["motion"] == "spacetime"
    index = shuffled_to(fields, asset.means)
    duration = fields["log_duration"][0, index].exp()
    for time in (0.5, 1.3, 2.5):
        truth = asset.at(time)
        delta = (time - fields["moment"][0, index]) / duration
        means = fields["position"][0, index] + fields["drift"][0, index] * delta
        weight = torch.exp(-0.5 * delta**2)
        opacity = fields["opacity"][0, index] * weight
        seen = truth.opacities > 0.01
        # |δ/d| is at most 2.45 where a Gaussian is drawn
        assert (means - truth.means)[seen].abs().max() < 3 * TOLERANCES["drift"] + TOLERANCES["position"]
        assert (opacity[:, 0] - truth.opacities)[seen].abs().max() < 2 * TOLERANCES["opacity"]
        scales = fields["log_scale"][0, index].exp()
        half = rotations(fields["quaternion"][0, index]) * scales[:, None, :]
        away = (half @ half.mT - truth.covariances).norm(dim=(1, 2)) / truth.covariances.norm(dim=(1, 2))
        assert away.max() < 3 * TOLERANCES["log_scale"]


def test_controlled_stays_the_same_motion():
    """The page's arithmetic in plain numbers: weights, poses on the curve, and the blend of the strongest bones."""
    asset = bending(120)
    packed = pack(asset, asset.time_range, alpha_min=0.0)
    fields = fields_of(packed)
    assert packed.header["motion"] == "controlled" and packed.error == 0
    assert packed.bytes_per_gaussian < 60
    index = shuffled_to(fields, asset.means)
    weights = fields["weight"][0, index]
    weights = weights / weights.sum(1, keepdim=True)
    bones = fields["bone"][0, index].round().long()
    for time in (0.5, 0.8, 1.5):
        truth = asset.at(time)
        curve = hermite(torch.tensor([time]).double(), torch.tensor(packed.header["keys"]).double())
        shifts, turns = (torch.einsum("bt,tkc->bkc", curve, fields[name]) for name in ("shift", "turn"))
        poses = posed(fields["joint"][0], shifts, turns)
        dense = torch.zeros(120, 7).double().scatter_add(1, bones, weights)
        every = torch.arange(7).expand(120, 7)
        means, quaternions = skinned_reference(
            fields["position"][0, index], fields["quaternion"][0, index], every, dense, poses
        )
        assert (means[0] - truth.means).norm(dim=-1).max() < 2e-3  # weights are kept to a thousandth
        away = rotations(quaternions[0]) - rotations(truth.quaternions)
        assert away.abs().max() < 0.01


def test_baking_adds_instants_until_the_motion_is_followed():
    asset = Swinging(100)
    packed = pack(asset, asset.time_range, alpha_min=0.0)
    fields = fields_of(packed)
    assert packed.header["motion"] == "baked"
    assert packed.error <= BAKED_ERROR
    index = shuffled_to(fields, asset.at(0).means)
    for time in (0.0, 0.123, 0.5, 0.871, 1.0):
        guess = interpolated(fields["position"], time)[index]
        assert (guess - asset.at(time).means).norm(dim=-1).max() < 2 * BAKED_ERROR
    assert fields["log_scale"].shape[0] == fields["colour"].shape[0] == 1  # what does not move is kept once
    assert fields["quaternion"].shape[0] == fields["position"].shape[0] > 9


def test_cubics_pass_through_their_instants_and_keep_straight_lines_straight():
    known = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(0))
    for instant in range(5):
        torch.testing.assert_close(interpolated(known, instant / 4), known[instant])
    line = torch.arange(5.0)[:, None, None] * known[:1]
    torch.testing.assert_close(interpolated(line, 0.3), line[0] + 4 * 0.3 * known[0])


def test_quaternions_are_kept_on_one_side():
    angle = torch.linspace(0, 4 * np.pi, 40)[:, None, None]
    path = torch.cat([torch.cos(angle), torch.sin(angle), 0 * angle, 0 * angle], -1)
    flips = torch.where(torch.rand(40, 1, 1, generator=torch.Generator().manual_seed(1)) < 0.5, -1.0, 1.0)
    torch.testing.assert_close(continuous(path * flips), path * flips[0])


def test_what_no_pixel_shows_is_left_out():
    asset = spacetime_asset(300)
    kept = pack(asset, (2.4, 2.5), alpha_min=1 / 255).header["count"]
    times = torch.linspace(2.4, 2.5, 101)
    shown = (asset.slices(times).opacities >= 1 / 255).any(0)
    assert 0 < kept < 300
    assert kept == int(shown.sum())

"""Every motion round-trips and renders; native 4D Gaussians obey the algebra of Gaussians."""

import math
from dataclasses import replace

import pytest
import torch

from loom4d.cameras import turntable
from loom4d.gaussians.asset import load_asset, motion_name, render, save_asset
from loom4d.gaussians.flow import affine_map, carried, tracked
from loom4d.gaussians.gaussians import (
    Gaussians,
    multiplied,
    quaternions_of,
    rgb_of,
    rotations,
    sh_basis,
)
from loom4d.gaussians.initial import Cloud
from loom4d.gaussians.motion import MOTIONS, DynamicGaussians
from loom4d.gaussians.motion.controlled import Controlled
from loom4d.gaussians.motion.curve import hermite, spline
from loom4d.gaussians.motion.deformed import FEATURES, RESOLUTION, Deformed, at_rest
from loom4d.gaussians.motion.rigid import continued, neighbours, procrustes
from loom4d.gaussians.motion.skinning import skinned, skinned_reference
from loom4d.gaussians.motion.spacetime import DROPPED, SHORTEST, Spacetime, rotations4, straightened, tilted
from loom4d.runs import InputError, save_tensors


def spacetime(count: int = 40, seed: int = 0, harmonics: int = 1, basis: int = 1) -> Spacetime:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return Spacetime(
        means=draw(count, 3) * 0.3,
        times=torch.rand(count, generator=generator),
        log_scales=draw(count, 3) * 0.4 - 2.5,
        log_durations=draw(count) * 0.3 - 1,
        left=draw(count, 4),
        right=draw(count, 4),
        opacity_logits=draw(count) + 1,
        colours=draw(count, harmonics, basis, 3),
        start=0.5,
        end=2.5,
        unit=2.0,
    )


def controlled(count: int = 30, keys: int = 4, seed: int = 0) -> Controlled:
    """Control points that turn and shift by random amounts at every key."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    points = draw(9, 3) * 0.3
    return Controlled(
        means=draw(count, 3) * 0.3,
        quaternions=draw(count, 4),
        log_scales=draw(count, 3) * 0.4 - 2.5,
        opacity_logits=draw(count) + 1,
        colours=draw(count, 1, 3),
        bones=torch.rand(count, 9, generator=generator).topk(4).indices,
        points=points,
        log_radii=draw(9) * 0.2 - 1.5,
        edges=neighbours(points[None], 3),
        shifts=draw(keys, 9, 3) * 0.1,
        turns=torch.tensor([1.0, 0, 0, 0]) + 0.2 * draw(keys, 9, 4),
        keys=torch.linspace(0.5, 2.5, keys).tolist(),
    )


def deformed(count: int = 60, frames: int = 4) -> Deformed:
    generator = torch.Generator().manual_seed(5)
    places = torch.randn(count, 3, generator=generator) * 0.3
    cloud = Cloud(places, torch.zeros(count), torch.rand(count, 3, generator=generator), 1.0)
    still = at_rest(cloud, count, torch.linspace(0.5, 2.5, frames), generator, [0.0, 0.1, 0.0], 1.0)
    draw = lambda tensor, size: tensor + size * torch.randn(tensor.shape, generator=generator)  # noqa: E731
    moving = {name: draw(getattr(still, name), 0.3) for name in ("time", "time_fine", "head", "head_bias")}
    return replace(still, **moving)


EXAMPLES = {"spacetime": spacetime, "controlled": controlled, "deformed": deformed}


@pytest.fixture(params=MOTIONS)
def asset(request) -> DynamicGaussians:
    return EXAMPLES[request.param]()


def test_every_motion_survives_its_file_bit_for_bit(asset, tmp_path):
    save_asset(asset, tmp_path / "asset.safetensors")
    back = load_asset(tmp_path / "asset.safetensors")
    assert motion_name(back) == motion_name(asset) and back.config() == asset.config()
    for time in (0.5, 1.37, 2.5):
        for name, field in vars(asset.at(time)).items():
            assert torch.equal(field, getattr(back.at(time), name)), name


def test_every_motion_gives_the_same_instants_one_by_one_and_together(asset):
    times = torch.tensor([0.6, 1.1, 2.4])
    together = render(asset, turntable(1, 3), times, 24, 24)
    for frame, time in enumerate(times.tolist()):
        still = asset.at(time)
        assert isinstance(still, Gaussians) and still.means.shape == asset.at(0.5).means.shape
        alone = render(asset, turntable(1, 1), times[frame : frame + 1], 24, 24)
        torch.testing.assert_close(alone.rgba[0, 0], together.rgba[0, frame])


def test_every_motion_gives_gradients_to_all_it_learns(asset):
    leaves = {name: tensor.clone() for name, tensor in asset.tensors().items()}
    for name in asset.rates():
        leaves[name].requires_grad_()
    scene = type(asset).from_tensors(leaves, asset.config()).slices(torch.tensor([0.7, 1.9])).ellipsoids()
    sum((field * torch.randn_like(field)).sum() for field in vars(scene).values()).backward()
    for name in asset.rates():
        leaf = leaves[name]
        assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.any(), name


def test_a_file_that_is_no_asset_is_refused_in_one_line(tmp_path):
    save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"format": 1, "motion": "dance"})
    with pytest.raises(InputError, match="spacetime"):
        load_asset(tmp_path / "other.safetensors")


def test_numbers_that_are_not_finite_never_reach_a_file(tmp_path):
    broken = spacetime()
    broken.means[0, 0] = math.nan
    with pytest.raises(ValueError, match="means"):
        save_asset(broken, tmp_path / "asset.safetensors")
    assert not list(tmp_path.iterdir())


# --- native 4D Gaussians --------------------------------------------------------------------------------------------


def test_two_quaternions_make_a_rotation_of_four_dimensions():
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, 100, 4, generator=generator, dtype=torch.float64)
    rotation = rotations4(left, right)
    identity = torch.eye(4, dtype=torch.float64).expand(100, 4, 4)
    torch.testing.assert_close(rotation @ rotation.mT, identity)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(100, dtype=torch.float64))
    unit = torch.tensor([[1.0, 0, 0, 0]])
    assert torch.equal(rotations4(unit, unit)[0], torch.eye(4))


def test_a_slice_is_the_conditional_of_the_joint_gaussian():
    """Through the precision matrix: conditioning keeps its block, whose inverse is the covariance."""
    asset = spacetime(30)
    time = 1.4
    delta = (time - asset.start) / asset.unit - asset.times.double()
    precision = torch.linalg.inv(asset.covariances().double())
    covariance = torch.linalg.inv(precision[:, :3, :3])
    mean = asset.means.double() - (covariance @ precision[:, :3, 3:])[..., 0] * delta[:, None]
    scene = asset.slices(torch.tensor([time]))
    torch.testing.assert_close(scene.means[0].double(), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scene.covariances.double(), covariance, rtol=1e-3, atol=1e-5)


def test_opacity_is_the_marginal_of_time_without_its_normalisation():
    asset = spacetime(200)
    scene = asset.slices(torch.tensor([1.0]))
    variance = asset.covariances()[:, 3, 3]
    weight = torch.exp(-0.5 * ((1.0 - 0.5) / 2 - asset.times) ** 2 / variance)
    expected = torch.sigmoid(asset.opacity_logits) * weight * (weight > DROPPED)
    torch.testing.assert_close(scene.opacities[0], expected)
    assert (scene.opacities[0] == 0).any()


def test_means_move_with_their_velocity():
    asset = spacetime(20)
    moved = asset.slices(torch.tensor([1.0, 1.25]))
    torch.testing.assert_close((moved.means[1] - moved.means[0]) / 0.25, asset.velocities(), rtol=1e-3, atol=1e-4)


def test_a_tilted_gaussian_much_longer_in_time_has_the_velocity_it_was_given():
    velocity = torch.randn(50, 3, generator=torch.Generator().manual_seed(4))
    left, right = tilted(velocity)
    asset = spacetime(50)
    thin = replace(asset, log_scales=torch.full((50, 3), -9.0), log_durations=torch.zeros(50), left=left, right=right)
    torch.testing.assert_close(thin.velocities() * thin.unit, velocity, rtol=1e-4, atol=1e-4)


def test_colour_harmonics_are_cosines_of_the_time_from_the_mean():
    asset = spacetime(5, harmonics=3)
    scene = asset.slices(torch.tensor([0.9]))
    delta = (0.9 - 0.5) / 2.0 - asset.times
    expected = sum(torch.cos(2 * math.pi * n * delta)[:, None, None] * asset.colours[:, n] for n in range(3))
    torch.testing.assert_close(scene.colours[0], expected)


# --- control points -------------------------------------------------------------------------------------------------


def rigid(asset: Controlled, seed: int = 2) -> tuple[Controlled, torch.Tensor, torch.Tensor]:
    """The same points, all of which turn and shift together; also the rotations and translations of the keys."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(len(asset.keys), 1, 4, generator=generator).expand(-1, len(asset.points), 4)
    translations = torch.randn(len(asset.keys), 3, generator=generator)
    matrices = rotations(turns[:, 0])
    places = asset.points @ matrices.mT + translations[:, None]
    return replace(asset, shifts=places - asset.points, turns=turns), matrices, translations


def test_a_rigid_motion_costs_no_stretch_and_moves_everything_alike():
    asset, matrices, translations = rigid(controlled())
    assert asset.stretch() < 1e-10
    assert controlled().stretch() > 1e-3
    scene = asset.slices(torch.tensor(asset.keys))
    torch.testing.assert_close(scene.means, asset.means @ matrices.mT + translations[:, None], atol=1e-5, rtol=1e-5)
    still = Gaussians(asset.means, asset.quaternions, asset.log_scales, scene.opacities, asset.colours)
    turned = matrices[:, None] @ still.covariances @ matrices[:, None].mT
    torch.testing.assert_close(scene.covariances, turned, atol=1e-6, rtol=1e-4)


def test_skinning_weights_sum_to_one_over_four_bones():
    asset = controlled()
    weights = asset.weights()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(asset.means)))
    assert ((weights > 0).sum(1) <= 4).all()


def test_native_skinning_equals_the_tensors():
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()  # noqa: E731
    means, quaternions, weights, poses = draw(50, 3), draw(50, 4), draw(50, 4), draw(3, 9, 16)
    bones = torch.randint(0, 9, (50, 4), generator=generator)
    coming = torch.randn(3, 50, 7, generator=generator)
    found = []
    for skin in (skinned, skinned_reference):
        places, turned = skin(means, quaternions, bones, weights, poses)
        slopes = torch.autograd.grad(
            (torch.cat([places, turned], -1) * coming).sum(), (means, quaternions, weights, poses)
        )
        found.append((places, turned, *slopes))
    for ours, twin in zip(*found, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-3, atol=1e-4)


def test_the_curve_passes_through_its_keys_and_is_exact_for_parabolas():
    keys = torch.tensor([0.0, 1.0, 1.5, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(hermite(keys, keys), torch.eye(5, dtype=torch.float64))
    times = torch.linspace(-1, 5, 60, dtype=torch.float64)
    torch.testing.assert_close(hermite(times, keys) @ keys.clone(), times.clamp(0, 4))
    even = torch.arange(6, dtype=torch.float64)
    inner = torch.linspace(1, 4, 31, dtype=torch.float64)
    torch.testing.assert_close(hermite(inner, even) @ even**2, inner**2)
    assert hermite(times, keys[:1]).shape == (60, 1) and (hermite(times, keys[:1]) == 1).all()


def test_procrustes_finds_the_rotation():
    generator = torch.Generator().manual_seed(6)
    rest, turns = torch.randn(12, 3, generator=generator), torch.randn(4, 4, generator=generator)
    places = torch.einsum("tij,nj->tni", rotations(turns), rest) + torch.randn(4, 1, 3, generator=generator)
    found = procrustes(rest, places, neighbours(places, 5))
    torch.testing.assert_close(found, rotations(turns)[:, None].expand(4, 12, 3, 3), atol=1e-4, rtol=1e-4)


def test_quaternion_products_are_products_of_rotations_and_signs_are_continued():
    first, second = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    torch.testing.assert_close(rotations(multiplied(first, second)), rotations(first) @ rotations(second))
    flipped = torch.stack([first, -first, first])
    assert (continued(flipped) == first).all()


# --- a field over six planes ------------------------------------------------------------------------------------------


def in_doubles(asset: Deformed) -> Deformed:
    return Deformed.from_tensors({name: tensor.double() for name, tensor in asset.tensors().items()}, asset.config())


def test_features_are_products_of_bilinear_samples():
    """At the moments of the planes' nodes; between them the planes follow a cubic over time."""
    asset = in_doubles(deformed())
    times = torch.linspace(asset.start, asset.end, asset.time.shape[-1], dtype=torch.float64)
    places = asset.means[:20] * 1.5  # some outside the box, where the border holds
    unit = ((places - torch.tensor(asset.centre)) / asset.half).clamp(-1, 1)
    found = asset.features(places, times)
    assert found.shape == (len(times), 2 * FEATURES, 20) and (unit.abs() == 1).any()
    sample = lambda plane, first, second: torch.nn.functional.grid_sample(  # noqa: E731
        plane[None], torch.stack([first, second], -1)[None, None], align_corners=True
    )[0, :, 0]
    for index, time in enumerate(times):
        moment = (2 * (time - 0.5) / 2 - 1).expand(20)  # the whole axis is the whole clip
        for scale, (space, plane) in enumerate(((asset.space, asset.time), (asset.space_fine, asset.time_fine))):
            x, y, z = unit.unbind(-1)
            parts = [sample(space[0], x, y), sample(space[1], x, z), sample(space[2], y, z)]
            parts += [sample(plane[axis], moment, unit[:, axis]) for axis in range(3)]
            expected = torch.stack(parts).prod(0)
            torch.testing.assert_close(found[index, scale * FEATURES : (scale + 1) * FEATURES], expected)


def test_the_field_begins_at_rest_and_learns_a_motion():
    generator = torch.Generator().manual_seed(0)
    cloud = Cloud(torch.rand(200, 3, generator=generator) - 0.5, torch.zeros(200), torch.full((200, 3), 0.5), 1.0)
    times = torch.linspace(0, 1, 3)
    still = at_rest(cloud, 200, times, generator, [0.0, 0.0, 0.0], 0.6)
    first, last = still.at(0.0), still.at(1.0)
    assert torch.equal(first.means, cloud.means) and torch.equal(first.means, last.means)
    assert torch.equal(first.quaternions, last.quaternions) and torch.equal(first.log_scales, last.log_scales)
    shifts = torch.stack([torch.zeros(200, 3), cloud.means.flip(-1) * 0.2, cloud.means * 0.3])
    taught = still.taught(cloud.means, shifts, torch.tensor([1.0, 0, 0, 0]).expand(3, 200, 4), times)
    error = (taught.slices(times).means - cloud.means - shifts).norm(dim=-1).mean()
    assert error < 0.15 * shifts.norm(dim=-1).mean()


def test_a_plane_that_is_even_and_still_costs_nothing():
    flat = {name: torch.ones_like(plane) for name, plane in deformed().tensors().items() if plane.ndim == 4}
    asset = replace(deformed(), **flat)
    assert asset.penalty() == 0
    ramp = torch.linspace(0, 1, RESOLUTION).expand(3, FEATURES, RESOLUTION, RESOLUTION)
    assert replace(asset, space=ramp).penalty() < 1e-10
    assert replace(asset, space=ramp**2).penalty() > 1e-10 and replace(asset, time=2 * asset.time).penalty() > 1e-4


# --- how surfaces move ------------------------------------------------------------------------------------------------


def test_matching_follows_a_surface_that_turns_and_stretches():
    generator = torch.Generator().manual_seed(0)
    places = torch.nn.functional.normalize(torch.randn(3000, 3, generator=generator), dim=-1) * torch.tensor(
        [0.4, 0.2, 0.1]
    )
    colours = (places[:, :1] > 0.1).float().expand(-1, 3)
    linear = rotations(torch.tensor([0.97, 0.1, 0.15, 0.1])) * torch.tensor([1.1, 1.0, 1.0])
    shift = torch.tensor([0.05, 0.1, 0.0])
    start = Cloud(places[:1500], torch.zeros(1500), colours[:1500], 1.0)
    other = Cloud(places[1500:] @ linear.mT + shift, torch.ones(1500), colours[1500:], 1.0)
    moved = tracked(start, [other], start.means, generator)[0]
    truth = start.means @ linear.mT + shift
    assert (moved - truth).norm(dim=-1).mean() < 0.25 * (start.means - truth).norm(dim=-1).mean()


def test_an_affine_motion_is_found_exactly_from_its_values():
    generator = torch.Generator().manual_seed(0)
    places, queries = torch.randn(2, 80, 3, generator=generator)
    values = torch.tensor([0.3, -0.2, 0.1]).expand(80, 3)
    torch.testing.assert_close(affine_map(places, queries, 0.5) @ values, values, rtol=1e-4, atol=1e-4)


# --- one instant ----------------------------------------------------------------------------------------------------


def test_quaternions_and_rotations_are_inverse():
    generator = torch.Generator().manual_seed(3)
    quaternions = torch.nn.functional.normalize(torch.randn(200, 4, generator=generator, dtype=torch.float64), dim=-1)
    back = quaternions_of(rotations(quaternions))
    torch.testing.assert_close((back * quaternions).sum(-1).abs(), torch.ones(200, dtype=torch.float64))


def test_spherical_harmonics_are_orthonormal():
    """Over a fine uniform sphere (golden spiral) the mean of Yᵢ Yⱼ is δᵢⱼ / 4π."""
    index = torch.arange(20_000, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * index / len(index), index * math.pi * (1 + math.sqrt(5))
    ring = (1 - z**2).sqrt()
    basis = sh_basis(torch.stack([ring * angle.cos(), ring * angle.sin(), z], -1), 3)
    gram = 4 * math.pi * basis.mT @ basis / len(index)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-3)


def test_colour_of_degree_zero_is_the_same_from_everywhere():
    colours, means = torch.randn(7, 1, 3), torch.randn(7, 3)
    padded = torch.cat([colours, torch.zeros(7, 3, 3)], 1)
    seen = rgb_of(padded, means, torch.randn(4, 3))
    torch.testing.assert_close(seen, rgb_of(colours, means, torch.randn(4, 3)).expand(4, 7, 3))


# --- what was led takes over ----------------------------------------------------------------------------------------


def test_paths_become_as_few_straight_pieces_as_bend_allows():
    moments = torch.arange(17) / 2
    straight = moments[:, None] * torch.tensor([0.1, -0.2, 0.3]) + 1.0
    corner = torch.stack([(moments - 4).abs(), 0 * moments, 0 * moments], -1)
    pieces = straightened(torch.stack([straight, corner], 1), moments, torch.full((2,), 0.02))
    first = pieces.point == 0
    assert first.sum() == 1 and pieces.durations[first] == 4.0 and pieces.times[first] == 4.0
    torch.testing.assert_close(pieces.velocities[first][0], torch.tensor([0.1, -0.2, 0.3]))
    torch.testing.assert_close(pieces.means[first][0], torch.tensor([1.4, 0.2, 2.2]))
    assert (~first).sum() == int(8 / SHORTEST)  # no line is true near the corner, so these are as short as may be
    rising = pieces.velocities[~first][-1]
    torch.testing.assert_close(rising, torch.tensor([1.0, 0.0, 0.0]), atol=1e-3, rtol=0)


def test_spacetime_takes_over_what_moves_on_straight_lines():
    still = controlled()
    frames = torch.tensor(still.keys)
    shifts = frames[:, None, None] * torch.tensor([0.02, -0.01, 0.03]) + torch.zeros_like(still.shifts)
    moving = replace(still, shifts=shifts, turns=torch.tensor([1.0, 0, 0, 0]).expand_as(still.turns))
    taken = Spacetime.following(moving, frames)
    assert len(taken.means) == len(moving.means)  # one piece each
    for time in (still.keys[0], sum(still.keys) / len(still.keys), still.keys[-1]):
        ours, truth = taken.at(time), moving.at(time)
        torch.testing.assert_close(ours.means, truth.means, rtol=0, atol=1e-3)  # but for how thick it is over how long
        torch.testing.assert_close(ours.covariances, truth.covariances, rtol=5e-3, atol=1e-5)
    middle = taken.at((still.keys[0] + still.keys[-1]) / 2)
    torch.testing.assert_close(middle.opacities, moving.at(0.0).opacities, rtol=1e-3, atol=1e-4)


def test_matching_begins_where_the_surface_reaches_all_others():
    """Two balls that meet half way: from the moment at which they are one, they could not be told apart."""
    generator = torch.Generator().manual_seed(0)
    ball = 0.1 * torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=-1)
    times, parts = torch.linspace(0, 1, 5), []
    for apart in (0.5, 0.25, 0.0, 0.25, 0.5):
        side = torch.tensor([apart, 0.0, 0.0])
        parts.append(torch.cat([ball[:100] - side, ball[100:] + side]))
    cloud = Cloud(torch.cat(parts), times.repeat_interleave(200), torch.full((1000, 3), 0.5), 0.25)
    start, points, places = carried(cloud, times, 40, generator)
    assert start.times[0] != 0.5 and points.shape == (40, 3)
    for index, moment in enumerate(cloud.moments()):
        missed = torch.cdist(places[index], moment.means).amin(1)
        assert missed.mean() < 0.03


def test_a_spline_goes_through_its_keys_and_bends_least():
    keys = torch.tensor([0.0, 1.0, 1.5, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(spline(keys, keys), torch.eye(5, dtype=torch.float64))
    times = torch.linspace(-1, 5, 61, dtype=torch.float64)
    torch.testing.assert_close(spline(times, keys) @ (2 * keys - 1), 2 * times.clamp(0, 4) - 1)
    fine = torch.linspace(0, 4, 4001, dtype=torch.float64)
    values = torch.tensor([0.0, 2.0, -1.0, 1.0, 0.0], dtype=torch.float64)
    bending = [float((curve(fine, keys) @ values).diff(n=2).square().sum()) for curve in (spline, hermite)]
    assert bending[0] < 0.8 * bending[1]
    swing = torch.arange(17, dtype=torch.float64)  # a swing every four keys, which these catch well
    middle = torch.linspace(4.5, 11.5, 8, dtype=torch.float64)
    missed = [(curve(middle, swing) @ torch.sin(swing * torch.pi / 2 + 0.4)) for curve in (spline, hermite)]
    truth = torch.sin(middle * torch.pi / 2 + 0.4)
    assert (missed[0] - truth).abs().max() < 0.4 * (missed[1] - truth).abs().max()


def test_a_finished_fit_is_the_same_at_its_keys():
    asset = controlled()
    finished = asset.finished()
    assert len(finished.keys) == 2 * len(asset.keys) - 1
    for time in asset.keys:
        torch.testing.assert_close(finished.at(time).means, asset.at(time).means, rtol=0, atol=1e-5)

"""Every motion round-trips and renders; native 4D Gaussians obey the algebra of Gaussians."""

import math

import pytest
import torch

from loom4d.cameras import turntable
from loom4d.gaussians.asset import load_asset, motion_name, render, save_asset
from loom4d.gaussians.gaussians import Gaussians, quaternions_of, rgb_of, rotations, sh_basis
from loom4d.gaussians.motion import MOTIONS, DynamicGaussians
from loom4d.gaussians.motion.spacetime import DROPPED, Spacetime, rotations4
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


EXAMPLES = {"spacetime": spacetime}


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
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in asset.tensors().items()}
    scene = type(asset).from_tensors(leaves, asset.config()).slices(torch.tensor([0.7, 1.9])).ellipsoids()
    sum((field * torch.randn_like(field)).sum() for field in vars(scene).values()).backward()
    for name, leaf in leaves.items():
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


def test_colour_harmonics_are_cosines_of_the_time_from_the_mean():
    asset = spacetime(5, harmonics=3)
    scene = asset.slices(torch.tensor([0.9]))
    delta = (0.9 - 0.5) / 2.0 - asset.times
    expected = sum(torch.cos(2 * math.pi * n * delta)[:, None, None] * asset.colours[:, n] for n in range(3))
    torch.testing.assert_close(scene.colours[0], expected)


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

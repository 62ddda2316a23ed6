"""The rasterisers against closed forms, against each other and against finite differences."""

import math

import pytest
import torch

from loom4d import native
from loom4d.cameras import Cameras, orbit, turntable
from loom4d.gaussians.gaussians import Ellipsoids, Gaussians, sh_of
from loom4d.gaussians.rasterize import BACKENDS, RasterOptions, default_backend, rasterize

OPTIONS = RasterOptions(height=40, width=52)
FIELDS = ("means", "quaternions", "log_scales", "opacities", "colours")
needs_kernels = pytest.mark.skipif(native.load() is None, reason="no native kernels and no compiler")
ON_CPU = [name for name in BACKENDS if name != "gsplat"]  # whose tests are in test_gsplat.py
every_backend = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=needs_kernels if name == "cpu" else ()) for name in ON_CPU]
)


def cloud(count: int, seed: int = 0, images: int | None = None, basis: int = 1) -> Gaussians:
    """A ball of Gaussians; with `images`, means, rotations and opacities differ from image to image."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    batch = () if images is None else (images,)
    return Gaussians(
        means=draw(*batch, count, 3) * 0.3,
        quaternions=draw(*batch, count, 4),
        log_scales=draw(count, 3) * 0.5 - 2.8,
        opacities=torch.sigmoid(2 * draw(*batch, count)),
        colours=draw(count, basis, 3) * 0.5,
    )


def to(gaussians: Gaussians, dtype: torch.dtype) -> Gaussians:
    return Gaussians(*(getattr(gaussians, name).to(dtype) for name in FIELDS))


def pictures_and_gradients(gaussians: Gaussians, cameras: Cameras, backend: str, dtype: torch.dtype, threads: int = 1):
    """Every output, and gradients of a random linear function of them to every field and the screen positions."""
    leaves = [getattr(gaussians, name).to(dtype).clone().requires_grad_() for name in FIELDS]
    options = RasterOptions(OPTIONS.height, OPTIONS.width, track_screen=True, threads=threads)
    rendering = rasterize(Gaussians(*leaves), cameras.to(dtype), options, backend)
    outputs = [rendering.rgb, rendering.alpha, rendering.weighted_depth, rendering.median_depth]
    generator = torch.Generator().manual_seed(5)
    loss = sum((torch.randn(out.shape, generator=generator).to(dtype) * out).sum() for out in outputs[:3])
    loss.backward()
    return outputs, [leaf.grad for leaf in leaves] + [rendering.screen_offsets.grad]


@needs_kernels
@pytest.mark.parametrize("images,basis", [(None, 1), (6, 1), (None, 4)])
def test_kernels_equal_the_float64_specification(images, basis):
    gaussians, cameras = cloud(300, images=images, basis=basis), orbit(torch.arange(6) * 60.0, 20.0)
    pictures, gradients = pictures_and_gradients(gaussians, cameras, "cpu", torch.float32)
    true_pictures, true_gradients = pictures_and_gradients(gaussians, cameras, "reference", torch.float64)
    for picture, truth in zip(pictures, true_pictures, strict=True):
        assert (picture - truth).abs().max() < 1e-5
    for name, gradient, truth in zip((*FIELDS, "screen"), gradients, true_gradients, strict=True):
        assert gradient.shape == truth.shape
        assert (gradient - truth).abs().max() < 2e-5 * truth.abs().max(), name
    assert pictures[1].max() > 0.9 and pictures[1].min() < 0.1


@needs_kernels
def test_wide_and_crowded_views_are_equal_too():
    """Gaussians beside, behind and around the camera, where the affine map is clamped."""
    gaussians = cloud(200, seed=3)
    cameras = orbit(torch.tensor([10.0, 200.0]), radius=0.5, fov_deg=100.0)
    pictures, gradients = pictures_and_gradients(gaussians, cameras, "cpu", torch.float32)
    true_pictures, true_gradients = pictures_and_gradients(gaussians, cameras, "reference", torch.float64)
    for picture, truth in zip(pictures, true_pictures, strict=True):
        assert (picture - truth).abs().max() < 2e-5
    for gradient, truth in zip(gradients, true_gradients, strict=True):
        assert (gradient - truth).abs().max() < 3e-5 * truth.abs().max()


@every_backend
def test_one_gaussian_has_a_closed_form(backend):
    """On the optical axis an isotropic Gaussian of scale s at distance d is a disc of variance (f s / d)² + blur."""
    scale, opacity, rgb = 0.1, 0.8, torch.tensor([0.9, 0.5, 0.1])
    one = Gaussians(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), math.log(scale)),
        torch.tensor([opacity]),
        sh_of(rgb[None]),
    )
    camera = turntable(1)[0]
    focal = float(camera.intrinsics[0, 1, 1]) * OPTIONS.height
    x = torch.arange(OPTIONS.width) + 0.5 - OPTIONS.width / 2
    y = torch.arange(OPTIONS.height) + 0.5 - OPTIONS.height / 2
    focal_x = float(camera.intrinsics[0, 0, 0]) * OPTIONS.width
    variance_x, variance_y = (focal_x * scale / 2) ** 2 + OPTIONS.blur, (focal * scale / 2) ** 2 + OPTIONS.blur
    alpha = opacity * torch.exp(-0.5 * (x[None, :] ** 2 / variance_x + y[:, None] ** 2 / variance_y))
    alpha = alpha * (alpha >= 1 / 255)
    rendering = rasterize(one, camera, OPTIONS, backend)
    torch.testing.assert_close(rendering.alpha[0, 0], alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(rendering.rgb[0], rgb[:, None, None] * alpha, rtol=0, atol=1e-5)
    torch.testing.assert_close(rendering.depth[0, 0], 2.0 * (alpha > 0), rtol=0, atol=1e-4)
    torch.testing.assert_close(rendering.median_depth[0, 0], 2.0 * (alpha > 0.5), rtol=0, atol=1e-4)


@every_backend
def test_the_nearer_gaussian_covers_the_farther_from_both_sides(backend):
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    pair = Gaussians(
        torch.tensor([[0.0, 0, 0.4], [0.0, 0, -0.4]]),
        torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4),
        torch.full((2, 3), math.log(0.2)),
        torch.tensor([0.9, 0.9]),
        sh_of(torch.stack([red, blue])),
    )
    rendering = rasterize(pair, orbit(torch.tensor([0.0, 180.0])), RasterOptions(32, 32), backend)
    front, back = rendering.rgb[:, :, 16, 16]
    assert front[0] > 0.85 and front[2] < 0.15 and back[2] > 0.85 and back[0] < 0.15


@every_backend
def test_gradients_equal_finite_differences(backend):
    gaussians, camera = to(cloud(12, seed=2), torch.float64), turntable(1)[0]
    dtype = torch.float64 if backend == "reference" else torch.float32
    weights = torch.randn(1, 4, 40, 52, generator=torch.Generator().manual_seed(1))

    def value(candidate: Gaussians, kind: torch.dtype, name: str) -> torch.Tensor:
        rendering = rasterize(to(candidate, kind), camera.to(kind), OPTIONS, name)
        return (torch.cat([rendering.rgb, rendering.weighted_depth], 1) * weights.to(kind)).sum()

    for name in FIELDS:
        field = getattr(gaussians, name)
        direction = torch.randn(field.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        leaf = field.to(dtype).requires_grad_()
        value(Gaussians(**{**vars(gaussians), name: leaf}), dtype, backend).backward()
        step = 1e-6
        ahead, behind = (
            value(Gaussians(**{**vars(gaussians), name: field + sign * step * direction}), torch.float64, "reference")
            for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * step)
        torch.testing.assert_close((leaf.grad.double() * direction).sum(), slope, rtol=2e-3, atol=2e-3)


@needs_kernels
def test_threads_change_no_bit():
    gaussians, cameras = cloud(400, images=3), orbit(torch.tensor([0.0, 90.0, 200.0]))
    one = pictures_and_gradients(gaussians, cameras, "cpu", torch.float32, threads=1)
    two = pictures_and_gradients(gaussians, cameras, "cpu", torch.float32, threads=2)
    for first, second in zip(one[0] + one[1], two[0] + two[1], strict=True):
        assert torch.equal(first, second)


@needs_kernels
@pytest.mark.parametrize("looked_at", ["premultiplied", "weighted_depth"])
def test_what_no_loss_looks_at_has_no_gradient(looked_at):
    """Pictures without depth, and depth without pictures: the same gradients as the specification's."""
    cameras, found = orbit(torch.arange(3) * 120.0), []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        leaves = [getattr(cloud(80), name).to(dtype).requires_grad_() for name in FIELDS]
        out = getattr(rasterize(Gaussians(*leaves), cameras.to(dtype), OPTIONS, backend), looked_at)
        (torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype) * out).sum().backward()
        found.append([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
    for name, ours, truth in zip(FIELDS, *found, strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=2e-4 * truth.abs().max().item() + 1e-9, rtol=0, msg=name)


@needs_kernels
def test_memory_that_is_kept_belongs_to_one_scene_at_a_time():
    """Scenes of several sizes, forth in one order and back in another, are as if each were alone."""
    scenes = [(cloud(200, seed), orbit(torch.arange(count) * 30.0)) for seed, count in enumerate((5, 1, 3, 2))]

    def pictures(scene, cameras):
        leaves = [getattr(scene, name).clone().requires_grad_() for name in FIELDS]
        return leaves, rasterize(Gaussians(*leaves), cameras, OPTIONS, "cpu").premultiplied

    def gradients(leaves, picture):
        return torch.autograd.grad(
            (picture * torch.linspace(-1, 1, picture.numel()).reshape(picture.shape)).sum(), leaves
        )

    alone = []
    for scene in scenes:
        leaves, picture = pictures(*scene)
        alone.append((picture.detach().clone(), gradients(leaves, picture)))
    for order in ((2, 0, 3, 1), (3, 2, 1, 0)):
        made = [pictures(*scene) for scene in scenes]
        for index in order:
            leaves, picture = made[index]
            assert torch.equal(picture, alone[index][0])
            for ours, truth in zip(gradients(leaves, picture), alone[index][1], strict=True):
                assert torch.equal(ours, truth)
            made[index] = None  # its memory is free for the others


@every_backend
def test_batched_cameras_keep_their_shape_and_equal_single_ones(backend):
    gaussians, cameras = cloud(50), turntable(3, 2)
    together = rasterize(gaussians, cameras, RasterOptions(24, 24), backend)
    alone = rasterize(gaussians, cameras[2, 1], RasterOptions(24, 24), backend)
    assert together.rgb.shape == (3, 2, 3, 24, 24) and together.visible.shape == (3, 2, 50)
    torch.testing.assert_close(together.premultiplied[2, 1], alone.premultiplied)


@every_backend
def test_ellipsoids_render_as_the_gaussians_they_came_from(backend):
    gaussians = cloud(60)
    shape = Ellipsoids(gaussians.means, gaussians.covariances, gaussians.opacities, gaussians.colours)
    views = turntable(2)[:, 0]
    first = rasterize(gaussians, views, OPTIONS, backend).premultiplied
    torch.testing.assert_close(rasterize(shape, views, OPTIONS, backend).premultiplied, first, atol=2e-5, rtol=0)
    torch.testing.assert_close(
        rasterize(shape.gaussians(), views, OPTIONS, backend).premultiplied, first, atol=2e-4, rtol=0
    )


@every_backend
def test_what_cannot_be_seen_leaves_the_picture_empty(backend):
    gaussians = cloud(20)
    nothing = Gaussians(*(getattr(gaussians, name)[:0] for name in FIELDS))
    behind = Gaussians(**{**vars(gaussians), "means": gaussians.means + torch.tensor([0.0, 0, 10.0])})
    for scene in (nothing, behind):
        rendering = rasterize(scene, turntable(1)[0], OPTIONS, backend)
        assert not rendering.premultiplied.any() and not rendering.visible.any()


@needs_kernels
def test_broken_numbers_do_not_reach_memory():
    gaussians = cloud(40)
    gaussians.means[3], gaussians.log_scales[4], gaussians.opacities[5] = math.nan, 90.0, math.inf
    rendering = rasterize(gaussians, turntable(1)[0], OPTIONS, "cpu")
    assert rendering.premultiplied.isfinite().all() and not rendering.visible[..., 3].any()


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="reference, cpu"):
        rasterize(cloud(2), turntable(1)[0], OPTIONS, "opengl")
    assert default_backend() in BACKENDS

"""gsplat behind our four arguments: against the specification on a GPU, and its conventions without one."""

import pytest
import torch

from loom4d.cameras import Cameras, orbit
from loom4d.gaussians.fit import fit, score
from loom4d.gaussians.fit_config import FitConfig
from loom4d.gaussians.gaussians import Gaussians
from loom4d.gaussians.motion import MOTIONS
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.gaussians.rasterize.gsplat import Kernels, installed, rasterize_by
from loom4d.runs import result_of
from loom4d.sources.procedural import procedural_grid

OPTIONS = RasterOptions(40, 52, track_screen=True)
FIELDS = ("means", "quaternions", "log_scales", "opacities", "colours")
CLOSE = 3e-4  # gsplat ends a pixel at 1e-4 of the light


def cloud(images: int | None = None) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    batch = () if images is None else (images,)
    return Gaussians(
        draw(*batch, 200, 3) * 0.3,
        draw(*batch, 200, 4),
        draw(200, 3) * 0.5 - 2.8,
        torch.sigmoid(2 * draw(*batch, 200)),
        draw(200, 1, 3) * 0.5,
    )


def views(count: int = 3) -> Cameras:
    return orbit(torch.arange(count) * 110.0, 20.0)


def pictures_and_gradients(gaussians: Gaussians, cameras: Cameras, draw) -> tuple[list, list]:
    """Colour, alpha and weighted depth, and gradients of a random linear function of them."""
    leaves = [getattr(gaussians, name).clone().requires_grad_() for name in FIELDS]
    rendering = draw(Gaussians(*leaves), cameras, OPTIONS)
    outputs = [rendering.rgb, rendering.alpha, rendering.weighted_depth]
    generator = torch.Generator().manual_seed(5)
    sum((torch.randn(out.shape, generator=generator).to(out) * out).sum() for out in outputs).backward()
    found = [leaf.grad for leaf in leaves] + [rendering.screen_offsets.grad]
    return [out.detach().cpu() for out in outputs], [gradient.cpu() for gradient in found]


def assert_alike(ours: tuple[list, list], truth: tuple[list, list]) -> None:
    for picture, true in zip(ours[0], truth[0], strict=True):
        assert (picture - true).abs().max() < 2 * CLOSE
    for gradient, true in zip(ours[1], truth[1], strict=True):
        assert (gradient - true).abs().max() < 5 * CLOSE * true.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("images", [None, 3])
def test_it_equals_the_specification_on_a_gpu(images):
    pytest.importorskip("gsplat")
    truth = pictures_and_gradients(cloud(images), views(), lambda *scene: rasterize(*scene, "reference"))
    there = Gaussians(*(getattr(cloud(images), name).to("cuda") for name in FIELDS))
    ours = pictures_and_gradients(there, views().to("cuda"), lambda *scene: rasterize(*scene, "gsplat"))
    assert_alike(ours, truth)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_fit_on_a_gpu_is_as_good_as_one_on_the_processor(motion):
    pytest.importorskip("gsplat")
    grid = procedural_grid(3, 4, 2, 32, split="valid")
    config = FitConfig(motion=motion, count=400, iterations=60, hull_resolution=24, preview_every=30)
    here = result_of(fit(grid, config))
    there = result_of(fit(grid.to("cuda"), config, held_out=grid[:1, :].to("cuda")))
    assert there.tensors()["means"].device.type == "cpu" and abs(score(there, grid) - score(here, grid)) < 0.5


def in_plain_tensors(gsplat_functions) -> Kernels:
    """gsplat's own plain-tensor functions, which run anywhere, with a dense blending in place of the one that needs
    its GPU kernels."""

    def project(means, upper, _quats, _scales, view, lens, width, height, eps2d, near_plane, far_plane, opacities):
        rows = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]
        covariances = upper[..., torch.tensor(rows)]
        return gsplat_functions._fully_fused_projection(
            means, covariances, view, lens, width, height, eps2d, near_plane, far_plane
        )

    def order(centres, radii, depths, _tile, _columns, _rows):
        return None, depths.argsort(-1), (radii > 0).all(-1)

    def pixels(centres, conics, features, opacities, width, height, _tile, order, visible):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        dx, dy = (grid - centres[:, :, i, None, None] for i, grid in enumerate((x, y)))
        a, b, c = (conics[..., i, None, None] for i in range(3))
        alpha = opacities[..., None, None] * torch.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha.clamp_max(0.999)) * visible[..., None, None]
        alpha = torch.take_along_dim(alpha, order[..., None, None], 1)
        colours = torch.take_along_dim(features, order[..., None], 1)
        through = torch.cumprod(1 - alpha, 1)
        before = torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
        return torch.einsum("inhw,inc->ihwc", alpha * before, colours), 1 - through[:, -1][..., None]

    return Kernels(project, order, lambda ids, *_: ids, lambda *given: pixels(*given[:7], *given[7:]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("images", [None, 3])
def test_cameras_shapes_and_gradients_mean_to_gsplat_what_they_mean_here(images):
    """Frames of reference, intrinsics, batches, blur and the gradients of screen positions, by gsplat's own projection
    in plain tensors."""
    functions = pytest.importorskip("gsplat.cuda._torch_impl")
    kernels = in_plain_tensors(functions)
    truth = pictures_and_gradients(cloud(images), views(), lambda *scene: rasterize(*scene, "reference"))
    ours = pictures_and_gradients(cloud(images), views(), lambda *scene: rasterize_by(kernels, *scene))
    assert_alike(ours, truth)


def test_it_says_what_it_needs(monkeypatch):
    with pytest.raises(ValueError, match="float32 on cuda"):
        rasterize(cloud(), views(), OPTIONS, "gsplat")
    monkeypatch.setitem(__import__("sys").modules, "gsplat", None)
    with pytest.raises(RuntimeError, match=r"loom4d\[gpu\]"):
        installed()
    with pytest.raises(ValueError, match=r"caps alpha at 0\.999"):
        rasterize_by(in_plain_tensors(None), cloud(), views(), RasterOptions(8, 8, alpha_cap=0.99))

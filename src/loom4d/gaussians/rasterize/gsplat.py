"""gsplat's CUDA kernels behind the four arguments: float32 on a GPU, with the extra `gpu`.

gsplat 1.5 has our cut-offs compiled in (contributions under 1/255 are dropped, alpha is capped at 0.999), so it takes
no others. It ends a pixel when less than 1e-4 of the light passes, where we go on to 1e-6: pictures differ by up to
1e-4 of a colour. It has no median depth: that picture is all NaN here. Its kernels are compiled at first use, which
takes minutes and needs nvcc.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import Cameras
from loom4d.gaussians.gaussians import Ellipsoids, Gaussians, rgb_of
from loom4d.gaussians.rasterize.pictures import (
    RasterOptions,
    Rendering,
    assembled,
    flattened,
    opencv_pose,
    pixel_intrinsics,
    screen_zeros,
)

VERSIONS = ("1.5.",)  # later ones cap alpha at 0.99
ALPHA_CUT, ALPHA_CAP = 1 / 255, 0.999  # compiled into its kernels
TILE = 16
FAR = 1e10


@dataclass(frozen=True)
class Kernels:
    """gsplat's four steps, by their names there."""

    fully_fused_projection: Callable[..., tuple[Tensor, ...]]
    isect_tiles: Callable[..., tuple[Tensor, ...]]
    isect_offset_encode: Callable[..., Tensor]
    rasterize_to_pixels: Callable[..., tuple[Tensor, Tensor]]


def installed() -> Kernels:
    """gsplat's CUDA kernels; an error names the extra where they are missing or of another version."""
    try:
        import gsplat
    except ImportError as error:
        raise RuntimeError("gsplat is not installed: pip install 'loom4d[gpu]'") from error
    version = getattr(gsplat, "__version__", "unknown")
    if not version.startswith(VERSIONS):
        raise RuntimeError(f"gsplat {version} has other cut-offs than 1.5: pip install 'loom4d[gpu]'")
    return Kernels(
        gsplat.fully_fused_projection, gsplat.isect_tiles, gsplat.isect_offset_encode, gsplat.rasterize_to_pixels
    )


def rasterize_gsplat(gaussians: Gaussians | Ellipsoids, cameras: Cameras, options: RasterOptions) -> Rendering:
    """Equal to `rasterize_reference` up to 1e-4, with its gradients; `median_depth` is NaN. Cameras get no gradient."""
    means = gaussians.means
    if means.dtype != torch.float32 or means.device.type != "cuda":
        raise ValueError(f"the gsplat rasteriser takes float32 on cuda, got {means.dtype} on {means.device}")
    return rasterize_by(installed(), gaussians, cameras, options)


def rasterize_by(
    kernels: Kernels, gaussians: Gaussians | Ellipsoids, cameras: Cameras, options: RasterOptions
) -> Rendering:
    """The same with any implementation of the four steps."""
    if not (math.isclose(options.alpha_cut, ALPHA_CUT) and math.isclose(options.alpha_cap, ALPHA_CAP)):
        raise ValueError(
            f"gsplat cuts at {ALPHA_CUT:.5f} and caps alpha at {ALPHA_CAP}; asked for {options.alpha_cut:.5f} and "
            f"{options.alpha_cap}: use another backend for these"
        )
    batch, points, means = cameras.batch_shape, gaussians.means.shape[-2], gaussians.means
    flat = cameras.reshape(-1)
    images = flat.batch_shape[0]
    colours = flattened(rgb_of(gaussians.colours, means, flat.positions.reshape(*batch, 3)), 2, batch)
    fields = (flattened(means, 2, batch), flattened(gaussians.covariances, 3, batch))
    opacities = flattened(gaussians.opacities, 1, batch).expand(images, points)
    screen_offsets = screen_zeros(batch, points, means, options)
    radii, centres, depths, conics = _projected(kernels, fields, flat, opacities, options)
    if screen_offsets is not None:
        centres = centres + screen_offsets.reshape(images, points, 2)
    rows, columns = math.ceil(options.height / TILE), math.ceil(options.width / TILE)
    _, ids, order = kernels.isect_tiles(centres, radii, depths, TILE, columns, rows)
    starts = kernels.isect_offset_encode(ids, images, columns, rows)
    features = torch.cat([colours.expand(images, points, 3), depths[..., None]], -1)
    pictures, alphas = kernels.rasterize_to_pixels(
        centres, conics, features, opacities, options.width, options.height, TILE, starts, order
    )
    premultiplied = torch.cat([pictures[..., :3], alphas], -1).movedim(-1, 1)  # (image, 4, H, W)
    median = torch.full_like(premultiplied[:, 0], torch.nan)
    return assembled(premultiplied, pictures[..., 3], median, (radii > 0).all(-1), batch, screen_offsets)


def _projected(
    kernels: Kernels, fields: tuple[Tensor, Tensor], cameras: Cameras, opacities: Tensor, options: RasterOptions
) -> tuple[Tensor, ...]:
    """Radii, centres, depths and conics of (image, point), in pixels with y down.

    gsplat takes scenes × cameras: one scene that all cameras see, or a scene per image with one camera each.
    """
    images, points = opacities.shape
    view, lens = pose_matrices(cameras), lens_matrices(cameras, options)
    means, covariances = fields
    if means.ndim == 2 and covariances.ndim == 3:
        seen = opacities.amax(0)  # a bound: the kernel only needs to know how far a Gaussian may reach
    else:
        means, covariances = means.expand(images, points, 3), covariances.expand(images, points, 3, 3)
        view, lens, seen = view[:, None], lens[:, None], opacities
    upper = torch.stack([covariances[..., i, j] for i in range(3) for j in range(i, 3)], -1)
    found = kernels.fully_fused_projection(
        means,
        upper,
        None,
        None,
        view,
        lens,
        options.width,
        options.height,
        eps2d=options.blur,
        near_plane=options.near,
        far_plane=FAR,
        opacities=seen.detach(),
    )
    return tuple(part.reshape(images, points, *part.shape[means.ndim :]) for part in found[:4])


def pose_matrices(cameras: Cameras) -> Float[Tensor, "image 4 4"]:
    """World to camera, x right, y down, z ahead."""
    rotation, translation = opencv_pose(cameras)
    matrix = torch.zeros_like(cameras.camera_from_world)
    matrix[:, :3, :3], matrix[:, :3, 3], matrix[:, 3, 3] = rotation, translation, 1
    return matrix


def lens_matrices(cameras: Cameras, options: RasterOptions) -> Float[Tensor, "image 3 3"]:
    """Intrinsics in pixels, with pixel centres at +½ as ours."""
    fx, fy, cx, cy = pixel_intrinsics(cameras, options).unbind(-1)
    matrix = torch.zeros_like(cameras.intrinsics)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 0, 2], matrix[:, 1, 2], matrix[:, 2, 2] = fx, fy, cx, cy, 1
    return matrix

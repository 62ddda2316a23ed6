"""What every rasteriser takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loom4d.cameras import Cameras
from loom4d.gaussians.gaussians import Ellipsoids, Gaussians


@dataclass(frozen=True)
class RasterOptions:
    """Picture size and the cut-offs of the blending, which CPU and GPU must share to agree."""

    height: int
    width: int
    blur: float = 0.1  # variance in pixels² added to every projected Gaussian; that of a pixel is 1/12
    alpha_cut: float = 1 / 255  # contributions below are left out
    alpha_cap: float = 0.999
    near: float = 0.01
    track_screen: bool = False  # keep the gradient on screen positions, which densification reads
    threads: int | None = None  # of the cpu backend; None follows torch.get_num_threads()


@dataclass(frozen=True)
class Rendering:
    """Pictures over nothing: colour is premultiplied by alpha."""

    premultiplied: Float[Tensor, "*batch 4 height width"]
    weighted_depth: Float[Tensor, "*batch 1 height width"]  # distance along the view axis, premultiplied like colour
    median_depth: Float[Tensor, "*batch 1 height width"]  # where half the light is gone; no gradient; NaN from gsplat
    visible: Bool[Tensor, "*batch point"]  # may touch a pixel
    screen_offsets: Float[Tensor, "*batch point 2"] | None = None  # zeros whose .grad is dL/d(screen x, y) in pixels

    @property
    def depth(self) -> Float[Tensor, "*batch 1 height width"]:
        """Expected distance along the view axis; 0 where alpha is 0."""
        return self.weighted_depth / self.alpha.clamp_min(1e-8)

    @property
    def rgb(self) -> Float[Tensor, "*batch 3 height width"]:
        return self.premultiplied[..., :3, :, :]

    @property
    def alpha(self) -> Float[Tensor, "*batch 1 height width"]:
        return self.premultiplied[..., 3:, :, :]

    def on(self, background: Float[Tensor, "*#batch 3"]) -> Float[Tensor, "*batch 3 height width"]:
        return self.rgb + (1 - self.alpha) * background[..., None, None]


Backend = Callable[[Gaussians | Ellipsoids, Cameras, RasterOptions], Rendering]


def flattened(tensor: Tensor, trailing: int, batch: tuple[int, ...]) -> Tensor:
    """A field as (image, ...) when it has batch axes, or untouched when all images share it."""
    if tensor.ndim == trailing:
        return tensor
    expanded = tensor.expand(*batch, *tensor.shape[tensor.ndim - trailing :])
    return expanded.reshape(-1, *tensor.shape[tensor.ndim - trailing :])


def opencv_pose(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Rotation (image, 3, 3) and translation (image, 3) of flat cameras into x right, y down, z ahead."""
    flip = torch.tensor([1.0, -1.0, -1.0]).to(cameras.camera_from_world)
    matrix = cameras.camera_from_world[..., :3, :] * flip[:, None]
    return matrix[..., :3], matrix[..., 3]


def pixel_intrinsics(cameras: Cameras, options: RasterOptions) -> Float[Tensor, "image 4"]:
    """fx, fy, cx, cy in pixels of flat cameras. Skew is refused: no rasteriser here knows it."""
    k = cameras.intrinsics
    if (k[..., 0, 1] != 0).any() or (k[..., 1, 0] != 0).any():
        raise ValueError("the rasterisers take cameras without skew: intrinsics[0, 1] and [1, 0] must be 0")
    return torch.stack(
        [
            k[..., 0, 0] * options.width,
            k[..., 1, 1] * options.height,
            k[..., 0, 2] * options.width,
            k[..., 1, 2] * options.height,
        ],
        -1,
    )


def screen_zeros(batch: tuple[int, ...], points: int, like: Tensor, options: RasterOptions) -> Tensor | None:
    if not options.track_screen:
        return None
    return torch.zeros(*batch, points, 2, dtype=like.dtype, device=like.device, requires_grad=True)


def assembled(
    premultiplied: Float[Tensor, "image 4 height width"],
    weighted_depth: Float[Tensor, "image height width"],
    median: Float[Tensor, "image height width"],
    visible: Bool[Tensor, "image point"],
    batch: tuple[int, ...],
    screen_offsets: Tensor | None,
) -> Rendering:
    """A `Rendering` from flat pictures."""
    shape = lambda tensor: tensor.reshape(*batch, *tensor.shape[1:])  # noqa: E731
    depths = shape(weighted_depth[:, None]), shape(median[:, None])
    return Rendering(shape(premultiplied), *depths, shape(visible), screen_offsets)

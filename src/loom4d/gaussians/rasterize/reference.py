"""The specification of rasterisation, in plain tensors: any dtype, any device, gradients by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
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

TILE = 16


@dataclass(frozen=True)
class Projected:
    """Gaussians as one camera sees them, in pixels with y down."""

    centres: Float[Tensor, "point 2"]
    covariances: Float[Tensor, "point 2 2"]  # blurred
    depths: Float[Tensor, " point"]
    reaches: Float[Tensor, "point 2"]  # half width and height of the box outside which alpha is below the cut
    visible: Bool[Tensor, " point"]


def rasterize_reference(gaussians: Gaussians | Ellipsoids, cameras: Cameras, options: RasterOptions) -> Rendering:
    """Blends front to back, Cᵢ = Σ wₙ cₙ with wₙ = αₙ Π_{m<n} (1 − αₘ), one image and one tile at a time."""
    scene, batch = gaussians.ellipsoids(), cameras.batch_shape
    points = scene.means.shape[-2]
    flat = cameras.reshape(-1)
    screen_offsets = screen_zeros(batch, points, scene.means, options)
    positions = flat.positions.reshape(*batch, 3)
    colours = flattened(rgb_of(scene.colours, scene.means, positions), 2, batch)
    means, covariances = flattened(scene.means, 2, batch), flattened(scene.covariances, 3, batch)
    opacities = flattened(scene.opacities, 1, batch)
    offsets = None if screen_offsets is None else screen_offsets.reshape(-1, points, 2)
    pictures = []
    for image in range(flat.batch_shape[0]):
        pick = lambda tensor, rank: tensor[image] if tensor.ndim > rank else tensor  # noqa: B023, E731
        projected = project(pick(means, 2), pick(covariances, 3), pick(opacities, 1), flat[image : image + 1], options)
        centres = projected.centres if offsets is None else projected.centres + offsets[image]
        features = torch.cat([pick(colours, 2), projected.depths[:, None]], 1)
        pictures.append((*blend(projected, centres, pick(opacities, 1), features, options), projected.visible))
    blended, alpha, median, visible = (torch.stack(column) for column in zip(*pictures, strict=True))
    premultiplied = torch.cat([blended[:, :3], alpha[:, None]], 1)
    return assembled(premultiplied, blended[:, 3], median, visible, batch, screen_offsets)


def project(
    means: Float[Tensor, "point 3"],
    covariances: Float[Tensor, "point 3 3"],
    opacities: Float[Tensor, " point"],
    camera: Cameras,
    options: RasterOptions,
) -> Projected:
    """Perspective projection with the local affine approximation of the covariance (EWA splatting)."""
    rotation, translation = (part[0] for part in opencv_pose(camera))
    fx, fy, cx, cy = pixel_intrinsics(camera, options)[0].unbind(-1)
    x, y, z = (means @ rotation.mT + translation).unbind(-1)
    near = z > options.near
    z = torch.where(near, z, torch.ones_like(z))
    centres = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    margin_u, margin_v = 0.15 * options.width / fx, 0.15 * options.height / fy
    # far outside the picture the affine map is meaningless: it is taken at the margin instead, as gsplat does
    u = (x / z).clamp(-cx / fx - margin_u, (options.width - cx) / fx + margin_u)
    v = (y / z).clamp(-cy / fy - margin_v, (options.height - cy) / fy + margin_v)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [torch.stack([fx / z, zero, -fx * u / z], -1), torch.stack([zero, fy / z, -fy * v / z], -1)], -2
    )
    affine = jacobian @ rotation  # (N, 2, 3)
    blur = options.blur * torch.eye(2).to(means)
    flat = affine @ covariances @ affine.mT + blur
    with torch.no_grad():
        spread = (2 * (opacities / options.alpha_cut).clamp_min(1).log()).sqrt()  # standard deviations to the cut
        reaches = spread[:, None] * flat.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt() + 1e-3
        size = torch.tensor([options.width, options.height]).to(means)
        on_screen = ((centres + reaches > 0.5) & (centres - reaches < size - 0.5)).all(-1)
        visible = near & on_screen & (opacities >= options.alpha_cut)
    return Projected(centres, flat, z, reaches, visible)


def blend(
    projected: Projected,
    centres: Float[Tensor, "point 2"],
    opacities: Float[Tensor, " point"],
    features: Float[Tensor, "point channel"],
    options: RasterOptions,
) -> tuple[Float[Tensor, "channel height width"], Float[Tensor, "height width"], Float[Tensor, "height width"]]:
    """Σ w·features, alpha and median depth of one picture."""
    order = projected.depths.masked_fill(~projected.visible, torch.inf).argsort(stable=True)
    order = order[: int(projected.visible.sum())]
    conics = torch.linalg.inv(projected.covariances)
    rows = []
    for top in range(0, options.height, TILE):
        row = []
        for left in range(0, options.width, TILE):
            bottom, right = min(top + TILE, options.height), min(left + TILE, options.width)
            low = projected.reaches + torch.tensor([right, bottom]).to(centres) - 0.5
            high = projected.reaches - torch.tensor([left, top]).to(centres) - 0.5
            touches = ((centres < low) & (centres > -high)).all(-1)
            near = order[touches[order]]
            row.append(_blend_tile(near, centres, conics, opacities, features, (top, bottom, left, right), options))
        rows.append([torch.cat(parts, -1) for parts in zip(*row, strict=True)])
    blended, alpha, median = (torch.cat(parts, -2) for parts in zip(*rows, strict=True))
    return blended, alpha, median


def _blend_tile(
    order: Tensor,
    centres: Tensor,
    conics: Tensor,
    opacities: Tensor,
    features: Tensor,
    box: tuple[int, int, int, int],
    options: RasterOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    top, bottom, left, right = box
    y = torch.arange(top, bottom).to(centres) + 0.5
    x = torch.arange(left, right).to(centres) + 0.5
    dx = x[None, None, :] - centres[order, 0, None, None]  # (n, 1, W)
    dy = y[None, :, None] - centres[order, 1, None, None]  # (n, H, 1)
    conic = conics[order, :, :, None, None]
    power = -0.5 * (conic[:, 0, 0] * dx**2 + conic[:, 1, 1] * dy**2) - conic[:, 0, 1] * dx * dy  # (n, H, W)
    alpha = opacities[order, None, None] * power.exp()
    alpha = torch.where(alpha < options.alpha_cut, torch.zeros_like(alpha), alpha.clamp_max(options.alpha_cap))
    log_through = torch.log1p(-alpha).cumsum(0)
    after = log_through.exp()
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    blended = torch.einsum("nhw,nc->chw", alpha * before, features[order])
    crossing = ((before >= 0.5) & (after < 0.5)).to(features)
    median = torch.einsum("nhw,n->hw", crossing, features[order, -1]).detach()
    through = after[-1] if len(order) else torch.ones_like(blended[0])
    return blended, 1 - through, median

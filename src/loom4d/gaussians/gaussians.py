"""One instant of a scene: anisotropic 3D Gaussians, and the little algebra that belongs to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

SH_CONSTANT = 0.5 / math.sqrt(math.pi)  # Y₀₀
SPLIT = 1.6  # how much smaller the two are that a Gaussian is split into


@dataclass(frozen=True)
class Gaussians:
    """Any batch of instants; a field without the batch axes is shared by all of them."""

    means: Float[Tensor, "*#batch point 3"]
    quaternions: Float[Tensor, "*#batch point 4"]  # w x y z, of any length
    log_scales: Float[Tensor, "*#batch point 3"]  # natural logarithm of the standard deviation along each axis
    opacities: Float[Tensor, "*#batch point"]  # 0..1
    colours: Float[Tensor, "*#batch point basis 3"]  # coefficients of (degree + 1)² real spherical harmonics

    @property
    def covariances(self) -> Float[Tensor, "*batch point 3 3"]:
        """World-space covariance R S Sᵀ Rᵀ of each Gaussian (3DGS, Equation 6)."""
        half = rotations(self.quaternions) * self.log_scales.exp()[..., None, :]  # R S
        return half @ half.mT

    def ellipsoids(self) -> Ellipsoids:
        return Ellipsoids(self.means, self.covariances, self.opacities, self.colours)

    def select(self, keep: Tensor) -> Gaussians:
        """Part of the points of one instant, by a mask or by indices."""
        return replace(self, **{field.name: getattr(self, field.name)[keep] for field in fields(self)})


@dataclass(frozen=True)
class Ellipsoids:
    """What a rasteriser needs to know of Gaussians: the same with covariances in place of rotations and scales."""

    means: Float[Tensor, "*#batch point 3"]
    covariances: Float[Tensor, "*#batch point 3 3"]
    opacities: Float[Tensor, "*#batch point"]
    colours: Float[Tensor, "*#batch point basis 3"]

    def ellipsoids(self) -> Ellipsoids:
        return self

    def gaussians(self) -> Gaussians:
        """Rotations and scales by eigenvectors. Not meant to be differentiated: equal axes have no unique rotation."""
        variances, axes = torch.linalg.eigh(self.covariances)
        proper = axes * torch.linalg.det(axes).sign()[..., None, None]
        log_scales = 0.5 * variances.clamp_min(torch.finfo(variances.dtype).tiny).log()
        return Gaussians(self.means, quaternions_of(proper), log_scales, self.opacities, self.colours)


def rotations(quaternions: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z), which are normalised first."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def quaternions_of(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions (w, x, y, z) of rotation matrices.

    The symmetric matrix K with entries linear in R has the quaternion as the eigenvector of its largest eigenvalue;
    its columns are 4 q_i q, so the column of the largest diagonal entry is normalised (never a small one).
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    columns = torch.stack(
        [
            torch.stack([1 + a + e + i, h - f, c - g, d - b], -1),
            torch.stack([h - f, 1 + a - e - i, b + d, c + g], -1),
            torch.stack([c - g, b + d, 1 - a + e - i, f + h], -1),
            torch.stack([d - b, c + g, f + h, 1 - a - e + i], -1),
        ],
        -2,
    )
    largest = columns.diagonal(dim1=-2, dim2=-1).argmax(-1)
    chosen = torch.take_along_dim(columns, largest[..., None, None], -2)[..., 0, :]
    return torch.nn.functional.normalize(chosen, dim=-1)


def multiplied(first: Float[Tensor, "*#batch 4"], second: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Quaternion product: the rotation `second`, then `first`."""
    a, b, c, d = first.unbind(-1)
    w, x, y, z = second.unbind(-1)
    parts = [
        a * w - b * x - c * y - d * z,
        a * x + b * w + c * z - d * y,
        a * y - b * z + c * w + d * x,
        a * z + b * y - c * x + d * w,
    ]
    return torch.stack(parts, -1)


def halves(
    means: Float[Tensor, "point 3"],
    quaternions: Float[Tensor, "point 4"],
    log_scales: Float[Tensor, "point 3"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "half 3"], Float[Tensor, "half 3"]]:
    """Means and log scales of two Gaussians in the place of each, one after the other: drawn from it, and smaller by
    SPLIT along every axis (3DGS)."""
    drawn = torch.randn(len(means), 2, 3, generator=generator).to(means)
    offset = torch.einsum("nij,nhj->nhi", rotations(quaternions), drawn * log_scales.exp()[:, None])
    smaller = (log_scales - math.log(SPLIT)).repeat_interleave(2, 0)
    return (means[:, None] + offset).flatten(0, 1), smaller


def split_rows(rows: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Two smaller Gaussians in the place of each row; what is no place or size of theirs is handed on as it is."""
    means, scales = halves(rows["means"], rows["quaternions"], rows["log_scales"], generator)
    twice = {name: row.repeat_interleave(2, 0) for name, row in rows.items()}
    return {**twice, "means": means, "log_scales": scales}


def turned_by(
    before: Float[Tensor, "*#batch edge 3"], after: Float[Tensor, "*#batch edge 3"]
) -> Float[Tensor, "*batch 3 3"]:
    """The rotations that best carry the vectors `before` to those `after`, in the least-squares sense (Procrustes)."""
    left, _, right = torch.linalg.svd(torch.einsum("...ei,...ej->...ij", after, before))
    proper = torch.ones_like(left[..., 0])
    proper[..., 2] = torch.linalg.det(left @ right).sign()
    return left * proper[..., None, :] @ right


def sh_degree(coefficients: int) -> int:
    """Degree of a basis of (degree + 1)² spherical harmonics."""
    degree = math.isqrt(coefficients) - 1
    if coefficients not in (1, 4, 9, 16):
        raise ValueError(f"colours need 1, 4, 9 or 16 spherical-harmonic coefficients, got {coefficients}")
    return degree


def sh_basis(directions: Float[Tensor, "*batch 3"], degree: int) -> Float[Tensor, "*batch basis"]:
    """Real spherical harmonics of unit directions, in the order and with the signs that 3DGS files use."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, SH_CONSTANT)]
    if degree >= 1:
        basis += [value * math.sqrt(3) * SH_CONSTANT for value in (-y, z, -x)]
    if degree >= 2:
        second = [x * y, -y * z, (3 * z * z - 1) / (2 * math.sqrt(3)), -x * z, (x * x - y * y) / 2]
        basis += [value * math.sqrt(15) * SH_CONSTANT for value in second]
    if degree >= 3:
        odd, third = math.sqrt(35 / 8), math.sqrt(21 / 8)
        values = [
            -odd * y * (3 * x * x - y * y),
            math.sqrt(105) * x * y * z,
            -third * y * (5 * z * z - 1),
            math.sqrt(7) / 2 * z * (5 * z * z - 3),
            -third * x * (5 * z * z - 1),
            math.sqrt(105) / 2 * z * (x * x - y * y),
            -odd * x * (x * x - 3 * y * y),
        ]
        basis += [value * SH_CONSTANT for value in values]
    return torch.stack(basis, -1)


def rgb_of(
    colours: Float[Tensor, "*#batch point basis 3"],
    means: Float[Tensor, "*#batch point 3"],
    positions: Float[Tensor, "*#batch 3"],
) -> Float[Tensor, "*#batch point 3"]:
    """max(½ + Σ c Y(direction), 0), the direction pointing from the camera to the Gaussian."""
    degree = sh_degree(colours.shape[-2])
    if degree == 0:  # the same from every side: keep it shared
        return (0.5 + SH_CONSTANT * colours[..., 0, :]).clamp_min(0)
    directions = torch.nn.functional.normalize(means - positions[..., None, :], dim=-1)
    basis = sh_basis(directions, degree)
    return (0.5 + torch.einsum("...k,...kc->...c", basis, colours)).clamp_min(0)


def sh_of(rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 1 3"]:
    """Degree-0 coefficients of a plain colour in 0..1."""
    return ((rgb - 0.5) / SH_CONSTANT)[..., None, :]

"""SV3D_p (2403.12008), the multi-view prior: an orbit around the object of a given picture, at given angles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.denoisers import vae as vaes
from loom4d.denoisers.family import Columns, MultiviewPrior, answering
from loom4d.denoisers.stable import (
    ANGLE_WIDTH,
    SCALAR_WIDTH,
    Kind,
    Sizes,
    Stable,
    Unet,
    conditions,
    guided_denoiser,
    in_order,
    load,
    repeated,
    sinusoids,
)
from loom4d.diffusion.denoiser import Denoiser

KIND = Kind("SV3D_p", SCALAR_WIDTH + 2 * ANGLE_WIDTH, embedder=1, build_vae=vaes.image_vae, own_encoder=False)


@dataclass(frozen=True)
class SV3DConfig:
    """What the prior is told beside the picture and the angles."""

    noise: float = 1e-5  # deviation of the noise on the given picture


def load_sv3d(path: Path, sizes: Sizes | None = None, dtype: torch.dtype = torch.float32) -> Stable:
    """From `sv3d_p.safetensors`, or a folder in diffusers' layout."""
    return load(path, KIND, sizes, dtype)


def orbit_order(azimuths_deg: Float[Tensor, " view"]) -> tuple[Tensor, Float[Tensor, " view"]]:
    """SV3D's own order of the views, and their azimuths in it: growing in (0, 360], the given view (0) last, as 360."""
    turned = torch.remainder(azimuths_deg.double(), 360)
    turned = torch.where(turned < 1e-4, 360.0, turned)  # its sinusoids do not repeat after a turn: 0 is not 360 to it
    order = torch.argsort(turned, stable=True)
    return order, turned[order].float()


def vector(
    config: SV3DConfig, azimuths_deg: Float[Tensor, " view"], elevations_deg: Float[Tensor, " view"]
) -> Float[Tensor, "view vector"]:
    """noise ‖ polar angle ‖ azimuth of each view, in radians; the polar angle counts from above."""
    noise = sinusoids(torch.full_like(azimuths_deg, config.noise), SCALAR_WIDTH)
    polar = sinusoids(math.pi / 2 - torch.deg2rad(elevations_deg), ANGLE_WIDTH)
    return torch.cat([noise, polar, sinusoids(torch.deg2rad(azimuths_deg), ANGLE_WIDTH)], -1)


def multiview_prior(model: Stable, unet: Unet, config: SV3DConfig, sequences: int) -> MultiviewPrior:
    """The family's multi-view prior. Views may come in any order; guidance runs along SV3D's own."""

    def prior(columns: Columns) -> Denoiser:
        if columns.crossing is not None:
            raise ValueError("SV3D cannot be told a crossing clip")
        order, azimuths = orbit_order(columns.azimuths_deg)
        told = repeated(vector(config, azimuths, columns.elevations_deg[order].float()), len(columns.pictures))
        given, null = conditions(model, columns.pictures, told, config.noise)
        return in_order(guided_denoiser(unet, given, null, columns.guidance, len(order), sequences), order)

    return answering(Columns, prior)

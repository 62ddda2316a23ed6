"""The built-in family: the small priors and the autoencoder that ship with the package."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from loom4d.denoisers.autoencoder import STRIDE
from loom4d.denoisers.family import Family, Guidance
from loom4d.denoisers.small import ClipCondition, guided_prior
from loom4d.denoisers.weights import load_autoencoder, load_prior
from loom4d.diffusion.denoiser import Denoiser, Latents, Sigma


def fast_arithmetic(denoise: Denoiser) -> Denoiser:
    """Matrix products in bfloat16 where this processor has them (about four times faster), else in float32."""
    if not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return denoise

    def cast(x: Latents, sigma: Sigma) -> Latents:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return denoise(x, sigma)

    return cast


def clip_times(times: Float[Tensor, " frame"], given_frame: int) -> Float[Tensor, " frame"]:
    """Seconds from the given frame as the prior knows them: its training clips all last one second."""
    span = times[-1] - times[0]
    return (times - times[given_frame]) / torch.where(span > 0, span, torch.ones_like(span))


def small(folder: Path | None = None, settings: object = None) -> Family:
    """The small priors from `folder`, or those that ship with the package: 64² pictures, 8 views, 8 frames.

    They have no `settings`; other families do.
    """
    autoencoder, _ = load_autoencoder(folder)
    prior, _ = load_prior(folder)
    side = prior.config.cells

    def encode(premultiplied: Float[Tensor, "b 4 height width"]) -> Float[Tensor, "b c h w"]:
        with torch.inference_mode():
            return autoencoder.encode(premultiplied)

    def decode(latents: Float[Tensor, "clip picture c h w"]) -> Float[Tensor, "clip picture 4 height width"]:
        with torch.inference_mode():
            pictures = [autoencoder.decode(clip.float()) for clip in latents]
        return torch.stack(pictures).clamp(0, 1)

    def video(
        pictures: Float[Tensor, "clip 4 height width"],
        elevations_deg: Float[Tensor, " clip"],
        times: Float[Tensor, " frame"],
        given_frame: int,
        guidance: Guidance,
    ) -> Denoiser:
        clips, frames = len(pictures), len(times)
        condition = ClipCondition(
            encode(pictures),
            torch.zeros(clips, frames),
            repeat(elevations_deg, "clip -> clip frame", frame=frames),
            repeat(clip_times(times, given_frame), "frame -> clip frame", clip=clips),
        )
        return fast_arithmetic(guided_prior(prior, condition, guidance))

    def multiview(
        pictures: Float[Tensor, "clip 4 height width"],
        azimuths_deg: Float[Tensor, " view"],
        elevations_deg: Float[Tensor, " view"],
        guidance: Guidance,
    ) -> Denoiser:
        clips, views = len(pictures), len(azimuths_deg)
        condition = ClipCondition(
            encode(pictures),
            repeat(azimuths_deg, "view -> clip view", clip=clips),
            repeat(elevations_deg, "view -> clip view", clip=clips),
            torch.zeros(clips, views),
        )
        return fast_arithmetic(guided_prior(prior, condition, guidance))

    def image(
        pictures: Float[Tensor, "clip 4 height width"],
        azimuths_deg: Float[Tensor, " clip"],
        elevations_deg: Float[Tensor, " clip"],
        times: Float[Tensor, " clip"],
        guidance: Guidance,
    ) -> Denoiser:
        fields = (azimuths_deg, elevations_deg, times)
        condition = ClipCondition(encode(pictures), *(field[:, None] for field in fields))
        return fast_arithmetic(guided_prior(prior, condition, guidance))

    return Family(
        name="small",
        resolution=side * STRIDE,
        latent_shape=(prior.config.channels, side, side),
        views=8,
        frames=8,
        sigma_min=0.02,
        sigma_max=80.0,
        encode=encode,
        decode=decode,
        video=video,
        multiview=multiview,
        image=image,
    )

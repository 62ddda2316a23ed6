"""The built-in family: the small priors and the autoencoder that ship with the package."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from loom4d.denoisers.autoencoder import STRIDE, Autoencoder
from loom4d.denoisers.family import Cells, Columns, Family, Guidance, Rows, answering
from loom4d.denoisers.shallow import Fresh, Slots, in_steps, shallow_prior
from loom4d.denoisers.small import ClipCondition, Crossing, SmallPrior, guided_prior
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


class SmallPriors:
    """The trained networks, and what a `Family` asks of them."""

    def __init__(self, autoencoder: Autoencoder, prior: SmallPrior, fresh: Fresh | None = None):
        self.autoencoder, self.prior, self.fresh = autoencoder, prior, fresh

    @torch.inference_mode()
    def encode(self, premultiplied: Float[Tensor, "b 4 height width"]) -> Float[Tensor, "b c h w"]:
        return self.autoencoder.encode(premultiplied)

    @torch.inference_mode()
    def decode(self, latents: Float[Tensor, "clip picture c h w"]) -> Float[Tensor, "clip picture 4 height width"]:
        return torch.stack([self.autoencoder.decode(clip.float()) for clip in latents]).clamp(0, 1)

    def guided(
        self,
        given: Float[Tensor, "clip given c h w"],
        azimuths_deg: Float[Tensor, "clip picture"],
        elevations_deg: Float[Tensor, "clip picture"],
        times: Float[Tensor, "clip picture"],
        guidance: Guidance,
        crossing: Crossing | None = None,
    ) -> Denoiser:
        """The prior of clips whose pictures are taken there and then, seen from the given latents."""
        if crossing is not None and not self.prior.config.crossings:
            raise ValueError("these weights know no crossing clips")
        condition = ClipCondition(given, azimuths_deg, elevations_deg, times, crossing)
        if self.fresh is None:
            return fast_arithmetic(guided_prior(self.prior, condition, guidance))
        slots = Slots()  # of this denoiser alone: no other one's features are taken for its own
        guided = fast_arithmetic(guided_prior(shallow_prior(self.prior, slots), condition, guidance))
        return in_steps(guided, slots, self.fresh)

    def crossing(
        self,
        pictures: Float[Tensor, "clip given 4 height width"],
        azimuths_deg: Float[Tensor, "clip picture"],
    ) -> Crossing:
        """What another camera, so far around from each picture's own, saw at each picture's instant."""
        latents = self.encode_clips(pictures).expand(-1, azimuths_deg.shape[1], -1, -1, -1)
        return Crossing(latents, azimuths_deg, torch.ones(len(latents), dtype=torch.bool))

    def encode_clips(
        self, pictures: Float[Tensor, "clip picture 4 height width"]
    ) -> Float[Tensor, "clip picture c h w"]:
        flat = self.encode(rearrange(pictures, "clip picture ... -> (clip picture) ..."))
        return rearrange(flat, "(clip picture) ... -> clip picture ...", clip=len(pictures))

    def video(self, rows: Rows) -> Denoiser:
        since = repeat(clip_times(rows.times, rows.given_frame), "frame -> clip frame", clip=len(rows.pictures))
        elevations = repeat(rows.elevations_deg, "clip -> clip frame", frame=len(rows.times))
        across = None
        if rows.crossing is not None:
            turns = repeat(rows.crossing.azimuths_deg, "clip -> clip frame", frame=len(rows.times))
            across = self.crossing(rows.crossing.pictures, turns)
        given = self.encode(rows.pictures)[:, None]
        return self.guided(given, torch.zeros_like(since), elevations, since, rows.guidance, across)

    def multiview(self, columns: Columns) -> Denoiser:
        """A column that is told another is seen from there: each view has its own given picture, at the other instant,
        and the picture at azimuth 0 is what crosses it."""
        pictures, crossing = columns.pictures, columns.crossing
        azimuths = repeat(columns.azimuths_deg, "view -> clip view", clip=len(pictures))
        elevations = repeat(columns.elevations_deg, "view -> clip view", clip=len(pictures))
        still = torch.zeros_like(azimuths)
        if crossing is None:
            return self.guided(self.encode(pictures)[:, None], azimuths, elevations, still, columns.guidance)
        since = repeat(-crossing.times, "clip -> clip view", view=azimuths.shape[1])
        across = self.crossing(pictures[:, None], -azimuths)
        return self.guided(self.encode_clips(crossing.pictures), still, elevations, since, columns.guidance, across)

    def image(self, cells: Cells) -> Denoiser:
        crossing = cells.crossing
        across = None if crossing is None else self.crossing(crossing.pictures, crossing.azimuths_deg[:, None])
        places = (cells.azimuths_deg[:, None], cells.elevations_deg[:, None], cells.times[:, None])
        return self.guided(self.encode(cells.pictures)[:, None], *places, cells.guidance, across)


def small(folder: Path | None = None, settings: object = None) -> Family:
    """The small priors from `folder`, or those that ship with the package: 64² pictures, 8 views, 8 frames.

    They have no `settings`; other families do.
    """
    autoencoder, _ = load_autoencoder(folder)
    prior, _ = load_prior(folder)
    return family_of(SmallPriors(autoencoder, prior))


def family_of(priors: SmallPriors) -> Family:
    """What methods see of the networks."""
    config = priors.prior.config
    return Family(
        name="small",
        resolution=config.cells * STRIDE,
        latent_shape=(config.channels, config.cells, config.cells),
        views=8,
        frames=8,
        sigma_min=0.02,
        sigma_max=80.0,
        encode=priors.encode,
        decode=priors.decode,
        video=answering(Rows, priors.video),
        multiview=answering(Columns, priors.multiview),
        image=answering(Cells, priors.image),
        crossings=config.crossings,
        shallow=lambda fresh: family_of(SmallPriors(priors.autoencoder, priors.prior, fresh)),
    )

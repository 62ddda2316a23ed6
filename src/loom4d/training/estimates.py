"""The decoder's training on what the priors make of latents, beside latents as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.denoisers.autoencoder import Autoencoder
from loom4d.denoisers.small import SmallPrior, bound
from loom4d.diffusion.denoiser import from_velocity, quarter_log
from loom4d.training.clips import Clips, LatentGrids, some_clips
from loom4d.training.objective import CROSSED_SHARE, AutoencoderTask, foreground_psnr, log_normal, picture_error
from loom4d.training.shards import Shards

CLIPS = 5  # of a step on estimates
MEAN, DEVIATION = 0.5, 1.3  # of ln σ


class DecoderTask(AutoencoderTask):
    """The decoder alone, in `share` of its steps on estimates D(x; σ) of the prior, asked for the true pictures.

    What a sampler ends with is an estimate. Where the prior is unsure that is a mean of many latents, which is no
    picture's latent: a decoder that never saw such shows grey chequers there, one that did shows the pictures' mean.
    """

    def __init__(
        self,
        network: Autoencoder,
        prior: SmallPrior,
        shards: tuple[Shards, Shards],
        grids: tuple[LatentGrids, LatentGrids],
        batch: int,
        noise: float,
        share: float,
    ):
        super().__init__(network, *shards, batch, noise)
        self.prior, self.grids, self.share = prior.eval().requires_grad_(False), grids, share

    @property
    def pictures(self) -> int:
        """Of a step on estimates; the others have `batch`."""
        return CLIPS * self.grids[0].latents.shape[1]

    def loss(self, call: Callable, generator: torch.Generator) -> Tensor:
        if torch.rand((), generator=generator, device=generator.device).item() >= self.share:
            return super().loss(call, generator)
        clips, pictures = drawn(self.grids[0], self.shards, CLIPS, CROSSED_SHARE, generator)
        sigma = log_normal(CLIPS, MEAN, DEVIATION, generator)
        estimates = rearrange(estimated(self.prior, clips, sigma, generator), "b p c h w -> (b p) c h w")
        codes = estimates * self.autoencoder.latent_std + self.autoencoder.latent_mean
        return picture_error(call(pictures, torch.zeros_like(codes), codes)[0], pictures)

    def scores(self) -> dict[str, float]:
        """Of latents as they are, and of estimates at σ = 1 and from pure noise: PSNR within the objects."""
        found = super().scores()
        for sigma in (1.0, 80.0):
            generator = self._generator(6)
            clips, pictures = drawn(self.grids[1], self.held_out, 16, 0.0, generator)
            estimates = estimated(self.prior, clips, torch.full((16,), sigma, device=generator.device), generator)
            with torch.inference_mode():
                ours = self.autoencoder.decode(rearrange(estimates, "b p c h w -> (b p) c h w")).clamp(0, 1)
            found[f"foreground_psnr at {sigma:g}"] = foreground_psnr(ours, pictures)
        return found


def drawn(
    grids: LatentGrids, shards: Shards, count: int, crossed: float, generator: torch.Generator
) -> tuple[Clips, Float[Tensor, "picture 4 height width"]]:
    """Random clips and the pictures that their latents are of."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    twins = [torch.Generator(generator.device).manual_seed(seed) for _ in range(2)]
    clips = some_clips(grids, count, twins[0], crossed=crossed)
    places = some_clips(numbered(grids), count, twins[1], crossed=crossed).latents.flatten().long()
    pictures = [shards.premultiplied(*place) for place in _unflattened(places, grids).tolist()]
    return clips, torch.stack(pictures).to(generator.device)


def numbered(grids: LatentGrids) -> LatentGrids:
    """The same grids, with each cell's number in the place of its latent."""
    size = grids.latents.shape[:3]
    numbers = torch.arange(size.numel(), device=grids.latents.device).float()  # whole up to 2²⁴
    return LatentGrids(numbers.reshape(*size, 1, 1, 1), grids.elevations_deg, grids.seconds)


def _unflattened(numbers: Int[Tensor, " n"], grids: LatentGrids) -> Int[Tensor, "n 3"]:
    _, views, frames = grids.latents.shape[:3]
    return torch.stack([numbers // (views * frames), numbers // frames % views, numbers % frames], 1)


@torch.no_grad()
def estimated(
    prior: SmallPrior, clips: Clips, sigma: Float[Tensor, " b"], generator: torch.Generator
) -> Float[Tensor, "b p c h w"]:
    """D(clean + σ noise; σ), one σ per clip."""
    wide = sigma[:, None, None, None, None]
    noise = torch.randn(clips.latents.shape, generator=generator, device=generator.device)
    denoise = from_velocity(bound(prior, clips.condition, kept=True), lambda wide: quarter_log(wide.flatten()))
    with torch.autocast(generator.device.type, torch.bfloat16):
        return denoise(clips.latents + wide * noise, wide).float()

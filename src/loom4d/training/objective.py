"""What the built-in family is trained to do: the autoencoder's and the priors' losses, previews and scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from loom4d.denoisers.autoencoder import Autoencoder
from loom4d.denoisers.small import ClipCondition, SmallPrior, bound
from loom4d.diffusion.denoiser import from_velocity
from loom4d.diffusion.guidance import guided
from loom4d.diffusion.samplers import euler
from loom4d.diffusion.schedules import karras
from loom4d.grid import to_bytes
from loom4d.training.shards import Shards

# --- the autoencoder ------------------------------------------------------------------------------------------------

# Luminance and two colour differences: an error of colour alone counts as much as one of brightness.
LUMA_CHROMA = torch.tensor([[0.33, 0.34, 0.33], [0.5, 0.0, -0.5], [-0.25, 0.5, -0.25]])


def on_white(premultiplied: Float[Tensor, "*b 4 h w"]) -> Float[Tensor, "*b 3 h w"]:
    return premultiplied[..., :3, :, :] + 1 - premultiplied[..., 3:, :, :]


def psnr(ours: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"]) -> float:
    """Peak signal-to-noise ratio of pictures in 0..1, in dB, over all values at once."""
    return -10 * torch.log10((ours - truth).square().mean().clamp_min(1e-10)).item()


class AutoencoderTask:
    """Reconstruction of premultiplied RGBA from codes with Gaussian noise of deviation `noise` on them."""

    def __init__(self, network: Autoencoder, train: Shards, held_out: Shards, batch: int, noise: float = 0.1):
        self.network: nn.Module = Roundtrip(network, noise)
        self.autoencoder, self.shards, self.held_out, self.batch = network, train, held_out, batch

    def loss(self, call: Callable, generator: torch.Generator) -> Tensor:
        pictures = some_pictures(self.shards, self.batch, generator)
        cells = (self.batch, self.autoencoder.config.channels, pictures.shape[-2] // 8, pictures.shape[-1] // 8)
        noise = torch.randn(cells, generator=generator, device=generator.device)
        decoded, codes = call(pictures, noise)
        error = decoded.float() - pictures
        colour = torch.einsum("ij,bjhw->bihw", 1.5 * LUMA_CHROMA.to(error), error[:, :3])
        inside = 0.2 + torch.nn.functional.max_pool2d(pictures[:, 3:], 5, 1, 2)  # the object and its rim
        squared = (inside * torch.cat([colour, error[:, 3:]], 1).square()).mean()
        absolute = (inside * error.abs()).mean()
        return 10 * squared + absolute + 1e-4 * codes.float().square().mean()

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.autoencoder.latent_mean.device).manual_seed(seed)

    def _pairs(self, count: int) -> tuple[Tensor, Tensor]:
        truth = some_pictures(self.held_out, count, self._generator(1))
        with torch.inference_mode():
            return truth, self.autoencoder.decode(self.autoencoder.encode(truth)).clamp(0, 1)

    def scores(self) -> dict[str, float]:
        truth, ours = self._pairs(128)
        inside = truth[:, 3:].expand(-1, 3, -1, -1) > 0.02
        foreground = psnr(on_white(ours)[inside], on_white(truth)[inside])
        return {"psnr": psnr(on_white(ours), on_white(truth)), "foreground_psnr": foreground}

    def preview(self) -> Image.Image:
        truth, ours = self._pairs(24)
        return mosaic(on_white(torch.stack([truth, ours])))

    def finish(self) -> None:
        """Fixes the normalisation: latents of the training pictures get zero mean and unit variance per channel."""
        pictures = some_pictures(self.shards, 1024, self._generator(2))
        with torch.inference_mode():
            codes = torch.cat([self.autoencoder.encoder(part * 2 - 1) for part in pictures.split(128)])
        self.autoencoder.latent_mean.copy_(reduce(codes, "b c h w -> c 1 1", "mean"))
        self.autoencoder.latent_std.copy_(codes.std((0, 2, 3))[:, None, None])


class Roundtrip(nn.Module):
    """Encoder, noise on the code, decoder, in one call."""

    def __init__(self, autoencoder: Autoencoder, noise: float):
        super().__init__()
        self.autoencoder, self.noise = autoencoder, noise

    def forward(self, pictures: Tensor, unit_noise: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.autoencoder.encoder(pictures * 2 - 1)
        return (self.autoencoder.decoder(codes + self.noise * unit_noise) + 1) / 2, codes


def some_pictures(shards: Shards, count: int, generator: torch.Generator) -> Float[Tensor, "b 4 h w"]:
    """Pictures of random objects at random views and frames."""
    views, frames = shards.pictures[0].shape[1:3]
    chosen = torch.rand(count, 3, generator=generator, device=generator.device).cpu()
    chosen = (chosen * torch.tensor([shards.grids, views, frames])).long()
    pictures = torch.stack([shards.premultiplied(grid, view, frame) for grid, view, frame in chosen.tolist()])
    return pictures.to(generator.device)


def mosaic(pictures: Float[Tensor, "row column 3 h w"], zoom: int = 2) -> Image.Image:
    sheet = rearrange(pictures.float().clamp(0, 1).cpu(), "row column c h w -> c (row h) (column w)")
    image = Image.fromarray(to_bytes(sheet))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


CELL_SHARE = 0.1  # of the prior's steps, on single pictures: what rows and columns have in common

# --- the priors -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clips:
    """Clean clips and what they are conditioned on; the given picture is one of the clip's own."""

    latents: Float[Tensor, "b p c h w"]
    condition: ClipCondition


@dataclass(frozen=True)
class LatentGrids:
    """Encoded training grids: a turntable of V views from azimuth 0, F frames over `seconds`."""

    latents: Float[Tensor, "grid view frame c h w"]
    elevations_deg: Float[Tensor, " grid"]
    seconds: float = 1.0

    def to(self, device: torch.device) -> LatentGrids:
        return LatentGrids(self.latents.to(device), self.elevations_deg.to(device), self.seconds)

    def videos(self, grids: Int[Tensor, " b"], views: Int[Tensor, " b"], given: Int[Tensor, " b"]) -> Clips:
        """One camera over time, conditioned on frame `given`."""
        latents = self.latents[grids, views].float()
        clips, frames = latents.shape[:2]
        instants = torch.arange(frames, device=grids.device) * self.seconds / max(frames - 1, 1)
        times = instants - instants[given][:, None]
        picture = latents[torch.arange(clips, device=grids.device), given]
        elevations = repeat(self.elevations_deg[grids], "b -> b p", p=frames)
        return Clips(latents, ClipCondition(picture, torch.zeros_like(times), elevations, times))

    def orbits(self, grids: Int[Tensor, " b"], frames: Int[Tensor, " b"], given: Int[Tensor, " b"]) -> Clips:
        """All cameras at one instant, rolled so that the given view comes first."""
        views = self.latents.shape[1]
        places = torch.arange(views, device=grids.device)
        order = (given[:, None] + places) % views  # (B, V)
        latents = self.latents[grids[:, None], order, frames[:, None]].float()
        azimuths = repeat(places * 360.0 / views, "p -> b p", b=len(grids))
        elevations = repeat(self.elevations_deg[grids], "b -> b p", p=views)
        condition = ClipCondition(latents[:, 0], azimuths, elevations, torch.zeros_like(azimuths))
        return Clips(latents, condition)

    def cells(self, grids: Int[Tensor, " b"], place: Int[Tensor, "b 2"], given: Int[Tensor, "b 2"]) -> Clips:
        """Single pictures at (view, frame) `place`, conditioned on the picture at (view, frame) `given`."""
        views, frames = self.latents.shape[1:3]
        latents = self.latents[grids, place[:, 0], place[:, 1]].float()[:, None]
        picture = self.latents[grids, given[:, 0], given[:, 1]].float()
        turn, wait = ((place - given).float()).unbind(1)
        condition = ClipCondition(
            picture,
            (turn[:, None] * 360 / views) % 360,
            self.elevations_deg[grids][:, None],
            wait[:, None] * self.seconds / max(frames - 1, 1),
        )
        return Clips(latents, condition)


def joined(a: Clips, b: Clips) -> Clips:
    fields = ("picture", "azimuths_deg", "elevations_deg", "times")
    condition = ClipCondition(*(torch.cat([getattr(a.condition, f), getattr(b.condition, f)]) for f in fields))
    return Clips(torch.cat([a.latents, b.latents]), condition)


class PriorTask:
    """Velocity matching on clips over time, clips over views and single pictures: one network, three priors.

    v = (noise − σ · clean) / √(1 + σ²), which is what `from_velocity` turns back into the clean estimate.
    """

    def __init__(
        self, network: SmallPrior, train: LatentGrids, held_out: LatentGrids, decoder: Autoencoder, batch: int
    ):
        self.network: nn.Module = network
        self.prior, self.train, self.held_out, self.decoder, self.batch = network, train, held_out, decoder, batch

    def loss(self, call: Callable, generator: torch.Generator) -> Tensor:
        single = torch.rand(1, generator=generator, device=generator.device).item() < CELL_SHARE
        clips = (some_cells if single else some_clips)(self.train, self.batch, generator)
        kept = torch.rand(len(clips.latents), generator=generator, device=generator.device) > 0.1
        # the given picture may itself be generated when sampling: teach tolerance to small errors in it
        picture = clips.condition.picture
        smudged = picture + 0.05 * torch.randn(picture.shape, generator=generator, device=generator.device)
        condition = ClipCondition(
            smudged, clips.condition.azimuths_deg, clips.condition.elevations_deg, clips.condition.times
        )
        return velocity_error(call, clips.latents, condition, kept, generator).mean()

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.train.latents.device).manual_seed(seed)

    def scores(self) -> dict[str, float]:
        """Velocity error on held-out clips with fixed noise: over time, over views."""
        generator = self._generator(3)
        result = {}
        draws: dict[str, Callable[..., Clips]] = {
            "video": partial(some_clips, video_share=1.0),
            "multiview": partial(some_clips, video_share=0.0),
            "cell": some_cells,
        }
        for kind, drawn in draws.items():
            clips = drawn(self.held_out, 48, generator)
            kept = torch.ones(len(clips.latents), dtype=torch.bool, device=generator.device)
            with torch.inference_mode(), torch.autocast(generator.device.type, torch.bfloat16):
                error = velocity_error(self.prior, clips.latents, clips.condition, kept, generator)
            result[kind] = round(error.mean().item(), 5)
        return result

    def preview(self) -> Image.Image:
        """Four orbits and four videos of held-out objects, drawn in 20 steps: truth above, drawn below."""
        generator = self._generator(4)
        clips = joined(some_clips(self.held_out, 4, generator, 0.0), some_clips(self.held_out, 4, generator, 1.0))
        with torch.inference_mode():
            noise = torch.randn(clips.latents.shape, generator=generator, device=generator.device)
            drawn = draw(self.prior, clips.condition, noise)
            both = rearrange([clips.latents, drawn], "two b p c h w -> (b two p) c h w")
            pictures = on_white(self.decoder.decode(both))
        return mosaic(rearrange(pictures, "(b two p) c h w -> (b two) p c h w", b=len(drawn), two=2))


def draw(prior: SmallPrior, condition: ClipCondition, noise: Tensor, steps: int = 20, scale: float = 2.0) -> Tensor:
    """Clips drawn from the prior alone: Euler over Karras sigmas, guided."""
    denoise = guided(
        from_velocity(bound(prior, condition, kept=True)), from_velocity(bound(prior, condition, kept=False)), scale
    )
    sigmas = karras(steps, 0.02, 80.0)
    with torch.autocast(noise.device.type, torch.bfloat16):
        return euler(denoise, noise * sigmas[0].item(), sigmas)


def some_clips(grids: LatentGrids, count: int, generator: torch.Generator, video_share: float = 0.3) -> Clips:
    """Random clips: `video_share` of them over time (mostly given their first frame), the rest over views."""

    def any_of(limit: int, size: int) -> Tensor:
        return torch.randint(limit, (size,), generator=generator, device=generator.device)

    total, views, frames = grids.latents.shape[:3]
    videos = round(count * video_share)
    first = torch.rand(videos, generator=generator, device=generator.device) < 0.8
    over_time = grids.videos(
        any_of(total, videos), any_of(views, videos), torch.where(first, 0, any_of(frames, videos))
    )
    orbits = count - videos
    over_views = grids.orbits(any_of(total, orbits), any_of(frames, orbits), any_of(views, orbits))
    return joined(over_time, over_views)


def some_cells(grids: LatentGrids, count: int, generator: torch.Generator) -> Clips:
    """As many single pictures as `count` clips have, anywhere in their grids, given another one of the grid."""
    total, views, frames = grids.latents.shape[:3]
    drawn = torch.rand(count * views, 5, generator=generator, device=generator.device)
    chosen = (drawn * torch.tensor([total, views, frames, views, frames], device=generator.device)).long()
    return grids.cells(chosen[:, 0], chosen[:, 1:3], chosen[:, 3:5])


def velocity_error(
    call: Callable, clean: Tensor, condition: ClipCondition, kept: Tensor, generator: torch.Generator
) -> Float[Tensor, " b"]:
    """Mean squared velocity error per clip at ln σ ~ N(0.4, 1.6), one σ per clip."""
    drawn = torch.randn(len(clean), generator=generator, device=generator.device)
    sigma = (0.4 + 1.6 * drawn).exp().clamp(0.01, 100)
    noise = torch.randn(clean.shape, generator=generator, device=generator.device)
    wide = sigma[:, None, None, None, None]
    unit = (1 + wide**2) ** -0.5
    velocity = call(unit * (clean + wide * noise), sigma.log() / 4, condition, kept)
    return reduce((velocity.float() - unit * (noise - wide * clean)).square(), "b p c h w -> b", "mean")

"""What the built-in family is trained to do: the autoencoder's and the priors' losses, previews and scores."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn

from loom4d.denoisers.autoencoder import Autoencoder
from loom4d.denoisers.small import ClipCondition, SmallPrior, bound
from loom4d.diffusion.denoiser import from_velocity
from loom4d.diffusion.guidance import guided
from loom4d.diffusion.samplers import euler
from loom4d.diffusion.schedules import karras
from loom4d.grid import to_bytes
from loom4d.training.clips import Clips, LatentGrids, joined, some_cells, some_clips
from loom4d.training.loop import FROM_NOISE
from loom4d.training.shards import Shards

# --- the autoencoder ------------------------------------------------------------------------------------------------

# Luminance and two colour differences: an error of colour alone counts as much as one of brightness.
LUMA_CHROMA = torch.tensor([[0.33, 0.34, 0.33], [0.5, 0.0, -0.5], [-0.25, 0.5, -0.25]])


def on_white(premultiplied: Float[Tensor, "*b 4 h w"]) -> Float[Tensor, "*b 3 h w"]:
    return premultiplied[..., :3, :, :] + 1 - premultiplied[..., 3:, :, :]


def psnr(ours: Float[Tensor, "*shape"], truth: Float[Tensor, "*shape"]) -> float:
    """Peak signal-to-noise ratio of pictures in 0..1, in dB, over all values at once."""
    return -10 * torch.log10((ours - truth).square().mean().clamp_min(1e-10)).item()


def foreground_psnr(ours: Float[Tensor, "b 4 h w"], truth: Float[Tensor, "b 4 h w"]) -> float:
    """The same on white, over the pixels that the true objects cover."""
    inside = truth[:, 3:].expand(-1, 3, -1, -1) > 0.02
    return psnr(on_white(ours)[inside], on_white(truth)[inside])


class AutoencoderTask:
    """Reconstruction of premultiplied RGBA from codes with Gaussian noise of deviation `noise` on them.

    Most steps see square pieces of `crop` pixels (0: none do) that hold as much of an object as they can, for most of a
    picture is empty; `WHOLE` of them see whole pictures, as the network will. `anchor` weighs the codes' mean squared
    distance from those of the network as it came: priors trained in that latent space then stay nearly right.
    """

    def __init__(
        self,
        network: Autoencoder,
        train: Shards,
        held_out: Shards,
        batch: int,
        noise: float = 0.1,
        crop: int = 0,
        anchor: float = 0.0,
    ):
        self.network: nn.Module = Roundtrip(network, noise)
        self.autoencoder, self.shards, self.held_out, self.batch = network, train, held_out, batch
        self.crop, self.anchor = crop, anchor
        self.anchored = deepcopy(network.encoder).requires_grad_(False) if anchor else None

    @property
    def pictures(self) -> int:
        return self.batch

    def loss(self, call: Callable, generator: torch.Generator) -> Tensor:
        pictures = some_pictures(self.shards, self.batch, generator)
        if self.crop and torch.rand((), generator=generator, device=generator.device).item() >= WHOLE:
            pictures = cropped(pictures, self.crop, generator)
        cells = (self.batch, self.autoencoder.config.channels, pictures.shape[-2] // 8, pictures.shape[-1] // 8)
        noise = torch.randn(cells, generator=generator, device=generator.device)
        decoded, codes = call(pictures, noise)
        total = picture_error(decoded, pictures) + 1e-4 * codes.float().square().mean()
        if self.anchored is not None:
            with torch.no_grad(), torch.autocast(pictures.device.type, torch.bfloat16):
                before = self.anchored(pictures * 2 - 1)
            total = total + self.anchor * (codes.float() - before.float()).square().mean()
        return total

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.autoencoder.latent_mean.device).manual_seed(seed)

    def _pairs(self, count: int) -> tuple[Tensor, Tensor]:
        truth = some_pictures(self.held_out, count, self._generator(1))
        with torch.inference_mode():
            return truth, self.autoencoder.decode(self.autoencoder.encode(truth)).clamp(0, 1)

    def scores(self) -> dict[str, float]:
        truth, ours = self._pairs(128)
        return {"psnr": psnr(on_white(ours), on_white(truth)), "foreground_psnr": foreground_psnr(ours, truth)}

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


def picture_error(decoded: Float[Tensor, "b 4 h w"], pictures: Float[Tensor, "b 4 h w"]) -> Float[Tensor, ""]:
    """Squared errors of brightness, colour and alpha, and absolute ones; the object and its rim count six times."""
    error = decoded.float() - pictures
    colour = torch.einsum("ij,bjhw->bihw", 1.5 * LUMA_CHROMA.to(error), error[:, :3])
    inside = 0.2 + torch.nn.functional.max_pool2d(pictures[:, 3:], 5, 1, 2)
    squared = (inside * torch.cat([colour, error[:, 3:]], 1).square()).mean()
    return 10 * squared + (inside * error.abs()).mean()


class Roundtrip(nn.Module):
    """Encoder, noise on the code, decoder, in one call; or the decoder alone on `codes`."""

    def __init__(self, autoencoder: Autoencoder, noise: float):
        super().__init__()
        self.autoencoder, self.noise = autoencoder, noise

    def forward(self, pictures: Tensor, unit_noise: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        codes = self.autoencoder.encoder(pictures * 2 - 1) if codes is None else codes
        return (self.autoencoder.decoder(codes + self.noise * unit_noise) + 1) / 2, codes


WHOLE = 0.25  # share of an autoencoder's steps on whole pictures


def cropped(
    pictures: Float[Tensor, "b 4 height width"], side: int, generator: torch.Generator
) -> Float[Tensor, "b 4 side side"]:
    """A square piece of each picture, at random among those that hold as much of its object as they can."""
    inside = pictures[:, 3] > 0.02
    places = torch.rand(len(pictures), 2, generator=generator, device=generator.device)
    starts = torch.stack([_start(inside.any(2), side, places[:, 0]), _start(inside.any(1), side, places[:, 1])], 1)
    return torch.stack(
        [picture[:, y : y + side, x : x + side] for picture, (y, x) in zip(pictures, starts.tolist(), strict=True)]
    )


def _start(marked: Bool[Tensor, "b n"], side: int, place: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Where a window of `side` begins that covers the marked span, or lies within it where that is longer; `place` in
    0..1 chooses among the possible ones."""
    length = marked.shape[1]
    first = marked.int().argmax(1)
    last = length - marked.flip(1).int().argmax(1)  # exclusive; the whole length where nothing is marked
    ends = torch.stack([first, last - side], 1).sort(1).values.clamp(0, length - side)
    return (ends[:, 0] + place * (ends[:, 1] - ends[:, 0] + 1)).long().clamp(max=length - side)


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
CROSSED_SHARE = 0.5  # of the clips, told a clip that crosses them
PURE_SHARE = 0.15  # of the clips, as good as pure noise: a sampler that leaps asks for the mean there, and once only

# --- the priors -----------------------------------------------------------------------------------------------------


class PriorTask:
    """Velocity matching on clips over time, clips over views and single pictures: one network, three priors.

    v = (noise − σ · clean) / √(1 + σ²), which is what `from_velocity` turns back into the clean estimate.
    """

    def __init__(
        self, network: SmallPrior, train: LatentGrids, held_out: LatentGrids, decoder: Autoencoder, batch: int
    ):
        self.network: nn.Module = network
        self.prior, self.train, self.held_out, self.decoder, self.batch = network, train, held_out, decoder, batch

    @property
    def pictures(self) -> int:
        return self.batch * self.train.latents.shape[1]

    def loss(self, call: Callable, generator: torch.Generator) -> Tensor:
        def uniform(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, device=generator.device)

        crossed = CROSSED_SHARE if self.prior.config.crossings else None
        if uniform(1).item() < CELL_SHARE:
            clips = some_cells(self.train, self.batch, generator, crossed)
        else:
            clips = some_clips(self.train, self.batch, generator, crossed=crossed)
        condition = smudged(clips.condition, generator)
        kept = uniform(len(clips.latents)) > 0.1
        sigma = training_sigmas(len(clips.latents), generator)
        return velocity_error(call, clips.latents, condition, kept, sigma, generator).mean()

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.train.latents.device).manual_seed(seed)

    def scores(self) -> dict[str, float]:
        """Velocity error on held-out clips with fixed noise: over time, over views, of cells; alone and crossed; at
        ln σ ~ N(0.4, 1.6), and from pure noise."""
        generator = self._generator(3)
        result = {}
        draws: dict[str, Callable[..., Clips]] = {
            "video": partial(some_clips, video_share=1.0),
            "multiview": partial(some_clips, video_share=0.0),
            "cell": some_cells,
        }
        if self.prior.config.crossings:
            draws |= {f"{kind} crossed": partial(drawn, crossed=1.0) for kind, drawn in draws.items()}
        for kind, drawn in draws.items():
            clips = drawn(self.held_out, 48, generator)
            kept = torch.ones(len(clips.latents), dtype=torch.bool, device=generator.device)
            usual = log_normal(len(clips.latents), 0.4, 1.6, generator)
            pure, noise = torch.full_like(usual, 80.0), self._generator(5)
            for name, sigma, drawing in ((kind, usual, generator), (f"{kind}{FROM_NOISE}", pure, noise)):
                with torch.inference_mode(), torch.autocast(generator.device.type, torch.bfloat16):
                    error = velocity_error(self.prior, clips.latents, clips.condition, kept, sigma, drawing)
                result[name] = round(error.mean().item(), 5)
        return result

    def preview(self) -> Image.Image:
        """Orbits and videos of held-out objects, four each, drawn in 20 steps: truth above, drawn below; where the
        prior can be told a crossing clip, of two of each it is."""
        generator = self._generator(4)
        shares = [0.0, 1.0] if self.prior.config.crossings else [None, None]
        parts = [some_clips(self.held_out, 2, generator, over, told) for over in (0.0, 1.0) for told in shares]
        clips = joined(joined(*parts[:2]), joined(*parts[2:]))
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


def smudged(condition: ClipCondition, generator: torch.Generator) -> ClipCondition:
    """With noise on the given pictures: when sampling they may be generated, so small errors must be borne."""

    def noisy(latents: Tensor) -> Tensor:
        return latents + 0.05 * torch.randn(latents.shape, generator=generator, device=generator.device)

    across = condition.crossing
    if across is not None:
        across = replace(across, pictures=noisy(across.pictures))
    return replace(condition, picture=noisy(condition.picture), crossing=across)


def training_sigmas(count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """What sampling visits: its steps lie as close at large σ, where shapes are decided, as at small ones."""
    sigma = log_normal(count, 1.2, 1.8, generator)
    pure = torch.rand(count, generator=generator, device=generator.device) < PURE_SHARE
    return torch.where(pure, log_normal(count, 4.3, 0.1, generator), sigma)


def log_normal(count: int, mean: float, deviation: float, generator: torch.Generator) -> Float[Tensor, " b"]:
    """σ with ln σ ~ N(mean, deviation), in 0.01..100."""
    drawn = torch.randn(count, generator=generator, device=generator.device)
    return (mean + deviation * drawn).exp().clamp(0.01, 100)


def velocity_error(
    call: Callable,
    clean: Tensor,
    condition: ClipCondition,
    kept: Tensor,
    sigma: Float[Tensor, " b"],
    generator: torch.Generator,
) -> Float[Tensor, " b"]:
    """Mean squared velocity error per clip, one σ per clip."""
    noise = torch.randn(clean.shape, generator=generator, device=generator.device)
    wide = sigma[:, None, None, None, None]
    unit = (1 + wide**2) ** -0.5
    velocity = call(unit * (clean + wide * noise), sigma.log() / 4, condition, kept)
    return reduce((velocity.float() - unit * (noise - wide * clean)).square(), "b p c h w -> b", "mean")

"""The built-in family: one small transformer over a clip of latents, as a video prior and as a multi-view prior.

A clip is P pictures of one object. The first-given picture (the condition) is known clean; every picture knows where
it was taken relative to it. A clip over time at one camera is what a video prior sees, a clip over cameras at one
instant is what a multi-view prior sees. Conditions enter as SVD's and SV3D's do: the given picture's latent is
concatenated to every noisy picture, camera angles and time enter as embeddings per picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loom4d.denoisers.family import Guidance
from loom4d.denoisers.layers import ModulatedBlock, sinusoids
from loom4d.diffusion.denoiser import Denoiser, Network, from_velocity
from loom4d.diffusion.guidance import guided_together, linear


@dataclass(frozen=True)
class SmallConfig:
    channels: int = 16  # of the latent
    cells: int = 8  # latent cells along each side of a picture
    width: int = 256
    depth: int = 8
    heads: int = 4
    crossings: bool = False  # whether the network can be told a crossing clip


@dataclass(frozen=True)
class Crossing:
    """What another camera saw at each picture's own instant. With what the picture's own camera saw at another instant
    (the condition's `picture`), a picture then knows its corner of the grid: how things look there, and how they move.
    """

    pictures: Float[Tensor, "b p c h w"]  # clean latents
    azimuths_deg: Float[Tensor, "b p"]  # of that camera less the picture's own
    known: Bool[Tensor, " b"]  # False: this clip has none

    def __getitem__(self, index) -> Crossing:
        return Crossing(self.pictures[index], self.azimuths_deg[index], self.known[index])


@dataclass(frozen=True)
class ClipCondition:
    """What a clip of P pictures is conditioned on: one given picture for all, or one for each.

    `azimuths_deg` and `times` of each picture are relative to its given one.
    """

    picture: Float[Tensor, "b given c h w"]  # clean latent
    azimuths_deg: Float[Tensor, "b p"]
    elevations_deg: Float[Tensor, "b p"]  # absolute
    times: Float[Tensor, "b p"]  # seconds
    crossing: Crossing | None = None

    def __getitem__(self, index) -> ClipCondition:
        return ClipCondition(
            self.picture[index],
            self.azimuths_deg[index],
            self.elevations_deg[index],
            self.times[index],
            None if self.crossing is None else self.crossing[index],
        )


class SmallPrior(nn.Module):
    """Estimates the velocity of a clip; its tokens attend over space and over the clip.

    `forward(x, noise_level, condition, kept)` takes c_in-scaled noisy clips, the noise level ¼ ln σ per clip, and
    `kept`: False drops the given picture and the crossing clip (classifier-free guidance), angles and times stay as
    they are in SVD.
    """

    def __init__(self, config: SmallConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Linear(3 * config.channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(config.cells**2, width))
        self.null_picture = nn.Parameter(torch.zeros(config.channels, 1, 1))
        self.noise_mlp = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        self.place_mlp = nn.Sequential(nn.Linear(PLACE_WIDTH, width), nn.SiLU(), nn.Linear(width, width))
        self.place_token = nn.Linear(width, width)
        if config.crossings:
            self.crossing = CrossingEmbedding(config.channels, width)
        self.blocks = nn.ModuleList(
            ModulatedBlock(width, config.heads, rows=index % 2 == 0) for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.channels)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Float[Tensor, "b p c h w"],
        noise_level: Float[Tensor, " b"],
        condition: ClipCondition,
        kept: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b p c h w"]:
        picture = torch.where(kept[:, None, None, None, None], condition.picture, self.null_picture)
        # The given picture, and its mirror image: seen from behind, an outline is the mirror of that from the front.
        known = torch.cat([picture, picture.flip(-1)], 2).expand(-1, x.shape[1], -1, -1, -1)
        paired = torch.cat([x, known], 2)  # (B, P, 3C, h, w)
        place = self.place_mlp(place_features(condition))  # (B, P, D)
        tokens = self.embed(rearrange(paired, "b p c h w -> b p (h w) c")) + self.position
        if condition.crossing is not None:
            seen, whence = self.crossing(condition.crossing, kept)
            tokens, place = tokens + seen, place + whence
        tokens = tokens + self.place_token(place)[:, :, None]  # (B, P, hw, D)
        speech = nn.functional.silu(self.noise_mlp(sinusoids(100 * noise_level, 128))[:, None] + place)  # (B, P, D)
        for block in self.blocks:
            tokens = block(tokens, speech)  # (B, P, hw, D)
        shift, scale = self.modulation(speech)[:, :, None].chunk(2, -1)
        velocity = self.out(self.norm(tokens) * (1 + scale) + shift)  # (B, P, hw, C)
        return rearrange(velocity, "b p (h w) c -> b p c h w", h=x.shape[-2])


class CrossingEmbedding(nn.Module):
    """What a crossing clip adds to tokens and places; starts at nothing, so a prior without it can grow one."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.picture = nn.Linear(channels, width, bias=False)
        self.place = nn.Linear(2 * len(AZIMUTH), width)
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(
        self, crossing: Crossing, kept: Bool[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b p s width"], Float[Tensor, "b p width"]]:
        told = (crossing.known & kept).float()[:, None, None]
        seen = self.picture(rearrange(crossing.pictures, "b p c h w -> b p (h w) c"))
        return told[..., None] * seen, told * self.place(harmonics((crossing.azimuths_deg, AZIMUTH)))


def harmonics(*angles: tuple[Float[Tensor, "*b"], tuple[float, ...]]) -> Float[Tensor, "*b n"]:
    """cos and sin of every value times each of its frequencies."""
    turned = torch.cat([value[..., None] * torch.tensor(rates).to(value) for value, rates in angles], -1)
    return torch.cat([turned.cos(), turned.sin()], -1)


AZIMUTH = tuple(math.radians(1) * order for order in (1, 2, 3, 4))
ELEVATION = tuple(math.radians(1) * order for order in (1, 4))
TIME = tuple(math.pi / 4 * 2.0**octave for octave in range(-1, 7))
PLACE_WIDTH = 2 * (len(AZIMUTH) + len(ELEVATION) + len(TIME))


def place_features(condition: ClipCondition) -> Float[Tensor, "b p n"]:
    """Where and when each picture was taken: four harmonics of the azimuth, two of the elevation, eight of the time."""
    return harmonics((condition.azimuths_deg, AZIMUTH), (condition.elevations_deg, ELEVATION), (condition.times, TIME))


def bound(prior: SmallPrior, condition: ClipCondition, kept: bool) -> Network:
    """The network with its condition inside: (scaled clips, ¼ ln σ) -> velocity, for `from_velocity`."""

    def network(x: Float[Tensor, "b p c h w"], noise_level: Tensor) -> Float[Tensor, "b p c h w"]:
        levels = noise_level.float().expand(x.shape[0])
        return prior(x.float(), levels, condition, torch.full((x.shape[0],), kept, device=x.device)).float()

    return network


def doubled(condition: ClipCondition) -> ClipCondition:
    """The condition of twice the clips, for one call with both halves of the guidance."""
    return condition[torch.arange(len(condition.picture)).repeat(2)]


def guided_prior(prior: SmallPrior, condition: ClipCondition, guidance: Guidance) -> Denoiser:
    """The prior under classifier-free guidance, both halves in one call."""
    twice = doubled(condition)

    def both(x: Float[Tensor, "b p c h w"], noise_level: Tensor) -> Float[Tensor, "b p c h w"]:
        kept = torch.arange(x.shape[0], device=x.device) < x.shape[0] // 2
        return prior(x.float(), noise_level.float().expand(x.shape[0]), twice, kept).float()

    scale = linear(guidance.first, guidance.last, condition.times.shape[1])
    interval = (guidance.low, guidance.high)
    return guided_together(from_velocity(bound(prior, condition, True)), from_velocity(both), scale, interval)

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
from einops import rearrange, repeat
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


@dataclass(frozen=True)
class ClipCondition:
    """What a clip of P pictures is conditioned on. `azimuths_deg` and `times` are relative to the given picture."""

    picture: Float[Tensor, "b c h w"]  # clean latent of the given picture
    azimuths_deg: Float[Tensor, "b p"]
    elevations_deg: Float[Tensor, "b p"]  # absolute
    times: Float[Tensor, "b p"]  # seconds

    def __getitem__(self, index) -> ClipCondition:
        return ClipCondition(
            self.picture[index], self.azimuths_deg[index], self.elevations_deg[index], self.times[index]
        )


class SmallPrior(nn.Module):
    """Estimates the velocity of a clip; its tokens attend over space and over the clip.

    `forward(x, noise_level, condition, kept)` takes c_in-scaled noisy clips, the noise level ¼ ln σ per clip, and
    `kept`: False drops the given picture (classifier-free guidance), angles and times stay as they are in SVD.
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
        picture = torch.where(kept[:, None, None, None], condition.picture, self.null_picture)
        # The given picture, and its mirror image: seen from behind, an outline is the mirror of that from the front.
        known = repeat(torch.cat([picture, picture.flip(-1)], 1), "b c h w -> b p c h w", p=x.shape[1])
        paired = torch.cat([x, known], 2)  # (B, P, 3C, h, w)
        place = self.place_mlp(place_features(condition))  # (B, P, D)
        tokens = self.embed(rearrange(paired, "b p c h w -> b p (h w) c")) + self.position
        tokens = tokens + self.place_token(place)[:, :, None]  # (B, P, hw, D)
        speech = nn.functional.silu(self.noise_mlp(sinusoids(100 * noise_level, 128))[:, None] + place)  # (B, P, D)
        for block in self.blocks:
            tokens = block(tokens, speech)  # (B, P, hw, D)
        shift, scale = self.modulation(speech)[:, :, None].chunk(2, -1)
        velocity = self.out(self.norm(tokens) * (1 + scale) + shift)  # (B, P, hw, C)
        return rearrange(velocity, "b p (h w) c -> b p c h w", h=x.shape[-2])


PLACE_WIDTH = 8 + 4 + 16


def place_features(condition: ClipCondition) -> Float[Tensor, "b p n"]:
    """Where and when each picture was taken: four harmonics of the azimuth, two of the elevation, eight of the time."""
    azimuth = torch.deg2rad(condition.azimuths_deg)[..., None] * torch.arange(1, 5, device=condition.picture.device)
    elevation = torch.deg2rad(condition.elevations_deg)[..., None] * torch.tensor([1.0, 4.0]).to(azimuth)
    time = condition.times[..., None] * (math.pi / 2) * 2.0 ** torch.arange(-1, 7).to(azimuth) / 2
    angles = torch.cat([azimuth, elevation, time], -1)
    return torch.cat([angles.cos(), angles.sin()], -1)


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

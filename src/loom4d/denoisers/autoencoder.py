"""The built-in autoencoder: RGBA pictures to a small latent grid, eight pixels a cell, and back.

Pictures enter as premultiplied RGBA mapped to −1..1. Pixels are folded into channels first, so that no convolution
runs at full size. The latent carries Gaussian noise of fixed deviation while training (a VAE with constant variance):
nearby codes decode alike, and the decoder forgives the small errors that a sampler makes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loom4d.denoisers.layers import ResidualBlock

STRIDE = 8  # pixels per latent cell


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int = 16  # of the latent
    width: int = 128  # at a quarter of the resolution
    deep_width: int = 256  # at an eighth
    encoder_blocks: int = 2
    decoder_blocks: int = 4


class Autoencoder(nn.Module):
    """`encode` and `decode` speak normalised latents: zero mean, unit variance over the training pictures."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        width, deep = config.width, config.deep_width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(64, width, 3, padding=1),  # (B, width, H/4, W/4)
            *[ResidualBlock(width) for _ in range(config.encoder_blocks)],
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * width, deep, 1),  # (B, deep, H/8, W/8)
            *[ResidualBlock(deep) for _ in range(config.encoder_blocks)],
            nn.GroupNorm(8, deep),
            nn.Conv2d(deep, config.channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(config.channels, deep, 3, padding=1),
            *[ResidualBlock(deep) for _ in range(config.decoder_blocks)],
            nn.Conv2d(deep, 4 * width, 1),
            nn.PixelShuffle(2),  # (B, width, H/4, W/4)
            *[ResidualBlock(width) for _ in range(config.decoder_blocks)],
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, 64, 3, padding=1),
            nn.PixelShuffle(4),
        )
        self.register_buffer("latent_mean", torch.zeros(config.channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(config.channels, 1, 1))

    def encode(self, premultiplied: Float[Tensor, "b 4 height width"]) -> Float[Tensor, "b c h w"]:
        """Premultiplied RGBA in 0..1 to normalised latents; height and width are multiples of 8."""
        return (self.encoder(premultiplied * 2 - 1) - self.latent_mean) / self.latent_std

    def features(self, premultiplied: Float[Tensor, "b 4 height width"]) -> list[Float[Tensor, "b _ _ _"]]:
        """What the encoder sees at a quarter and at an eighth of the resolution: for perceptual distances."""
        maps, x = [], premultiplied * 2 - 1
        for layer, following in zip(self.encoder, [*self.encoder][1:], strict=False):
            x = layer(x)
            if isinstance(layer, ResidualBlock) and not isinstance(following, ResidualBlock):
                maps.append(x)
        return maps

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4 height width"]:
        """Normalised latents to premultiplied RGBA, about 0..1 (not clamped)."""
        return (self.decoder(latents * self.latent_std + self.latent_mean) + 1) / 2

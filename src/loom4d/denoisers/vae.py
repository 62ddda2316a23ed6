"""The autoencoders of SVD and SV3D, on diffusers' classes: pictures in −1..1 to latents, eight pixels a cell, and back.

Both condition on the same encoder's mode, unscaled. SVD's decoder also looks over time, SV3D's does not. The latents
that are diffused are `SCALE` times the encoder's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loom4d.denoisers.checkpoints import Origin, Origins
from loom4d.denoisers.unet import RESIDUAL, Stock, diffusers_module

SCALE = 0.18215


@dataclass(frozen=True)
class VAEConfig:
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2  # per level; diffusers' temporal decoder is right for two or more
    channels: int = 4  # of the latent

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def stride(self) -> int:
        """Pixels per latent cell."""
        return 2 ** (len(self.multipliers) - 1)


def image_vae(config: VAEConfig) -> Stock:
    """SV3D's: encoder and image decoder, without memory."""
    model = diffusers_module("models.autoencoders.autoencoder_kl").AutoencoderKL
    levels = len(config.widths)
    with torch.device("meta"):
        return model(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
            latent_channels=config.channels,
        )


def video_vae(config: VAEConfig) -> Stock:
    """SVD's: encoder and temporal decoder, without memory."""
    model = diffusers_module("models.autoencoders.autoencoder_kl_temporal_decoder").AutoencoderKLTemporalDecoder
    with torch.device("meta"):
        vae = model(
            down_block_types=("DownEncoderBlock2D",) * len(config.widths),
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
            latent_channels=config.channels,
        )
    return nn.Module.to(vae, "meta")


def lone_encoder(config: VAEConfig) -> Stock:
    """The encoder that svd_xt's diffused latents come from: one without a quantisation layer, without memory."""
    model = diffusers_module("models.autoencoders.vae").Encoder
    with torch.device("meta"):
        return model(
            out_channels=config.channels,
            down_block_types=("DownEncoderBlock2D",) * len(config.widths),
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
        )


def encode_mode(vae: Stock, pictures: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
    """The posterior's mode of pictures in −1..1, unscaled, one picture at a time (memory). `vae` may be an encoder."""
    encoder, quantise = (vae.encoder, vae.quant_conv) if hasattr(vae, "quant_conv") else (vae, nn.Identity())
    weight = encoder.conv_in.weight
    latents = [quantise(encoder(picture[None].to(weight))) for picture in pictures]
    return torch.cat(latents).chunk(2, 1)[0].float()  # the other half is the posterior's log variance


def decode_pictures(vae: Stock, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
    """Unscaled latents to pictures in about −1..1 with the image decoder, one at a time."""
    weight = vae.decoder.conv_in.weight
    return torch.cat([vae.decoder(vae.post_quant_conv(latent[None].to(weight))) for latent in latents]).float()


def decode_clip(
    vae: Stock, latents: Float[Tensor, "frame c h w"], window: int
) -> Float[Tensor, "frame 3 height width"]:
    """Unscaled latents of one clip to pictures in about −1..1 with the temporal decoder, `window` frames at a time.

    A window that holds the whole clip is exact. Smaller ones overlap by at least a third and fade into each other, so
    that no seam is seen where one begins.
    """
    frames, weight = len(latents), vae.decoder.conv_in.weight
    result: Tensor | None = None
    for (first, last), fade in zip(*windows(frames, window), strict=True):
        part = vae.decode(latents[first:last].to(weight), num_frames=last - first).sample.float()
        if result is None:
            result = part.new_zeros(frames, *part.shape[1:])
        result[first:last] += fade.to(part)[:, None, None, None] * part
    assert result is not None  # a clip has at least one frame, hence one window
    return result


def windows(frames: int, window: int) -> tuple[list[tuple[int, int]], list[Float[Tensor, " frame"]]]:
    """Overlapping (first, last) ranges over a clip and each one's weights, which sum to 1 at every frame."""
    if window < 1:
        raise ValueError(f"a decoding window holds at least one frame, got {window}")
    window = min(window, frames)
    step = max(1, window - max(1, -(-window // 3)))
    count = 1 + -(-(frames - window) // step)
    starts = torch.linspace(0, frames - window, count).round().long().tolist()
    ranges = [(start, start + window) for start in starts]
    fade = torch.minimum(torch.arange(1, window + 1), torch.arange(window, 0, -1)).float()
    total = torch.zeros(frames)
    for first, last in ranges:
        total[first:last] += fade
    weights = [fade / total[first:last] for first, last in ranges]
    return ranges, weights


def seen(decoded: Float[Tensor, "*b 3 height width"]) -> Float[Tensor, "*b 3 height width"]:
    """A decoder's −1..1 as colours in 0..1."""
    return ((decoded + 1) / 2).clamp(0, 1)


# --- names ---------------------------------------------------------------------------------------------------------

ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_names(config: VAEConfig, encoder: str, decoder: str | None) -> Origins:
    """Where the original checkpoints keep the tensors of diffusers' VAE classes.

    `encoder` and `decoder` are the prefixes of those two parts; `encoder` also has the quantisation layer beside it.
    The first stages have no layer after quantisation: it becomes the identity. A lone encoder (`decoder` None) is asked
    for by names without "encoder.".
    """

    def origin(name: str) -> Origin:
        if decoder is None:
            return _tensor(config, encoder, name)
        part, _, rest = name.partition(".")
        if part == "quant_conv":
            return Origin((f"{encoder.removesuffix('encoder.')}{name}",))
        if part == "post_quant_conv":
            return Origin((), _identity(config.channels) if rest == "weight" else _zeros(config.channels))
        return _tensor(config, {"encoder": encoder, "decoder": decoder}[part], rest)

    return origin


def _tensor(config: VAEConfig, prefix: str, name: str) -> Origin:
    """One tensor of an encoder or decoder."""
    layer, _, kind = name.rpartition(".")
    outer = {"conv_norm_out": "norm_out", "time_conv_out": "conv_out.time_mix_conv"}.get(layer, layer)
    if "." not in layer:
        return Origin((f"{prefix}{outer}.{kind}",))
    side, rest = layer.split(".", 1)
    if side == "mid_block":
        part, index, inner = rest.split(".", 2)
        if part == "attentions":
            make = _as_matrix if kind == "weight" and inner != "group_norm" else _as_is
            return Origin((f"{prefix}mid.attn_1.{ATTENTION[inner]}.{kind}",), make)
        return Origin((f"{prefix}mid.block_{int(index) + 1}.{_residual(inner, kind)}",))
    level, part, index, *within = rest.split(".", 3)
    scale = int(level) if side == "down_blocks" else len(config.multipliers) - 1 - int(level)
    place = f"{prefix}{side.removesuffix('_blocks')}.{scale}."
    if part == "resnets":
        return Origin((f"{place}block.{index}.{_residual(within[0], kind)}",))
    return Origin((f"{place}{part.removesuffix('rs')}.conv.{kind}",))  # upsample, downsample


def _residual(inner: str, kind: str) -> str:
    scope, _, layer = inner.partition(".")
    if scope == "time_mixer":
        return "mix_factor"
    if scope == "temporal_res_block":
        return f"time_stack.{RESIDUAL[layer]}.{kind}"
    name = layer if scope == "spatial_res_block" else inner
    return f"{name.replace('conv_shortcut', 'nin_shortcut')}.{kind}"


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _as_matrix(convolution: Float[Tensor, "o i 1 1"]) -> Float[Tensor, "o i"]:
    return rearrange(convolution, "o i 1 1 -> o i")


def _identity(channels: int):
    return lambda: torch.eye(channels)[:, :, None, None]


def _zeros(channels: int):
    return lambda: torch.zeros(channels)

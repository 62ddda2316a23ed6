"""The UNet that SVD and SV3D share: clips of latents, told one token and one vector per picture.

It is diffusers' `UNetSpatioTemporalConditionModel` with three changes: GroupNorm's epsilon is the original one, the
vector may differ from picture to picture, and the cross-attention, whose context is a single token, is worked out once
per clip instead of at every step (a softmax over one key is 1, so the queries do not matter).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loom4d.denoisers.checkpoints import Origin, Origins
from loom4d.runs import InputError

EPSILON = 1e-5  # of every GroupNorm outside the transformers; diffusers has 1e-6 in most of them


@dataclass(frozen=True)
class UNetConfig:
    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    attention: tuple[bool, ...] = (True, True, True, False)  # at each level
    blocks: int = 2  # per level on the way down, one more on the way up
    head_width: int = 64
    token_width: int = 1024
    vector_width: int = 768
    channels: int = 4  # of the latent


Stock = Any  # a network of diffusers; its parts carry no types


def diffusers_module(name: str):
    """A module of the optional diffusers package."""
    try:
        return importlib.import_module(f"diffusers.{name}")
    except ModuleNotFoundError as error:
        raise InputError("full-size priors need the diffusers package: pip install 'loom4d[full-size]'") from error


def stock_unet(config: UNetConfig) -> Stock:
    """diffusers' network with the originals' epsilon, without memory (on the meta device)."""
    model = diffusers_module("models.unets.unet_spatio_temporal_condition").UNetSpatioTemporalConditionModel
    widths = tuple(config.width * multiplier for multiplier in config.multipliers)
    attention = config.attention
    with torch.device("meta"):
        unet = model(
            in_channels=2 * config.channels,
            out_channels=config.channels,
            down_block_types=tuple(f"{'CrossAttn' * here}DownBlockSpatioTemporal" for here in attention),
            up_block_types=tuple(f"{'CrossAttn' * here}UpBlockSpatioTemporal" for here in reversed(attention)),
            block_out_channels=widths,
            projection_class_embeddings_input_dim=config.vector_width,
            layers_per_block=config.blocks,
            cross_attention_dim=config.token_width,
            num_attention_heads=tuple(width // config.head_width for width in widths),
        )
    for name, module in unet.named_modules():
        if isinstance(module, nn.GroupNorm) and ".attentions." not in name:
            module.eps = EPSILON
    return nn.Module.to(unet, "meta")  # its mixing factors are made where they are told not to be


class Known(NamedTuple):
    """What one transformer knows before the first step: its frame positions and its cross-attentions' outputs."""

    position: Float[Tensor, "frame c"]
    spatial: Float[Tensor, "clip depth c"]
    temporal: Float[Tensor, "clip depth c"]

    def of(self, clips: slice) -> Known:
        return Known(self.position, self.spatial[clips], self.temporal[clips])

    def followed_by(self, other: Known) -> Known:
        spatial, temporal = torch.cat([self.spatial, other.spatial]), torch.cat([self.temporal, other.temporal])
        return Known(self.position, spatial, temporal)


@dataclass(frozen=True)
class Condition:
    """A batch of clips' conditions, prepared once for a whole trajectory."""

    picture: Float[Tensor, "clip c h w"]  # latent that is concatenated to every noisy picture
    label: Float[Tensor, "clip frame d"]  # the embedded vector, added to the noise level's embedding
    known: tuple[Known, ...]  # one per transformer
    moving: bool = True  # else the layers over time are passed by: every picture is drawn for itself

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, clips: slice) -> Condition:
        known = tuple(one.of(clips) for one in self.known)
        return Condition(self.picture[clips], self.label[clips], known, self.moving)

    def followed_by(self, other: Condition) -> Condition:
        """Both batches in one, this one first."""
        known = tuple(a.followed_by(b) for a, b in zip(self.known, other.known, strict=True))
        picture, label = torch.cat([self.picture, other.picture]), torch.cat([self.label, other.label])
        return Condition(picture, label, known, self.moving)


class ClipTransformer(nn.Module):
    """One of the network's transformers over space and over frames, its cross-attentions known beforehand.

    Holds diffusers' `TransformerSpatioTemporalModel` and takes its place in the network.
    """

    stock: Stock

    def __init__(self, stock: Stock, index: int):
        super().__init__()
        self.index = index
        self.stock = stock

    def know(self, tokens: Float[Tensor, "clip token"], frames: int) -> Known:
        """What follows from the tokens and the number of frames alone."""
        place = self.stock.time_proj(torch.arange(frames, device=tokens.device)).to(tokens)
        crossed = [
            torch.stack([block.attn2.to_out[0](block.attn2.to_v(tokens)) for block in blocks], 1)
            for blocks in (self.stock.transformer_blocks, self.stock.temporal_transformer_blocks)
        ]
        return Known(self.stock.time_pos_embed(place), *crossed)

    def forward(self, hidden_states, encoder_hidden_states, image_only_indicator, return_dict=False) -> tuple[Tensor]:
        """diffusers' names; `encoder_hidden_states` is the clips' `Condition`."""
        stock, known, moving = self.stock, encoder_hidden_states.known[self.index], encoder_hidden_states.moving
        clips, frames = image_only_indicator.shape
        height, cells = hidden_states.shape[-2], hidden_states.shape[-2] * hidden_states.shape[-1]
        x = rearrange(stock.norm(hidden_states), "p c h w -> p (h w) c")  # (B·F, S, C)
        x = stock.proj_in(x)
        spatial_share = stock.time_mixer.mix_factor.sigmoid()
        for depth, (block, temporal) in enumerate(
            zip(stock.transformer_blocks, stock.temporal_transformer_blocks, strict=True)
        ):
            x = x + block.attn1(block.norm1(x))
            x = x + known.spatial[:, depth].repeat_interleave(frames, 0)[:, None]
            x = x + block.ff(block.norm3(x))
            if not moving:
                continue
            y = rearrange(x, "(clip frame) s c -> (clip s) frame c", frame=frames) + known.position  # (B·S, F, C)
            y = y + temporal.ff_in(temporal.norm_in(y))
            y = y + temporal.attn1(temporal.norm1(y))
            y = y + known.temporal[:, depth].repeat_interleave(cells, 0)[:, None]
            y = y + temporal.ff(temporal.norm3(y))
            y = rearrange(y, "(clip s) frame c -> (clip frame) s c", clip=clips)
            x = torch.lerp(y, x, spatial_share)
        return (rearrange(stock.proj_out(x), "p (h w) c -> p c h w", h=height) + hidden_states,)


class ClipUNet(nn.Module):
    """(c_in-scaled clips, ¼ ln σ, condition) -> velocity."""

    stock: Stock

    def __init__(self, stock: Stock, config: UNetConfig):
        super().__init__()
        self.config = config
        self.stock = stock
        self.transformers: list[ClipTransformer] = []  # in the order of a pass
        for block in [*stock.down_blocks, stock.mid_block, *stock.up_blocks]:
            for place, transformer in enumerate(getattr(block, "attentions", ())):
                lean = ClipTransformer(transformer, len(self.transformers))
                for part in (*transformer.transformer_blocks, *transformer.temporal_transformer_blocks):
                    part.norm2 = part.attn2.to_q = part.attn2.to_k = None  # no query, no key: nothing to ask for
                block.attentions[place] = lean
                self.transformers.append(lean)

    @property
    def dtype(self) -> torch.dtype:
        return self.stock.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.stock.conv_in.weight.device

    def condition(
        self,
        picture: Float[Tensor, "clip c h w"],
        token: Float[Tensor, "clip token"],
        vector: Float[Tensor, "clip frame vector"],
        moving: bool = True,
    ) -> Condition:
        """Everything that does not change from step to step; without `moving`, pictures know nothing of each other."""
        picture, token, vector = (part.to(self.device, self.dtype) for part in (picture, token, vector))
        known = tuple(transformer.know(token, vector.shape[1]) for transformer in self.transformers)
        return Condition(picture, self.stock.add_embedding(vector), known, moving)

    def forward(
        self, x: Float[Tensor, "clip frame c h w"], noise_level: Float[Tensor, " clip"], condition: Condition
    ) -> Float[Tensor, "clip frame c h w"]:
        stock, frames = self.stock, x.shape[1]
        picture = condition.picture[:, None].expand(-1, frames, -1, -1, -1)
        hidden = stock.conv_in(rearrange(torch.cat([x, picture], 2), "clip frame c h w -> (clip frame) c h w"))
        noise = stock.time_embedding(stock.time_proj(noise_level).to(x.dtype))  # (B, D)
        told = {
            "temb": rearrange(noise[:, None] + condition.label, "clip frame d -> (clip frame) d"),
            "image_only_indicator": x.new_full(x.shape[:2], 0.0 if condition.moving else 1.0),
        }
        knowing = told | {"encoder_hidden_states": condition}
        skips = [hidden]
        for block in stock.down_blocks:
            hidden, more = block(hidden, **(knowing if hasattr(block, "attentions") else told))
            skips.extend(more)
        hidden = stock.mid_block(hidden, **knowing)
        for block in stock.up_blocks:
            taken, skips = tuple(skips[-len(block.resnets) :]), skips[: -len(block.resnets)]
            extra = knowing if hasattr(block, "attentions") else told
            hidden = block(hidden, res_hidden_states_tuple=taken, **extra)
        out = stock.conv_out(stock.conv_act(stock.conv_norm_out(hidden)))
        return rearrange(out, "(clip frame) c h w -> clip frame c h w", frame=frames)


def channels_last(unet: ClipUNet) -> ClipUNet:
    """The same network with its two-dimensional convolutions' weights laid out channels-last, in place."""
    for parameter in unet.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return unet


# --- names ---------------------------------------------------------------------------------------------------------

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_names(config: UNetConfig, prefix: str = "model.diffusion_model.") -> Origins:
    """Where the original checkpoints keep the tensor that diffusers' network calls by a name."""

    def origin(name: str) -> Origin:
        layer, _, kind = name.rpartition(".")
        if layer in OUTER:
            return Origin((f"{prefix}{OUTER[layer]}.{kind}",))
        side, rest = name.split(".", 1)
        if side == "mid_block":
            part, index, inner = rest.split(".", 2)
            return Origin((f"{prefix}middle_block.{1 if part == 'attentions' else 2 * int(index)}.{_inner(inner)}",))
        level, part, index, inner = rest.split(".", 3)
        return Origin((prefix + _place(config, side, int(level), part, int(index)) + _inner(inner, part),))

    return origin


def _place(config: UNetConfig, side: str, level: int, part: str, index: int) -> str:
    per_level = config.blocks + 1
    if side == "down_blocks":
        last = config.blocks if part == "downsamplers" else index
        return f"input_blocks.{1 + level * per_level + last}.{int(part == 'attentions')}."
    if part == "upsamplers":
        return f"output_blocks.{level * per_level + config.blocks}.{1 + config.attention[::-1][level]}."
    return f"output_blocks.{level * per_level + index}.{int(part == 'attentions')}."


def _inner(name: str, part: str = "") -> str:
    """A name inside a residual block, a transformer or a resampler."""
    if part == "downsamplers":
        return name.replace("conv.", "op.")
    scope, _, rest = name.partition(".")
    if scope in ("spatial_res_block", "temporal_res_block"):
        layer, _, kind = rest.rpartition(".")
        return f"{'time_stack.' if scope == 'temporal_res_block' else ''}{RESIDUAL[layer]}.{kind}"
    if scope == "temporal_transformer_blocks":
        return f"time_stack.{rest}"
    if scope == "time_pos_embed":
        return f"time_pos_embed.{0 if rest.startswith('linear_1') else 2}.{rest.rpartition('.')[2]}"
    return name

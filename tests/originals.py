"""SVD's and SV3D's networks as their makers lay them out, written out plainly and slowly: the twins of the fast path.

Every name is the checkpoints' own, so `state_dict()` of `original(...)` is a checkpoint of the original layout. Nothing
here is shared with the package or with diffusers.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

LEVELS = (1, 2, 4, 4)


def waves(values, width):
    half = width // 2
    frequencies = torch.tensor([math.exp(-math.log(10000) * j / half) for j in range(half)])
    angles = values.float()[:, None] * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], 1)


class Numbered(nn.Module):
    """Children under given numbers, as nn.Sequential would name them."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name.lstrip("_"), child)

    def __getitem__(self, index):
        return getattr(self, str(index))


# --- UNet ----------------------------------------------------------------------------------------------------------


class ResBlock(nn.Module):
    """Two-dimensional (over pixels) or three-dimensional (kernel 3 over frames)."""

    def __init__(self, inside, outside, embedding, temporal):
        super().__init__()
        conv = (
            (lambda a, b: nn.Conv3d(a, b, (3, 1, 1), padding=(1, 0, 0)))
            if temporal
            else (lambda a, b: nn.Conv2d(a, b, 3, padding=1))
        )
        self.in_layers = Numbered(_0=nn.GroupNorm(32, inside, eps=1e-5), _2=conv(inside, outside))
        if embedding:
            self.emb_layers = Numbered(_1=nn.Linear(embedding, outside))
        self.out_layers = Numbered(_0=nn.GroupNorm(32, outside, eps=1e-5), _3=conv(outside, outside))
        if inside != outside:
            self.skip_connection = nn.Conv2d(inside, outside, 1)
        self.temporal = temporal

    def forward(self, x, embedding=None):
        h = self.in_layers[2](F.silu(self.in_layers[0](x)))
        if embedding is not None:
            e = self.emb_layers[1](F.silu(embedding))
            h = h + (e.transpose(1, 2)[..., None, None] if self.temporal else e[..., None, None])
        h = self.out_layers[3](F.silu(self.out_layers[0](h)))
        return (self.skip_connection(x) if hasattr(self, "skip_connection") else x) + h


def over_time(x, frames):
    return x.unflatten(0, (-1, frames)).transpose(1, 2)  # (B, C, T, H, W)


def as_pictures(x):
    return x.transpose(1, 2).flatten(0, 1)


class VideoResBlock(ResBlock):
    def __init__(self, inside, outside, embedding):
        super().__init__(inside, outside, embedding, temporal=False)
        self.time_stack = ResBlock(outside, outside, embedding, temporal=True)
        self.time_mixer = Mixer()

    def forward(self, x, embedding, frames):
        spatial = over_time(super().forward(x, embedding), frames)
        moved = self.time_stack(spatial, embedding.unflatten(0, (-1, frames)))
        return as_pictures(self.time_mixer(spatial, moved))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([0.3]))

    def forward(self, spatial, temporal):
        share = 1 / (1 + torch.exp(-self.mix_factor))
        return share * spatial + (1 - share) * temporal


class CrossAttention(nn.Module):
    def __init__(self, width, context, head_width):
        super().__init__()
        self.head_width = head_width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = Numbered(_0=nn.Linear(width, width))

    def forward(self, x, context=None):
        context = x if context is None else context
        outs = []
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        for head in range(0, q.shape[-1], self.head_width):
            part = slice(head, head + self.head_width)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(self.head_width)
            outs.append(torch.softmax(scores, -1) @ v[..., part])
        return self.to_out[0](torch.cat(outs, -1))


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = Numbered(_0=nn.ModuleDict({"proj": nn.Linear(width, 8 * width)}), _2=nn.Linear(4 * width, width))

    def forward(self, x):
        value, gate = self.net[0]["proj"](x).chunk(2, -1)
        return self.net[2](value * (0.5 * gate * (1 + torch.erf(gate / math.sqrt(2)))))


class TransformerBlock(nn.Module):
    def __init__(self, width, context, head_width, temporal):
        super().__init__()
        if temporal:
            self.norm_in, self.ff_in = nn.LayerNorm(width), FeedForward(width)
        self.attn1, self.attn2 = (CrossAttention(width, wide, head_width) for wide in (width, context))
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.temporal = temporal

    def forward(self, x, context):
        if self.temporal:
            x = x + self.ff_in(self.norm_in(x))
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class VideoTransformer(nn.Module):
    def __init__(self, width, context, head_width):
        super().__init__()
        self.width = width
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, head_width, temporal=False)])
        self.time_stack = nn.ModuleList([TransformerBlock(width, context, head_width, temporal=True)])
        self.time_pos_embed = Numbered(_0=nn.Linear(width, 4 * width), _2=nn.Linear(4 * width, width))
        self.time_mixer = Mixer()

    def forward(self, x, context, frames):
        pictures, _, height, width = x.shape
        y = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (B T, S, C)
        y = self.transformer_blocks[0](y, context)
        place = self.time_pos_embed[2](F.silu(self.time_pos_embed[0](waves(torch.arange(frames), self.width))))
        first = context[::frames]  # the first frame's context, for every pixel
        clips = []
        for clip, told in zip(y.split(frames), first, strict=True):
            pixels = (clip + place[:, None]).transpose(0, 1)  # (S, T, C)
            clips.append(self.time_stack[0](pixels, told.expand(len(pixels), -1, -1)).transpose(0, 1))
        y = self.proj_out(self.time_mixer(y, torch.cat(clips)))
        return x + y.transpose(1, 2).reshape(pictures, -1, height, width)


class VideoUNet(nn.Module):
    def __init__(self, width, vector, context, head_width):
        super().__init__()
        deep = 4 * width
        self.width = width
        self.time_embed = Numbered(_0=nn.Linear(width, deep), _2=nn.Linear(deep, deep))
        self.label_emb = Numbered(_0=Numbered(_0=nn.Linear(vector, deep), _2=nn.Linear(deep, deep)))
        inputs = [[nn.Conv2d(8, width, 3, padding=1)]]
        stack, now = [width], width
        for level, multiplier in enumerate(LEVELS):
            for _ in range(2):
                inputs.append([VideoResBlock(now, multiplier * width, deep)])
                now = multiplier * width
                if level < 3:
                    inputs[-1].append(VideoTransformer(now, context, head_width))
                stack.append(now)
            if level < 3:
                inputs.append([nn.ModuleDict({"op": nn.Conv2d(now, now, 3, stride=2, padding=1)})])
                stack.append(now)
        self.input_blocks = nn.ModuleList(nn.ModuleList(layers) for layers in inputs)
        self.middle_block = nn.ModuleList(
            [VideoResBlock(now, now, deep), VideoTransformer(now, context, head_width), VideoResBlock(now, now, deep)]
        )
        outputs = []
        for level, multiplier in reversed(list(enumerate(LEVELS))):
            for index in range(3):
                layers = [VideoResBlock(now + stack.pop(), multiplier * width, deep)]
                now = multiplier * width
                if level < 3:
                    layers.append(VideoTransformer(now, context, head_width))
                if level and index == 2:
                    layers.append(nn.ModuleDict({"conv": nn.Conv2d(now, now, 3, padding=1)}))
                outputs.append(nn.ModuleList(layers))
        self.output_blocks = nn.ModuleList(outputs)
        self.out = Numbered(_0=nn.GroupNorm(32, width, eps=1e-5), _2=nn.Conv2d(width, 4, 3, padding=1))

    def forward(self, x, level, context, vector, frames):
        """x (B·T, 8, h, w), level (B·T,), context (B·T, 1, token), vector (B·T, n)."""
        embedding = self.time_embed[2](F.silu(self.time_embed[0](waves(level, self.width))))
        embedding = embedding + self.label_emb[0][2](F.silu(self.label_emb[0][0](vector)))
        skips = []
        for layers in self.input_blocks:
            x = self.walk(layers, x, embedding, context, frames)
            skips.append(x)
        x = self.walk(self.middle_block, x, embedding, context, frames)
        for layers in self.output_blocks:
            x = self.walk(layers, torch.cat([x, skips.pop()], 1), embedding, context, frames)
        return self.out[2](F.silu(self.out[0](x)))

    def walk(self, layers, x, embedding, context, frames):
        for layer in layers:
            if isinstance(layer, VideoResBlock):
                x = layer(x, embedding, frames)
            elif isinstance(layer, VideoTransformer):
                x = layer(x, context, frames)
            elif isinstance(layer, nn.Conv2d):
                x = layer(x)
            elif "op" in layer:
                x = layer["op"](x)
            else:
                x = layer["conv"](x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        return x


# --- autoencoder ---------------------------------------------------------------------------------------------------


def vae_norm(width):
    return nn.GroupNorm(32, width, eps=1e-6)


class VAEBlock(nn.Module):
    def __init__(self, inside, outside, temporal=False):
        super().__init__()
        self.norm1, self.conv1 = vae_norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = vae_norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)
        if temporal:
            self.time_stack = ResBlock(outside, outside, 0, temporal=True)
            self.mix_factor = nn.Parameter(torch.tensor([-0.4]))

    def forward(self, x):
        """A clip is one batch."""
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        x = (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h
        if not hasattr(self, "time_stack"):
            return x
        spatial = over_time(x, len(x))
        share = 1 / (1 + torch.exp(-self.mix_factor))  # of the temporal branch, unlike the UNet's
        return as_pictures(share * self.time_stack(spatial) + (1 - share) * spatial)


class VAEAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = vae_norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (self.q, self.k, self.v))  # (B, C, S)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), -1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


def middle(width, temporal=False):
    parts = {"block_1": VAEBlock(width, width, temporal), "attn_1": VAEAttention(width)}
    return nn.ModuleDict({**parts, "block_2": VAEBlock(width, width, temporal)})


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        now, levels = width, []
        for index, multiplier in enumerate(LEVELS):
            blocks = nn.ModuleList(
                [VAEBlock(now, multiplier * width), VAEBlock(multiplier * width, multiplier * width)]
            )
            now = multiplier * width
            level = {"block": blocks}
            if index < 3:
                level["downsample"] = nn.ModuleDict({"conv": nn.Conv2d(now, now, 3, stride=2)})
            levels.append(nn.ModuleDict(level))
        self.down = nn.ModuleList(levels)
        self.mid = middle(now)
        self.norm_out, self.conv_out = vae_norm(now), nn.Conv2d(now, 8, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            for block in level["block"]:
                x = block(x)
            if "downsample" in level:
                x = level["downsample"]["conv"](F.pad(x, (0, 1, 0, 1)))
        for part in ("block_1", "attn_1", "block_2"):
            x = self.mid[part](x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ConvOut(nn.Conv2d):
    def __init__(self, width):
        super().__init__(width, 3, 3, padding=1)
        self.time_mix_conv = nn.Conv3d(3, 3, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x):
        return as_pictures(self.time_mix_conv(over_time(super().forward(x), len(x))))


class Decoder(nn.Module):
    def __init__(self, width, temporal):
        super().__init__()
        now = LEVELS[-1] * width
        self.conv_in = nn.Conv2d(4, now, 3, padding=1)
        self.mid = middle(now, temporal)
        levels = []
        for index, multiplier in reversed(list(enumerate(LEVELS))):
            blocks = [
                VAEBlock(now if place == 0 else multiplier * width, multiplier * width, temporal) for place in range(3)
            ]
            now = multiplier * width
            level = {"block": nn.ModuleList(blocks)}
            if index:
                level["upsample"] = nn.ModuleDict({"conv": nn.Conv2d(now, now, 3, padding=1)})
            levels.insert(0, nn.ModuleDict(level))
        self.up = nn.ModuleList(levels)
        self.norm_out = vae_norm(now)
        self.conv_out = ConvOut(now) if temporal else nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(z)
        for part in ("block_1", "attn_1", "block_2"):
            x = self.mid[part](x)
        for level in reversed(self.up):
            for block in level["block"]:
                x = block(x)
            if "upsample" in level:
                x = level["upsample"]["conv"](x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        return self.conv_out(F.silu(self.norm_out(x)))


class ConditionVAE(nn.Module):
    """The whole autoencoder of the conditioner, whose decoder nobody uses."""

    def __init__(self, width):
        super().__init__()
        self.encoder, self.decoder = Encoder(width), Decoder(width, temporal=False)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(8, 8, 1), nn.Conv2d(4, 4, 1)

    def mode(self, pictures):
        return self.quant_conv(self.encoder(pictures))[:, :4]


# --- CLIP ----------------------------------------------------------------------------------------------------------


class TowerBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Tower(nn.Module):
    def __init__(self, width, depth, heads, patch, side, token):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(side * side + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(TowerBlock(width, heads) for _ in range(depth))})
        self.proj = nn.Parameter(torch.randn(width, token) / width**0.5)

    def forward(self, prepared):
        x = self.conv1(prepared).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.repeat(len(x), 1, 1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


class Clip(nn.Module):
    """With the text leftovers that stand beside the image tower in both files."""

    def __init__(self, tower, token, words):
        super().__init__()
        self.visual = tower
        self.token_embedding = nn.Embedding(words, token)
        self.positional_embedding = nn.Parameter(torch.zeros(77, token))
        self.text_projection = nn.Parameter(torch.zeros(token, token))
        self.ln_final = nn.LayerNorm(token)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


# --- checkpoints ---------------------------------------------------------------------------------------------------

TINY = {"width": 32, "head_width": 16, "token": 24, "vae": 32, "tower": (32, 2, 2, 7, 4), "words": 5}
FULL = {"width": 320, "head_width": 64, "token": 1024, "vae": 128, "tower": (1280, 32, 16, 14, 16), "words": 49408}


def original(kind, sizes=None):
    """All modules of a checkpoint ("svd" or "sv3d"), nested so that `state_dict()` has its names."""
    size = sizes or TINY
    svd = kind == "svd"
    vector = 768 if svd else 1280
    tower = Tower(*size["tower"], size["token"])
    clip = Numbered(open_clip=Numbered(model=Clip(tower, size["token"], size["words"])))
    embedder = "_3" if svd else "_1"
    first = {"encoder": Encoder(size["vae"])} if svd else {}
    return Numbered(
        model=Numbered(diffusion_model=VideoUNet(size["width"], vector, size["token"], size["head_width"])),
        first_stage_model=Numbered(**first, decoder=Decoder(size["vae"], temporal=svd)),
        conditioner=Numbered(embedders=Numbered(_0=clip, **{embedder: Numbered(encoder=ConditionVAE(size["vae"]))})),
    )

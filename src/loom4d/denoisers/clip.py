"""The image tower of CLIP (open_clip's ViT-H-14): a picture to one token, as SVD and SV3D are told what they draw.

Tensor names are open_clip's, so the tower inside their checkpoints loads as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from loom4d.denoisers.checkpoints import Origin

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, RGB in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowerConfig:
    width: int = 1280
    depth: int = 32
    head_width: int = 80
    patch: int = 14
    resolution: int = 224
    token_width: int = 1024


class Attention(nn.Module):
    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.head_width = head_width
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(projected, "b t (qkv head d) -> qkv b head t d", qkv=3, d=self.head_width)
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b head t d -> b t (head d)"))


class Block(nn.Module):
    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, head_width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class ImageTower(nn.Module):
    """Pictures in −1..1 to tokens, pooled and projected but not normalised, as both checkpoints were trained with."""

    def __init__(self, config: TowerConfig):
        super().__init__()
        self.config = config
        width, side = config.width, config.resolution // config.patch
        self.conv1 = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = [Block(width, config.head_width) for _ in range(config.depth)]
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(self.blocks)})
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, config.token_width))

    def forward(self, pictures: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b token"]:
        x = prepared(pictures, self.config.resolution).to(self.proj.dtype)
        patches = rearrange(self.conv1(x), "b d h w -> b (h w) d")
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)  # (B, T, D)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


def prepared(
    pictures: Float[Tensor, "b 3 height width"], resolution: int = 224
) -> Float[Tensor, "b 3 resolution resolution"]:
    """What the tower sees of pictures in −1..1: resized, in 0..1, less CLIP's mean over its deviation; float32."""
    small = resized(pictures.float(), resolution)
    mean, std = (torch.tensor(values, device=small.device)[:, None, None] for values in (MEAN, STD))
    return ((small + 1) / 2 - mean) / std


def resized(pictures: Float[Tensor, "b c height width"], resolution: int) -> Float[Tensor, "b c resolution resolution"]:
    """Antialiased bicubic with aligned corners, as kornia did it for the originals: a blur, then samples.

    The blur's deviation is (factor − 1)/2 pixels and its window four deviations wide; torch's own antialiased bicubic
    is another filter and moves the token by more than a percent.
    """
    factors = [side / resolution for side in pictures.shape[-2:]]
    if max(factors) > 1:
        rows, columns = (_gaussian(factor).to(pictures) for factor in factors)
        padding = [len(columns) // 2] * 2 + [len(rows) // 2] * 2
        c = pictures.shape[1]
        pictures = F.pad(pictures, padding, mode="reflect")
        pictures = F.conv2d(pictures, columns.expand(c, 1, 1, -1), groups=c)
        pictures = F.conv2d(pictures, rows[:, None].expand(c, 1, -1, 1), groups=c)
    return F.interpolate(pictures, (resolution, resolution), mode="bicubic", align_corners=True)


def _gaussian(factor: float) -> Float[Tensor, " tap"]:
    sigma = max((factor - 1) / 2, 0.001)
    taps = math.floor(max(4 * sigma, 3)) // 2 * 2 + 1  # odd: an even window grows by one
    place = torch.arange(taps) - taps // 2
    weights = torch.exp(-(place**2) / (2 * sigma**2))
    return weights / weights.sum()


def from_transformers(name: str) -> Origin:
    """Where the transformers library (CLIPVisionModelWithProjection) keeps the tensor that open_clip calls `name`."""
    fixed = {
        "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "class_embedding": "vision_model.embeddings.class_embedding",
        "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    }
    if name in fixed:
        return Origin((fixed[name],))
    if name == "proj":
        return Origin(("visual_projection.weight",), lambda weight: weight.T)
    head, _, kind = name.rpartition(".")
    if head in ("ln_pre", "ln_post"):
        return Origin((f"vision_model.{'pre_layrnorm' if head == 'ln_pre' else 'post_layernorm'}.{kind}",))
    _, _, index, rest = name.split(".", 3)
    layer = f"vision_model.encoder.layers.{index}."
    if rest.startswith("attn.in_proj"):
        kind = rest.removeprefix("attn.in_proj_")
        return Origin(tuple(f"{layer}self_attn.{part}_proj.{kind}" for part in "qkv"), lambda *qkv: torch.cat(qkv))
    for ours, theirs in (
        ("attn.out_proj", "self_attn.out_proj"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ):
        rest = rest.replace(ours, theirs)
    return Origin((layer + rest,))

"""Layers that several networks share."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def sinusoids(values: Float[Tensor, "*batch"], width: int, period: float = 10_000.0) -> Float[Tensor, "*batch width"]:
    """[cos(value · ω_j)] ‖ [sin(value · ω_j)] with ω_j = period^(−j / (width/2)), j = 0 … width/2 − 1."""
    exponents = torch.arange(width // 2, dtype=torch.float32, device=values.device) / (width // 2)
    angles = values.float()[..., None] * period**-exponents
    return torch.cat([angles.cos(), angles.sin()], -1)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), the last convolution starting at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "b width h w"]) -> Float[Tensor, "b width h w"]:
        y = self.conv1(nn.functional.silu(self.norm1(x)))
        return x + self.conv2(nn.functional.silu(self.norm2(y)))


class Attention(nn.Module):
    """Self-attention over all tokens, with queries and keys of unit RMS (stable at any learning rate)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_norm, self.key_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t width"]) -> Float[Tensor, "b t width"]:
        q, k, v = rearrange(self.qkv(x), "b t (n heads d) -> n b heads t d", n=3, heads=self.heads)
        mixed = attend(_normed(self.query_norm, q), _normed(self.key_norm, k), v)
        return self.out(rearrange(mixed, "b heads t d -> b t (heads d)"))


PIECE = 2**21  # scores that stay in a core's cache, in bfloat16


def attend(
    q: Float[Tensor, "b heads t d"], k: Float[Tensor, "b heads t d"], v: Float[Tensor, "b heads t d"]
) -> Float[Tensor, "b heads t d"]:
    """softmax(q kᵀ / √d) v.

    In bfloat16 on a CPU torch's fused attention is three to five times slower than two matrix products, as long as the
    scores between them fit the cache: there it is done so, a few sequences at a time.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return nn.functional.scaled_dot_product_attention(q, k, v)
    sequences = max(1, PIECE // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = zip(*(x.split(sequences) for x in (q * q.shape[-1] ** -0.5, k.mT, v)), strict=True)
    return torch.cat([torch.softmax(queries @ keys, -1) @ values for queries, keys, values in parts])


def _normed(norm: nn.RMSNorm, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """The norm in x's own dtype: under autocast its float32 weight would leave the fused kernel."""
    return nn.functional.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps)


class ModulatedBlock(nn.Module):
    """Transformer block whose norms and gates follow a condition per picture (adaLN-zero of DiT, one per cell).

    Every token of a picture gets that picture's shift, scale and gate, so camera and time speak at every block.
    A block of `rows` lets a token see its own row of every picture, which is where a camera that goes around at one
    height finds the same point again; the others let it see every token of the clip.
    """

    def __init__(self, width: int, heads: int, rows: bool, expansion: int = 4):
        super().__init__()
        self.rows = rows
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.expand, self.contract = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "b p s width"], condition: Float[Tensor, "b p width"]
    ) -> Float[Tensor, "b p s width"]:
        side = math.isqrt(x.shape[2])
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, :, None].chunk(6, -1)
        tokens = self.norm1(x) * (1 + scale1) + shift1  # (B, P, S, D)
        groups = "(b i) (p j) d" if self.rows else "b (p i j) d"
        mixed = self.attention(rearrange(tokens, f"b p (i j) d -> {groups}", i=side))
        x = x + gate1 * rearrange(mixed, f"{groups} -> b p (i j) d", b=len(x), p=x.shape[1], i=side)
        hidden = self.expand(self.norm2(x) * (1 + scale2) + shift2)
        return x + gate2 * self.contract(nn.functional.gelu(hidden, approximate="tanh"))

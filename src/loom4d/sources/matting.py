"""Foreground alpha of a clip, stable over time: as given, by a network, or by a plain background's colour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from loom4d.runs import Event, InputError, Work
from loom4d.sources import u2netp
from loom4d.sources.files import Clip

PLAIN = 0.6  # share of the border that must have the background's colour; the rest may be an object that is cut off
LEAST = 1e-4  # share of all pixels that an object covers at least


@dataclass(frozen=True)
class Matte:
    """A clip with its object cut out, and one line on how."""

    rgba: Float[Tensor, "frame 4 height width"]  # straight alpha; colour is the object's own, also at its rim
    note: str


def matte(clip: Clip, method: str = "auto") -> Work[Clip]:
    """The clip with the alpha of its object.

    "auto" takes the alpha that was given, else `u2netp` if its weights are installed, else `key`. Raises `InputError`
    where nothing is left of the picture, or the method cannot be used on it.
    """
    if method != "auto" and method not in MATTING:
        raise InputError(f"unknown matting {method!r}; choose auto or one of {', '.join(MATTING)}")
    name = automatic(clip) if method == "auto" else method
    result = MATTING[name](clip)
    covered = (result.rgba[:, 3] > 0.5).float().mean().item()
    if covered < LEAST:
        hint = "give a picture with alpha, or another matting" if name != "given" else "give a picture that shows some"
        raise InputError(f"matting by {name!r} leaves no object ({result.note}); {hint}")
    yield Event(
        "sources",
        "note",
        f"matting by {name}: {result.note}; the object covers {covered:.0%} of the picture",
        data={"matting": name, "covered": round(covered, 4)},
    )
    return replace(clip, rgba=result.rgba, has_alpha=True)


def automatic(clip: Clip) -> str:
    """The name of the method that "auto" takes for this clip."""
    if _is_given(clip):
        return "given"
    return "u2netp" if u2netp.weights_file() is not None else "key"


def _is_given(clip: Clip) -> bool:
    return clip.has_alpha and bool((clip.rgba[:, 3] < 0.5).any())


def given(clip: Clip) -> Matte:
    """The alpha of the file."""
    if not _is_given(clip):
        raise InputError("matting by 'given' needs a picture with transparent parts, and this one is opaque")
    if not (clip.rgba[:, 3] > 0.5).any():
        raise InputError("the picture is fully transparent; give one that shows an object")
    return Matte(clip.rgba, "the alpha that was given")


# --- plain background ----------------------------------------------------------------------------------------------


def key(clip: Clip) -> Matte:
    """Cuts out what differs from a plain, or smoothly shaded, background that reaches the border.

    One background per clip, so that the alpha does not flicker: a quadratic polynomial in x and y fitted to the border
    of all frames, outliers left out. Background is what has its colour *and* is connected to the border by such pixels,
    so that a white shirt before a white wall stays; larger flat holes (under an arm) are cut too, unless the background
    is pure white or black, which eyes and shirts often are. Specks are dropped. At the rim, alpha is how far the colour
    is on its way from the background to the object, and the background's share is taken out of it.
    """
    rgb = clip.rgba[:, :3] * clip.rgba[:, 3:] + 1 - clip.rgba[:, 3:]  # (F, 3, H, W)
    background, noise, plain = border_background(rgb)
    if plain < PLAIN:
        raise InputError(
            f"the background is not plain (only {plain:.0%} of the border has its colour); give a picture with alpha, "
            f"or install a matting network: {u2netp.INSTALL}"
        )
    tolerance = min(0.05 + 3 * noise, 0.25)
    width = max(2, round(max(clip.size) / 400))  # pixels over which a rim may be smeared
    holes = 0.03 < background.mean().item() < 0.97
    frames = []
    for picture in rgb:
        smooth = picture if noise < 0.004 else _box_mean(picture, 1)
        distance = (smooth - background).square().sum(0).sqrt()  # (H, W)
        frames.append(_with_rim(picture, background, _behind(distance, tolerance, width, holes), width))
    return Matte(torch.stack(frames), f"a plain background ({plain:.0%} of the border)")


def border_background(
    rgb: Float[Tensor, "frame 3 height width"],
) -> tuple[Float[Tensor, "3 height width"], float, float]:
    """(background, its noise as a standard deviation, the share of the border that has its colour)."""
    height, width = rgb.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)  # (H, W, 6)
    rim = torch.zeros(height, width, dtype=torch.bool)
    depth = max(1, min(height, width) // 64)
    rim[:depth], rim[-depth:], rim[:, :depth], rim[:, -depth:] = True, True, True, True
    colours = rearrange(rgb[:, :, rim], "frame c n -> (frame n) c").double()
    basis = terms[rim].repeat(rgb.shape[0], 1).double()  # (F n, 6)
    distance = (colours - colours.median(0).values).abs().amax(1)
    if colours.shape[0] > 50_000:  # a long clip's border repeats itself
        keep = torch.linspace(0, colours.shape[0] - 1, 50_000).long()
        colours, basis, distance = colours[keep], basis[keep], distance[keep]
    ridge = 1e-3 * torch.diag(torch.tensor([0.0, 1, 1, 1, 1, 1], dtype=torch.float64)) * basis.shape[0]
    for _ in range(8):  # each round fits those border pixels that the last one explained best
        near = distance <= max(0.03, distance.quantile(0.6).item())
        b, c = basis[near], colours[near]
        coefficients = torch.linalg.solve(b.mT @ b + ridge, b.mT @ c)  # (6, 3)
        distance = (colours - basis @ coefficients).abs().amax(1)
    noise = 1.4826 * distance[distance <= distance.quantile(0.6)].median().item() / 1.5
    plain = (distance < min(0.04 + 3 * noise, 0.12)).double().mean().item()
    background = torch.einsum("hwk,kc->chw", terms, coefficients.float()).clamp(0, 1)
    return background, noise, plain


def _behind(distance: Tensor, tolerance: float, width: int, holes: bool) -> Tensor:
    """Where the background shows, given how far each colour is from it."""
    height, wide = distance.shape
    alike = distance < tolerance
    seeds = torch.zeros_like(alike)
    seeds[[0, -1]], seeds[:, [0, -1]] = True, True
    if holes:
        seeds |= (_box_mean(distance[None], width)[0] < tolerance / 2) & _eroded(alike, 1)
    front = ~flooded(alike, seeds)
    if min(height, wide) < 16:
        return ~front  # nothing is a speck in so small a picture
    # What compression leaves around an edge is faint beside it, and reaches a few pixels; the edge itself is not taken.
    contrast = F.max_pool2d(distance[None, None], 4 * width + 1, 1, 2 * width)[0, 0]
    faint = (distance < 0.16 * contrast) & _eroded(distance < 0.35 * contrast, 1)
    outside = ~front
    for _ in range(2 * width + 1):
        outside = outside | (faint & ~_eroded(~outside, 1))
    thin = ~outside & (distance < 3 * tolerance) & _eroded(~_eroded(~outside, 1), 2)
    front = ~outside & ~thin
    solid = _eroded(front, width)
    return ~flooded(front, solid if solid.any() else front)


def _eroded(mask: Tensor, radius: int) -> Tensor:
    """Where the mask holds in the whole window of 2 radius + 1 pixels."""
    return F.max_pool2d((~mask)[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] == 0


def flooded(
    passable: Bool[Tensor, "height width"], seeds: Bool[Tensor, "height width"]
) -> Bool[Tensor, "height width"]:
    """The passable pixels that are connected, by their sides and through passable ones, to a seed."""
    open_ = passable.numpy()
    reached = open_ & seeds.numpy()
    count = -1
    while count != (count := int(reached.sum())):  # a run with one reached pixel is reached, along rows, then columns
        reached = _spread(reached, open_)
        reached = _spread(reached.T, open_.T).T
    return torch.from_numpy(np.ascontiguousarray(reached))


def _spread(reached: np.ndarray, passable: np.ndarray) -> np.ndarray:
    starts = passable.copy()
    starts[:, 1:] &= ~passable[:, :-1]
    run = np.cumsum(starts.ravel()).reshape(passable.shape)  # number of the run of passable pixels in its row
    hit = np.bincount(run[reached & passable], minlength=int(run.max()) + 1) > 0
    return hit[run] & passable


def _with_rim(picture: Tensor, background: Tensor, behind: Tensor, width: int) -> Tensor:
    """Soft alpha in the `width` pixels next to the background; colours there are those of the object alone.

    The object's colour next to a rim pixel is taken to be the one that differs most from the background nearby.
    """
    distance = (picture - background).square().sum(0).sqrt()  # (H, W)
    distance = torch.where(behind, torch.zeros_like(distance), distance)
    size = 2 * width + 1
    farthest, where = F.max_pool2d(distance[None, None], size, 1, width, return_indices=True)
    ratio = (distance / farthest[0, 0].clamp_min(1e-6)).clamp(0, 1)
    ratio = torch.where(behind, torch.zeros_like(ratio), ratio)
    alpha = torch.ones_like(ratio)
    outside, outer = behind, torch.zeros_like(ratio)
    for _ in range(width):  # rings from the outside inwards: behind an opaque outline all is opaque
        grown = F.max_pool2d(outside[None, None].float(), 3, 1, 1)[0, 0] > 0
        ring = grown & ~outside
        outer = torch.maximum(outer, F.max_pool2d(outer[None, None], 3, 1, 1)[0, 0])
        alpha = torch.where(ring, torch.maximum(ratio, outer), alpha)
        outer = torch.where(ring, alpha, outer)
        outside = grown
    alpha = torch.where(behind, torch.zeros_like(alpha), alpha)
    own = background + (picture - background) / alpha.clamp_min(0.1)  # C = α F + (1 − α) B, solved for F
    nearby = picture.flatten(1)[:, where.flatten()].view_as(picture)
    trust = ((alpha - 0.1) / 0.4).clamp(0, 1)
    colour = torch.where(alpha < 1, torch.lerp(nearby, own.clamp(0, 1), trust), picture)
    return torch.cat([colour * (alpha > 0), alpha[None]])


def _box_mean(x: Float[Tensor, "c height width"], radius: int) -> Float[Tensor, "c height width"]:
    """Mean over a window of 2 radius + 1 pixels, cut at the picture's edge."""
    return F.avg_pool2d(x[None], 2 * radius + 1, 1, radius, count_include_pad=False)[0]


# --- network -------------------------------------------------------------------------------------------------------


def salient(clip: Clip) -> Matte:
    """The object that U²-Net-p finds, looked at twice: in the whole picture, and closer where it is in all frames."""
    rgb = clip.rgba[:, :3] * clip.rgba[:, 3:] + 1 - clip.rgba[:, 3:]  # (F, 3, H, W)
    height, width = clip.size
    coarse = _saliency(rgb)
    top, bottom, left, right = 0, height, 0, width
    if (coarse > 0.5).any():
        found = (coarse > 0.5).any(0)
        rows, columns = found.any(1).nonzero()[:, 0], found.any(0).nonzero()[:, 0]
        margin = round(0.15 * max(rows[-1] - rows[0], columns[-1] - columns[0]).item()) + 2
        top, bottom = max(0, int(rows[0]) - margin), min(height, int(rows[-1]) + margin + 1)
        left, right = max(0, int(columns[0]) - margin), min(width, int(columns[-1]) + margin + 1)
    close = (bottom - top) * (right - left) < 0.7 * height * width
    mask = torch.zeros_like(coarse) if close else coarse
    if close:
        mask[:, top:bottom, left:right] = _saliency(rgb[:, :, top:bottom, left:right])
    frames = []
    for picture, rough in zip(rgb, mask, strict=True):
        alpha = _guided(rough, picture, max(2, max(height, width) // 160))
        alpha = ((alpha - 0.1) / 0.8).clamp(0, 1)
        frames.append(torch.cat([_decontaminated(picture, alpha), alpha[None]]))
    return Matte(torch.stack(frames), f"the network U²-Net-p{', on a closer crop' if close else ''}")


def _saliency(rgb: Float[Tensor, "frame 3 height width"]) -> Float[Tensor, "frame height width"]:
    small = F.interpolate(rgb, (u2netp.SIDE, u2netp.SIDE), mode="bilinear", antialias=True)
    masks = u2netp.saliency(small)
    masks = (masks - masks.min()) / (masks.max() - masks.min()).clamp_min(0.5)  # one range for the whole clip
    return F.interpolate(masks[:, None], rgb.shape[-2:], mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)


def _guided(mask: Tensor, picture: Tensor, radius: int) -> Tensor:
    """Guided filter (He et al. 2010) with the grey picture: moves the mask's soft edge to the picture's own edge."""
    grey = picture.mean(0, keepdim=True)
    mean_grey, mean_mask = _box_mean(grey, radius), _box_mean(mask[None], radius)
    slope = (_box_mean(grey * mask, radius) - mean_grey * mean_mask) / (
        _box_mean(grey * grey, radius) - mean_grey**2 + 1e-3
    )
    offset = mean_mask - slope * mean_grey
    return (_box_mean(slope, radius) * grey + _box_mean(offset, radius))[0].clamp(0, 1)


def _decontaminated(picture: Tensor, alpha: Tensor) -> Tensor:
    """Colours of half-transparent pixels replaced by the mean of the opaque ones around them."""
    sure = (alpha > 0.95).float()[None]
    colour = picture.clone()
    unknown = alpha <= 0.95
    for radius in (2, 4, 8, 16):
        weight = _box_mean(sure, radius)
        nearby = _box_mean(picture * sure, radius) / weight.clamp_min(1e-6)
        found = unknown & (weight[0] > 1e-4)
        colour = torch.where(found, nearby, colour)
        unknown = unknown & ~found
    return colour.clamp(0, 1) * (alpha > 0)


MATTING: dict[str, Callable[[Clip], Matte]] = {"given": given, "key": key, "u2netp": salient}

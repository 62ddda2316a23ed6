"""SVD-XT (2311.15127), the video prior: a clip over time that starts with a given picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.denoisers import vae as vaes
from loom4d.denoisers.family import Cells, ImagePrior, Rows, VideoPrior, answering
from loom4d.denoisers.stable import (
    SCALAR_WIDTH,
    Kind,
    Sizes,
    Stable,
    Unet,
    conditions,
    embed,
    guided_denoiser,
    in_order,
    load,
    on_white,
    repeated,
    sinusoids,
)
from loom4d.diffusion.denoiser import Denoiser
from loom4d.runs import InputError

KIND = Kind("SVD", 3 * SCALAR_WIDTH, embedder=3, build_vae=vaes.video_vae, own_encoder=True)


@dataclass(frozen=True)
class SVDConfig:
    """What the prior is told beside the picture; the values of Diffusion²'s code."""

    fps: float = 24.0  # as the network sees it; diffusers' pipeline counts one more
    motion: float = 127.0
    noise: float = 0.02  # deviation of the noise on the given picture


def load_svd(path: Path, sizes: Sizes | None = None, dtype: torch.dtype = torch.float32) -> Stable:
    """From `svd_xt.safetensors`, or a folder in diffusers' layout."""
    return load(path, KIND, sizes, dtype)


def vector(config: SVDConfig, frames: int) -> Float[Tensor, "frame vector"]:
    """fps, motion and noise, the same for every frame."""
    told = torch.tensor([config.fps, config.motion, config.noise])
    return sinusoids(told, SCALAR_WIDTH).flatten().expand(frames, -1)


def video_prior(model: Stable, unet: Unet, config: SVDConfig, sequences: int) -> VideoPrior:
    """The family's video prior. Camera and seconds are not among what SVD can be told.

    SVD takes the given picture for its first frame. Given the last frame it plays backwards: the clip is reversed
    before and after, guidance with it. `unet` is the model's own, or what compiling made of it.
    """

    def prior(rows: Rows) -> Denoiser:
        if rows.crossing is not None:
            raise ValueError("SVD cannot be told a crossing clip")
        frames, given_frame = len(rows.times), rows.given_frame
        if given_frame % frames not in (0, frames - 1):
            raise InputError(f"SVD is given its first or its last frame; frame {given_frame} of {frames} is neither")
        told = repeated(vector(config, frames), len(rows.pictures))
        given, null = conditions(model, rows.pictures, told, config.noise)
        denoise = guided_denoiser(unet, given, null, rows.guidance, frames, sequences)
        if given_frame % frames == 0:
            return denoise
        return in_order(denoise, torch.arange(frames).flip(0))

    return answering(Rows, prior)


def image_prior(
    model: Stable, unet: Unet, config: SVDConfig, at_once: int, latent_shape: tuple[int, int, int]
) -> ImagePrior:
    """The family's prior of single cells: SVD with its layers over time passed by, `at_once` pictures in one pass.

    A cell is told the given picture's token, what the object is, and no latent: that would say that the cell looks like
    the given picture in every place, which is true of no other camera.
    """

    def prior(cells: Cells) -> Denoiser:
        if cells.crossing is not None:
            raise ValueError("SVD cannot be told a crossing clip")
        pictures = cells.pictures
        fresh = torch.tensor([True, *(not torch.equal(a, b) for a, b in pairwise(pictures))])
        tokens = embed(model, on_white(pictures[fresh].float()))[fresh.cumsum(0) - 1]  # each picture looked at once
        nothing, told = torch.zeros(len(pictures), *latent_shape), repeated(vector(config, 1), len(pictures))
        network = model.fetch(model.unet)
        with torch.no_grad():
            given = network.condition(nothing, tokens, told, moving=False)
            null = network.condition(nothing, torch.zeros_like(tokens), told, moving=False)
        return guided_denoiser(unet, given, null, cells.guidance, 1, at_once)

    return answering(Cells, prior)

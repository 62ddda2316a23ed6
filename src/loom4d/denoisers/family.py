"""A family of priors: a video prior and a multi-view prior that share one latent space, and the way into it and back.

Methods speak to families only through this record, so the small built-in networks and full-size checkpoints are
interchangeable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from loom4d.diffusion.denoiser import Denoiser, Sigma


@runtime_checkable
class Encode(Protocol):
    def __call__(self, premultiplied: Float[Tensor, "b 4 height width"]) -> Float[Tensor, "b c h w"]:
        """Premultiplied RGBA in 0..1 to latents of the diffused space."""


@runtime_checkable
class Decode(Protocol):
    def __call__(self, latents: Float[Tensor, "clip picture c h w"]) -> Float[Tensor, "clip picture 4 height width"]:
        """Latents of clips over time (rows of a grid) to premultiplied RGBA, about 0..1."""


@dataclass(frozen=True)
class CrossingClip:
    """Known pictures across each clip: of a row, what another camera saw meanwhile; of a column, what the same cameras
    saw at another instant; of single pictures, another camera's at that instant."""

    pictures: Float[Tensor, "clip picture 4 height width"]
    azimuths_deg: Float[Tensor, " clip"]  # of those pictures less the clip's own
    times: Float[Tensor, " clip"]  # likewise, in lengths of the clip over time


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance along a clip: linear from `first` to `last`, only while low <= σ <= high."""

    first: float = 1.0
    last: float = 1.0
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True)
class Rows:
    """What a video prior is asked: clips over time, each given its picture at `given_frame`. Told `crossing` too, where
    the family has `crossings`."""

    pictures: Float[Tensor, "clip 4 height width"]
    elevations_deg: Float[Tensor, " clip"]
    times: Float[Tensor, " frame"]
    given_frame: int
    guidance: Guidance
    crossing: CrossingClip | None = None  # another row


@dataclass(frozen=True)
class Columns:
    """What a multi-view prior is asked: clips around the object, each given its picture at azimuth 0 (or 360)."""

    pictures: Float[Tensor, "clip 4 height width"]
    azimuths_deg: Float[Tensor, " view"]
    elevations_deg: Float[Tensor, " view"]
    guidance: Guidance
    crossing: CrossingClip | None = None  # another column


@dataclass(frozen=True)
class Cells:
    """What a prior of single pictures is asked: how each cell looks, given the picture at azimuth 0 and time 0 and
    nothing of its row or column but what `crossing` tells. `times` count in lengths of the clip."""

    pictures: Float[Tensor, "clip 4 height width"]
    azimuths_deg: Float[Tensor, " clip"]
    elevations_deg: Float[Tensor, " clip"]
    times: Float[Tensor, " clip"]
    guidance: Guidance
    crossing: CrossingClip | None = None


@runtime_checkable
class VideoPrior(Protocol):
    def __call__(
        self,
        pictures: Float[Tensor, "clip 4 height width"],
        elevations_deg: Float[Tensor, " clip"],
        times: Float[Tensor, " frame"],
        given_frame: int,
        guidance: Guidance,
        crossing: CrossingClip | None = None,
    ) -> Denoiser:
        """A guided denoiser of the clips of `Rows`: (clip, frame, c, h, w)."""


@runtime_checkable
class MultiviewPrior(Protocol):
    def __call__(
        self,
        pictures: Float[Tensor, "clip 4 height width"],
        azimuths_deg: Float[Tensor, " view"],
        elevations_deg: Float[Tensor, " view"],
        guidance: Guidance,
        crossing: CrossingClip | None = None,
    ) -> Denoiser:
        """A guided denoiser of the clips of `Columns`: (clip, view, c, h, w)."""


@runtime_checkable
class ImagePrior(Protocol):
    def __call__(
        self,
        pictures: Float[Tensor, "clip 4 height width"],
        azimuths_deg: Float[Tensor, " clip"],
        elevations_deg: Float[Tensor, " clip"],
        times: Float[Tensor, " clip"],
        guidance: Guidance,
        crossing: CrossingClip | None = None,
    ) -> Denoiser:
        """A guided denoiser of the single pictures of `Cells`: (clip, 1, c, h, w)."""


Told = ParamSpec("Told")
Asked = TypeVar("Asked")


def answering(record: Callable[Told, Asked], answer: Callable[[Asked], Denoiser]) -> Callable[Told, Denoiser]:
    """The prior that is asked with the fields of a record (`Rows`, `Columns`, `Cells`) and answers with a denoiser.

    Families write `answer`, which has one argument; that record and protocol agree is what the type checker proves
    wherever a family's priors are put together.
    """

    def prior(*told: Told.args, **named: Told.kwargs) -> Denoiser:
        return answer(record(*told, **named))

    return prior


@dataclass(frozen=True)
class Running:
    """How a family runs on this machine, and the memory it takes there, in GB of 10⁹ bytes."""

    settings: str  # one line
    predicted_gb: float  # peak
    peak_gb: Callable[[], float]  # what was really taken so far, at the peak


@dataclass(frozen=True)
class Family:
    """`sigma_min` and `sigma_max` span the noise the priors were trained for; pictures are `resolution` squared."""

    name: str
    resolution: int
    latent_shape: tuple[int, int, int]  # (c, h, w) of one picture
    views: int  # the multi-view prior's own clip length, azimuths uniform
    frames: int  # the video prior's own clip length
    sigma_min: float
    sigma_max: float
    encode: Encode
    decode: Decode
    video: VideoPrior
    multiview: MultiviewPrior
    image: ImagePrior | None = None  # the cells' own prior, where the family has one
    crossings: bool = False  # whether its priors may be told a crossing clip
    shallow: Callable[[Callable[[Sigma], bool]], Family] | None = None  # the same priors, whose deep layers are asked
    # where the function of σ holds, and in between stand as they were last; each denoiser remembers its own
    running: Running | None = None  # where there is a choice of how to run


Loader = Callable[[Path | None, Any], Family]  # (folder of checkpoints or None for the package's own, settings or None)

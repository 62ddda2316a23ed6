"""Path -> frames: a picture, an animation, a video file or a folder of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.grid import straight
from loom4d.runs import InputError
from loom4d.sources.pictures import Footage, NotAPicture, open_picture, picture_facts, read_picture
from loom4d.sources.video import open_video

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".gif", ".ppm", ".pgm", ".qoi", ".jp2")
MAX_FRAMES = 256  # kept
MAX_SIDE = 2048  # pixels kept of one frame
MAX_TOTAL = 16_000_000  # pixels kept of all frames: 256 MB as float RGBA
RESAMPLING = ("nearest", "linear")


@dataclass(frozen=True)
class Clip:
    """Frames as they were given, before the object is cut out; a photo is a clip of one frame."""

    rgba: Float[Tensor, "frame 4 height width"]  # 0..1, straight alpha
    times: Float[Tensor, " frame"]  # seconds
    has_alpha: bool  # whether the file could hold transparency at all
    source_frames: int  # how many there were before resampling
    source_size: tuple[int, int]  # (height, width) before shrinking

    @property
    def frames(self) -> int:
        return self.rgba.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgba.shape[-2], self.rgba.shape[-1]


def read(
    path: Path | str, frames: int | None = None, resampling: str = "nearest", fps: float = 24.0, cyclic: bool = False
) -> Clip:
    """Reads a picture, an animation, a video or a folder of pictures, of any size.

    `frames` asks for that many, spread evenly in time from the first to the last ("nearest" takes the frame nearest to
    each instant, "linear" blends its two neighbours); None keeps them all. A photo stays one frame. `fps` times the
    pictures of a folder. `cyclic` spreads them over a closed circle, whose end is its start: an orbit.
    Only the frames needed are decoded, and shrunk to `MAX_SIDE` and `MAX_TOTAL` pixels on the way.
    """
    path = Path(path)
    if resampling not in RESAMPLING:
        raise ValueError(f"unknown resampling {resampling!r}; choose one of {', '.join(RESAMPLING)}")
    if frames is not None and not 1 <= frames <= MAX_FRAMES:
        raise InputError(f"{frames} frames asked for; choose 1 to {MAX_FRAMES}")
    footage = _open(path, fps)
    given = torch.tensor(footage.times, dtype=torch.float64)
    if frames is None and len(given) > MAX_FRAMES:
        raise InputError(f"{path}: has {len(given)} frames; say how many to take (at most {MAX_FRAMES})")
    targets = instants(given, len(given) if frames is None or len(given) == 1 else frames, cyclic)
    below, weight = neighbours(given, targets)
    if resampling == "nearest":
        below, weight = below + (weight > 0.5).long(), torch.zeros_like(weight)
    needed = sorted({*below.tolist(), *(below + 1)[weight > 0].tolist()})
    scale = _scale(footage.height, footage.width, max(len(needed), len(targets)))
    decoded = dict(zip(needed, footage.decode(needed, scale), strict=True))
    if len({frame.shape for frame in decoded.values()}) > 1:
        raise InputError(f"{path}: its frames change their size on the way; a clip needs one size")
    rgba = torch.stack([decoded[index] for index in below.tolist()])  # (F, 4, H, W)
    if (weight > 0).any():
        above = torch.where(weight > 0, below + 1, below)
        rgba = _blend(rgba, torch.stack([decoded[index] for index in above.tolist()]), weight.float())
    size = (footage.height, footage.width)
    return Clip(rgba, targets.float(), footage.has_alpha, len(given), size)


def instants(given: Float[Tensor, " n"], frames: int, cyclic: bool = False) -> Float[Tensor, " frame"]:
    """`frames` even instants from the first to the last of the given ones, both kept; one frame is the first.

    On a circle the last instant is left out: it would be the first again.
    """
    if cyclic:
        step = (given[-1] - given[0]) / max(len(given) - 1, 1)
        return given[0] + torch.arange(frames, dtype=given.dtype) * (step * len(given) / frames)
    if frames == len(given):
        return given
    return torch.linspace(given[0].item(), given[-1].item(), frames, dtype=given.dtype)


def neighbours(
    given: Float[Tensor, " n"], targets: Float[Tensor, " frame"]
) -> tuple[torch.Tensor, Float[Tensor, " frame"]]:
    """Index of the last given instant at or before each target, and how far the target is on its way to the next."""
    below = (torch.searchsorted(given, targets + 1e-9, right=True) - 1).clamp(0, len(given) - 1)
    above = (below + 1).clamp_max(len(given) - 1)
    gap = given[above] - given[below]
    weight = torch.where(gap > 0, (targets - given[below]) / gap.clamp_min(1e-12), torch.zeros_like(gap))
    return below, torch.where(weight < 1e-6, torch.zeros_like(weight), weight)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts "2.png" before "10.png": digits compare as numbers, the rest as lower-case text."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part.lower()) for part in parts]


def _open(path: Path, fps: float) -> Footage:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        return _open_folder(path, fps)
    if not path.is_file():
        raise InputError(f"{path}: not a file that can be read")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: an empty file (0 bytes)")
    try:
        return open_picture(path)
    except NotAPicture:
        return open_video(path)


def _open_folder(path: Path, fps: float) -> Footage:
    if fps <= 0:
        raise InputError(f"fps is {fps}; it must be positive")
    files = [f for f in path.iterdir() if f.is_file() and f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
    files.sort(key=lambda file: natural_key(file.name))
    if not files:
        raise InputError(f"{path}: a folder without pictures ({', '.join(SUFFIXES[:4])}, …)")
    facts = [_facts_in_folder(file) for file in files]
    sizes = [(height, width) for height, width, _ in facts]
    odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if odd is not None:
        raise InputError(
            f"{path}: pictures of mixed sizes, {files[0].name} is {sizes[0][1]} × {sizes[0][0]} but {files[odd].name} "
            f"is {sizes[odd][1]} × {sizes[odd][0]}; a clip needs one size"
        )
    has_alpha = any(alpha for _, _, alpha in facts)

    def decode(indices: Sequence[int], scale: float) -> Iterator[Tensor]:
        yield from (read_picture(files[index], scale) for index in indices)

    return Footage([index / fps for index in range(len(files))], *sizes[0], has_alpha, decode)


def _facts_in_folder(file: Path) -> tuple[int, int, bool]:
    if file.stat().st_size == 0:
        raise InputError(f"{file}: an empty file (0 bytes)")
    try:
        return picture_facts(file)
    except NotAPicture as error:
        raise InputError(f"{file}: not a picture, whatever its name says") from error


def _scale(height: int, width: int, frames: int) -> float:
    """How much to shrink so that neither one side nor all frames together pass the bounds; at most 1."""
    return min(1.0, MAX_SIDE / max(height, width), (MAX_TOTAL / (frames * height * width)) ** 0.5)


def _blend(
    start: Float[Tensor, "frame 4 height width"],
    end: Float[Tensor, "frame 4 height width"],
    weight: Float[Tensor, " frame"],
) -> Float[Tensor, "frame 4 height width"]:
    """(1 − weight) start + weight end, in premultiplied colour."""
    first, second = (torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1) for x in (start, end))
    return straight(torch.lerp(first, second, weight[:, None, None, None]))

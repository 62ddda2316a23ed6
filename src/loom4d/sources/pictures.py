"""Still and animated pictures, through Pillow."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from loom4d.runs import InputError

MAX_PIXELS = 64_000_000  # of one picture: any phone's, but not a decompression bomb
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "QOI", "JPEG2000")
ANIMATED = ("PNG", "WEBP", "GIF", "AVIF")  # several pages in other formats are not a clip: the first one counts
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"}
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)  # of Pillow's decoders


@dataclass(frozen=True)
class Footage:
    """Frames that are not decoded yet: `decode(indices, scale)` yields those of the rising indices, shrunk by scale."""

    times: Sequence[float]  # seconds, rising, one per frame
    height: int
    width: int
    has_alpha: bool
    decode: Callable[[Sequence[int], float], Iterator[Float[Tensor, "4 height width"]]]


class NotAPicture(Exception):
    """Pillow does not know the format; a video reader may."""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture at `path`, not decoded yet; what is wrong with it, now or while it is used, is an `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about sizes and odd metadata; both are judged here
            with Image.open(path, formats=FORMATS) as image:
                refuse_size(path, image.height, image.width)
                yield image
    except UnidentifiedImageError as error:
        with open(path, "rb") as file:
            start = file.read(16)
        known = next((name for signature, name in SIGNATURES.items() if start.startswith(signature)), None)
        if known and (known != "WebP" or b"WEBP" in start):  # AVI is a RIFF too
            raise InputError(f"{path}: a damaged {known} file; save it again from its source") from error
        raise NotAPicture from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: too large (over {2 * MAX_PIXELS:,} pixels); scale it down first") from error
    except (InputError, NotAPicture):
        raise
    except DAMAGE as error:
        raise InputError(f"{path}: a truncated, damaged or unusual picture ({_one_line(error)})") from error


def refuse_size(path: Path, height: int, width: int) -> None:
    """Raises `InputError` for a picture without pixels or with more than `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise InputError(f"{path}: a picture of zero size ({width} × {height})")
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{path}: too large ({width} × {height} is {height * width / 1e6:.0f} megapixels, at most "
            f"{MAX_PIXELS / 1e6:.0f} are read); scale it down first"
        )


def picture_facts(path: Path) -> tuple[int, int, bool]:
    """(height, width, has alpha) as shown, from the header alone: EXIF orientations 5 to 8 lie on their side."""
    with opened(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        return height, width, image.has_transparency_data


def read_picture(path: Path, scale: float = 1.0) -> Float[Tensor, "4 height width"]:
    """One picture as straight alpha in 0..1, upright, shrunk by `scale` ≤ 1."""
    with opened(path) as image:
        if image.format == "JPEG" and scale < 1:  # decode at 1/2, 1/4 or 1/8 already
            longest = max(image.size)
            image.draft(image.mode, (int(image.width * scale) + 1, int(image.height * scale) + 1))
            scale = scale * longest / max(image.size)
        return pixels(ImageOps.exif_transpose(image), scale)


def pixels(image: Image.Image, scale: float = 1.0) -> Float[Tensor, "4 height width"]:
    """Any Pillow mode as straight alpha in 0..1; shrinking averages premultiplied colour."""
    image = _in_simple_mode(image)
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    values = torch.from_numpy(np.array(image, dtype=np.float32)) / 255  # (H, W) or (H, W, C)
    if values.ndim == 2:
        values = values[..., None].expand(-1, -1, 3)
    if values.shape[-1] == 3:
        values = torch.cat([values, torch.ones_like(values[..., :1])], -1)
    return values.permute(2, 0, 1).contiguous()


def _in_simple_mode(image: Image.Image) -> Image.Image:
    """The same picture as RGB, RGBA or, to keep more than 8 bits of grey, as F with values in 0..255."""
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey; float pictures are 0..1 by custom
        grey = np.array(image, dtype=np.float32)
        full = 1.0 if image.mode == "F" else 65535.0
        if grey.min() < 0 or grey.max() > full:
            raise ValueError(f"mode {image.mode} with values outside 0..{full:g}; save it as an 8-bit PNG")
        return Image.fromarray(grey * (255 / full))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def open_still(path: Path) -> Footage:
    """A photo, or the first page of a file with pages that are no animation."""
    height, width, has_alpha = picture_facts(path)

    def decode(indices: Sequence[int], scale: float) -> Iterator[Tensor]:
        yield from (read_picture(path, scale) for _ in indices)

    return Footage((0.0,), height, width, has_alpha, decode)


def open_picture(path: Path) -> Footage:
    """A photo, or an animated GIF, WebP, PNG or AVIF. Raises `NotAPicture` where Pillow does not know the format."""
    with opened(path) as image:
        count = getattr(image, "n_frames", 1)
        first = 1 if getattr(image, "default_image", False) else 0  # an APNG's stand-in for old readers
        if image.format not in ANIMATED or count - first < 2:
            return open_still(path)
        seconds = []
        has_alpha = False
        for index in range(first, count):
            image.seek(index)
            image.load()  # WebP knows a frame's duration only then
            seconds.append((image.info.get("duration") or 100) / 1000)  # browsers play "0 ms" at 10 a second
            has_alpha |= image.has_transparency_data
        height, width = image.height, image.width
    times = np.concatenate([[0.0], np.cumsum(seconds[:-1])]).tolist()

    def decode(indices: Sequence[int], scale: float) -> Iterator[Tensor]:
        with opened(path) as image:
            for index in indices:
                image.seek(first + index)
                yield pixels(image, scale)

    return Footage(times, height, width, has_alpha, decode)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

"""Clips of an asset: MP4 (H.264), animated WebP and animated GIF of an orbit or of a fixed view."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

import av
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from loom4d.cameras import FOV_DEG, RADIUS, orbit
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.grid import load_grid, straight, to_bytes
from loom4d.options import Between
from loom4d.runs import InputError, write_atomically

SUFFIXES = (".mp4", ".webp", ".gif")


@dataclass(frozen=True)
class OrbitOptions:
    """One clip: the camera goes `turns` times around (0 stays) while the asset's motion plays over and over."""

    seconds: Annotated[float, Between(0.01, 120)] = 6.0
    fps: Annotated[int, Between(1, 120)] = 24
    size: Annotated[int, Between(2, 4096)] = 512  # pixels, both ways; MP4 takes even numbers
    turns: Annotated[float, Between(-100, 100)] = 1.0
    azimuth_deg: float = 0.0  # where the camera starts
    elevation_deg: Annotated[float, Between(-90, 90)] = 10.0
    radius: Annotated[float, Between(0.01, 1000)] = RADIUS
    fov_deg: Annotated[float, Between(1, 170)] = FOV_DEG
    motion: Literal["pingpong", "loop"] = "pingpong"  # there and back, or there and again from the start
    background: Annotated[tuple[float, float, float] | None, Between(0, 1)] = (1.0, 1.0, 1.0)  # RGB; None: transparent
    fitted_size: Annotated[int | None, Between(1, 4096)] = None  # height it was fitted at: larger clips blur as much
    quality: Annotated[int, Between(1, 100)] = 80

    @property
    def frames(self) -> int:
        return max(1, round(self.seconds * self.fps))


def as_fitted(options: OrbitOptions, run: Path) -> OrbitOptions:
    """A clip as sharp as the pictures that a run fitted, unless it is said otherwise or the run has kept no grid."""
    if options.fitted_size is not None or not (run / "grid" / "cameras.json").exists():
        return options
    return replace(options, fitted_size=load_grid(run / "grid").size[0])


def write_orbit(asset: DynamicGaussians, path: Path | str, options: OrbitOptions | None = None) -> None:
    """Writes the clip whose kind `path`'s suffix names. The same asset and options give the same bytes."""
    path, options = Path(path), options or OrbitOptions()
    writers = {".mp4": mp4, ".webp": animated_webp, ".gif": animated_gif}
    if path.suffix.lower() not in writers:
        raise InputError(f"{path}: clips are written as {', '.join(SUFFIXES)}; choose one of these suffixes")
    if path.suffix.lower() == ".mp4" and (options.size % 2 or options.background is None):
        raise InputError(
            f"{path}: MP4 takes an even size and an opaque background, got {options.size} and "
            f"{options.background}; use an even size and a colour, or write .webp"
        )
    write_atomically(path, writers[path.suffix.lower()](orbit_frames(asset, options), options))


def orbit_frames(asset: DynamicGaussians, options: OrbitOptions) -> Iterator[np.ndarray]:
    """The clip's pictures in order, (height, width, 3) or with a transparent background 4, uint8."""
    times = clip_times(asset.time_range, options)
    turn = torch.arange(options.frames) * (360.0 * options.turns / options.frames)
    cameras = orbit(options.azimuth_deg + turn, options.elevation_deg, options.radius, options.fov_deg)
    for frame, time in enumerate(times):
        yield to_bytes(picture(asset, time, cameras[frame], options))


def picture(asset: DynamicGaussians, time: float, camera, options: OrbitOptions) -> Float[Tensor, "c height width"]:
    """One picture: straight RGBA where the background is None, else RGB over it."""
    raster = RasterOptions(height=options.size, width=options.size)
    share = max(1.0, options.size / (options.fitted_size or options.size))
    raster = RasterOptions(height=options.size, width=options.size, blur=raster.blur * share**2)
    with torch.no_grad():
        rendering = rasterize(asset.at(time), camera, raster)
    if options.background is None:
        return straight(rendering.premultiplied.clamp(0, 1))
    return rendering.on(torch.tensor(options.background).to(rendering.rgb)).clamp(0, 1)


def clip_times(time_range: tuple[float, float], options: OrbitOptions) -> list[float]:
    """When each frame shows the asset: whole cycles fill the clip, so that its end joins its start.

    A cycle lasts about as long as the motion (there and back for ping-pong); at least one fits.
    """
    start, end = time_range
    if end - start < 1e-6:
        return [start] * options.frames
    cycle = (end - start) * {"pingpong": 2, "loop": 1}[options.motion]
    cycles = max(1, round(options.seconds / cycle))
    phases = [(frame * cycles / options.frames) % 1.0 for frame in range(options.frames)]
    if options.motion == "pingpong":
        return [start + (end - start) * (1 - abs(2 * phase - 1)) for phase in phases]
    return [start + (end - start) * phase for phase in phases]


def mp4(frames: Iterator[np.ndarray], options: OrbitOptions) -> bytes:
    """H.264 in the layout every player and browser takes (yuv420p, index first)."""
    with tempfile.TemporaryDirectory() as folder:  # moving the index to the front rereads the file: it needs a name
        file = Path(folder) / "clip.mp4"
        with av.open(str(file), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=options.fps)
            stream.width = stream.height = options.size
            stream.pix_fmt = "yuv420p"
            stream.time_base = Fraction(1, options.fps)
            stream.thread_count = 1  # more threads cut the frame differently: other bytes on another machine
            # x264's macroblock tree reads bytes that nobody set: without it the same clip is always the same file.
            params = {"preset": "medium", "x264-params": "mbtree=0"}
            stream.options = {"crf": str(round(40 - 0.28 * options.quality)), **params}
            for array in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
            container.mux(stream.encode())
        return file.read_bytes()


def animated_webp(frames: Iterator[np.ndarray], options: OrbitOptions) -> bytes:
    pictures = (Image.fromarray(array) for array in frames)
    return _animation(pictures, options, format="WEBP", quality=options.quality, method=4)


def animated_gif(frames: Iterator[np.ndarray], options: OrbitOptions) -> bytes:
    """GIF knows 255 colours a frame, pixels that are there or not, and hundredths of a second."""
    return _animation((_paletted(array) for array in frames), options, format="GIF", optimize=False, disposal=2)


def _paletted(array: np.ndarray) -> Image.Image:
    """Colour over white in 255 shades; shade 255 stands for pixels that are more than half transparent."""
    if array.shape[2] == 3:
        return Image.fromarray(array).quantize(255)
    alpha = array[:, :, 3:].astype(np.float32) / 255
    over_white = array[:, :, :3] * alpha + 255 * (1 - alpha)
    picture = Image.fromarray(np.rint(over_white).astype(np.uint8)).quantize(255)
    picture.paste(255, mask=Image.fromarray(np.where(alpha[:, :, 0] < 0.5, 255, 0).astype(np.uint8)))
    picture.info["transparency"] = 255
    return picture


def _animation(pictures: Iterator[Image.Image], options: OrbitOptions, **encoding) -> bytes:
    first, buffer = next(pictures), BytesIO()
    duration = round(1000 / options.fps)
    first.save(buffer, save_all=True, append_images=pictures, duration=duration, loop=0, **encoding)
    return buffer.getvalue()

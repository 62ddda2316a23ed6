"""The image grid: views × frames pictures of one moving object, with a camera for every cell."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from loom4d.cameras import Cameras
from loom4d.runs import InputError, write_atomically, write_json


@dataclass(frozen=True)
class ImageGrid:
    """A photo is 1×1, a video 1×F, a turntable V×1, the Diffusion² matrix V×F, an orbiting clip 1×F.

    Pictures that are no matrix, as many views at some instants as at others, are 1×N in the order of time: every cell
    has its own camera, and frames may share an instant.
    """

    rgba: Float[Tensor, "view frame 4 height width"]  # 0..1, straight alpha
    cameras: Cameras  # batch (view, frame)
    times: Float[Tensor, " frame"]  # seconds, never falling

    def __post_init__(self) -> None:
        expected = tuple(self.rgba.shape[:2])
        if self.cameras.batch_shape != expected or tuple(self.times.shape) != expected[1:]:
            raise ValueError(
                f"a grid of {expected} pictures needs as many cameras and times, got cameras "
                f"{self.cameras.batch_shape} and times {tuple(self.times.shape)}"
            )

    @property
    def views(self) -> int:
        return self.rgba.shape[0]

    @property
    def frames(self) -> int:
        return self.rgba.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgba.shape[-2], self.rgba.shape[-1]

    def __getitem__(self, index: tuple[slice, slice]) -> ImageGrid:
        """Part of the grid by two slices, as grid[2:3, :]; a plain index would lose an axis."""
        views, frames = index
        return ImageGrid(self.rgba[views, frames], self.cameras[views, frames], self.times[frames])

    def to(self, device: torch.device | str) -> ImageGrid:
        """The same grid on another device."""
        cameras = Cameras(self.cameras.camera_from_world.to(device), self.cameras.intrinsics.to(device))
        return ImageGrid(self.rgba.to(device), cameras, self.times.to(device))

    @property
    def premultiplied(self) -> Float[Tensor, "view frame 4 height width"]:
        """Colour times alpha, and alpha: what may be averaged, resized and blended."""
        alpha = self.rgba[:, :, 3:]
        return torch.cat([self.rgba[:, :, :3] * alpha, alpha], 2)

    def on(self, background: float | tuple[float, float, float] = 1.0) -> Float[Tensor, "view frame 3 height width"]:
        """The pictures over a plain background (white by default)."""
        colour = torch.as_tensor(background).to(self.rgba).expand(3)[:, None, None]
        alpha = self.rgba[:, :, 3:]
        return self.rgba[:, :, :3] * alpha + colour * (1 - alpha)

    def resized(self, height: int, width: int) -> ImageGrid:
        """Area-averaged or bilinear resize in premultiplied colour, so that no rim darkens."""
        flat = rearrange(self.premultiplied, "view frame c h w -> (view frame) c h w")
        flat = torch.nn.functional.interpolate(flat, (height, width), mode="bilinear", antialias=True)
        rgba = straight(flat.clamp(0, 1))
        return replace(self, rgba=rearrange(rgba, "(view frame) c h w -> view frame c h w", view=self.views))


def straight(premultiplied: Float[Tensor, "*batch 4 height width"]) -> Float[Tensor, "*batch 4 height width"]:
    """Premultiplied to straight alpha; colour is black where alpha is 0."""
    alpha = premultiplied[..., 3:, :, :]
    colour = premultiplied[..., :3, :, :] / alpha.clamp_min(1e-4)
    return torch.cat([colour.clamp(0, 1) * (alpha > 0), alpha], -3)


def to_bytes(rgba: Float[Tensor, "c height width"]) -> np.ndarray:
    """A picture in 0..1 as (height, width, c) uint8, rounded."""
    return (rgba.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def png(rgba: Float[Tensor, "c height width"]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(to_bytes(rgba)).save(buffer, "PNG")
    return buffer.getvalue()


def save_grid(grid: ImageGrid, folder: Path) -> None:
    """Writes `view_VV/frame_FF.png` (straight alpha, 8 bit) and `cameras.json` under `folder`."""
    for view in range(grid.views):
        for frame in range(grid.frames):
            write_atomically(folder / f"view_{view:02}" / f"frame_{frame:02}.png", png(grid.rgba[view, frame].cpu()))
    write_json(
        folder / "cameras.json",
        {
            "convention": "OpenGL camera (x right, y up, looks down -z), world y up; intrinsics of an image over 0..1",
            "times": grid.times.tolist(),
            "camera_from_world": grid.cameras.camera_from_world.tolist(),
            "intrinsics": grid.cameras.intrinsics.tolist(),
        },
    )


def load_grid(folder: Path) -> ImageGrid:
    """The inverse of `save_grid`, exact up to the 8 bits of its pictures."""
    try:
        facts = json.loads((folder / "cameras.json").read_text())
        cameras = Cameras(torch.tensor(facts["camera_from_world"]), torch.tensor(facts["intrinsics"]))
        views, frames = cameras.batch_shape
        rows = [
            [_read_png(folder / f"view_{view:02}" / f"frame_{frame:02}.png") for frame in range(frames)]
            for view in range(views)
        ]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{folder}: not a saved image grid ({error})") from error
    return ImageGrid(torch.stack([torch.stack(row) for row in rows]), cameras, torch.tensor(facts["times"]))


def _read_png(path: Path) -> Float[Tensor, "4 height width"]:
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGBA"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def contact_sheet(grid: ImageGrid, cell: int = 128, background: float = 1.0) -> Image.Image:
    """One picture of the whole grid: a row per view (labelled by azimuth), a column per frame (by seconds)."""
    margin, gap = 44, 2
    small = grid.resized(cell, cell) if grid.size != (cell, cell) else grid
    pictures = small.on(background).cpu()
    width, height = margin + grid.frames * (cell + gap), 18 + grid.views * (cell + gap)
    sheet = Image.new("RGB", (width, height), (245, 245, 245))
    draw = ImageDraw.Draw(sheet)
    azimuths = grid.cameras.azimuths_deg().cpu()
    for frame in range(grid.frames):
        draw.text((margin + frame * (cell + gap) + 4, 3), f"{grid.times[frame].item():.2f} s", fill=(90, 90, 90))
    for view in range(grid.views):
        top = 18 + view * (cell + gap)
        draw.text((4, top + cell // 2 - 6), f"{azimuths[view, 0].item():.0f}°", fill=(90, 90, 90))
        for frame in range(grid.frames):
            sheet.paste(Image.fromarray(to_bytes(pictures[view, frame])), (margin + frame * (cell + gap), top))
    return sheet

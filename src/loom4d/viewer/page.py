"""`viewer.html`: one page that plays an asset offline, with everything it needs inside."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from loom4d.cameras import FOV_DEG
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.grid import ImageGrid, png, to_bytes
from loom4d.runs import load_tensors, write_atomically
from loom4d.viewer.pack import Packed, pack

FOLDER = Path(__file__).parent
SCENE, SCRIPTS = "scene.js", ("paint.js", "controls.js", "panel.js")  # the scene runs in a worker too
SHEET_WIDTH = 1024  # pixels at most of the pictures that a page carries
DEFAULT_CAMERA = {"azimuth": 30.0, "elevation": 12.0, "radius": 2.0, "fov": FOV_DEG}
FITTED_SIZE = 512  # stands in for the grid's size where a page is made without a grid


@dataclass(frozen=True)
class PageSize:
    """What a page weighs, in bytes, and what was put in it."""

    page: int
    asset: int  # packed Gaussians, before base64 adds a third
    pictures: int
    code: int
    gaussians: int
    motion: str  # "spacetime", "controlled" or "baked"
    error: float  # world units between the motion and the packed positions, see `Packed`


def write_page(
    asset: DynamicGaussians,
    path: Path | str,
    *,
    title: str = "Loom4D asset",
    grid: ImageGrid | None = None,
    source: ImageGrid | None = None,
    facts: dict[str, str] | None = None,
    values: dict[str, Float[Tensor, " point"]] | None = None,
    disagreement: Float[Tensor, "view frame h w"] | None = None,
) -> PageSize:
    """Writes the asset's page. `grid` and `source` (the input, first view shown) stand beside the asset.

    `facts` are lines for the side panel; `values` are numbers per Gaussian that can be shown in place of its colour.
    `disagreement` of the priors, 0..1 in every cell of the grid, can be laid over the grid, and colours the asset
    where its Gaussians are seen. The page blurs as the fit did, which was at the size of `grid`.
    """
    if disagreement is not None:
        if grid is None or disagreement.shape[:2] != (grid.views, grid.frames):
            raise ValueError(f"disagreement of {tuple(disagreement.shape)} does not belong to the grid that was given")
        values = {**(values or {}), "disagreement": on_gaussians(asset, grid, disagreement)}
    times = _times(asset, grid)
    options = RasterOptions(height=grid.size[0] if grid else FITTED_SIZE, width=grid.size[1] if grid else FITTED_SIZE)
    packed = pack(asset, times, options.alpha_cut, values)
    header = packed.header | {
        "alpha_min": options.alpha_cut,
        "alpha_max": options.alpha_cap,
        "near": options.near,
        "blur": options.blur,
        "slope_limit": 1.3,  # the rasteriser's margin: 0.15 of the picture beyond each side
        "fitted_size": options.height,
        "camera": _camera(grid),
        "title": title,
        "frames": grid.frames if grid else 0,
        "grid": _sheet(grid, disagreement) if grid else None,
        "input": _strip(source) if source else None,
        "summary": _summary(packed, times),
        "facts": {"Gaussians": f"{packed.header['count']:,}", "Motion": packed.header["motion"], **(facts or {})},
    }
    page = assemble(header, packed.data)
    write_atomically(Path(path), page)
    sheets = [header[name] for name in ("grid", "input") if header[name]]
    pictures = sum(len(sheet[name] or "") for sheet in sheets for name in ("picture", "heat") if name in sheet)
    return PageSize(
        page=len(page.encode()),
        asset=len(packed.data),
        pictures=pictures,
        code=len(page.encode()) - pictures - len(base64.b64encode(packed.data)),
        gaussians=packed.header["count"],
        motion=packed.header["motion"],
        error=packed.error,
    )


def assemble(header: dict[str, Any], data: bytes) -> str:
    """The page around a header and packed Gaussians. Its policy lets nothing run or load but what is inside it."""
    template = (FOLDER / "page.html").read_text(encoding="utf-8")
    scene = "\n" + (FOLDER / SCENE).read_text(encoding="utf-8")
    script = "\n" + "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = template.split("<style>")[1].split("</style>")[0]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(scene)}' '{_digest(script)}'",
            "worker-src blob:",
            f"style-src '{_digest(style)}'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # A closing tag inside a script block would end it; "<" may be written as \u003c anywhere in JSON.
    inside = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "policy": policy,
        "title": html.escape(header["title"]),
        "header": inside,
        "data": base64.b64encode(data).decode(),
        "scene": scene,
        "script": script,
    }
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _times(asset: DynamicGaussians, grid: ImageGrid | None) -> tuple[float, float]:
    if grid is not None:
        return float(grid.times[0]), float(grid.times[-1])
    return asset.time_range


def _camera(grid: ImageGrid | None) -> dict[str, float]:
    """The grid's first camera, seen a little from the side and from above; its distance and field of view."""
    if grid is None:
        return DEFAULT_CAMERA
    first = grid.cameras[0, 0]
    focal = float(first.intrinsics[1, 1])
    return {
        "azimuth": float(first.azimuths_deg()),
        "elevation": float(first.elevations_deg()),
        "radius": float(first.positions.norm()),
        "fov": math.degrees(2 * math.atan(0.5 / focal)),
    }


def disagreement_of(folder: Path) -> Float[Tensor, "view frame h w"] | None:
    """How far the priors disagreed in each cell of a run's grid, 0..1; None where the run did not keep it."""
    path = folder / "disagreement.safetensors"
    return load_tensors(path)[0]["disagreement"] if path.exists() else None


def on_gaussians(
    asset: DynamicGaussians, grid: ImageGrid, disagreement: Float[Tensor, "view frame h w"]
) -> Float[Tensor, " point"]:
    """The mean of what each Gaussian is seen with in the grid's cells; 0 where none sees it."""
    total, weight = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for frame, time in enumerate(grid.times.tolist()):
            gaussians, cameras = asset.at(time), grid.cameras[:, frame]
            depths = rasterize(gaussians, cameras, RasterOptions(*grid.size)).median_depth
            uv, depth = cameras.project(gaussians.means.expand(grid.views, -1, -1))  # (view, N, 2), (view, N)
            place = uv[:, :, None] * 2 - 1
            seen = _sampled(depths, place) + 0.05 * float(depth.mean()) > depth
            value = _sampled(disagreement[:, frame, None].float(), place)
            share = gaussians.opacities * seen
            total, weight = total + (share * value).sum(0), weight + share.sum(0)
    return total / weight.clamp_min(1e-6)


def _sampled(picture: Float[Tensor, "view 1 h w"], place: Float[Tensor, "view n 1 2"]) -> Float[Tensor, "view n"]:
    return torch.nn.functional.grid_sample(picture, place, align_corners=False, padding_mode="border")[:, 0, :, 0]


def _heat(disagreement: Float[Tensor, "view frame h w"]) -> str:
    """A picture to lay over the sheet: dark blue to yellow as the page's scale, the more solid the more there is."""
    height, width = (min(side, 32) for side in disagreement.shape[2:])
    small = torch.nn.functional.interpolate(disagreement.float().cpu(), (height, width), mode="area")
    level = rearrange(small, "view frame h w -> (view h) (frame w)").clamp(0, 1)[..., None]
    low, middle, high = (
        torch.tensor(colour) for colour in ((0.13, 0.10, 0.33), (0.10, 0.55, 0.55), (0.99, 0.91, 0.30))
    )
    colour = torch.where(level < 0.5, low + 2 * level * (middle - low), middle + (2 * level - 1) * (high - middle))
    rgba = torch.cat([colour, 0.15 + 0.75 * level.sqrt()], -1)
    return "data:image/png;base64," + base64.b64encode(png(rearrange(rgba, "y x c -> c y x"))).decode()


def _sheet(grid: ImageGrid, disagreement: Float[Tensor, "view frame h w"] | None = None) -> dict[str, Any]:
    """The grid as one picture without gaps, and where and when each cell was seen from."""
    side = max(16, min(128, SHEET_WIDTH // grid.frames, grid.size[1]))
    small = grid.resized(max(1, round(side * grid.size[0] / grid.size[1])), side).on().cpu()
    return {
        "picture": _jpeg(rearrange(small, "view frame c h w -> c (view h) (frame w)")),
        "azimuths": [[round(angle, 3) for angle in row] for row in grid.cameras.azimuths_deg().tolist()],
        "elevations": [[round(angle, 3) for angle in row] for row in grid.cameras.elevations_deg().tolist()],
        "times": grid.times.tolist(),
        "heat": None if disagreement is None else _heat(disagreement),
    }


def _strip(source: ImageGrid) -> dict[str, Any]:
    """The first view of the input, frames side by side."""
    width = max(32, min(192, 4096 // source.frames))
    small = source[:1, :].resized(max(1, round(width * source.size[0] / source.size[1])), width).on().cpu()
    return {"picture": _jpeg(rearrange(small, "1 frame c h w -> c h (frame w)")), "times": source.times.tolist()}


def _jpeg(rgb: Float[Tensor, "3 height width"]) -> str:
    buffer = BytesIO()
    Image.fromarray(to_bytes(torch.as_tensor(rgb))).save(buffer, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _summary(packed: Packed, times: tuple[float, float]) -> str:
    seconds = times[1] - times[0]
    length = f"{seconds:.1f} seconds" if seconds > 0 else "a single instant"
    return f"{length} of {packed.header['count']:,} moving Gaussians, {len(packed.data) / 1e6:.1f} MB."

"""Meshes to pictures with depth, on the CPU and without a display.

Visibility is a z-buffer (`BACKENDS`); everything else is deferred: attributes of the visible triangle are gathered at
each sample, textured and lit. Where surfaces let light through, layers are peeled off one after another and blended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from loom4d import native
from loom4d.cameras import Cameras
from loom4d.sources.posing import Mesh, Surface
from loom4d.sources.procedural.raycast import AMBIENT, SKY, SUN

LIGHT = (0.45, 0.75, 0.49)  # direction towards the light, fixed in the world: from above, the front and the right
LAYERS = 6  # of see-through surfaces behind each other
NEAR = 1e-3  # triangles that come nearer to the camera's plane are left out
FAR = 1e30  # where nothing is seen; the kernel is compiled without infinities
SAMPLES_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Visible:
    """What each sample sees."""

    face: Int[Tensor, "picture height width"]  # −1 where nothing
    depth: Float[Tensor, "picture height width"]  # along the view axis, FAR where nothing
    weights: Float[Tensor, "picture height width 3"]  # perspective-correct, of the face's corners


def render(
    mesh: Mesh, cameras: Cameras, height: int, width: int, samples: int = 4, backend: str = "auto"
) -> tuple[Float[Tensor, "picture 4 height width"], Float[Tensor, "picture height width"]]:
    """Straight-alpha RGBA in 0..1 and the depth of the nearest surface (0 where there is none) for a batch of cameras.

    `samples`² samples a pixel are averaged premultiplied; depth is that of the nearest of them. Light is that of the
    procedural objects: it depends on the world normal only, so that all views agree.
    """
    if backend == "auto":
        backend = "native" if native.load() is not None else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    if not 1 <= samples <= 16:
        raise ValueError(f"samples along a pixel's side must be 1..16, got {samples}")
    high, wide = height * samples, width * samples
    together = max(1, SAMPLES_AT_ONCE // (high * wide))
    pictures, depths = [], []
    for start in range(0, cameras.batch_shape[0], together):
        rgba, depth = _layers(mesh, cameras[start : start + together], high, wide, BACKENDS[backend])
        pictures.append(reduce(rgba, "b (y s) (x t) c -> b c y x", "mean", s=samples, t=samples))
        depths.append(reduce(depth, "b (y s) (x t) -> b y x", "min", s=samples, t=samples))
    premultiplied, depth = torch.cat(pictures), torch.cat(depths)
    alpha = premultiplied[:, 3:]
    rgba = torch.cat([(premultiplied[:, :3] / alpha.clamp_min(1e-9)).clamp(0, 1), alpha], 1)
    return rgba, torch.where(depth >= FAR, torch.zeros_like(depth), depth)


def _layers(mesh: Mesh, cameras: Cameras, height: int, width: int, visible: Backend) -> tuple[Tensor, Tensor]:
    """Premultiplied colour (picture, height, width, 4) and depth of every sample, front to back."""
    points, faces = projected(mesh, cameras, height, width)
    shape = (len(points), height, width)
    rgba = torch.zeros(*shape, 4)
    depth = torch.full(shape, FAR)
    beyond = torch.zeros(shape, dtype=torch.float64)
    clear = any(surface.opacity != "opaque" for surface in mesh.surfaces)
    for _ in range(LAYERS if clear else 1):
        seen = visible(points, faces, beyond)
        hit = (seen.face >= 0) & (rgba[..., 3] < 0.999)
        if not hit.any():
            break
        colour = shade(mesh, seen.face[hit], seen.weights[hit].float())  # (sample, 4)
        colour = torch.cat([colour[:, :3] * colour[:, 3:], colour[:, 3:]], 1)
        depth[hit] = torch.where(colour[:, 3] > 0.5, torch.minimum(depth[hit], seen.depth[hit].float()), depth[hit])
        rgba[hit] = rgba[hit] + (1 - rgba[hit][:, 3:]) * colour
        beyond = torch.where(seen.face >= 0, seen.depth * (1 + 1e-6), FAR)
    return rgba, depth


def projected(
    mesh: Mesh, cameras: Cameras, height: int, width: int
) -> tuple[Float[Tensor, "picture corner 3"], Int[Tensor, "face 3"]]:
    """(x, y in pixels, depth) of each face's own corners; depth is −1 for faces that a camera must not draw.

    Those are the faces behind it or across its plane, and the backs of surfaces that are not double sided.
    """
    uv, depth = cameras.to(torch.float64).project(mesh.vertices.double().expand(*cameras.batch_shape, -1, -1))
    points = torch.cat([uv * torch.tensor([width, height]), depth[..., None]], -1)  # (picture, vertex, 3)
    corners = points[:, mesh.faces]  # (picture, face, 3, 3)
    a, b, c = corners[..., :2].unbind(-2)
    # Counter-clockwise as seen is clockwise in pixels, whose y points down: a negative area.
    area = (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
    both = torch.tensor([surface.double_sided for surface in mesh.surfaces])[mesh.surface_of_face]
    hidden = (corners[..., 2].amin(-1) <= NEAR) | ((area > 0) & ~both)
    corners[..., 2] = torch.where(hidden[..., None], -torch.ones_like(corners[..., 2]), corners[..., 2])
    flat = rearrange(corners, "picture face corner xyz -> picture (face corner) xyz").contiguous()
    return flat, torch.arange(flat.shape[1]).reshape(-1, 3)


# --- visibility ----------------------------------------------------------------------------------------------------


def visible_native(
    points: Float[Tensor, "picture vertex 3"],
    faces: Int[Tensor, "face 3"],
    beyond: Float[Tensor, "picture height width"],
) -> Visible:
    """The C++ kernel of native/rasterize_mesh.cpp."""
    library = native.load()
    if library is None:
        raise RuntimeError("the native rasteriser needs a C++ compiler (or unset LOOM4D_NATIVE=0); use 'reference'")
    pictures, height, width = beyond.shape
    face = torch.full((pictures, height, width), -1)
    depth = torch.full((pictures, height, width), FAR, dtype=torch.float64)
    weights = torch.zeros(pictures, height, width, 3, dtype=torch.float64)
    sizes = torch.tensor([pictures, points.shape[1], len(faces), height, width, torch.get_num_threads()])
    arrays = [sizes, points.contiguous(), faces.contiguous(), beyond.contiguous(), face, depth, weights]
    library.loom4d_mesh_visible(*(native.pointer(array) for array in arrays))
    return Visible(face, depth, weights)


def visible_reference(
    points: Float[Tensor, "picture vertex 3"],
    faces: Int[Tensor, "face 3"],
    beyond: Float[Tensor, "picture height width"],
) -> Visible:
    """Every triangle over the pixels of its bounding box, one after another: the specification."""
    pictures, height, width = beyond.shape
    face = torch.full((pictures, height, width), -1)
    depth = torch.full((pictures, height, width), FAR, dtype=torch.float64)
    weights = torch.zeros(pictures, height, width, 3, dtype=torch.float64)
    for picture in range(pictures):
        for index, corners in enumerate(points[picture][faces]):
            (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners.tolist()
            twice = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if min(az, bz, cz) <= 0 or abs(twice) <= 1e-12:
                continue
            top, bottom = max(0, int(min(ay, by, cy)) - 1), min(height, int(max(ay, by, cy)) + 2)
            left, right = max(0, int(min(ax, bx, cx)) - 1), min(width, int(max(ax, bx, cx)) + 2)
            if top >= bottom or left >= right:
                continue
            box = (picture, slice(top, bottom), slice(left, right))
            y = (torch.arange(top, bottom, dtype=torch.float64) + 0.5)[:, None]
            x = torch.arange(left, right, dtype=torch.float64) + 0.5
            u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / twice
            v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / twice
            flat = torch.stack([u / az, v / bz, (1 - u - v) / cz], -1)
            z = 1 / flat.sum(-1)
            inside = (u >= 0) & (v >= 0) & (1 - u - v >= 0) & (z < depth[box]) & (z > beyond[box])
            depth[box] = torch.where(inside, z, depth[box])
            face[box] = torch.where(inside, index, face[box])
            weights[box] = torch.where(inside[..., None], flat * z[..., None], weights[box])
    return Visible(face, depth, weights)


Backend = Callable[[Tensor, Tensor, Tensor], Visible]
BACKENDS: dict[str, Backend] = {"native": visible_native, "reference": visible_reference}


# --- looks ---------------------------------------------------------------------------------------------------------


def shade(mesh: Mesh, face: Int[Tensor, " sample"], weights: Float[Tensor, "sample 3"]) -> Float[Tensor, "sample 4"]:
    """Straight-alpha colour of points on faces."""
    corners = mesh.faces[face]  # (sample, 3)
    colour = torch.einsum("sk,skc->sc", weights, mesh.colours[corners])
    uv = torch.einsum("sk,skc->sc", weights, mesh.uv[corners])
    normal = F.normalize(torch.einsum("sk,skc->sc", weights, mesh.normals[corners]), dim=-1)
    which = mesh.surface_of_face[face]
    unlit = torch.tensor([surface.unlit for surface in mesh.surfaces])[which]
    for index in which.unique().tolist():
        surface, mine = mesh.surfaces[index], which == index
        colour[mine] = _opacity(surface, colour[mine] * _painted(surface, uv[mine]))
    wrapped = 0.5 + 0.5 * normal @ F.normalize(torch.tensor(LIGHT), dim=0)
    shine = AMBIENT + SKY * normal[:, 1] + SUN * wrapped * wrapped  # (sample,)
    shine = torch.where(unlit, torch.ones_like(shine), shine)
    return torch.cat([(colour[:, :3] * shine[:, None]).clamp(0, 1), colour[:, 3:]], 1)


def _painted(surface: Surface, uv: Tensor) -> Tensor:
    factor = torch.tensor(surface.colour)
    if surface.texture is None:
        return factor.expand(len(uv), 4)
    if surface.texture_from_uv is not None:
        uv = uv @ surface.texture_from_uv[:, :2].mT + surface.texture_from_uv[:, 2]
    return factor * sampled_texture(surface.texture, uv)


def _opacity(surface: Surface, colour: Tensor) -> Tensor:
    alpha = colour[:, 3:]
    if surface.opacity == "opaque":
        alpha = torch.ones_like(alpha)
    elif surface.opacity == "mask":
        alpha = (alpha >= surface.cutoff).float()
    return torch.cat([colour[:, :3], alpha.clamp(0, 1)], 1)


def sampled_texture(texture: Float[Tensor, "height width 4"], uv: Float[Tensor, "n 2"]) -> Float[Tensor, "n 4"]:
    """Bilinear between texel centres; the picture repeats in both directions. (0, 0) is its upper left corner."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] % 1 * width - 0.5, uv[:, 1] % 1 * height - 0.5
    left, top = x.floor(), y.floor()
    right_share, lower_share = (x - left)[:, None], (y - top)[:, None]
    columns = [(left.long() + i) % width for i in (0, 1)]
    rows = [(top.long() + i) % height for i in (0, 1)]
    upper = torch.lerp(texture[rows[0], columns[0]], texture[rows[0], columns[1]], right_share)
    lower = torch.lerp(texture[rows[1], columns[0]], texture[rows[1], columns[1]], right_share)
    return torch.lerp(upper, lower, lower_share)

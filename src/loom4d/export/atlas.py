"""A mesh unrolled into one square picture, and that picture painted from the asset: textures that every engine shows.

Faces that look the same way along an axis form a chart, which is flattened along that axis (so nothing is stretched
more than a slope of 70° is) and packed in rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from PIL import Image
from torch import Tensor

from loom4d.export.coverage import covered
from loom4d.export.surface import Mesh, Views, normals, seen_colours
from loom4d.grid import to_bytes
from loom4d.runs import InputError

STEEPEST = 0.34  # cosine between a face and the axis that its chart is flattened along
GUTTER = 2  # texels around each chart
OVERLAP = 0.02  # barycentric share of a triangle inside which a texel is its own


@dataclass(frozen=True)
class Atlas:
    """Vertices on the border of two charts are there twice."""

    source: Int[Tensor, " corner"]  # vertex of the mesh that each vertex of the atlas is
    uv: Float[Tensor, "corner 2"]  # 0..1, v down
    faces: Int[Tensor, "face 3"]  # of the mesh in its order, over the atlas's vertices
    charts: int


@dataclass(frozen=True)
class _Charts:
    """Where faces belong, before charts are packed."""

    chart: Int[ndarray, " face"]
    axis: Int[ndarray, " face"]  # 0..5: ±x, ±y, ±z


def unrolled(mesh: Mesh, size: int) -> Atlas:
    """The mesh's charts packed for a picture of `size`² texels, as large as they fit."""
    if size < 64:
        raise InputError(f"a texture needs at least 64 texels a side, got {size}")
    points, faces = mesh.vertices.double().numpy(), mesh.faces.numpy()
    pairs = neighbouring_faces(faces)
    axis = facing_axes(points, faces, pairs)
    charts = _Charts(components(pairs[axis[pairs[:, 0]] == axis[pairs[:, 1]]], len(faces)), axis)
    charts = without_overlaps(points, faces, pairs, charts, size)
    flat = flattened(points, faces, charts.axis)
    placed = packed(flat, charts.chart, size)
    # one atlas vertex for each (vertex, chart)
    key = np.stack([faces.reshape(-1), np.repeat(charts.chart, 3)], 1)
    unique, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    return Atlas(
        torch.from_numpy(unique[:, 0].copy()),
        torch.from_numpy(placed.reshape(-1, 2)[first] / size).float(),
        torch.from_numpy(index.reshape(-1, 3)),
        int(charts.chart.max()) + 1,
    )


def painted(mesh: Mesh, atlas: Atlas, views: Views, size: int) -> Float[Tensor, "3 size size"]:
    """What the views see of each texel's place on the mesh; what none sees, and the gaps, taken from around."""
    corners = atlas.uv[atlas.faces].double().numpy() * size  # (face, 3, 2)
    texels, owner, weights = covered(corners, size)
    share = torch.from_numpy(weights).float()
    face = mesh.faces[torch.from_numpy(owner)]
    points = (share[..., None] * mesh.vertices[face]).sum(1)
    outward = torch.nn.functional.normalize((share[..., None] * normals(mesh)[face]).sum(1), dim=-1)
    colour, known = seen_colours(points, outward, views)
    picture, there = torch.zeros(size * size, 3), torch.zeros(size * size, dtype=torch.bool)
    place = torch.from_numpy(texels)[known]
    picture[place], there[place] = colour[known], True
    return spread(picture.T.reshape(3, size, size), there.reshape(size, size))


def jpeg(picture: Float[Tensor, "3 height width"]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(to_bytes(picture)).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def neighbouring_faces(faces: Int[ndarray, "face 3"]) -> Int[ndarray, "pair 2"]:
    """Pairs of faces that share an edge."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    owner = np.tile(np.arange(len(faces)), 3)
    order = np.lexsort(edges.T)
    edges, owner = edges[order], owner[order]
    same = (edges[1:] == edges[:-1]).all(1)
    return np.stack([owner[:-1][same], owner[1:][same]], 1)


def facing_axes(
    points: Float[ndarray, "vertex 3"], faces: Int[ndarray, "face 3"], pairs: Int[ndarray, "pair 2"]
) -> Int[ndarray, " face"]:
    """The axis each face looks along, the same as its neighbours' where it may be: fewer, rounder charts."""
    cross = np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]])
    normal = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-30)
    facing = np.concatenate([normal, -normal], 1)[:, [0, 3, 1, 4, 2, 5]]
    axis = facing.argmax(1)
    for _ in range(20):
        votes = np.zeros_like(facing)
        for one, other in ((0, 1), (1, 0)):
            np.add.at(votes, (pairs[:, one], axis[pairs[:, other]]), 0.25)
        chosen = np.where(facing >= STEEPEST, facing + votes, facing - 2).argmax(1)
        if (chosen == axis).all():
            break
        axis = chosen
    return axis


def components(pairs: Int[ndarray, "pair 2"], count: int) -> Int[ndarray, " item"]:
    """Numbers 0.. of the connected parts of a graph of `count` items."""
    label = np.arange(count)
    while True:
        lowest = label.copy()
        np.minimum.at(lowest, pairs[:, 0], label[pairs[:, 1]])
        np.minimum.at(lowest, pairs[:, 1], label[pairs[:, 0]])
        lowest = lowest[lowest]
        if (lowest == label).all():
            return np.unique(label, return_inverse=True)[1]
        label = lowest


def flattened(
    points: Float[ndarray, "vertex 3"], faces: Int[ndarray, "face 3"], axis: Int[ndarray, " face"]
) -> Float[ndarray, "face 3 2"]:
    """The corners without the coordinate along each face's axis, mirrored so that no face is."""
    which, sign = axis // 2, np.where(axis % 2 == 0, 1.0, -1.0)
    corners = points[faces]  # (face, 3, 3)
    right = np.take_along_axis(corners, ((which + 1) % 3)[:, None, None], 2)[..., 0]
    up = np.take_along_axis(corners, ((which + 2) % 3)[:, None, None], 2)[..., 0]
    return np.stack([right * sign[:, None], up], -1)


def without_overlaps(
    points: Float[ndarray, "vertex 3"],
    faces: Int[ndarray, "face 3"],
    pairs: Int[ndarray, "pair 2"],
    charts: _Charts,
    size: int,
) -> _Charts:
    """Charts cut where a part of one lies behind another part, as a horn behind an ear: no texel has two owners."""
    chart, axis = charts.chart.copy(), charts.axis
    flat = flattened(points, faces, axis)
    depth = np.take_along_axis(points[faces].mean(1), (axis // 2)[:, None], 1)[:, 0] * np.where(axis % 2 == 0, 1, -1)
    for _ in range(8):
        texels, owner, _ = covered(packed(flat, chart, size), size, OVERLAP)
        order = np.lexsort((-depth[owner], texels))
        texels, owner = texels[order], owner[order]
        behind = np.zeros(len(faces), bool)
        behind[owner[1:][texels[1:] == texels[:-1]]] = True
        if not behind.any():
            break
        level = 2 * chart + behind
        chart = components(pairs[level[pairs[:, 0]] == level[pairs[:, 1]]], len(faces))
    return replace(charts, chart=chart)


def packed(flat: Float[ndarray, "face 3 2"], chart: Int[ndarray, " face"], size: int) -> Float[ndarray, "face 3 2"]:
    """Charts in rows of a picture of `size`² texels, at the largest scale that fits; texel coordinates."""
    count = int(chart.max()) + 1
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(low, chart, flat.min(1))
    np.maximum.at(high, chart, flat.max(1))
    extent = high - low
    upright = extent[:, 1] > extent[:, 0]  # lain down, so that rows are flat
    extent[upright] = extent[upright][:, ::-1]
    fits, fails = 0.0, size / max(float(np.sqrt(extent.prod(1).sum())), 1e-12)
    corners = np.zeros((count, 2))
    for _ in range(14):
        scale = (fits + fails) / 2
        found = _rows(np.ceil(extent * scale) + 2 * GUTTER + 1, size)
        if found is None:
            fails = scale
        else:
            fits, corners = scale, found
    if fits == 0.0:
        raise InputError(f"{count} charts do not fit into a texture of {size} texels; ask for a larger one")
    local = (flat - low[chart][:, None]) * fits
    # a quarter turn, not a swap of axes: no chart is mirrored
    turned = np.stack([local[..., 1], (extent[chart, 1] * fits)[:, None] - local[..., 0]], -1)
    local = np.where(upright[chart][:, None, None], turned, local)
    return local + corners[chart][:, None] + GUTTER + 0.5


def _rows(boxes: Float[ndarray, "chart 2"], size: int) -> Float[ndarray, "chart 2"] | None:
    """Upper left corners of boxes set in rows, the highest first; None where the page is too small."""
    corners = np.zeros_like(boxes)
    x, y, height = 0.0, 0.0, 0.0
    for index, (width, tall) in sorted(enumerate(boxes.tolist()), key=lambda one: -one[1][1]):
        if x + width > size:
            x, y, height = 0.0, y + height, 0.0
        if x + width > size or y + tall > size:
            return None
        corners[index] = x, y
        x, height = x + width, max(height, tall)
    return corners


def spread(
    picture: Float[Tensor, "3 height width"], there: Bool[Tensor, "height width"]
) -> Float[Tensor, "3 height width"]:
    """The picture with every pixel that is not `there` taken from those around: ever coarser means, finest first."""
    levels = [torch.cat([picture * there, there[None].to(picture)])[None]]
    while min(levels[-1].shape[-2:]) > 1:
        levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2, ceil_mode=True, count_include_pad=False))
    filled = levels[-1][:, :3] / levels[-1][:, 3:].clamp_min(1e-9)
    for level in reversed(levels[:-1]):
        coarse = torch.nn.functional.interpolate(filled, level.shape[-2:], mode="bilinear")
        share = level[:, 3:].clamp(0, 1)
        filled = torch.where(share > 0, level[:, :3] / share.clamp_min(1e-9), coarse)
    return filled[0]

"""Reading Wavefront OBJ, static, with the colours and pictures of its MTL file."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from loom4d.runs import InputError
from loom4d.sources.pictures import NotAPicture, read_picture
from loom4d.sources.posing import Asset, Node, Part, Surface, unwelded


def read_obj(path: Path) -> Asset:
    """The faces of an OBJ file, polygons as fans. Raises `InputError` for what cannot be read."""
    points: list[list[float]] = []
    uvs: list[list[float]] = []
    normals: list[list[float]] = []
    colours: list[list[float]] = []
    corners: dict[tuple[int, int, int], int] = {}  # (point, uv, normal), −1 for none, to the vertex made of them
    faces: list[tuple[int, int, int, int]] = []  # three vertices, surface
    surfaces, names, current = [Surface()], {"": 0}, 0
    line = ""
    try:
        for line in path.read_text("utf-8", errors="replace").splitlines():
            word, *values = line.partition("#")[0].split() or [""]
            if word == "v":
                points.append([float(v) for v in values[:3]])
                colours.append([float(v) for v in values[3:6]] if len(values) >= 6 else [1.0, 1.0, 1.0])
            elif word == "vt":
                uvs.append([float(values[0]), 1 - float(values[1]) if len(values) > 1 else 0.0])
            elif word == "vn":
                normals.append([float(v) for v in values[:3]])
            elif word == "f":
                sizes = (len(points), len(uvs), len(normals))
                ring = [corners.setdefault(_corner(value, sizes), len(corners)) for value in values]
                faces += [(ring[0], b, c, current) for b, c in pairwise(ring[1:])]
            elif word == "usemtl":
                current = names.get(" ".join(values), 0)
            elif word == "mtllib":
                for name, surface in _read_mtl(path, path.parent / line.split(maxsplit=1)[1].strip()).items():
                    names[name] = len(surfaces)
                    surfaces.append(surface)
    except (ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {line[:60]!r} is no line of an OBJ that can be read ({error})") from error
    if not faces:
        raise InputError(f"{path}: an OBJ file without faces")
    keys = torch.tensor(list(corners))  # (vertex, 3)
    table = torch.tensor(faces)
    parts = []
    for surface in table[:, 3].unique().tolist():
        part = Part(
            0,
            surface,
            torch.tensor(points)[keys[:, 0]],
            table[table[:, 3] == surface, :3],
            torch.tensor([*uvs, [0.0, 0.0]])[keys[:, 1]],  # the last row stands in for none
            torch.cat([torch.tensor(colours)[keys[:, 0]], torch.ones(len(keys), 1)], 1),
            torch.tensor([*normals, [0.0, 0.0, 0.0]])[keys[:, 2]],
        )
        complete = bool((keys[part.faces, 2] >= 0).all())
        parts.append(part if complete else unwelded(replace(part, normals=None)))
    root = Node(-1, torch.zeros(3), torch.tensor([0.0, 0, 0, 1]), torch.ones(3))
    return Asset((root,), tuple(parts), tuple(surfaces))


def _corner(value: str, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """ "7/2/5", "7//5" or "-1" as indices from 0; −1 where none is given."""
    parts = [*value.split("/"), "", ""][:3]
    found = [-1, -1, -1]
    for axis, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if part:
            index = int(part) - 1 if int(part) > 0 else size + int(part)
            if not 0 <= index < size:
                raise ValueError(f"{value} refers to what is not there")
            found[axis] = index
    if found[0] < 0:
        raise ValueError(f"{value!r} names no point")
    return found[0], found[1], found[2]


def _read_mtl(path: Path, file: Path) -> dict[str, Surface]:
    """Diffuse colour, its picture and opacity of each material; without the file the model is plain grey."""
    if not file.is_file() or not file.resolve().is_relative_to(path.parent.resolve()):
        return {}
    found: dict[str, Surface] = {}
    name = ""
    for line in file.read_text("utf-8", errors="replace").splitlines():
        word, *values = line.partition("#")[0].split() or [""]
        if word == "newmtl":
            name = " ".join(values)
            found[name] = Surface()
        elif word == "Kd":
            red, green, blue = (float(v) for v in values[:3])
            found[name] = replace(found[name], colour=(red, green, blue, found[name].colour[3]))
        elif word in ("d", "Tr"):
            opacity = float(values[-1]) if word == "d" else 1 - float(values[-1])
            mode = "opaque" if opacity >= 1 else "blend"
            found[name] = replace(found[name], colour=(*found[name].colour[:3], opacity), opacity=mode)
        elif word == "map_Kd":
            picture = file.parent / values[-1].replace("\\", "/")
            if not picture.is_file():
                raise InputError(f"{path}: needs the picture {values[-1]} beside it, and that file is missing")
            try:
                texture = read_picture(picture).permute(1, 2, 0).contiguous()
            except NotAPicture as error:
                raise InputError(f"{picture}: not a picture that can be read") from error
            found[name] = replace(found[name], texture=texture, colour=(1.0, 1.0, 1.0, found[name].colour[3]))
    return found

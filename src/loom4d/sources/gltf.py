"""Reading glTF 2.0: .gltf with its buffers, and .glb."""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from loom4d.runs import InputError
from loom4d.sources.pictures import MAX_PIXELS, pixels
from loom4d.sources.posing import PATHS, Asset, Channel, Node, Part, Skin, Surface, unwelded

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
# Extensions without which a file that requires them looks as it should here, or that are read.
KNOWN = {
    "KHR_materials_unlit",
    "KHR_mesh_quantization",
    "KHR_texture_transform",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_lights_punctual",
    "EXT_texture_webp",
}
DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, OverflowError, RuntimeError)


class _File:
    """The JSON of a file, its buffers, and what has been read of them."""

    def __init__(self, path: Path):
        self.path = path
        content = path.read_bytes()
        binary = b""
        if content[:4] == b"glTF":
            content, binary = _chunks(content)
        self.json: dict[str, Any] = json.loads(content)
        self.buffers = [
            self.resource(buffer["uri"]) if "uri" in buffer else binary for buffer in self.json.get("buffers", [])
        ]

    def list(self, name: str) -> list[dict[str, Any]]:
        return self.json.get(name, [])

    def resource(self, uri: str) -> bytes:
        """A data URI, or a file beside this one."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        file = (self.path.parent / unquote(uri)).resolve()
        if not file.is_relative_to(self.path.parent.resolve()):
            raise InputError(f"{self.path}: refers to {uri}, which is outside of its folder")
        if not file.is_file():
            raise InputError(f"{self.path}: needs {uri} beside it, and that file is missing")
        return file.read_bytes()

    def view(self, index: int) -> tuple[bytes, int]:
        """Bytes of a buffer view, and its stride (0: packed)."""
        view = self.list("bufferViews")[index]
        start = view.get("byteOffset", 0)
        data = self.buffers[view["buffer"]][start : start + view["byteLength"]]
        if len(data) < view["byteLength"]:
            raise InputError(f"{self.path}: truncated, a buffer ends before the data that is said to be in it")
        return data, view.get("byteStride", 0)

    def array(self, index: int) -> np.ndarray:
        """An accessor as (count, size); normalised integers as floats."""
        accessor = self.list("accessors")[index]
        kind, size, count = np.dtype(COMPONENTS[accessor["componentType"]]), SIZES[accessor["type"]], accessor["count"]
        values = np.zeros((count, size), kind)
        if "bufferView" in accessor:
            data, stride = self.view(accessor["bufferView"])
            values = _strided(data, accessor.get("byteOffset", 0), stride, count, size, kind)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            where, what = sparse["indices"], sparse["values"]
            rows = _strided(
                self.view(where["bufferView"])[0],
                where.get("byteOffset", 0),
                0,
                sparse["count"],
                1,
                np.dtype(COMPONENTS[where["componentType"]]),
            )
            data = self.view(what["bufferView"])[0]
            values = values.copy()
            values[rows[:, 0]] = _strided(data, what.get("byteOffset", 0), 0, sparse["count"], size, kind)
        if accessor.get("normalized") and kind.kind != "f":
            values = np.maximum(values.astype(np.float32) / np.iinfo(kind).max, -1)
        return values

    def floats(self, index: int) -> Tensor:
        return torch.from_numpy(self.array(index).astype(np.float32))

    def integers(self, index: int) -> Tensor:
        return torch.from_numpy(self.array(index).astype(np.int64))


def read_gltf(path: Path) -> Asset:
    """The default scene of a glTF file. Raises `InputError` for what cannot be read."""
    try:
        file = _File(path)
        missing = set(file.json.get("extensionsRequired", [])) - KNOWN
        if missing:
            raise InputError(f"{path}: needs {', '.join(sorted(missing))}, which is not read; export it without")
        return _asset(file)
    except InputError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, binascii.Error) as error:
        raise InputError(f"{path}: not a glTF file, or a damaged one") from error
    except DAMAGE as error:
        line = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: a damaged glTF file ({type(error).__name__}: {line})") from error


def _chunks(content: bytes) -> tuple[bytes, bytes]:
    """The JSON and the binary chunk of a .glb."""
    version, length = struct.unpack_from("<II", content, 4)
    if version != 2:
        raise ValueError(f"version {version}, only 2 is read")
    if len(content) < length:
        raise ValueError(f"truncated, {len(content)} of {length} bytes")
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= length:
        size, kind = struct.unpack_from("<I4s", content, position)
        chunks.setdefault(kind, content[position + 8 : position + 8 + size])
        position += 8 + size
    return chunks[b"JSON"], chunks.get(b"BIN\0", b"")


def _strided(data: bytes, offset: int, stride: int, count: int, size: int, kind: np.dtype) -> np.ndarray:
    stride = stride or size * kind.itemsize
    needed = offset + stride * (count - 1) + size * kind.itemsize
    if count and needed > len(data):
        raise ValueError(f"data ends after {len(data)} bytes, {needed} are needed")
    flat = np.frombuffer(data, np.uint8)
    if not count:
        return np.zeros((0, size), kind)
    rows = np.lib.stride_tricks.as_strided(flat[offset:], (count, size * kind.itemsize), (stride, 1), writeable=False)
    return np.ascontiguousarray(rows).view(kind)


def _asset(file: _File) -> Asset:
    nodes = file.list("nodes")
    parents = {child: index for index, node in enumerate(nodes) for child in node.get("children", [])}
    shown = _shown(file, nodes)
    surfaces = tuple(_surface(file, material) for material in file.list("materials")) + (Surface(),)
    parts = [
        part
        for index in sorted(shown)
        if "mesh" in nodes[index]
        for primitive in file.list("meshes")[nodes[index]["mesh"]]["primitives"]
        if (part := _part(file, index, primitive, len(surfaces) - 1)) is not None
    ]
    if not parts:
        raise InputError(f"{file.path}: holds no triangles")
    skins = []
    for skin in file.list("skins"):
        inverse = skin.get("inverseBindMatrices")
        joints = tuple(skin["joints"])
        matrices = (
            torch.eye(4).repeat(len(joints), 1, 1) if inverse is None else file.floats(inverse).reshape(-1, 4, 4).mT
        )
        skins.append(Skin(joints, matrices[: len(joints)].contiguous()))
    return Asset(
        tuple(_node(file, node, parents.get(index, -1)) for index, node in enumerate(nodes)),
        tuple(parts),
        surfaces,
        tuple(skins),
        _clips(file),
    )


def _shown(file: _File, nodes: list[dict[str, Any]]) -> set[int]:
    """Nodes of the default scene; without scenes, all."""
    scenes = file.list("scenes")
    if not scenes:
        return set(range(len(nodes)))
    found: set[int] = set()
    queue = list(scenes[file.json.get("scene", 0)].get("nodes", []))
    while queue:
        index = queue.pop()
        if index not in found:
            found.add(index)
            queue.extend(nodes[index].get("children", []))
    return found


def _node(file: _File, node: dict[str, Any], parent: int) -> Node:
    meshes = file.list("meshes")
    weights = node.get("weights") or (meshes[node["mesh"]].get("weights") if "mesh" in node else None)
    matrix = torch.tensor(node["matrix"], dtype=torch.float32).reshape(4, 4).mT if "matrix" in node else None
    return Node(
        parent,
        torch.tensor(node.get("translation", [0.0, 0.0, 0.0]), dtype=torch.float32),
        torch.tensor(node.get("rotation", [0.0, 0.0, 0.0, 1.0]), dtype=torch.float32),
        torch.tensor(node.get("scale", [1.0, 1.0, 1.0]), dtype=torch.float32),
        node.get("skin", -1),
        None if weights is None else torch.tensor(weights, dtype=torch.float32),
        matrix,
    )


def _part(file: _File, node: int, primitive: dict[str, Any], plain: int) -> Part | None:
    attributes = primitive["attributes"]
    vertices = file.floats(attributes["POSITION"])
    count = len(vertices)
    order = file.integers(primitive["indices"])[:, 0] if "indices" in primitive else torch.arange(count)
    faces = _triangles(order, primitive.get("mode", 4))
    if faces is None or not len(faces):
        return None
    if faces.min() < 0 or faces.max() >= count:
        raise ValueError("a face refers to a vertex that is not there")
    uv = file.floats(attributes["TEXCOORD_0"]) if "TEXCOORD_0" in attributes else torch.zeros(count, 2)
    colours = torch.ones(count, 4)
    if "COLOR_0" in attributes:
        given = file.floats(attributes["COLOR_0"])
        colours[:, : given.shape[1]] = given
        colours[:, :3] = seen(colours[:, :3])
    normals = file.floats(attributes["NORMAL"]) if "NORMAL" in attributes else None
    joints, weights = _influences(file, attributes)
    targets = primitive.get("targets")
    zero = torch.zeros(count, 3)
    moves = torch.stack([file.floats(t["POSITION"]) if "POSITION" in t else zero for t in targets]) if targets else None
    turns = torch.stack([file.floats(t["NORMAL"]) if "NORMAL" in t else zero for t in targets]) if targets else None
    part = Part(
        node, primitive.get("material", plain), vertices, faces, uv, colours, normals, joints, weights, moves, turns
    )
    return part if normals is not None else unwelded(part)


def _triangles(order: Tensor, mode: int) -> Tensor | None:
    if mode == 4:
        return order[: len(order) // 3 * 3].reshape(-1, 3)
    if mode == 5:  # a strip: every second triangle is turned round
        faces = order.unfold(0, 3, 1).clone() if len(order) >= 3 else order.new_zeros(0, 3)
        faces[1::2] = faces[1::2][:, [1, 0, 2]]
        return faces
    if mode == 6:  # a fan
        ends = order[1:].unfold(0, 2, 1) if len(order) >= 3 else order.new_zeros(0, 2)
        return torch.cat([order[:1].expand(len(ends), 1), ends], 1)
    return None  # points and lines have no surface


def _influences(file: _File, attributes: dict[str, int]) -> tuple[Tensor | None, Tensor | None]:
    sets = [i for i in range(8) if f"JOINTS_{i}" in attributes and f"WEIGHTS_{i}" in attributes]
    if not sets:
        return None, None
    joints = torch.cat([file.integers(attributes[f"JOINTS_{i}"]) for i in sets], 1)
    weights = torch.cat([file.floats(attributes[f"WEIGHTS_{i}"]) for i in sets], 1)
    return joints, weights / weights.sum(1, keepdim=True).clamp_min(1e-8)


def _clips(file: _File) -> dict[str, tuple[Channel, ...]]:
    clips: dict[str, tuple[Channel, ...]] = {}
    for index, animation in enumerate(file.list("animations")):
        channels = []
        for channel in animation["channels"]:
            target, sampler = channel["target"], animation["samplers"][channel["sampler"]]
            if "node" not in target or target.get("path") not in PATHS:
                continue  # an extension's target moves nothing here
            kind = sampler.get("interpolation", "LINEAR")
            times = file.floats(sampler["input"])[:, 0]
            values = file.floats(sampler["output"])
            spline = 3 if kind == "CUBICSPLINE" else 1
            channels.append(
                Channel(target["node"], target["path"], kind, times, values.reshape(len(times), spline, -1))
            )
        name = animation.get("name") or f"clip_{index}"
        clips[name if name not in clips else f"{name}_{index}"] = tuple(channels)
    return clips


# --- surfaces ------------------------------------------------------------------------------------------------------


def seen(linear: Tensor) -> Tensor:
    """Linear light to sRGB values."""
    linear = linear.clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def _surface(file: _File, material: dict[str, Any]) -> Surface:
    extensions = material.get("extensions", {})
    shiny = extensions.get("KHR_materials_pbrSpecularGlossiness")
    plain = material.get("pbrMetallicRoughness", {})
    factor = shiny.get("diffuseFactor") if shiny else plain.get("baseColorFactor")
    reference = shiny.get("diffuseTexture") if shiny else plain.get("baseColorTexture")
    factor = torch.tensor(factor or [1.0, 1.0, 1.0, 1.0])
    colour = [*seen(factor[:3]).tolist(), float(factor[3])]
    texture = None if reference is None else _texture(file, reference["index"])
    transform = (reference or {}).get("extensions", {}).get("KHR_texture_transform")
    return Surface(
        (colour[0], colour[1], colour[2], colour[3]),
        texture,
        None if transform is None else _texture_from_uv(transform),
        "KHR_materials_unlit" in extensions,
        material.get("doubleSided", False),
        {"MASK": "mask", "BLEND": "blend"}.get(material.get("alphaMode", "OPAQUE"), "opaque"),
        material.get("alphaCutoff", 0.5),
    )


def _texture(file: _File, index: int) -> Tensor | None:
    texture = file.list("textures")[index]
    source = texture.get("extensions", {}).get("EXT_texture_webp", texture).get("source", texture.get("source"))
    if source is None:
        return None
    image = file.list("images")[source]
    content = file.resource(image["uri"]) if "uri" in image else file.view(image["bufferView"])[0]
    try:
        with Image.open(BytesIO(content)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{file.path}: a texture of {picture.width} × {picture.height} is too large")
            return pixels(picture, min(1.0, 2048 / max(picture.size))).permute(1, 2, 0).contiguous()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise InputError(f"{file.path}: a texture cannot be read; save it as PNG or JPEG") from error


def _texture_from_uv(transform: dict[str, Any]) -> Tensor:
    (x, y), (wide, high) = transform.get("offset", (0.0, 0.0)), transform.get("scale", (1.0, 1.0))
    cosine, sine = math.cos(transform.get("rotation", 0.0)), math.sin(transform.get("rotation", 0.0))
    return torch.tensor([[cosine * wide, sine * high, x], [-sine * wide, cosine * high, y]])

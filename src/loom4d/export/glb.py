"""A moving mesh as binary glTF: on a skeleton or by morph targets, textured or with vertex colours."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.export.atlas import Atlas, jpeg, painted, unrolled
from loom4d.export.mesh import Canonical, MeshOptions, MovingMesh, canonical_mesh, moving_mesh
from loom4d.export.skin import SkinnedMesh, skinned_mesh
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.motion.controlled import Controlled
from loom4d.options import Between
from loom4d.runs import write_atomically

FLOAT, UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5121, 5123, 5125
VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963
CLAMP_TO_EDGE = 33071


@dataclass(frozen=True)
class GlbOptions:
    texture: Annotated[int, Between(0, 4096)] = 1024  # texels a side; 0 puts the colours on the vertices
    influences: Literal[4, 8] = 4  # joints that a vertex follows; not every engine takes 8
    mesh: MeshOptions = field(default_factory=MeshOptions)


@dataclass(frozen=True)
class Texture:
    atlas: Atlas
    picture: bytes  # JPEG


def write_glb(asset: DynamicGaussians, path: Path | str, options: GlbOptions | None = None) -> str:
    """Writes a mesh on a skeleton where the motion has control points, one with morph targets where it has none.

    Says in a line which it was.
    """
    options = options or GlbOptions()
    if not isinstance(asset, Controlled):
        return f"this motion has no control points, so no skeleton: {write_glb_morph(asset, path, options)}"
    one = canonical_mesh(asset, options.mesh)
    mesh = skinned_mesh(asset, options.mesh, options.influences, one)
    write_atomically(Path(path), skinned_glb(mesh, texture_of(one, options.texture)))
    box = float((one.mesh.vertices.amax(0) - one.mesh.vertices.amin(0)).max())
    return (
        f"{len(mesh.faces)} triangles on {len(mesh.skeleton.rest)} joints, {mesh.joints.shape[1]} a vertex "
        f"(what that cuts off moves the worst vertex by {100 * mesh.cut_error / box:.2f} % of the object's size)"
    )


def write_glb_morph(asset: DynamicGaussians, path: Path | str, options: GlbOptions | None = None) -> str:
    """Writes a mesh with a morph target for every instant but the first; see `moving_mesh`."""
    options = options or GlbOptions()
    one = canonical_mesh(asset, options.mesh)
    mesh = moving_mesh(asset, options.mesh, one)
    write_atomically(Path(path), morphing_glb(mesh, texture_of(one, options.texture)))
    return f"{len(mesh.faces)} triangles, {len(mesh.times) - 1} morph targets"


def texture_of(one: Canonical, size: int) -> Texture | None:
    """The canonical mesh's colours as a picture; None for size 0."""
    if not size:
        return None
    atlas = unrolled(one.mesh, size)
    return Texture(atlas, jpeg(painted(one.mesh, atlas, one.views, size)))


def morphing_glb(mesh: MovingMesh, texture: Texture | None = None) -> bytes:
    """The first instant is the mesh itself, every later one a morph target; weights blend from one to the next."""
    file = _File()
    source = _source(texture, len(mesh.vertices[0]))
    vertices = mesh.vertices[:, source].double().numpy()
    document, primitive = _document(file, vertices[0], mesh.faces, mesh.colours, texture)
    targets = len(vertices) - 1
    if targets:
        primitive["targets"] = [
            {"POSITION": file.accessor((after - vertices[0]).astype("<f4"), FLOAT, "VEC3", VERTEX_BUFFER, limits=True)}
            for after in vertices[1:]
        ]
        document["meshes"][0]["weights"] = [0.0] * targets
        document["meshes"][0]["extras"] = {"targetNames": [f"{time:.3f} s" for time in mesh.times[1:].tolist()]}
        times = file.accessor(_from_zero(mesh.times), FLOAT, "SCALAR", limits=True)
        weights = np.eye(len(vertices), targets, -1, dtype="<f4").reshape(-1)  # instant k has weight 1 on target k − 1
        sampler = {"input": times, "output": file.accessor(weights, FLOAT, "SCALAR"), "interpolation": "LINEAR"}
        channel = {"sampler": 0, "target": {"node": 0, "path": "weights"}}
        document["animations"] = [{"name": "motion", "samplers": [sampler], "channels": [channel]}]
    return file.assembled(document)


def skinned_glb(mesh: SkinnedMesh, texture: Texture | None = None) -> bytes:
    """A root joint that stays and a joint for each control point, moved by linear keys of translation and rotation.

    As a file at rest it shows the first instant: engines that play nothing draw joints where their nodes are.
    """
    file, skeleton = _File(), mesh.skeleton
    source = _source(texture, len(mesh.vertices))
    vertices = mesh.vertices[source].double().numpy()
    document, primitive = _document(file, vertices, mesh.faces, mesh.colours, texture)
    for block in range(0, -(-mesh.joints.shape[1] // 4)):
        joints, weights = _influences(mesh, source, block)
        component = UNSIGNED_BYTE if len(skeleton.rest) < 255 else UNSIGNED_SHORT
        numbers = joints.astype("<u1" if component == UNSIGNED_BYTE else "<u2")
        primitive["attributes"] |= {
            f"JOINTS_{block}": file.accessor(numbers, component, "VEC4", VERTEX_BUFFER),
            f"WEIGHTS_{block}": file.accessor(weights, UNSIGNED_SHORT, "VEC4", VERTEX_BUFFER, normalized=True),
        }
    turns = skeleton.turns[..., [1, 2, 3, 0]].double().numpy()  # glTF's quaternions are x y z w
    places = skeleton.places.double().numpy()
    count = len(skeleton.rest)
    bones = [
        {"name": f"joint {joint:03}", "translation": places[0, joint].tolist(), "rotation": turns[0, joint].tolist()}
        for joint in range(count)
    ]
    document["nodes"][0] |= {"skin": 0}
    document["nodes"] += [{"name": "skeleton", "children": list(range(2, 2 + count))}, *bones]
    document["scenes"] = [{"nodes": [0, 1]}]
    inverse = np.tile(np.eye(4), (1 + count, 1, 1))
    inverse[1:, 3, :3] = -skeleton.rest.double().numpy()  # column-major, as all matrices of glTF
    matrices = file.accessor(inverse.astype("<f4").reshape(-1, 16), FLOAT, "MAT4")
    document["skins"] = [{"skeleton": 1, "joints": list(range(1, 2 + count)), "inverseBindMatrices": matrices}]
    if len(skeleton.times) > 1:
        times = file.accessor(_from_zero(skeleton.times), FLOAT, "SCALAR", limits=True)
        samplers: list[dict[str, Any]] = []
        channels: list[dict[str, Any]] = []
        for path, values, kind in (("translation", places, "VEC3"), ("rotation", turns, "VEC4")):
            for joint in range(count):
                output = file.accessor(values[:, joint].astype("<f4"), FLOAT, kind)
                channels.append({"sampler": len(samplers), "target": {"node": 2 + joint, "path": path}})
                samplers.append({"input": times, "output": output, "interpolation": "LINEAR"})
        document["animations"] = [{"name": "motion", "samplers": samplers, "channels": channels}]
    return file.assembled(document)


def _document(
    file: _File,
    vertices: np.ndarray,
    faces: Int[Tensor, "face 3"],
    colours: Float[Tensor, "vertex 3"],
    texture: Texture | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A scene of one mesh at its first instant, and its primitive, which motion is added to.

    The material is unlit: the colours are those of the pictures, which hold their light already.
    """
    faces = texture.atlas.faces if texture else faces
    position = file.accessor(vertices.astype("<f4"), FLOAT, "VEC3", VERTEX_BUFFER, limits=True)
    attributes = {"POSITION": position}
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "Loom4D"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "asset"}],
        "extensionsUsed": ["KHR_materials_unlit"],
    }
    if texture:
        uv = texture.atlas.uv.numpy().astype("<f4")
        attributes["TEXCOORD_0"] = file.accessor(uv, FLOAT, "VEC2", VERTEX_BUFFER)
        surface["baseColorTexture"] = {"index": 0}
        document["images"] = [{"bufferView": file.view(texture.picture), "mimeType": "image/jpeg", "name": "colours"}]
        document["samplers"] = [{"wrapS": CLAMP_TO_EDGE, "wrapT": CLAMP_TO_EDGE}]
        document["textures"] = [{"source": 0, "sampler": 0}]
    else:
        shades = _opaque(colours.double().numpy())
        attributes["COLOR_0"] = file.accessor(shades, UNSIGNED_SHORT, "VEC4", VERTEX_BUFFER, normalized=True)
    indices = file.accessor(faces.numpy().astype("<u4").reshape(-1), UNSIGNED_INT, "SCALAR", INDEX_BUFFER)
    primitive = {"attributes": attributes, "indices": indices, "material": 0}
    document["meshes"] = [{"primitives": [primitive], "name": "asset"}]
    document["materials"] = [
        {
            "name": "picture colours",
            "extensions": {"KHR_materials_unlit": {}},
            "pbrMetallicRoughness": surface,
            "doubleSided": True,
        }
    ]
    return document, primitive


def _source(texture: Texture | None, count: int) -> Int[Tensor, " corner"]:
    """Which vertex of the mesh each vertex of the file is."""
    return texture.atlas.source if texture else torch.arange(count)


def _influences(mesh: SkinnedMesh, source: Tensor, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Four joints of each vertex, counted with the root as joint 0, and weights in 16 bits of sum 65535 over all."""
    weights = mesh.weights.double().numpy()
    whole = np.rint(weights * 65535).astype(np.int64)
    whole[:, 0] += 65535 - whole.sum(1)  # the strongest takes what rounding left over
    joints = np.where(whole > 0, mesh.joints.numpy() + 1, 0)  # what has no weight names joint 0, as glTF asks
    room = np.zeros((len(joints), -joints.shape[1] % 4), np.int64)
    part = slice(4 * block, 4 * block + 4)
    joints, whole = np.concatenate([joints, room], 1)[:, part], np.concatenate([whole, room], 1)[:, part]
    return joints[source.numpy()], whole[source.numpy()].astype("<u2")


def _from_zero(times: Float[Tensor, " key"]) -> np.ndarray:
    return (times - times[0]).numpy().astype("<f4")


class _File:
    """Collects arrays as buffer views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, content: bytes, target: int | None = None) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        self.data += content
        self.data += b"\0" * (-len(self.data) % 4)
        self.views.append(view)
        return len(self.views) - 1

    def accessor(
        self,
        values: np.ndarray,
        component: int,
        kind: str,
        target: int | None = None,
        limits: bool = False,
        normalized: bool = False,
    ) -> int:
        entry: dict[str, Any] = {
            "bufferView": self.view(values.tobytes(), target),
            "componentType": component,
            "count": len(values),
            "type": kind,
        }
        if normalized:
            entry["normalized"] = True
        if limits:
            rows = values.reshape(len(values), -1)
            entry |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.accessors.append(entry)
        return len(self.accessors) - 1

    def assembled(self, document: dict[str, Any]) -> bytes:
        document = {
            **document,
            "buffers": [{"byteLength": len(self.data)}],
            "bufferViews": self.views,
            "accessors": self.accessors,
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(self.data), 0x004E4942)
        chunks += bytes(self.data)
        return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def linear_rgb(colours: np.ndarray) -> np.ndarray:
    """Displayed (sRGB) colours as amounts of light, which is what glTF and USD mean by a colour."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def _opaque(colours: np.ndarray) -> np.ndarray:
    """Colours with full opacity in 16 bits."""
    rgba = np.concatenate([linear_rgb(colours), np.ones((len(colours), 1))], 1)
    return np.rint(rgba.clip(0, 1) * 65535).astype("<u2")

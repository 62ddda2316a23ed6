"""A moving mesh as binary glTF: morph targets, vertex colours, one looping animation."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from loom4d.export.mesh import MeshOptions, MovingMesh, moving_mesh
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.runs import write_atomically

FLOAT, UNSIGNED_SHORT, UNSIGNED_INT = 5126, 5123, 5125
VERTEX_BUFFER, INDEX_BUFFER = 34962, 34963


def write_glb(asset: DynamicGaussians, path: Path | str, options: MeshOptions | None = None) -> None:
    """Writes the asset as an animated mesh; see `moving_mesh`."""
    write_atomically(Path(path), glb(moving_mesh(asset, options)))


def glb(mesh: MovingMesh) -> bytes:
    """The first instant is the mesh itself, every later one a morph target; weights blend from one to the next.

    The material is unlit: the colours are those of the pictures, which hold their light already.
    """
    file = _File()
    vertices = mesh.vertices.double().numpy()
    primitive: dict[str, Any] = {
        "attributes": {
            "POSITION": file.accessor(vertices[0].astype("<f4"), FLOAT, "VEC3", VERTEX_BUFFER, limits=True),
            "COLOR_0": file.accessor(_opaque(mesh.colours.double().numpy()), UNSIGNED_SHORT, "VEC4", VERTEX_BUFFER),
        },
        "indices": file.accessor(mesh.faces.numpy().astype("<u4").reshape(-1), UNSIGNED_INT, "SCALAR", INDEX_BUFFER),
        "material": 0,
    }
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "Loom4D"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "asset"}],
        "meshes": [{"primitives": [primitive], "name": "asset"}],
        "materials": [
            {
                "name": "picture colours",
                "extensions": {"KHR_materials_unlit": {}},
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                "doubleSided": True,
            }
        ],
        "extensionsUsed": ["KHR_materials_unlit"],
    }
    targets = len(vertices) - 1
    if targets:
        primitive["targets"] = [
            {"POSITION": file.accessor((after - vertices[0]).astype("<f4"), FLOAT, "VEC3", VERTEX_BUFFER, limits=True)}
            for after in vertices[1:]
        ]
        document["meshes"][0]["weights"] = [0.0] * targets
        document["meshes"][0]["extras"] = {"targetNames": [f"{time:.3f} s" for time in mesh.times[1:].tolist()]}
        times = (mesh.times - mesh.times[0]).numpy().astype("<f4")
        weights = np.eye(len(vertices), targets, -1, dtype="<f4").reshape(-1)  # instant k has weight 1 on target k − 1
        sampler = {
            "input": file.accessor(times, FLOAT, "SCALAR", limits=True),
            "output": file.accessor(weights, FLOAT, "SCALAR"),
            "interpolation": "LINEAR",
        }
        channel = {"sampler": 0, "target": {"node": 0, "path": "weights"}}
        document["animations"] = [{"name": "motion", "samplers": [sampler], "channels": [channel]}]
    return file.assembled(document)


class _File:
    """Collects arrays as buffer views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []

    def accessor(
        self, values: np.ndarray, component: int, kind: str, target: int | None = None, limits: bool = False
    ) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": values.nbytes}
        if target is not None:
            view["target"] = target
        self.data += values.tobytes()
        self.data += b"\0" * (-len(self.data) % 4)
        self.views.append(view)
        entry: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": component,
            "count": len(values),
            "type": kind,
        }
        if component == UNSIGNED_SHORT:
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

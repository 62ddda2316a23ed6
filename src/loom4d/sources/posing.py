"""Animated models: a tree of nodes, skins, morph targets and clips, posed at any time to one plain mesh."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.runs import InputError

PATHS = ("translation", "rotation", "scale", "weights")


@dataclass(frozen=True)
class Surface:
    """What a face looks like; colours are sRGB, as they are seen."""

    colour: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 1.0)
    texture: Float[Tensor, "height width 4"] | None = None  # straight alpha; wraps around
    texture_from_uv: Float[Tensor, "2 3"] | None = None
    unlit: bool = False
    double_sided: bool = True
    opacity: str = "opaque"  # or "mask" (cut at `cutoff`) or "blend"
    cutoff: float = 0.5


@dataclass(frozen=True)
class Mesh:
    """One instant: what can be drawn."""

    vertices: Float[Tensor, "vertex 3"]
    normals: Float[Tensor, "vertex 3"]  # unit
    colours: Float[Tensor, "vertex 4"]  # factors of the surface's colour, sRGB
    uv: Float[Tensor, "vertex 2"]  # of the texture, v down
    faces: Int[Tensor, "face 3"]  # counter-clockwise seen from outside
    surface_of_face: Int[Tensor, " face"]
    surfaces: tuple[Surface, ...]


@dataclass(frozen=True)
class Part:
    """One primitive, as it lies in the frame of its node before any motion."""

    node: int
    surface: int
    vertices: Float[Tensor, "vertex 3"]
    faces: Int[Tensor, "face 3"]
    uv: Float[Tensor, "vertex 2"]
    colours: Float[Tensor, "vertex 4"]
    normals: Float[Tensor, "vertex 3"] | None = None  # None: those of the posed faces
    joints: Int[Tensor, "vertex influence"] | None = None  # rows of the skin
    weights: Float[Tensor, "vertex influence"] | None = None
    targets: Float[Tensor, "target vertex 3"] | None = None  # morph targets, as offsets
    normal_targets: Float[Tensor, "target vertex 3"] | None = None


@dataclass(frozen=True)
class Node:
    parent: int  # −1 for a root
    translation: Float[Tensor, " 3"]
    rotation: Float[Tensor, " 4"]  # unit quaternion (x, y, z, w)
    scale: Float[Tensor, " 3"]
    skin: int = -1
    weights: Float[Tensor, " target"] | None = None  # of the morph targets
    matrix: Float[Tensor, "4 4"] | None = None  # instead of the three above


@dataclass(frozen=True)
class Skin:
    joints: tuple[int, ...]  # nodes
    joint_from_mesh: Float[Tensor, "joint 4 4"]


@dataclass(frozen=True)
class Channel:
    """How one property of one node moves. A cubic spline has three values a key: in-tangent, value, out-tangent."""

    node: int
    path: str  # one of PATHS
    interpolation: str  # LINEAR, STEP or CUBICSPLINE
    times: Float[Tensor, " key"]
    values: Float[Tensor, "key spline size"]  # spline is 1, or 3 for CUBICSPLINE


@dataclass(frozen=True)
class Asset:
    nodes: tuple[Node, ...]  # parents may follow their children
    parts: tuple[Part, ...]
    surfaces: tuple[Surface, ...]
    skins: tuple[Skin, ...] = ()
    clips: dict[str, tuple[Channel, ...]] = field(default_factory=dict)

    def seconds(self, clip: str | None) -> float:
        """Length of a clip; 0 for the rest pose."""
        return 0.0 if clip is None else max((c.times[-1].item() for c in self.channels(clip)), default=0.0)

    def channels(self, clip: str | None) -> tuple[Channel, ...]:
        if clip is None:
            return ()
        if clip not in self.clips:
            raise InputError(f"no clip {clip!r}; this model has {', '.join(self.clips) or 'none'}")
        return self.clips[clip]


def unwelded(part: Part) -> Part:
    """The part with no vertex shared between faces: without given normals it is shaded flat."""
    order = part.faces.reshape(-1)

    def taken(values: Tensor | None, dim: int = 0) -> Tensor | None:
        return None if values is None else values.index_select(dim, order)

    return Part(
        part.node,
        part.surface,
        part.vertices[order],
        torch.arange(len(order)).reshape(-1, 3),
        part.uv[order],
        part.colours[order],
        taken(part.normals),
        taken(part.joints),
        taken(part.weights),
        taken(part.targets, 1),
        taken(part.normal_targets, 1),
    )


def sampled(channel: Channel, time: float) -> Float[Tensor, " size"]:
    """The channel's value at a time in seconds; before its first and after its last key it stays (glTF 2.0, App. C)."""
    times, values = channel.times, channel.values
    cubic = channel.interpolation == "CUBICSPLINE"
    middle = values[:, 1] if cubic else values[:, 0]  # (key, size)
    after = int(torch.searchsorted(times, time, right=True))
    if after == 0:
        return middle[0]
    if after == len(times) or channel.interpolation == "STEP":
        return middle[after - 1]
    before = after - 1
    gap = (times[after] - times[before]).item()
    s = (time - times[before].item()) / gap
    start, end = middle[before], middle[after]
    if cubic:
        s2, s3 = s * s, s * s * s
        value = (2 * s3 - 3 * s2 + 1) * start + (s3 - 2 * s2 + s) * gap * values[before, 2]
        value = value + (3 * s2 - 2 * s3) * end + (s3 - s2) * gap * values[after, 0]
        return F.normalize(value, dim=0) if channel.path == "rotation" else value
    return slerp(start, end, s) if channel.path == "rotation" else torch.lerp(start, end, s)


def slerp(start: Float[Tensor, " 4"], end: Float[Tensor, " 4"], s: float) -> Float[Tensor, " 4"]:
    """From one unit quaternion to another at constant angular speed, the short way round."""
    cosine = (start * end).sum()
    end, cosine = (-end, -cosine) if cosine < 0 else (end, cosine)
    if cosine > 0.9995:
        return F.normalize(torch.lerp(start, end, s), dim=0)
    angle = torch.acos(cosine.clamp(-1, 1))
    return (torch.sin((1 - s) * angle) * start + torch.sin(s * angle) * end) / torch.sin(angle)


def rotation_matrix(quaternion: Float[Tensor, " 4"]) -> Float[Tensor, "3 3"]:
    """Rotation of a quaternion (x, y, z, w), normalised here."""
    x, y, z, w = F.normalize(quaternion, dim=0).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def pose(asset: Asset, clip: str | None, time: float) -> Mesh:
    """The asset at a time of a clip (None: its rest pose), in its own world."""
    moved: dict[tuple[int, str], Tensor] = {(c.node, c.path): sampled(c, time) for c in asset.channels(clip)}
    world_from_node = _world_from_nodes(asset, moved)
    vertices, normals, faces, count = [], [], [], 0
    for part in asset.parts:
        weights = moved.get((part.node, "weights"), asset.nodes[part.node].weights)
        points, directions = _morphed(part, weights)
        matrices = _matrices(asset, part, world_from_node)  # (1 or vertex, 4, 4)
        points = (matrices[:, :3, :3] @ points[..., None])[..., 0] + matrices[:, :3, 3]
        if directions is None:
            directions = vertex_normals(points, part.faces)
        else:
            directions = (cofactor(matrices[:, :3, :3]) @ directions[..., None])[..., 0]
        # A mirroring matrix turns the faces inside out.
        mirrored = torch.linalg.det(world_from_node[part.node][:3, :3]) < 0 and part.joints is None
        vertices.append(points)
        normals.append(F.normalize(directions, dim=-1) * (-1 if mirrored and part.normals is None else 1))
        faces.append((part.faces.flip(-1) if mirrored else part.faces) + count)
        count += len(points)
    surface_of_face = [torch.full((len(part.faces),), part.surface) for part in asset.parts]
    return Mesh(
        torch.cat(vertices),
        torch.cat(normals),
        torch.cat([part.colours for part in asset.parts]),
        torch.cat([part.uv for part in asset.parts]),
        torch.cat(faces),
        torch.cat(surface_of_face),
        asset.surfaces,
    )


def _world_from_nodes(asset: Asset, moved: dict[tuple[int, str], Tensor]) -> list[Tensor]:
    found: dict[int, Tensor] = {-1: torch.eye(4)}

    def local(index: int) -> Tensor:
        node = asset.nodes[index]
        animated = any((index, path) in moved for path in PATHS[:3])
        if node.matrix is not None and not animated:
            return node.matrix
        matrix = torch.eye(4)
        rotation = rotation_matrix(moved.get((index, "rotation"), node.rotation))
        matrix[:3, :3] = rotation * moved.get((index, "scale"), node.scale)  # R diag(s)
        matrix[:3, 3] = moved.get((index, "translation"), node.translation)
        return matrix

    for index in range(len(asset.nodes)):
        chain: list[int] = []
        while index not in found:
            if len(chain) > len(asset.nodes):
                raise InputError("a damaged model: a node is its own ancestor")
            chain.append(index)
            index = asset.nodes[index].parent
        for child in reversed(chain):
            found[child] = found[asset.nodes[child].parent] @ local(child)
    return [found[index] for index in range(len(asset.nodes))]


def _morphed(part: Part, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    points, normals = part.vertices, part.normals
    if part.targets is None or weights is None:
        return points, normals
    points = points + torch.einsum("t,tvi->vi", weights, part.targets)
    if normals is not None and part.normal_targets is not None:
        normals = normals + torch.einsum("t,tvi->vi", weights, part.normal_targets)
    return points, normals


def _matrices(asset: Asset, part: Part, world_from_node: list[Tensor]) -> Tensor:
    """World from mesh, of the part as a whole or, where it has a skin, of each vertex (linear blend skinning)."""
    skin = asset.nodes[part.node].skin
    if skin < 0 or part.joints is None or part.weights is None:
        return world_from_node[part.node][None]
    joints = torch.stack([world_from_node[joint] for joint in asset.skins[skin].joints])
    world_from_mesh = joints @ asset.skins[skin].joint_from_mesh  # (joint, 4, 4)
    return torch.einsum("vk,vkij->vij", part.weights, world_from_mesh[part.joints])


def cofactor(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """det(M) M⁻ᵀ, which moves normals as M moves surfaces, also where M is singular."""
    a, b, c = matrix.unbind(-1)  # columns
    return torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)


def vertex_normals(vertices: Float[Tensor, "vertex 3"], faces: Int[Tensor, "face 3"]) -> Float[Tensor, "vertex 3"]:
    """Sums of the normals of the faces around each vertex, weighted by area."""
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    return torch.zeros_like(vertices).index_add_(0, faces.reshape(-1), normal.repeat_interleave(3, 0))

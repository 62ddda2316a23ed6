"""A moving asset as one mesh on a skeleton: what game engines like best, and a fraction of the bytes.

The `controlled` motion is linear blend skinning already, x' = Σ w_j [R_j (x − p_j) + p_j + T_j]: its control points
become joints, and a vertex takes the weights of the Gaussians around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from loom4d.export.mesh import Canonical, MeshOptions, canonical_mesh, neighbours
from loom4d.export.surface import Mesh, around, colours
from loom4d.gaussians.gaussians import rotations
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.motion.controlled import Controlled, hermite
from loom4d.gaussians.motion.rigid import continued
from loom4d.runs import InputError

INFLUENCES = (4, 8)  # joints of a vertex that a file can hold; every engine takes 4
ROUNDS = 4  # of smoothing the weights over the mesh


@dataclass(frozen=True)
class Skeleton:
    """Joints without parents: each has its place at rest, and a place and a turn at each key."""

    times: Float[Tensor, " key"]  # seconds
    rest: Float[Tensor, "joint 3"]
    places: Float[Tensor, "key joint 3"]
    turns: Float[Tensor, "key joint 4"]  # unit quaternions w x y z from rest, each near its predecessor

    def matrices(self) -> Float[Tensor, "key joint 3 4"]:
        """Where a point at rest goes that belongs to one joint alone."""
        turn = rotations(self.turns)
        return torch.cat([turn, self.places[..., None] - turn @ self.rest[..., None]], -1)


@dataclass(frozen=True)
class SkinnedMesh:
    """Fixed triangles, counter-clockwise from outside, whose vertices follow a few joints each."""

    skeleton: Skeleton
    vertices: Float[Tensor, "vertex 3"]  # at rest
    faces: Int[Tensor, "face 3"]
    colours: Float[Tensor, "vertex 3"]  # 0..1, as displayed (sRGB)
    joints: Int[Tensor, "vertex influence"]  # strongest first
    weights: Float[Tensor, "vertex influence"]  # of sum 1
    cut_error: float  # world units: how far the worst vertex is from where all its weights would have it

    def at(self, key: int) -> Mesh:
        """Linear blend skinning, as every engine does it."""
        blended = einsum(self.weights, self.skeleton.matrices()[key][self.joints], "v k, v k i j -> v i j")
        return Mesh(_moved(blended, self.vertices), self.faces)


def skinned_mesh(
    asset: DynamicGaussians, options: MeshOptions | None = None, influences: int = 4, taken: Canonical | None = None
) -> SkinnedMesh:
    """The asset's surface at one instant on the skeleton of its control points.

    Only the `controlled` motion has them; `InputError` for any other. At the instant that the mesh is taken from, the
    skinned mesh is that mesh exactly. `taken` is the mesh of the same options, if it is there.
    """
    if not isinstance(asset, Controlled):
        raise InputError(
            f"a skeleton needs the controlled motion, and this asset's is {type(asset).__name__.lower()}; "
            "export glb-morph, or fit again with --fitting.motion controlled"
        )
    if influences not in INFLUENCES:
        raise InputError(f"a vertex follows 4 or 8 joints, not {influences}")
    with torch.no_grad():
        one = taken or canonical_mesh(asset, options or MeshOptions())
        skeleton = skeleton_of(asset, one.times)
        full = vertex_weights(asset, one)
        weights, joints = full.topk(min(influences, full.shape[1]), dim=1)
        weights = weights / weights.sum(1, keepdim=True)
        matrices = skeleton.matrices()
        bind = einsum(weights, matrices[one.start][joints], "v k, v k i j -> v i j")
        rest = torch.linalg.solve(bind[..., :3], one.mesh.vertices - bind[..., 3])
        away = torch.zeros(())
        for matrix in matrices:
            cut = _moved(einsum(weights, matrix[joints], "v k, v k i j -> v i j"), rest)
            whole = _moved(einsum(full, matrix, "v k, k i j -> v i j"), rest)
            away = torch.maximum(away, (cut - whole).norm(dim=-1).max())
        shades = colours(one.mesh, one.views)
        return SkinnedMesh(skeleton, rest, one.mesh.faces, shades, joints, weights, float(away))


def skeleton_of(asset: Controlled, times: list[float]) -> Skeleton:
    """The control points at the given seconds, on the motion's own curve."""
    seconds = torch.tensor(times, dtype=torch.float64)
    keys = torch.tensor(asset.keys, dtype=torch.float64)
    curve = hermite(seconds, keys).to(asset.shifts)
    places = asset.points + torch.einsum("tk,kpc->tpc", curve, asset.shifts)
    turns = torch.nn.functional.normalize(torch.einsum("tk,kpc->tpc", curve, asset.turns), dim=-1)
    return Skeleton(seconds, asset.points, places, continued(turns))


def vertex_weights(asset: Controlled, one: Canonical) -> Float[Tensor, "vertex joint"]:
    """The motion's weights carried from Gaussians to the vertices near them, smooth over the mesh; rows sum to 1."""
    index, share = neighbours(one.mesh.vertices, asset.at(one.times[one.start]))
    weights = einsum(share, asset.weights()[index], "v n, v n joint -> v joint")
    for _ in range(ROUNDS):
        weights = 0.5 * weights + 0.5 * around(weights, one.mesh.faces)
    return weights / weights.sum(1, keepdim=True)


def _moved(matrices: Float[Tensor, "vertex 3 4"], points: Float[Tensor, "vertex 3"]) -> Float[Tensor, "vertex 3"]:
    return (matrices[..., :3] @ points[..., None])[..., 0] + matrices[..., 3]

"""Linear blend skinning: each Gaussian follows a weighted few of many moving points."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loom4d import native
from loom4d.gaussians.gaussians import multiplied, rotations


class Skin(ctypes.Structure):
    """Mirrors `Loom4dSkin`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("instants", "gaussians", "points", "per", "threads")),
        *((name, ctypes.c_void_p) for name in ("bones", "weights", "poses", "means", "quaternions")),
    ]


def skinned(
    means: Float[Tensor, "gaussian 3"],
    quaternions: Float[Tensor, "gaussian 4"],
    bones: Int[Tensor, "gaussian bone"],
    weights: Float[Tensor, "gaussian bone"],
    poses: Float[Tensor, "batch point 16"],
) -> tuple[Float[Tensor, "batch gaussian 3"], Float[Tensor, "batch gaussian 4"]]:
    """x' = Σ w (R x + o), and the blended quaternion turns each Gaussian; a pose is R by rows, o, and a quaternion."""
    tensors = (means, quaternions, weights, poses)
    known = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    if known and native.load() is not None:
        return _Skinned.apply(means, quaternions, bones, weights, poses)
    return skinned_reference(means, quaternions, bones, weights, poses)


def skinned_reference(
    means: Float[Tensor, "gaussian 3"],
    quaternions: Float[Tensor, "gaussian 4"],
    bones: Int[Tensor, "gaussian bone"],
    weights: Float[Tensor, "gaussian bone"],
    poses: Float[Tensor, "batch point 16"],
) -> tuple[Float[Tensor, "batch gaussian 3"], Float[Tensor, "batch gaussian 4"]]:
    """`skinned` in plain tensors: any dtype, any device."""
    dense = torch.zeros(len(means), poses.shape[1]).to(weights).scatter_add(1, bones, weights)
    blended = torch.einsum("nk,bkc->bnc", dense, poses)
    linear, offset, turn = blended[..., :9].unflatten(-1, (3, 3)), blended[..., 9:12], blended[..., 12:]
    places = (linear * means[:, None, :]).sum(-1) + offset
    return places, multiplied(torch.nn.functional.normalize(turn, dim=-1), quaternions)


def posed(
    points: Float[Tensor, "point 3"], shifts: Float[Tensor, "batch point 3"], turns: Float[Tensor, "batch point 4"]
) -> Float[Tensor, "batch point 16"]:
    """Poses of points that were shifted from their place at rest and turned there: R (x − p) + p + T."""
    turns = torch.nn.functional.normalize(turns, dim=-1)
    matrices = rotations(turns)
    offsets = points + shifts - torch.einsum("bkij,kj->bki", matrices, points)
    return torch.cat([matrices.flatten(2), offsets, turns], -1)


class _Skinned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means, quaternions, bones, weights, poses):
        tensors = [tensor.contiguous() for tensor in (means, quaternions, bones, weights, poses)]
        ctx.save_for_backward(*tensors)
        places = torch.empty(len(poses), len(means), 3)
        turned = torch.empty(len(poses), len(means), 4)
        _library().loom4d_skin(ctypes.byref(_skin(*tensors)), native.pointer(places), native.pointer(turned))
        return places, turned

    @staticmethod
    def backward(ctx: Any, *gradients):
        means, quaternions, _, weights, poses = tensors = ctx.saved_tensors
        leaving = [torch.zeros_like(tensor) for tensor in (weights, poses, means, quaternions)]
        coming = [gradient.contiguous() for gradient in gradients]
        _library().loom4d_skin_backward(
            ctypes.byref(_skin(*tensors)), *(native.pointer(tensor) for tensor in (*coming, *leaving))
        )
        return leaving[2], leaving[3], None, leaving[0], leaving[1]


def _library() -> ctypes.CDLL:
    found = native.load()
    if found is None:
        raise RuntimeError("no native kernels here: install a C++ compiler (g++ or clang++)")
    return found


def _skin(means: Tensor, quaternions: Tensor, bones: Tensor, weights: Tensor, poses: Tensor) -> Skin:
    sizes = (len(poses), len(means), poses.shape[1], bones.shape[1], torch.get_num_threads())
    return Skin(*sizes, *(native.pointer(tensor) for tensor in (bones, weights, poses, means, quaternions)))

"""The C++ kernel of native/rasterize.cpp behind autograd: float32 on CPU."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import torch
from torch import Tensor

from loom4d import native
from loom4d.cameras import Cameras
from loom4d.gaussians.gaussians import Ellipsoids, Gaussians, rgb_of
from loom4d.gaussians.rasterize.pictures import (
    RasterOptions,
    Rendering,
    assembled,
    flattened,
    opencv_pose,
    pixel_intrinsics,
    screen_zeros,
)


class Scene(ctypes.Structure):
    """Mirrors `Loom4dScene`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "points", "height", "width", "threads")),
        *((name, ctypes.c_void_p) for name in ("means", "covariances", "opacities", "colours", "cameras", "offsets")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("means", "covariances", "opacities", "colours")),
        *((name, ctypes.c_float) for name in ("blur", "cut", "cap", "near_plane")),
    ]


class Pictures(ctypes.Structure):
    """Mirrors `Loom4dPictures`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("premultiplied", "depth", "median", "visible")]


class Gradients(ctypes.Structure):
    """Mirrors `Loom4dGradients`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("means", "covariances", "opacities", "colours", "offsets")]


def library() -> ctypes.CDLL:
    found = native.load()
    if found is None:
        raise RuntimeError(
            "no native kernels here: install a C++ compiler (g++ or clang++), or use backend='reference'"
        )
    found.loom4d_rasterize_forward.restype = ctypes.c_void_p
    return found


def rasterize_cpu(gaussians: Gaussians | Ellipsoids, cameras: Cameras, options: RasterOptions) -> Rendering:
    """Equal to `rasterize_reference` up to rounding; gradients do not depend on the number of threads.

    Cameras get no gradient. Its threads are its own: beside a torch that spins between parallel regions (OpenMP's
    default) two of them take longer than one, so give `options.threads` and leave torch one thread.
    """
    means, batch = gaussians.means, cameras.batch_shape
    if means.dtype != torch.float32 or means.device.type != "cpu":
        raise ValueError(f"the cpu rasteriser takes float32 on cpu, got {means.dtype} on {means.device}")
    if cameras.camera_from_world.requires_grad or cameras.intrinsics.requires_grad:
        raise ValueError("the cpu rasteriser gives no gradient to cameras; use backend='reference' for that")
    points, flat = means.shape[-2], cameras.reshape(-1)
    screen_offsets = screen_zeros(batch, points, means, options)
    colours = flattened(rgb_of(gaussians.colours, means, flat.positions.reshape(*batch, 3)), 2, batch)
    covariances = gaussians.covariances if isinstance(gaussians, Ellipsoids) else _covariances(gaussians, options)
    rotation, translation = opencv_pose(flat)
    packed = torch.cat([rotation.flatten(1), translation, pixel_intrinsics(flat, options)], 1).float().contiguous()
    premultiplied, depth, median, visible = _Rasterize.apply(
        flattened(means, 2, batch).contiguous(),
        flattened(covariances, 3, batch).contiguous(),
        flattened(gaussians.opacities, 1, batch).contiguous(),
        colours.contiguous(),
        None if screen_offsets is None else screen_offsets.reshape(-1, points, 2),
        packed,
        options,
    )
    return assembled(premultiplied, depth, median, visible, batch, screen_offsets)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means, covariances, opacities, colours, offsets, cameras, options: RasterOptions):
        images, points = cameras.shape[0], means.shape[-2]
        kernels = library()
        inputs = (means, covariances, opacities, colours, cameras, offsets)
        scene = _scene(inputs, options)
        height, width = options.height, options.width
        premultiplied = torch.empty(images, 4, height, width)
        depth, median = torch.empty(images, height, width), torch.empty(images, height, width)
        visible = torch.empty(images, points, dtype=torch.bool)
        pictures = Pictures(*(native.pointer(tensor) for tensor in (premultiplied, depth, median, visible)))
        handle = kernels.loom4d_rasterize_forward(ctypes.byref(scene), ctypes.byref(pictures))
        if not handle:
            raise MemoryError(f"no memory to rasterise {images} images of {height}×{width} with {points} Gaussians")
        state = _State(kernels, handle)
        ctx.save_for_backward(*inputs, premultiplied, depth)
        ctx.state, ctx.options = state, options
        ctx.mark_non_differentiable(median, visible)
        ctx.set_materialize_grads(False)
        return premultiplied, depth, median, visible

    @staticmethod
    def backward(ctx: Any, *gradients):
        *inputs, premultiplied, depth = ctx.saved_tensors
        scene = _scene(inputs, ctx.options)
        of_pictures = torch.zeros_like(premultiplied) if gradients[0] is None else gradients[0].contiguous()
        parts = (of_pictures, None if gradients[1] is None else gradients[1].contiguous())
        outputs = Pictures(*(native.pointer(tensor) for tensor in (premultiplied, depth)))
        incoming = Pictures(*(native.pointer(tensor) for tensor in parts))
        means, covariances, opacities, colours, _, offsets = inputs
        leaving = [
            None if tensor is None else torch.zeros_like(tensor)
            for tensor in (means, covariances, opacities, colours, offsets)
        ]
        receiving = Gradients(*(native.pointer(tensor) for tensor in leaving))
        failed = ctx.state.kernels.loom4d_rasterize_backward(
            ctypes.c_void_p(ctx.state.handle), *(ctypes.byref(part) for part in (scene, outputs, incoming, receiving))
        )
        if failed:
            raise MemoryError("no memory for the gradients of the rasteriser")
        return (*leaving, None, None)


class _State:
    """Owns what the forward pass left for the backward pass."""

    def __init__(self, kernels: ctypes.CDLL, handle: int):
        self.kernels, self.handle = kernels, handle
        weakref.finalize(self, kernels.loom4d_rasterize_free, ctypes.c_void_p(handle))


def _scene(inputs, options: RasterOptions) -> Scene:
    means, covariances, opacities, colours, cameras, offsets = inputs
    stride = lambda tensor, trailing: tensor[0].numel() if tensor.ndim > trailing else 0  # noqa: E731
    return Scene(
        cameras.shape[0],
        means.shape[-2],
        options.height,
        options.width,
        _threads(options),
        *(native.pointer(tensor) for tensor in (means, covariances, opacities, colours, cameras, offsets)),
        *(stride(means, 2), stride(covariances, 3), stride(opacities, 1), stride(colours, 2)),
        *(options.blur, options.alpha_cut, options.alpha_cap, options.near),
    )


def _threads(options: RasterOptions) -> int:
    return options.threads or torch.get_num_threads()


def _covariances(gaussians: Gaussians, options: RasterOptions) -> Tensor:
    quaternions, log_scales = gaussians.quaternions, gaussians.log_scales
    if quaternions.shape[:-2] != log_scales.shape[:-2]:
        batch = torch.broadcast_shapes(quaternions.shape[:-2], log_scales.shape[:-2])
        quaternions, log_scales = quaternions.expand(*batch, -1, 4), log_scales.expand(*batch, -1, 3)
    return _Covariances.apply(quaternions.contiguous(), log_scales.contiguous(), _threads(options))


class _Covariances(torch.autograd.Function):
    """`Gaussians.covariances` in one pass."""

    @staticmethod
    def forward(ctx: Any, quaternions, log_scales, threads: int):
        covariances = torch.empty(*quaternions.shape[:-1], 3, 3)
        count, ctx.threads = ctypes.c_int64(log_scales.numel() // 3), ctypes.c_int64(threads)
        library().loom4d_rasterize_covariances(
            count, ctx.threads, *(native.pointer(tensor) for tensor in (quaternions, log_scales, covariances))
        )
        ctx.save_for_backward(quaternions, log_scales)
        return covariances

    @staticmethod
    def backward(ctx: Any, *gradients):
        quaternions, log_scales = ctx.saved_tensors
        leaving = torch.empty_like(quaternions), torch.empty_like(log_scales)
        count = ctypes.c_int64(log_scales.numel() // 3)
        tensors = (quaternions, log_scales, gradients[0].contiguous(), *leaving)
        pointers = [native.pointer(tensor) for tensor in tensors]
        library().loom4d_rasterize_covariances_backward(count, ctx.threads, *pointers)
        return (*leaving, None)

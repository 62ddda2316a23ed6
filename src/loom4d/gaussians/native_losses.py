"""The C++ kernels of native/losses.cpp behind autograd: float32 on CPU. `losses` decides when they are used."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from loom4d import native


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors, and are there."""
    fitting = all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
    return fitting and native.load() is not None


def _library() -> ctypes.CDLL:
    found = native.load()
    if found is None:
        raise RuntimeError("no native kernels here: install a C++ compiler (g++ or clang++)")
    return found


def _sizes(*values: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(value) for value in values]


class SsimMap(torch.autograd.Function):
    """(rendered, target, target's window mean, its variance, taps) of (plane, height, width) -> map of that shape."""

    @staticmethod
    def forward(ctx: Any, rendered: Tensor, target: Tensor, mean: Tensor, variance: Tensor, taps: Tensor) -> Tensor:
        planes, height, width = rendered.shape
        inputs = [tensor.contiguous() for tensor in (taps, rendered, target, mean, variance)]
        result = torch.empty(planes, height, width)
        partials = torch.empty(planes, 3, height, width) if ctx.needs_input_grad[0] else None
        sizes = _sizes(planes, height, width, torch.get_num_threads())
        _library().loom4d_ssim(*sizes, *(native.pointer(tensor) for tensor in (*inputs, result, partials)))
        ctx.save_for_backward(*inputs[:3], partials)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        taps, rendered, target, partials = ctx.saved_tensors
        leaving, coming = torch.zeros_like(rendered), gradients[0].contiguous()
        sizes = _sizes(*rendered.shape, torch.get_num_threads())
        tensors = (taps, rendered, target, partials, coming, leaving)
        _library().loom4d_ssim_backward(*sizes, *(native.pointer(tensor) for tensor in tensors))
        return leaving, None, None, None, None


class Absolute(torch.autograd.Function):
    """Per picture: Σ over pixels of weight · (share · Σ|difference on the background| + other share · |of alpha|)."""

    @staticmethod
    def forward(
        ctx: Any,
        rendered: Tensor,
        target: Tensor,
        background: Tensor,
        weights: Tensor | None,
        shares: tuple[float, float],
    ) -> Tensor:
        inputs = [None if t is None else t.contiguous() for t in (rendered, target, background, weights)]
        sums, gradient = torch.empty(len(rendered)), torch.empty(rendered.shape)
        sizes = _sizes(len(rendered), rendered.shape[-2] * rendered.shape[-1], torch.get_num_threads())
        results = [native.pointer(tensor) for tensor in (sums, gradient)]
        pointers = [native.pointer(tensor) for tensor in inputs]
        _library().loom4d_absolute(*sizes, *pointers, *(ctypes.c_float(share) for share in shares), *results)
        ctx.save_for_backward(gradient)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0][:, None, None, None], None, None, None, None

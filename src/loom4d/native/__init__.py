"""The C++ kernels, built with the package or, failing that, compiled once into the user's cache.

Plain C interfaces loaded through ctypes: no torch headers, so a library built once serves every torch version.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

from loom4d.native.build import FOLDER, build, compiler, library_name


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loom4d"


@functools.cache
def load() -> ctypes.CDLL | None:
    """The native library, or None where `LOOM4D_NATIVE=0` is set or neither a built one nor a compiler exists."""
    if os.environ.get("LOOM4D_NATIVE") == "0":
        return None
    name = library_name()
    built = next((path for path in (FOLDER / name, cache_folder() / name) if path.exists()), None)
    if built is None:
        if compiler() is None:
            return None
        built = cache_folder() / name
        build(built)
    return ctypes.CDLL(str(built))


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_memory() -> bool:
    """Lets this process keep what it frees for its next tensors; whether the C library can (glibc).

    Otherwise large tensors' memory goes back to the system at once, and the next one pays a page fault for every 4 kB.
    For processes of our own, at their start; never on import.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(what, 1 << 30) == 1 for what in (TRIM_THRESHOLD, MMAP_THRESHOLD))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Address of a contiguous CPU tensor's data for a C call; null for None. The caller keeps the tensor alive."""
    if tensor is None:
        return ctypes.c_void_p(0)
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError(f"native kernels take contiguous CPU tensors, got {tensor.device}, strides {tensor.stride()}")
    return ctypes.c_void_p(tensor.data_ptr())

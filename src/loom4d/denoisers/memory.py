"""How much memory the full-size priors need, predicted from their architecture, and settings that fit a budget.

The networks are run on the meta device, where tensors have shapes and no contents, and the sizes of all tensors alive
at once are added up. What a real run adds is the allocator's and the libraries' own (`OVERHEAD_GB`, `SLACK`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from loom4d.denoisers.stable import Kind, Sizes, decoder_dtype
from loom4d.denoisers.unet import ClipUNet, UNetConfig, stock_unet
from loom4d.denoisers.vae import VAEConfig, video_vae
from loom4d.runs import InputError, peak_memory_gb

OVERHEAD_GB = 0.8  # a device context and its libraries' workspaces
SLACK = 1.08  # of what is alive: fragmentation of the allocator's cache


@dataclass(frozen=True)
class Plan:
    """How the priors are run. `predicted_gb` is the peak on the device, in GB of 10⁹ bytes."""

    dtype: torch.dtype = torch.float32
    sequences: int = 2  # clips in one pass of a network; a guided clip is two
    resident: bool = True  # both UNets stay on the device; else the idle one waits in main memory
    window: int = 25  # frames that are decoded together
    predicted_gb: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Of one pass of a network: floating-point operations, and the bytes of activations alive at its peak."""

    flop: float
    peak_bytes: float


def plan(
    sizes: Sizes, kinds: tuple[Kind, Kind], dtype: torch.dtype = torch.bfloat16, budget_gb: float | None = None
) -> Plan:
    """The fastest settings whose predicted peak fits the budget; the fastest of all without one.

    A guided clip's two halves go together if they can, then both UNets stay on the device if they can. A budget
    under everything is an `InputError` that names the least one.
    """
    tried = [
        candidate(sizes, kinds, dtype, sequences, resident, budget_gb)
        for sequences, resident in ((4, True), (2, True), (4, False), (2, False), (1, True), (1, False))
    ]
    fitting = [one for one in tried if budget_gb is None or one.predicted_gb <= budget_gb]
    if not fitting:
        least = min(one.predicted_gb for one in tried)
        raise InputError(
            f"--max-memory {budget_gb:g}GB is too little for {sizes.resolution}² pictures; the least is {least:.1f}GB"
        )
    return fitting[0]


def candidate(
    sizes: Sizes,
    kinds: tuple[Kind, Kind],
    dtype: torch.dtype,
    sequences: int,
    resident: bool,
    budget_gb: float | None = None,
) -> Plan:
    """These settings, their peak, and the widest decode window within the budget (or within the peak, without one).

    Decoding has the device to itself: the UNets wait in main memory meanwhile.
    """
    weights = [weight_gb(unet_config(sizes, kind)) * dtype.itemsize for kind in kinds]
    working = [
        unet_cost(unet_config(sizes, kind), pictures, latent_side(sizes), dtype).peak_bytes / 1e9 * sequences
        for kind, pictures in zip(kinds, (sizes.frames, sizes.views), strict=True)
    ]
    loaded = [sum(weights)] * 2 if resident else weights
    peak = _with_overhead(max(held + work for held, work in zip(loaded, working, strict=True)))
    room = max(peak, budget_gb or 0.0)
    window = sizes.frames
    while window > 1 and decode_gb(sizes, window, dtype) > room:
        window -= 1
    return Plan(dtype, sequences, resident, window, round(max(peak, decode_gb(sizes, window, dtype)), 2))


def decode_gb(sizes: Sizes, window: int, dtype: torch.dtype) -> float:
    """Peak of decoding one window; linear in it."""
    kind = decoder_dtype(dtype)
    weights = sum(parameter.numel() for parameter in video_vae(sizes.vae).decoder.parameters()) * kind.itemsize
    return _with_overhead((weights + window * decode_cost(sizes.vae, 1, latent_side(sizes), kind).peak_bytes) / 1e9)


def _with_overhead(alive_gb: float) -> float:
    return SLACK * alive_gb + OVERHEAD_GB


def peak_gb(device: torch.device) -> float:
    """What was really used so far at the peak, on a graphics card or in this process."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak_memory_gb()


def unet_config(sizes: Sizes, kind: Kind) -> UNetConfig:
    return replace(sizes.unet, vector_width=kind.vector_width)


def latent_side(sizes: Sizes) -> int:
    return sizes.resolution // sizes.vae.stride


@lru_cache
def weight_gb(config: UNetConfig) -> float:
    """10⁹ weights of a UNet, less those that single-token attention never needs: GB per byte of each."""
    return sum(parameter.numel() for parameter in ClipUNet(stock_unet(config), config).parameters()) / 1e9


@lru_cache
def unet_cost(config: UNetConfig, pictures: int, side: int, dtype: torch.dtype, clips: int = 1) -> Cost:
    """Of one pass over so many clips."""
    unet = ClipUNet(nn.Module.to(stock_unet(config), dtype), config)
    with torch.device("meta"):
        condition = unet.condition(
            torch.empty(clips, config.channels, side, side),
            torch.empty(clips, config.token_width),
            torch.empty(clips, pictures, config.vector_width),
        )
        x = torch.empty(clips, pictures, config.channels, side, side, dtype=dtype)
        return measured(lambda: unet(x, torch.empty(clips), condition))


@lru_cache
def decode_cost(config: VAEConfig, frames: int, side: int, dtype: torch.dtype) -> Cost:
    """Of one window of the temporal decoder."""
    vae = nn.Module.to(video_vae(config), dtype)
    latents = torch.empty(frames, config.channels, side, side, dtype=dtype, device="meta")
    return measured(lambda: vae.decode(latents, num_frames=frames).sample)


def measured(run: Callable[[], Tensor]) -> Cost:
    """What a function on meta tensors would cost: 2 × multiply-adds of convolutions, products and attention."""
    attention, alive = FusedAttention(), Alive()
    with torch.no_grad(), FlopCounterMode(display=False) as flop, alive, attention:
        run()
    return Cost(flop.get_total_flops() + attention.flop, alive.peak)


class FusedAttention(TorchFunctionMode):
    """Lets scaled-dot-product attention cost what a fused kernel does: its output, and no matrix of scores."""

    flop = 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.scaled_dot_product_attention:
            q, k = args[:2] if len(args) > 1 else (kwargs["query"], kwargs["key"])
            self.flop += 4 * q.numel() * k.shape[-2]
            return torch.empty_like(q)
        return func(*args, **(kwargs or {}))


class Alive(TorchDispatchMode):
    """Adds up the storages that operations make, while they live. Views, and what was there before, count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0.0, 0.0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._count(tensor, new=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._count(tensor, new=True)
        return result

    def _count(self, tensor: Any, new: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes() if new else 0
        if name not in self.known:
            self.known.add(name)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, name, size)

    def _free(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size

"""How much memory the full-size priors need, predicted from their architecture, and settings that fit a budget.

The networks are run on the meta device, where tensors have shapes and no contents, and the sizes of all tensors alive
at once are added up. What a real run adds is the allocator's and the libraries' own (`OVERHEAD_GB`, `SLACK`).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from loom4d.denoisers.clip import ImageTower
from loom4d.denoisers.stable import Kind, Sizes, decoder_dtype, unet_config
from loom4d.denoisers.unet import ClipUNet, UNetConfig, stock_unet
from loom4d.denoisers.vae import VAEConfig, lone_encoder, video_vae
from loom4d.runs import InputError, peak_memory_gb

OVERHEAD_GB = 0.8  # on a graphics card: a device context and its libraries' workspaces
PROCESS_GB = 0.6  # in main memory: the interpreter and its libraries
SLACK = 1.08  # of what is alive: fragmentation of the allocator's cache
GRIDS_HELD = 3.5  # copies of the finished grid's pictures in main memory while it leaves the decoder


@dataclass(frozen=True)
class Plan:
    """How the priors are run. `predicted_gb` is the peak on the device, in GB of 10⁹ bytes."""

    dtype: torch.dtype = torch.float32
    sequences: int = 2  # clips in one pass of a network; a guided clip is two
    resident: bool = True  # both UNets stay on the device; else the idle one waits in main memory
    window: int = 25  # frames that are decoded together
    predicted_gb: float = 0.0

    def __str__(self) -> str:
        clips = "1 clip" if self.sequences == 1 else f"{self.sequences} clips"
        place = "both UNets on the device" if self.resident else "one UNet at a time on the device"
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind}, {clips} at a time, {place}, {self.window} frames decoded together"


@dataclass(frozen=True)
class Cost:
    """Of one pass of a network: floating-point operations, and the bytes of activations alive at its peak."""

    flop: float
    peak_bytes: float


@dataclass(frozen=True)
class Weights:
    """Of one loaded prior, in GB."""

    unet: float
    tower: float
    autoencoder: float  # with the lone encoder, where there is one

    @property
    def total(self) -> float:
        return self.unet + self.tower + self.autoencoder


def plan(
    sizes: Sizes,
    kinds: tuple[Kind, Kind],
    dtype: torch.dtype = torch.bfloat16,
    budget_gb: float | None = None,
    processor: bool = False,
    whose: str = "--max-memory",
) -> Plan:
    """The fastest settings whose predicted peak fits the budget; the fastest of all without one.

    A guided clip's two halves go together if they can, then both UNets stay on the device if they can. On a processor
    everything is in main memory anyway. A budget (`whose` it is goes into the message) under everything is an
    `InputError` that names the least one.
    """
    tried = [
        candidate(sizes, kinds, dtype, sequences, resident, budget_gb, processor)
        for sequences, resident in ((4, True), (2, True), (4, False), (2, False), (1, True), (1, False))
        if resident or not processor
    ]
    fitting = [one for one in tried if budget_gb is None or one.predicted_gb <= budget_gb]
    if not fitting:
        least = min(one.predicted_gb for one in tried)
        raise InputError(
            f"{whose} {budget_gb:g}GB is too little for {sizes.resolution}² pictures; the least is {least:.1f}GB"
        )
    return fitting[0]


def candidate(
    sizes: Sizes,
    kinds: tuple[Kind, Kind],
    dtype: torch.dtype,
    sequences: int,
    resident: bool,
    budget_gb: float | None = None,
    processor: bool = False,
) -> Plan:
    """These settings, their peak, and the widest decode window within the budget (or within the peak, without one).

    Three phases take turns: conditions are prepared, clips are sampled, pictures are decoded. On a graphics card
    decoding has the device to itself: the UNets wait in main memory meanwhile.
    """
    weights = [weights_of(sizes, kind, dtype) for kind in kinds]
    working = [
        unet_bytes(unet_config(sizes, kind), pictures, latent_side(sizes), dtype) / 1e9 * sequences
        for kind, pictures in zip(kinds, (sizes.frames, sizes.views), strict=True)
    ]
    encoding = encode_bytes(sizes.vae, sizes.resolution) / 1e9
    if processor:
        standing = sum(one.total for one in weights)
        alive = standing + max(*working, encoding)
    else:
        standing = sum(one.unet for one in weights) if resident else 0.0
        sampling = [(standing or one.unet) + work for one, work in zip(weights, working, strict=True)]
        alive = max(*sampling, *(standing + max(one.tower, one.autoencoder + encoding) for one in weights))
    peak = _with_overhead(alive, processor)

    def decoding(window: int) -> float:
        return decode_gb(sizes, window, dtype, standing if processor else None)

    window, room = sizes.frames, max(peak, decoding(1), budget_gb or 0.0)
    while window > 1 and decoding(window) > room:
        window -= 1
    return Plan(dtype, sequences, resident, window, round(max(peak, decoding(window)), 2))


def decode_gb(sizes: Sizes, window: int, dtype: torch.dtype, standing: float | None = None) -> float:
    """Peak of decoding one window; linear in it. In main memory, beside `standing` GB of weights and the grid."""
    kind = decoder_dtype(dtype)
    working = window * decode_bytes(sizes.vae, latent_side(sizes), kind) / 1e9
    if standing is None:
        return _with_overhead(autoencoder_gb(sizes.vae, video_vae, dtype) + working, processor=False)
    grid = 16 * sizes.views * sizes.frames * sizes.resolution**2 / 1e9  # RGBA in float32
    return _with_overhead(standing + max(working + grid, GRIDS_HELD * grid), processor=True)


def _with_overhead(alive_gb: float, processor: bool) -> float:
    return SLACK * alive_gb + (PROCESS_GB if processor else OVERHEAD_GB)


def peak_gb(device: torch.device) -> float:
    """What was really used so far at the peak, on a graphics card or in this process."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak_memory_gb()


def whole_gb(device: torch.device) -> float:
    """All the memory that a graphics card or, for the processor, this machine has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


@lru_cache
def weights_of(sizes: Sizes, kind: Kind, dtype: torch.dtype) -> Weights:
    """The UNet's and the tower's in `dtype`, encoders in float32, the decoder as `decoder_dtype` has it."""
    with torch.device("meta"):
        tower = ImageTower(sizes.tower)
    lone = _numbers(lone_encoder(sizes.vae)) * 4 / 1e9 if kind.own_encoder else 0.0
    return Weights(
        weight_gb(unet_config(sizes, kind)) * dtype.itemsize,
        _numbers(tower) * dtype.itemsize / 1e9,
        autoencoder_gb(sizes.vae, kind.build_vae, dtype) + lone,
    )


@lru_cache
def autoencoder_gb(config: VAEConfig, build: Callable[[VAEConfig], Any], dtype: torch.dtype) -> float:
    """Weights of an encoder in float32 and a decoder as `decoder_dtype` has it."""
    vae = build(config)
    decoder = _numbers(vae.decoder)
    return (4 * (_numbers(vae) - decoder) + decoder_dtype(dtype).itemsize * decoder) / 1e9


def _numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def latent_side(sizes: Sizes) -> int:
    return sizes.resolution // sizes.vae.stride


@lru_cache
def weight_gb(config: UNetConfig) -> float:
    """10⁹ weights of a UNet, less those that single-token attention never needs: GB per byte of each."""
    return _numbers(ClipUNet(stock_unet(config), config)) / 1e9


def unet_cost(config: UNetConfig, pictures: int, side: int, dtype: torch.dtype) -> Cost:
    """Of one pass over one clip."""
    return Cost(_unet_flop(config, pictures, side), unet_bytes(config, pictures, side, dtype))


def decode_cost(config: VAEConfig, side: int, dtype: torch.dtype) -> Cost:
    """Of one frame through the temporal decoder; a window costs as many times this."""
    return Cost(_decode_flop(config, side), decode_bytes(config, side, dtype))


# Peaks are found in float32, where the processor's and the card's operations are the same, and scaled.


def unet_bytes(config: UNetConfig, pictures: int, side: int, dtype: torch.dtype) -> float:
    return _unet_alive(config, pictures, side) * dtype.itemsize / 4


def decode_bytes(config: VAEConfig, side: int, dtype: torch.dtype) -> float:
    return _decode_alive(config, side) * dtype.itemsize / 4


@lru_cache
def encode_bytes(config: VAEConfig, resolution: int) -> float:
    """Of one picture through an encoder, which is always in float32."""
    encoder = lone_encoder(config)
    return alive_in(lambda: encoder(torch.empty(1, 3, resolution, resolution, device="meta")))


@lru_cache
def _unet_alive(config: UNetConfig, pictures: int, side: int) -> float:
    return alive_in(unet_pass(config, pictures, side))


@lru_cache
def _unet_flop(config: UNetConfig, pictures: int, side: int) -> float:
    return flop_of(unet_pass(config, pictures, side))


@lru_cache
def _decode_alive(config: VAEConfig, side: int) -> float:
    return alive_in(decode_pass(config, side))


@lru_cache
def _decode_flop(config: VAEConfig, side: int) -> float:
    return flop_of(decode_pass(config, side))


Pass = Callable[[], Tensor]  # of a network over shapes without contents


def unet_pass(config: UNetConfig, pictures: int, side: int) -> Pass:
    unet = ClipUNet(stock_unet(config), config)
    with torch.device("meta"):
        condition = unet.condition(
            torch.empty(1, config.channels, side, side),
            torch.empty(1, config.token_width),
            torch.empty(1, pictures, config.vector_width),
        )
        x, level = torch.empty(1, pictures, config.channels, side, side), torch.empty(1)
    return lambda: unet(x, level, condition)


def decode_pass(config: VAEConfig, side: int) -> Pass:
    vae, latents = video_vae(config), torch.empty(1, config.channels, side, side, device="meta")
    return lambda: vae.decode(latents, num_frames=1).sample


def flop_of(run: Pass) -> float:
    """2 × multiply-adds of convolutions, products and attention."""
    attention = FusedAttention()
    with torch.no_grad(), FlopCounterMode(display=False) as flop, attention:
        run()
    return flop.get_total_flops() + attention.flop


def alive_in(run: Pass) -> float:
    """The most bytes that are alive at once."""
    alive = Alive()
    with torch.no_grad(), alive, FusedAttention():
        run()
    return alive.peak


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

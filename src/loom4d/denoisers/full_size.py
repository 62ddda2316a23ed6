"""The full-size family: SVD for rows, SV3D for columns, from the user's own checkpoint files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loom4d.denoisers import memory, stable, sv3d, svd
from loom4d.denoisers.family import Decode, Family, ImagePrior, MultiviewPrior, Running, VideoPrior
from loom4d.denoisers.memory import Plan
from loom4d.denoisers.shallow import Fresh, Slots, in_steps, shallow_unet
from loom4d.denoisers.stable import Sizes, Stable, Unet
from loom4d.denoisers.unet import Condition, channels_last
from loom4d.diffusion.denoiser import Denoiser
from loom4d.diffusion.schedules import SIGMA_MAX, SIGMA_MIN
from loom4d.runs import InputError
from loom4d.sources.matting import flooded

SVD_FILES = ("svd_xt.safetensors", "svd_xt_1_1.safetensors", "svd_xt", "stable-video-diffusion-img2vid-xt")
SV3D_FILES = ("sv3d_p.safetensors", "sv3d_p", "sv3d-diffusers")  # a folder has diffusers' layout
WHITE, COLOUR = 0.03, 0.15  # how far from white a pixel is that is surely background, surely object

# Tried in this order: the first one that fits the memory is taken.
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "auto": (torch.float32, torch.bfloat16),  # on an accelerator bfloat16 alone, at once
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
}

Matte = Callable[[Float[Tensor, "b 3 height width"]], Float[Tensor, "b 1 height width"]]


@dataclass(frozen=True)
class FullSizeConfig:
    """How the checkpoints are run; what they are told."""

    device: str = "cpu"
    dtype: str = "auto"  # of DTYPES
    max_memory_gb: float | None = None  # on that device; None is all it has
    compiled: bool = False  # both UNets by torch.compile, for the one shape that nearly all passes have
    channels_last: bool = False  # layout of the UNets' convolutions
    svd: svd.SVDConfig = field(default_factory=svd.SVDConfig)
    sv3d: sv3d.SV3DConfig = field(default_factory=sv3d.SV3DConfig)


def keyed(rgb: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1 height width"]:
    """Alpha of pictures on white: a near-white pixel is background where it is connected to the border by such pixels.

    Between `WHITE` and `COLOUR` alpha rises with the distance from white, so outlines stay soft. White parts of the
    object that touch the background are lost, and white enclosed by the object (under an arm) stays.
    """
    distance = 1 - rgb.amin(1)  # (B, H, W)
    alpha = ((distance - WHITE) / (COLOUR - WHITE)).clamp(0, 1)
    border = torch.zeros(distance.shape[1:], dtype=torch.bool)
    border[[0, -1]], border[:, [0, -1]] = True, True
    behind = torch.stack([flooded(passable, border) for passable in (alpha < 1).cpu()]).to(rgb.device)
    return torch.where(behind, alpha, 1.0)[:, None]


def cut_out(rgb: Float[Tensor, "b 3 height width"], matte: Matte = keyed) -> Float[Tensor, "b 4 height width"]:
    """Pictures on white as premultiplied RGBA: what is left of a colour once white's share 1 − α is taken out."""
    alpha = matte(rgb)
    return torch.cat([torch.minimum((rgb - (1 - alpha)).clamp(min=0), alpha), alpha], 1)


def svd_sv3d(folder: Path | None, config: FullSizeConfig | None = None, matte: Matte = keyed) -> Family:
    """The family from a folder of checkpoints, original files or diffusers' layout.

    Both priors were trained on opaque pictures before white. Their decoded pictures therefore carry no alpha: `matte`
    finds it. A missing, broken, wrong or misfitting file is an `InputError` of one line.
    """
    if folder is None:
        raise InputError("svd-sv3d needs its files: pass --checkpoints DIR (`loom4d weights list` says where they are)")
    config = config or FullSizeConfig()
    sizes = stable.read_sizes(folder)
    files = [found(folder, names) for names in (SVD_FILES, SV3D_FILES)]
    settings = planned(sizes, config)
    # Everything that headers can say about both is said before gigabytes are read.
    opened = [
        stable.opened(file, kind, sizes, settings.dtype)
        for file, kind in zip(files, (svd.KIND, sv3d.KIND), strict=True)
    ]
    video, multiview = (read() for read in opened)
    return family(video, multiview, sizes, settings, config, matte)


def planned(sizes: Sizes, config: FullSizeConfig) -> Plan:
    """The settings for a device and its budget; an `InputError` where there is no such device, or too little memory."""
    device = usable(config.device)
    if config.dtype not in DTYPES:
        raise InputError(f"unknown dtype {config.dtype!r}; choose one of {', '.join(DTYPES)}")
    dtypes, processor = DTYPES[config.dtype], device.type == "cpu"
    if config.dtype == "auto" and not processor:
        dtypes = DTYPES["bfloat16"]
    whole, asked = memory.whole_gb(device), config.max_memory_gb
    budget, whose = (asked, "--max-memory") if asked is not None and asked <= whole else (whole, "this machine's")
    for dtype in dtypes[:-1]:
        with contextlib.suppress(InputError):
            return memory.plan(sizes, (svd.KIND, sv3d.KIND), dtype, budget, processor)
    return memory.plan(sizes, (svd.KIND, sv3d.KIND), dtypes[-1], round(budget, 1), processor, whose)


def usable(name: str) -> torch.device:
    """The device of that name; an `InputError` where this machine, or this torch, has none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"no device {name!r} here ({str(error).splitlines()[0]}); without one, use cpu") from error
    return device


def found(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these files or folders that is there."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of checkpoints")
    raise InputError(f"{folder}: expected {names[0]} there (or {', '.join(names[1:])}); see `loom4d weights list`")


def decoder(video: Stable, multiview: Stable, sizes: Sizes, window: int, shelf: Shelf, matte: Matte) -> Decode:
    """Latents of clips to premultiplied pictures. A clip of one picture has no time: it is decoded as SV3D's own."""

    def decode(latents: Float[Tensor, "clip picture c h w"]) -> Float[Tensor, "clip picture 4 height width"]:
        model = multiview if latents.shape[1] == 1 else video
        shelf.clear()
        pictures = torch.empty(*latents.shape[:2], 4, sizes.resolution, sizes.resolution, device=latents.device)
        for clip, made in zip(latents, pictures, strict=True):  # clips leave the device one by one
            made.copy_(cut_out(stable.decode(model, clip, window), matte))
        return pictures

    return decode


def family(
    video: Stable,
    multiview: Stable,
    sizes: Sizes,
    settings: Plan,
    config: FullSizeConfig | None = None,
    matte: Matte = keyed,
) -> Family:
    """Two loaded priors as the family that methods talk to."""
    config = config or FullSizeConfig()
    device = torch.device(config.device)
    shelf = Shelf(device, (video.unet, multiview.unet) if settings.resident else ())
    video, multiview = replace(video, fetch=shelf.fetch), replace(multiview, fetch=shelf.fetch)
    if config.channels_last:
        for model in (video, multiview):
            channels_last(model.unet)
    unets = [_fetched(model, settings.sequences if config.compiled else 0) for model in (video, multiview)]

    def encode(premultiplied: Float[Tensor, "b 4 height width"]) -> Float[Tensor, "b c h w"]:
        return stable.encode(video, stable.on_white(premultiplied.float())).to(premultiplied.device)

    side = memory.latent_side(sizes)
    latent_shape = (sizes.unet.channels, side, side)
    cells = settings.sequences * sizes.frames  # pictures at a time: as many as clips of them have

    def rows(unet: Unet) -> VideoPrior:
        return svd.video_prior(video, unet, config.svd, settings.sequences)

    def columns(unet: Unet) -> MultiviewPrior:
        return sv3d.multiview_prior(multiview, unet, config.sv3d, settings.sequences)

    def single(unet: Unet) -> ImagePrior:
        return svd.image_prior(video, unet, config.svd, cells, latent_shape)

    whole = Family(
        name="svd-sv3d",
        resolution=sizes.resolution,
        latent_shape=latent_shape,
        views=sizes.views,
        frames=sizes.frames,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        encode=encode,
        decode=decoder(video, multiview, sizes, settings.window, shelf, matte),
        video=rows(unets[0]),
        multiview=columns(unets[1]),
        image=single(unets[0]),
        running=Running(str(settings), settings.predicted_gb, lambda: memory.peak_gb(device)),
    )

    def shallow(fresh: Fresh) -> Family:
        return replace(
            whole,
            video=_shallow(video, rows, fresh),
            multiview=_shallow(multiview, columns, fresh),
            image=_shallow(video, single, fresh),
        )

    return replace(whole, shallow=shallow)


Prior = TypeVar("Prior", bound=Callable[..., Denoiser])


def _shallow(model: Stable, prior_of: Callable[[Unet], Prior], fresh: Fresh) -> Prior:
    """The prior whose UNet's deep levels are asked at fresh steps only; in between, what they made waits in main
    memory (docs/full_size.md says how much). Never compiled."""

    def prior(*told: Any, **named: Any) -> Denoiser:
        slots = Slots(torch.device("cpu"))  # of this denoiser alone
        shallow = shallow_unet(model.unet, slots)

        def unet(x: Tensor, noise_level: Tensor, condition: Condition) -> Tensor:
            model.fetch(model.unet)
            return shallow(x, noise_level, condition)

        return in_steps(prior_of(unet)(*told, **named), slots, fresh)

    return cast(Prior, prior)


def _fetched(model: Stable, compiled: int = 0) -> Unet:
    """The model's UNet, brought to the device at each call (at once where it is there already).

    Compiled, if at all, for passes over so many moving clips. What is left over runs as it is: compiling for each
    shape that a few passes have would take longer than they do.
    """
    fast = torch.compile(model.unet, dynamic=False) if compiled else model.unet

    def unet(x: Float[Tensor, "clip frame c h w"], noise_level: Float[Tensor, " clip"], condition: Condition) -> Tensor:
        model.fetch(model.unet)
        run = fast if condition.moving and len(x) == compiled else model.unet
        return run(x, noise_level, condition)

    return unet


class Shelf:
    """Keeps networks in main memory and brings one to the device when it is used; those of `staying` stay there.

    Weights never change, so the copies in main memory are kept, and sending a network back moves nothing.
    """

    def __init__(self, device: torch.device, staying: tuple[nn.Module, ...]):
        self.device = device
        self.staying = staying
        self.there: list[tuple[nn.Module, list[Slot]]] = []  # with what each holds in main memory

    def fetch(self, network: nn.Module) -> nn.Module:
        if self.device.type == "cpu" or any(network is one for one, _ in self.there):
            return network
        for other in [one for one, _ in self.there if not any(one is kept for kept in self.staying)]:
            self._back(other)
        kept = [
            Slot(table, name, tensor, tensor.data)
            for module in network.modules()
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        ]
        nn.Module.to(network, self.device, non_blocking=True)
        self.there.append((network, kept))
        return network

    def clear(self) -> None:
        """Everything back to main memory: what comes next has the device to itself."""
        for network, _ in list(self.there):
            self._back(network)

    def _back(self, network: nn.Module) -> None:
        for one, kept in self.there:
            if one is network:
                for slot in kept:
                    slot.tensor.data = slot.contents
                    slot.table[slot.name] = slot.tensor
        self.there = [(one, kept) for one, kept in self.there if one is not network]


class Slot(NamedTuple):
    """Where a network keeps a tensor, and its contents in main memory."""

    table: dict[str, Any]
    name: str
    tensor: Tensor
    contents: Tensor

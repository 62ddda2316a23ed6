"""The looker: opens what strangers sent, in a process that may be killed for it, and shows what a run would see.

A look is bounded in processor time and memory by the kernel: a file that makes a decoder spin or swell ends this
process, not the server.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.grid import png
from loom4d.pipeline import GenerateConfig
from loom4d.runs import Event, InputError, write_atomically
from loom4d.serve.kinds import FILMS, MODELS
from loom4d.serve.nursery import Channel
from loom4d.serve.settings import Limits, Settings
from loom4d.sources.files import Clip, read
from loom4d.sources.framing import common_crop, cropped, described, load
from loom4d.sources.matting import matte
from loom4d.sources.pictures import NotAPicture, opened
from loom4d.sources.video import CONTAINERS

SHOWN = 640  # pixels at most of a picture for the page
LONGEST_JSON = 32_000_000  # bytes of a model's description


def main(settings: Settings, channel: Channel) -> None:
    """Answers one request at a time until the server has gone."""
    limits = settings.limits
    resource.setrlimit(resource.RLIMIT_DATA, (limits.look_memory, limits.look_memory))
    channel.say({"looking": True})
    for request in channel.heard():
        signal.setitimer(signal.ITIMER_PROF, limits.look_cpu_seconds)  # SIGPROF ends the process
        channel.say(answer(request, limits))
        signal.setitimer(signal.ITIMER_PROF, 0)


def answer(request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """`look`, or {"refused": why} in words for the user."""
    path = Path(request["path"])
    try:
        return look(path, Path(request["folder"]), request, limits)
    except InputError as error:
        return {"refused": str(error).replace(f"{path}: ", "").replace(str(path), "the file")}
    except MemoryError:
        return {"refused": "it needs more memory than a look may take; scale it down first"}
    except OSError as error:
        return {"failed": f"looking at it failed ({error.strerror or type(error).__name__})"}
    except Exception as error:  # decoders find ever new ways to say that a file is broken
        traceback.print_exc()
        return {"refused": f"a damaged file, or one that nothing here can read ({type(error).__name__})"}


def look(path: Path, folder: Path, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """Facts on the file, and pictures of it in `folder`: original.png, cutout.png and seen.png (frames side by side).

    `request` has kind and matting, the priors' `resolution`, `frames` and `views`. What is seen.png is the very grid
    that a run with the same choices starts from.
    """
    config = replace(GenerateConfig().source, kind=request["kind"], matting=request["matting"], views=request["views"])
    if path.suffix in MODELS:
        refuse_references(path)
        pictures = config.views if config.kind == "orbit" else 1
        given = _result(load(path, pictures, request["resolution"], config))
        strip = rearrange(given.rgba, "view frame c h w -> c h (view frame w)")
        _kept(folder, "seen", strip)
        return {"kind": "model", "line": f"a model, drawn from {given.views} sides", "pictures": given.views}
    frames, size = counted(path, limits)
    pictures = config.views if config.kind == "orbit" else request["frames"]
    clip = read(path, pictures, config.resampling, config.fps, cyclic=config.kind == "orbit")
    refuse_length(clip.source_frames, float(clip.times[-1]), limits)
    notes: list[Event] = []
    cut = _result(matte(clip, config.matting), notes)
    crop = common_crop(cut.rgba[:, 3], config.fill)
    seen = cropped(cut.rgba, crop, request["resolution"])
    middle = clip.frames // 2
    _kept(folder, "original", _shrunk(clip, middle))
    _kept(folder, "cutout", _shrunk(cut, middle))
    _kept(folder, "seen", rearrange(seen, "frame c h w -> c h (frame w)"))
    height, width = clip.size
    return {
        "kind": "picture" if clip.source_frames == 1 else "clip",
        "line": described(clip, config),
        "matte": notes[-1].message if notes else "",
        "pictures": clip.frames,
        "seconds": round(float(clip.times[-1]), 2),
        "frames": frames,
        "size": size,
        "crop": [crop.left / width, crop.top / height, crop.side / width, crop.side / height],
        "aspect": width / height,
    }


def counted(path: Path, limits: Limits) -> tuple[int, list[int]]:
    """(frames, [width, height]) by the headers alone; refuses what passes the limits before anything is decoded."""
    if path.suffix in FILMS:
        return _film(path, limits)
    try:
        with opened(path) as image:
            frames, size = int(getattr(image, "n_frames", 1)), image.size
    except NotAPicture as error:
        raise InputError(f"{path}: a damaged picture; save it again from its source") from error
    refuse_pixels(frames, *size, limits)
    refuse_length(frames, 0.0, limits)
    return frames, list(size)


def _film(path: Path, limits: Limits) -> tuple[int, list[int]]:
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        with av.open(f"file:{path.absolute()}", options=options) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video that can be decoded")
            stream = container.streams.video[0]
            seconds = (container.duration or 0) / 1e6
            frames = stream.frames or round(seconds * float(stream.average_rate or 25)) or 1
            width, height = stream.width, stream.height
    except av.FFmpegError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(f"{path}: a damaged or truncated video ({reason})") from error
    refuse_pixels(1, width, height, limits)
    refuse_length(frames, seconds, limits)
    return frames, [width, height]


def refuse_pixels(frames: int, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        millions = f"{width * height / 1e6:.0f} megapixels"
        raise InputError(f"too large: {millions}, at most {limits.pixels / 1e6:.0f} are taken; scale it down first")
    if frames * width * height > limits.all_pixels:
        raise InputError(f"too large: {frames} frames of {width} × {height}; scale it down or shorten it first")


def refuse_length(frames: int, seconds: float, limits: Limits) -> None:
    if frames > limits.frames:
        raise InputError(f"too long: {frames} frames, at most {limits.frames} are taken; cut it first")
    if seconds > limits.seconds:
        raise InputError(f"too long: {seconds:.0f} seconds, at most {limits.seconds:.0f} are taken; cut it first")


def refuse_references(path: Path) -> None:
    """A GLB must hold everything itself: one that names other files would read them from this machine."""
    with open(path, "rb") as file:
        head = file.read(20)
        if len(head) < 20:
            raise InputError(f"{path}: a truncated GLB")
        _, _, _, length, kind = struct.unpack("<5I", head)
        if kind != 0x4E4F534A or length > LONGEST_JSON:
            raise InputError(f"{path}: a damaged GLB")
        try:
            described = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: a damaged GLB (its description is no JSON)") from error
    parts = [one for name in ("buffers", "images") for one in described.get(name, [])]
    if any(not str(part.get("uri", "data:")).startswith("data:") for part in parts):
        raise InputError(f"{path}: refers to other files; save it again with everything inside")


def _result(work: Any, events: list[Event] | None = None) -> Any:
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value
        if events is not None:
            events.append(event)


def _shrunk(clip: Clip, frame: int) -> Float[Tensor, "4 height width"]:
    """One frame, small enough for the page, averaged in premultiplied colour."""
    scale = min(1.0, SHOWN / max(clip.size))
    size = [max(1, round(side * scale)) for side in clip.size]
    rgba = clip.rgba[frame : frame + 1]
    flat = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    flat = torch.nn.functional.interpolate(flat, size, mode="bilinear", antialias=True)[0]
    return torch.cat([flat[:3] / flat[3:].clamp_min(1e-4), flat[3:]]).clamp(0, 1)


def _kept(folder: Path, name: str, picture: Float[Tensor, "4 height width"]) -> None:
    write_atomically(folder / f"{name}.png", png(picture))

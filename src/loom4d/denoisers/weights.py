"""Weight files: the built-in family's, which ship with the package, and how any file is loaded: strictly."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loom4d.denoisers.autoencoder import Autoencoder, AutoencoderConfig
from loom4d.denoisers.small import SmallConfig, SmallPrior
from loom4d.runs import InputError, load_tensors, save_tensors

BUILT_IN = Path(__file__).parent / "weights"
AUTOENCODER, PRIOR = "autoencoder.safetensors", "prior.safetensors"
LICENCE = "Apache-2.0"  # of the built-in weights: trained on procedural objects of our own and on CC0 assets


def write_weights(path: Path, network: nn.Module, facts: dict[str, Any]) -> Path:
    """A network's weights in half precision, with the facts that describe them."""
    tensors = {name: value.half() for name, value in network.state_dict().items()}
    save_tensors(path, tensors, {"licence": LICENCE, **facts})
    return path


def load_strictly(network: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Fills a network; a missing, unknown or misshapen tensor is an error that names it."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"{path}: tensor {name} has shape {found.get(name, 'none (missing)')}, expected "
                f"{expected.get(name, 'no such tensor')}"
            )
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=True)
    network.eval().requires_grad_(False)


def _read(folder: Path | None, name: str) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
    path = (folder or BUILT_IN) / name
    tensors, facts = load_tensors(path)
    if "config" not in facts:
        raise InputError(f"{path}: carries no description of its network; is it one of ours?")
    return path, tensors, {**facts, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def load_autoencoder(folder: Path | None = None) -> tuple[Autoencoder, dict[str, Any]]:
    """The built-in autoencoder (or the one in `folder`) and the facts about it: recipe, step, scores, sha256."""
    path, tensors, facts = _read(folder, AUTOENCODER)
    network = Autoencoder(AutoencoderConfig(**facts["config"]))
    load_strictly(network, tensors, path)
    return network, facts


def load_prior(folder: Path | None = None) -> tuple[SmallPrior, dict[str, Any]]:
    """The built-in prior (or the one in `folder`) and the facts about it."""
    path, tensors, facts = _read(folder, PRIOR)
    network = SmallPrior(SmallConfig(**facts["config"]))
    load_strictly(network, tensors, path)
    return network, facts

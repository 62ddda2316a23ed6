"""A moving asset in a world of another size and origin."""

from __future__ import annotations

import math

import torch

from loom4d.cameras import Placement
from loom4d.gaussians.motion import DynamicGaussians

# what the motions' tensors and numbers are: places and lengths in space, lengths of space-time and their logarithms
PLACES = ("means", "points", "centre")
LENGTHS = ("shifts", "half", "times")  # `times` count in `unit`, which shrinks as much, so that 4D shapes stay the same
LOGARITHMS = ("log_scales", "log_radii", "log_durations")
INVERSE = ("unit",)


def placed(asset: DynamicGaussians, placement: Placement) -> DynamicGaussians:
    """The asset with every point x moved to scale · x + shift: exact, whatever moves it, and of the same motion."""
    tensors = dict(asset.tensors())
    for name, tensor in tensors.items():
        if name in PLACES:
            tensors[name] = placement.points(tensor)
        elif name in LENGTHS:
            tensors[name] = tensor * placement.scale
        elif name in LOGARITHMS:
            tensors[name] = tensor + math.log(placement.scale)
    config = dict(asset.config())
    for name, value in config.items():
        if name in PLACES:
            config[name] = placement.points(torch.tensor(value, dtype=torch.float64)).tolist()
        elif name in LENGTHS:
            config[name] = value * placement.scale
        elif name in INVERSE:
            config[name] = value / placement.scale
    return type(asset).from_tensors(tensors, config)

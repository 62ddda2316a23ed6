"""Procedural moving objects with exact ground truth: endless, deterministic, drawn from a seed."""

from loom4d.sources.procedural.generate import (
    CLIP_SECONDS,
    FAMILIES,
    SPLITS,
    bounding_box,
    describe,
    moving_object,
    procedural_grid,
)
from loom4d.sources.procedural.motions import MOTIONS
from loom4d.sources.procedural.raycast import BACKENDS, render
from loom4d.sources.procedural.scene import Channel, MovingObject, Pattern, Shape, Wave

__all__ = [
    "BACKENDS",
    "CLIP_SECONDS",
    "FAMILIES",
    "MOTIONS",
    "SPLITS",
    "Channel",
    "MovingObject",
    "Pattern",
    "Shape",
    "Wave",
    "bounding_box",
    "describe",
    "moving_object",
    "procedural_grid",
    "render",
]

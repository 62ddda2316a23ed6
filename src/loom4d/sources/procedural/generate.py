"""From a seed to an object, and from an object to its grid of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from loom4d.cameras import cells, turntable
from loom4d.grid import ImageGrid
from loom4d.sources.procedural import creatures, monsters, things, vehicles, winged
from loom4d.sources.procedural.adorn import adorned
from loom4d.sources.procedural.build import Palette, Sketch, palette
from loom4d.sources.procedural.motions import animate
from loom4d.sources.procedural.raycast import render
from loom4d.sources.procedural.scene import MovingObject, extents, freedom_matrices, pose, surface_points

REACH = 0.56  # farthest point from the origin; the picture's edge is 0.581 away at radius 2 and 33.8 degrees
CLIP_SECONDS = 1.0
SPLITS = {"train": 0, "valid": 1, "test": 2}
VERSIONS = (1, 2)

# what draws an individual, and how often it is drawn
FAMILIES: dict[str, tuple[Callable[[Sketch, Palette], str], float]] = {
    "person": (creatures.person, 4.0),
    "robot": (creatures.robot, 2.0),
    "teddy": (creatures.teddy, 2.0),
    "quadruped": (creatures.quadruped, 5.0),
    "bird": (winged.bird, 2.5),
    "dragon": (winged.dragon, 1.2),
    "butterfly": (winged.butterfly, 0.8),
    "fish": (winged.fish, 1.8),
    "worm": (winged.worm, 0.8),
    "insect": (winged.insect, 1.6),
    "monster": (monsters.monster, 3.0),
    "octopus": (monsters.octopus, 1.0),
    "fruit": (monsters.fruit, 1.4),
    "ghost": (monsters.ghost, 0.6),
    "flower": (things.flower, 1.2),
    "tree": (things.tree, 1.6),
    "car": (vehicles.car, 2.0),
    "tank": (vehicles.tank, 0.7),
    "aircraft": (vehicles.aircraft, 1.5),
    "rocket": (vehicles.rocket, 0.8),
    "boat": (vehicles.boat, 0.7),
    "machine": (things.machine, 1.6),
    "toy": (things.toy, 2.0),
}


def generator(seed: int, split: str) -> Generator:
    """Randomness of one object; splits are separate branches of the seed tree and never meet."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    return np.random.default_rng(np.random.SeedSequence(entropy=0x100D4D, spawn_key=(SPLITS[split], seed)))


def moving_object(seed: int, split: str = "train", family: str | None = None, version: int = 1) -> MovingObject:
    """The object of a seed: one of `FAMILIES` (drawn unless named), painted, set in motion, turned and fitted.

    A version's objects never change; those of version 2 are those of version 1, `adorned`.
    """
    if version not in VERSIONS:
        raise ValueError(f"unknown version {version}; choose one of {', '.join(map(str, VERSIONS))}")
    rng = generator(seed, split)
    weights = np.array([weight for _, weight in FAMILIES.values()])
    drawn = str(rng.choice(list(FAMILIES), p=weights / weights.sum()))
    if family is not None and family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; choose one of {', '.join(FAMILIES)}")
    sketch = Sketch(rng)
    noun = FAMILIES[family or drawn][0](sketch, palette(rng))  # "red robot"
    verb = animate(sketch)
    yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.25 else rng.uniform(-np.pi / 3, np.pi / 3)
    light = rng.normal(size=3) * [1, 0.5, 1] + [0, 1.2, 0.3]
    turn = freedom_matrices(np.array([0, 0, 0, 0, yaw, 0, 0, 0, 0], float))
    caption = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} {verb}"
    figure, size = sketch.finish(caption, turn, light / np.linalg.norm(light)), rng.uniform(0.9, 1.0)
    return fitted(figure if version == 1 else adorned(figure, rng), size)


def fitted(figure: MovingObject, size: float, instants: int = 33) -> MovingObject:
    """The same object, its bounding box over the whole clip centred, its longest side `size` (or less, where it would
    not stay inside the picture from every direction)."""
    poses = pose(figure, np.linspace(0, 1, instants))
    low, high = extents(figure, poses)
    low, high = low.min((0, 1)), high.max((0, 1))
    centre = (low + high) / 2
    points = np.einsum("tpij,pnj->tpni", poses[..., :3, :3], surface_points(figure)) + poses[:, :, None, :3, 3]
    reach = float(np.sqrt(((points - centre) ** 2).sum(-1).max()))
    scale = min(size / float((high - low).max()), REACH / reach)
    fit = np.diag([scale, scale, scale, 1.0])
    fit[:3, 3] = -scale * centre
    return replace(figure, world_from_root=fit @ figure.world_from_root)


def describe(figure: MovingObject) -> str:
    """What one would say it is: "a red robot waving"."""
    return figure.caption


def grid_elevation_deg(rng: Generator) -> float:
    """−10..30 degrees; half of all grids at 0..10, the photographs people take."""
    return float(rng.uniform(0, 10) if rng.random() < 0.5 else rng.uniform(-10, 30))


def procedural_grid(
    seed: int,
    views: int,
    frames: int,
    resolution: int,
    split: str = "train",
    samples: int = 4,
    device: str = "cpu",
    version: int = 1,
) -> ImageGrid:
    """Exact pictures of the seed's object from a turntable of `views` cameras at `frames` moments of its clip.

    On another `device` they are cast there by plain tensors, and stay there.
    """
    figure = moving_object(seed, split, version=version)
    elevation = grid_elevation_deg(np.random.default_rng([seed, SPLITS[split], 7]))
    cameras = turntable(views, frames, elevation).to(device)
    times = torch.linspace(0, 1, frames, device=device)
    flat = repeat(times, "frame -> (view frame)", view=views)
    rgba = render(figure, cells(cameras), flat, resolution, resolution, samples)
    return ImageGrid(
        rearrange(rgba, "(view frame) c h w -> view frame c h w", view=views), cameras, times * CLIP_SECONDS
    )


def bounding_box(figure: MovingObject, times: Float[ndarray, " time"]) -> tuple[ndarray, ndarray]:
    """Lower and upper corner over the given times, exact."""
    low, high = extents(figure, pose(figure, times))
    return low.min((0, 1)), high.max((0, 1))

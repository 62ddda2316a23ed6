"""The second version of the objects: the first one's, with decals, quieter colours and a wider range of motion.

A decal is a solid that pokes a little out of the part it sits on, so it moves and is lit with it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from loom4d.sources.procedural.build import placed, vector
from loom4d.sources.procedural.scene import MovingObject, Pattern, Shape

PROUD = 1.02  # how far a decal reaches, in units of the solid under it


def adorned(figure: MovingObject, rng: Generator) -> MovingObject:
    """Two thirds of the objects get one to four decals, half quieter colours, all another strength of motion
    (the same waves, a fifth to one and a half as large)."""
    if rng.random() < 0.5:
        figure = replace(figure, colours=quietened(figure.colours, rng.uniform(0.25, 0.8), rng.uniform(0.75, 1.0)))
    strength = float(np.exp(rng.normal(-0.1, 0.5)).clip(0.2, 1.5))
    figure = replace(figure, wave_numbers=figure.wave_numbers * np.array([strength, 1.0, 1.0]))
    if rng.random() < 2 / 3:
        for _ in range(int(rng.integers(1, 5))):
            figure = with_decal(figure, rng)
    return figure


def quietened(colours: Float[ndarray, "part 2 3"], saturation: float, value: float) -> Float[ndarray, "part 2 3"]:
    """Each colour nearer to the grey of its own brightness, and darker: fur, cloth and stone rather than plastic."""
    grey = colours @ np.array([0.3, 0.6, 0.1])
    return value * (grey[..., None] + saturation * (colours - grey[..., None]))


def with_decal(figure: MovingObject, rng: Generator) -> MovingObject:
    """One more part, in a colour of its own, on one of the larger parts."""
    sizes = np.abs(np.linalg.det(figure.joint_from_part[:, :3, :3])) ** (1 / 3)
    large = np.flatnonzero(sizes > 0.5 * sizes.max())
    part = int(rng.choice(large))
    shape, taper = Shape(int(figure.shapes[part])), float(figure.tapers[part])
    local, taper = patch(shape, taper, rng)
    colour = rng.uniform(0.05, 0.95, 3)
    return replace(
        figure,
        joints=np.append(figure.joints, figure.joints[part]),
        joint_from_part=np.concatenate([figure.joint_from_part, (figure.joint_from_part[part] @ local)[None]]),
        shapes=np.append(figure.shapes, shape),
        tapers=np.append(figure.tapers, taper),
        colours=np.concatenate([figure.colours, np.stack([colour, 1 - colour])[None]]),
        patterns=np.append(figure.patterns, Pattern.STRIPES if rng.random() < 0.3 else Pattern.PLAIN),
        pattern_numbers=np.concatenate([figure.pattern_numbers, np.append(rng.normal(0, 2.5, 3), 0.0)[None]]),
    )


def patch(shape: Shape, taper: float, rng: Generator) -> tuple[Float[ndarray, "4 4"], float]:
    """(unit solid from decal, its taper): a round spot on a ball, a plate on a box's side, a ring around a cone."""
    if shape == Shape.ELLIPSOID:
        way = rng.normal(size=3)
        way /= np.linalg.norm(way)
        radius = rng.uniform(0.3, 0.6)
        return placed(vector(way * (PROUD - radius)), (0, 0, 0), (radius, radius, radius)), taper
    if shape == Shape.BOX:
        size = rng.uniform(0.25, 0.8, 3)
        side = int(rng.integers(3))
        at = rng.uniform(-1, 1, 3) * (0.95 - size)
        size[side], at[side] = 0.05, rng.choice([-1, 1]) * (PROUD - 0.05)
        return placed(vector(at), (0, 0, 0), vector(size)), taper
    half = rng.uniform(0.05, 0.2)
    height = rng.uniform(-0.8, 0.8)

    def radius_at(y: float) -> float:
        return (1 + taper) / 2 + (taper - 1) / 2 * y

    low, high = radius_at(height - half), radius_at(height + half)
    return placed((0.0, height, 0.0), (0, 0, 0), (PROUD * low, half, PROUD * low)), high / low

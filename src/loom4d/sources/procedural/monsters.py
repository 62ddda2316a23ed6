"""Families of imagined creatures, whose parts combine freely: monsters, octopuses, walking fruit, ghosts."""

from __future__ import annotations

import numpy as np

from loom4d.sources.procedural.build import Paint, Pair, Palette, Sketch, Vector, hsv, mixed, patterned
from loom4d.sources.procedural.creatures import BLACK, WHITE, eyes, hat
from loom4d.sources.procedural.scene import Pattern, Shape


def face(s: Sketch, joint: int, y: float, z: float, size: float) -> None:
    """One, two or three eyes in front, and a mouth that may show teeth; `z` is how far out the surface is at y."""
    rng = s.rng
    count = int(rng.choice([1, 2, 3], p=[0.2, 0.65, 0.15]))
    if count == 2:
        eyes(s, joint, (0.55 * size, y, 0.85 * z), 0.34 * size, bool(rng.random() < 0.75))
    else:
        for index in range(count):
            across = (index - (count - 1) / 2) * 0.8 * size
            radius = (0.55 if count == 1 else 0.34) * size
            s.ball(joint, (across, y, 0.85 * z), radius, Paint(WHITE))
            s.ball(joint, (across, y, 0.85 * z + 0.6 * radius), 0.6 * radius, Paint(hsv(rng.random(), 0.8, 0.3)))
    s.ball(joint, (0, y - 0.8 * size, 0.86 * z), (0.55 * size, 0.16 * size, 0.2 * size), Paint((0.5, 0.08, 0.12)))
    if rng.random() < 0.6:
        for side in (-1, 1):
            s.cone(
                joint,
                (side * 0.22 * size, y - 0.8 * size, 0.86 * z + 0.18 * size),
                (0.09 * size, 0.13 * size, 0.06 * size),
                Paint(WHITE),
                0.0,
                (np.pi, 0, 0),
            )


def tentacle(
    s: Sketch, parent: int, at: Vector, aim: Vector, size: Pair, paint: Paint, phase: float, curl: float
) -> None:
    """A chain of three rods, each of (length, radius) `size` and bent by `curl` radians, down the joint's −y."""
    joint, links = parent, 3
    length, radius = size
    for index in range(links):
        place, turn = (at, aim) if index == 0 else ((0, -length, 0), (curl, 0, 0))
        joint = s.joint(joint, place, "tentacle", turn, index=index, phase=phase)
        start, end = radius * (1 - 0.75 * index / links), radius * (1 - 0.75 * (index + 1) / links)
        s.rod(joint, (0, 0, 0), (0, -length, 0), (start, end), paint)
        s.ball(joint, (0, -length, 0), end, paint)


def monster(s: Sketch, p: Palette) -> str:
    rng = s.rng
    wide, high, deep = rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.6), rng.uniform(0.28, 0.42)
    legs = rng.uniform(0.12, 0.4)
    body = s.joint(0, (0, legs + 0.85 * high, 0), "body")
    shape = Shape(int(rng.choice([0, 0, 1, 2])))
    squash = 1.0 if shape == Shape.ELLIPSOID else 0.8
    s.part(body, shape, (0, 0, 0), (wide * squash, high * squash, deep * squash), p.main, taper=rng.uniform(0.5, 0.9))
    front = deep * squash
    if shape == Shape.ELLIPSOID and rng.random() < 0.6:
        s.ball(body, (0, -0.3 * high, 0.25 * deep), (0.7 * wide, 0.6 * high, 0.85 * deep), p.light)
    face(s, body, 0.3 * high, 0.95 * front, 0.55 * wide)
    thick, limb = rng.uniform(0.06, 0.12), Paint(p.main.colour)
    for side in (-1, 1):
        gait = 0.25 + 0.25 * side
        hip = s.joint(body, (side * 0.45 * wide, -0.75 * high * squash, 0), "leg", side=side, phase=gait)
        length = legs + 0.2 * high
        s.rod(hip, (0, 0, 0), (0, -length, 0), (1.2 * thick, thick), limb)
        s.ball(hip, (0, -length, 0.6 * thick), (1.3 * thick, 0.8 * thick, 1.9 * thick), p.second)
        for pair in range(int(rng.choice([1, 2], p=[0.75, 0.25]))):
            at = (side * 0.85 * wide * squash, (0.1 - 0.4 * pair) * high, 0)
            arm = s.joint(
                body, at, "arm", (rng.uniform(-0.5, 0), 0, side * rng.uniform(0.5, 1.1)), side=side, phase=gait
            )
            reach = rng.uniform(0.18, 0.3)
            s.rod(arm, (0, 0, 0), (0, -reach, 0), (thick, 0.8 * thick), limb)
            fore = s.joint(arm, (0, -reach, 0), "forearm", (-0.4, 0, 0), side=side)
            s.rod(fore, (0, 0, 0), (0, -reach, 0), (0.8 * thick, 0.7 * thick), limb)
            s.ball(fore, (0, -reach - 0.5 * thick, 0), 1.15 * thick, p.second)
    top = 0.75 * high * squash
    style = rng.integers(4)
    if style == 0:
        hat(s, body, 0.95 * high * squash, 0.5 * wide, p)
    elif style == 1:
        for side in (-1, 1):
            s.rod(body, (side * 0.45 * wide, top, 0), (side * 0.8 * wide, top + 0.3, 0), (0.09, 0.02), p.accent)
    elif style == 2:
        for side in (-1, 1):
            stalk = s.joint(body, (side * 0.3 * wide, top, 0), "antenna", (0, 0, -side * 0.3), side=side)
            s.rod(stalk, (0, 0, 0), (0, 0.3, 0), (0.03, 0.025), p.second)
            s.ball(stalk, (0, 0.33, 0), 0.075, p.accent)
    else:
        for index in range(4):
            lean = -0.5 + 0.5 * index
            s.cone(
                body,
                (0, top + 0.05, -deep * (index - 0.5) * 0.35),
                (0.05, 0.2, 0.1),
                p.accent,
                0.0,
                (-lean * 0.6, 0, 0),
            )
    if rng.random() < 0.4:
        tail = s.joint(body, (0, -0.5 * high, -0.8 * front), "tail", (0.3, 0, 0))
        s.rod(tail, (0, 0, 0), (0, 0, -0.35), (0.1, 0.03), limb)
        s.ball(tail, (0, 0, -0.36), 0.07, p.accent)
    return f"{p.name} monster"


def octopus(s: Sketch, p: Palette) -> str:
    """Octopuses and jellyfish."""
    rng = s.rng
    jelly = rng.random() < 0.4
    body = s.joint(0, (0, 0.6, 0), "body")
    wide, high = rng.uniform(0.32, 0.42), rng.uniform(0.28, 0.48)
    s.ball(body, (0, 0.6 * high, 0), (wide, high, wide), p.main)
    if jelly:
        s.cone(body, (0, 0.35 * high, 0), (1.1 * wide, 0.12, 1.1 * wide), p.second, 0.8)
    eyes(s, body, (0.42 * wide, 0.55 * high, 0.84 * wide), 0.2 * wide)
    s.ball(body, (0, 0.2 * high, 0.9 * wide), (0.12 * wide, 0.1 * wide, 0.1 * wide), p.dark)
    count = int(rng.integers(5, 8))
    spread, curl = (0.2, 0.0) if jelly else (rng.uniform(0.5, 0.9), rng.uniform(-0.25, 0.1))
    arms = Paint(p.main.colour) if rng.random() < 0.6 else p.second
    for index in range(count):
        angle = (index + 0.5) * 2 * np.pi / count
        at = (0.7 * wide * np.sin(angle), 0.12 * high, 0.7 * wide * np.cos(angle))
        size = (rng.uniform(0.17, 0.24), 0.06 if jelly else 0.1)
        tentacle(s, body, at, (-spread, angle, 0), size, arms, 0.37 * index, curl)
    return f"{p.name} {'jellyfish' if jelly else 'octopus'}"


def thin_limbs(s: Sketch, body: int, legs: float, shoulder: float, p: Palette) -> None:
    """Stick arms and legs with big hands and shoes."""
    for side in (-1, 1):
        hip = s.joint(body, (side * 0.15, -0.22, 0), "leg", side=side, phase=0.25 + 0.25 * side)
        s.rod(hip, (0, 0, 0), (0, -legs / 2, 0), (0.05, 0.045), p.dark)
        knee = s.joint(hip, (0, -legs / 2, 0), "shin", side=side, phase=0.25 + 0.25 * side)
        s.rod(knee, (0, 0, 0), (0, -legs / 2, 0), (0.045, 0.04), p.dark)
        s.ball(knee, (0, -legs / 2, 0.05), (0.09, 0.06, 0.14), p.accent)
        arm = s.joint(
            body,
            (side * shoulder, 0.15, 0),
            "arm",
            (0, 0, side * 0.8),
            side=side,
            phase=0.25 + 0.25 * side,
        )
        s.rod(arm, (0, 0, 0), (0, -0.22, 0), (0.045, 0.04), p.dark)
        fore = s.joint(arm, (0, -0.22, 0), "forearm", (-0.4, 0, 0), side=side)
        s.rod(fore, (0, 0, 0), (0, -0.18, 0), (0.04, 0.04), p.dark)
        s.ball(fore, (0, -0.22, 0), 0.085, p.light)


FRUIT = {
    "apple": (0.88, 0.12, 0.1),
    "pear": (0.72, 0.85, 0.2),
    "carrot": (1.0, 0.5, 0.08),
    "orange": (1.0, 0.6, 0.05),
    "aubergine": (0.4, 0.12, 0.5),
    "cookie": (0.8, 0.55, 0.28),
    "egg": (0.97, 0.9, 0.8),
}


def fruit(s: Sketch, p: Palette) -> str:
    """Fruit and vegetables with a face, arms and legs."""
    rng = s.rng
    name = str(rng.choice(list(FRUIT)))
    colour = mixed(FRUIT[name], p.main.colour, rng.uniform(0, 0.35))
    legs = rng.uniform(0.2, 0.35)
    body = s.joint(0, (0, legs + 0.35, 0), "body")
    skin = Paint(colour, mixed(colour, (1, 1, 0.6), 0.5), Pattern.GRADIENT, (0, 1.0, 0.3))
    if name == "carrot":
        s.cone(
            body,
            (0, 0.15, 0),
            (0.32, 0.55, 0.32),
            Paint(colour, mixed(colour, BLACK, 0.3), Pattern.STRIPES, (0, 5, 0)),
            0.2,
            (np.pi, 0, 0),
        )
        s.ball(body, (0, 0.7, 0), (0.32, 0.1, 0.32), Paint(colour))
        top, front = 0.75, 0.27
    elif name == "cookie":
        s.cone(body, (0, 0.1, 0), (0.45, 0.1, 0.45), Paint(colour), 0.95, (np.pi / 2, 0, 0))
        for _ in range(6):
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.38)
            s.ball(body, (far * np.cos(angle), 0.1 + far * np.sin(angle), 0.09), 0.05, Paint((0.3, 0.15, 0.08)))
        top, front = 0.5, 0.1
    else:
        high = {"apple": 0.4, "orange": 0.42, "pear": 0.38}.get(name, 0.5)
        s.ball(body, (0, 0.1, 0), (0.42, high, 0.4), skin)
        if name == "pear":
            s.ball(body, (0, 0.42, 0), (0.26, 0.32, 0.25), skin)
        top, front = high + (0.32 if name == "pear" else 0.08), 0.4
    face(s, body, 0.45 if name == "carrot" else 0.2, front, 0.24)
    green = Paint(hsv(rng.uniform(0.28, 0.38), 0.75, 0.6))
    if name not in ("cookie", "egg"):
        s.rod(body, (0, top - 0.02, 0), (0.03, top + 0.16, 0), (0.035, 0.03), Paint((0.4, 0.26, 0.12)))
        for side in (-1, 1):
            leaf = s.joint(body, (0, top + 0.05, 0), "leaf", (0, 0, -side * 0.9), side=side)
            s.ball(leaf, (0, 0.16, 0), (0.07, 0.17, 0.03), green)
    elif rng.random() < 0.7:
        hat(s, body, top + 0.05, 0.2, p)
    thin_limbs(s, body, legs, 0.25 if name == "carrot" else 0.38, p)
    return f"{p.name} {name}" if name == "cookie" else name


def ghost(s: Sketch, p: Palette) -> str:
    """A cloth over a head: floats, and its hem ripples."""
    rng = s.rng
    cloth = p.light if rng.random() < 0.4 else patterned(rng, p.main.colour, p.light.colour, 0.5)
    body = s.joint(0, (0, 0.6, 0), "body")
    wide = rng.uniform(0.3, 0.4)
    s.ball(body, (0, 0.25, 0), (wide, 0.9 * wide, wide), cloth)
    s.cone(body, (0, -0.05, 0), (1.15 * wide, 0.32, 1.15 * wide), cloth, 0.86)
    face(s, body, 0.25, wide, 0.6 * wide)
    for index in range(7):
        angle = index * 2 * np.pi / 7
        hem = s.joint(
            body,
            (0.85 * wide * np.sin(angle), -0.33, 0.85 * wide * np.cos(angle)),
            "tentacle",
            (0, angle, 0),
            phase=index / 7,
        )
        s.ball(hem, (0, -0.05, 0), (0.17, 0.2, 0.1), cloth)
    for side in (-1, 1):
        arm = s.joint(body, (side * wide, 0.05, 0.05), "arm", (-0.9, 0, side * 0.8), side=side, phase=0.25 * side)
        s.ball(arm, (0, -0.14, 0), (0.1, 0.2, 0.1), cloth)
    return f"{p.name} ghost" if cloth is not p.light else "white ghost"

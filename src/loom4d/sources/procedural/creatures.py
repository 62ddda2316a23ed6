"""Families of animals and figures. Each function draws one individual on a sketch and returns what it is called.

Everybody stands on y = 0, faces +z and is between one and two units long, so that motions fit all.
"""

from __future__ import annotations

import numpy as np

from loom4d.sources.procedural.build import Paint, Pair, Palette, Sketch, Vector, belly, mixed, patterned
from loom4d.sources.procedural.scene import Pattern

WHITE, BLACK = (0.96, 0.96, 0.96), (0.05, 0.05, 0.07)


def eyes(s: Sketch, head: int, at: Vector, size: float, stare: bool = True) -> None:
    """Two white balls with pupils (or two plain dark ones) at (±x, y, z) of the head."""
    x, y, z = at
    for side in (-1, 1):
        if stare:
            s.ball(head, (side * x, y, z), size, Paint(WHITE))
            s.ball(head, (side * x, y, z + 0.55 * size), 0.62 * size, Paint(BLACK))
        else:
            s.ball(head, (side * x, y, z), size, Paint(BLACK))


def hat(s: Sketch, head: int, top: float, radius: float, p: Palette) -> None:
    kind = s.rng.integers(5)
    if kind == 0:  # wide brim
        s.cone(head, (0, top, 0), (1.5 * radius, 0.07 * radius, 1.5 * radius), p.accent, 1.0)
        s.cone(head, (0, top + 0.35 * radius, 0), (0.8 * radius, 0.35 * radius, 0.8 * radius), p.accent, 0.8)
    elif kind == 1:  # pointed
        s.cone(head, (0, top + 0.6 * radius, 0), (0.85 * radius, 0.75 * radius, 0.85 * radius), p.accent)
        s.ball(head, (0, top + 1.35 * radius, 0), 0.2 * radius, p.light)
    elif kind == 2:  # cap with a visor in front
        s.ball(head, (0, top - 0.25 * radius, 0), (0.98 * radius, 0.55 * radius, 0.98 * radius), p.accent)
        s.box(head, (0, top - 0.2 * radius, 1.0 * radius), (0.6 * radius, 0.05 * radius, 0.45 * radius), p.second)
    elif kind == 3:  # top hat
        s.cone(head, (0, top, 0), (1.2 * radius, 0.06 * radius, 1.2 * radius), p.dark, 1.0)
        s.cone(head, (0, top + 0.6 * radius, 0), (0.75 * radius, 0.6 * radius, 0.75 * radius), p.dark, 1.0)
        s.cone(head, (0, top + 0.2 * radius, 0), (0.78 * radius, 0.14 * radius, 0.78 * radius), p.accent, 1.0)
    else:  # crown
        for angle in np.arange(5) * 2 * np.pi / 5:
            at = (0.6 * radius * np.sin(angle), top + 0.15 * radius, 0.6 * radius * np.cos(angle))
            s.cone(head, at, (0.25 * radius, 0.4 * radius, 0.25 * radius), Paint((1.0, 0.8, 0.1)))


def limbs(
    s: Sketch, frame: dict[str, float], sleeve: Paint, hand: Paint, trousers: Paint, shoe: Paint
) -> tuple[int, int]:
    """Pelvis, body joint, two arms and two legs of two segments; returns (pelvis, body)."""
    leg, arm, thick = frame["leg"] / 2, frame["arm"] / 2, frame["thick"]
    pelvis = s.joint(0, (0, frame["leg"] + 0.4 * thick, 0), "pelvis")
    body = s.joint(pelvis, (0, 0, 0), "body")
    for side in (-1, 1):
        gait = 0.0 if side > 0 else 0.5
        hip = s.joint(pelvis, (side * frame["hip"], 0, 0), "leg", side=side, phase=gait)
        s.rod(hip, (0, 0.05, 0), (0, -leg, 0), (1.15 * thick, thick), trousers)
        knee = s.joint(hip, (0, -leg, 0), "shin", side=side, phase=gait)
        s.ball(knee, (0, 0, 0), thick, trousers)
        s.rod(knee, (0, 0, 0), (0, -leg + 0.04, 0), (0.95 * thick, 0.7 * thick), trousers)
        s.ball(knee, (0, -leg + 0.03, 0.6 * thick), (0.95 * thick, 0.75 * thick, 1.8 * thick), shoe)
        at = (side * frame["shoulder"], frame["torso"] * 0.88, 0)
        shoulder = s.joint(
            body, at, "arm", (s.rng.uniform(-0.2, 0.1), 0, side * s.rng.uniform(0.1, 0.45)), side=side, phase=gait
        )
        s.ball(shoulder, (0, 0, 0), 1.05 * thick, sleeve)
        s.rod(shoulder, (0, 0, 0), (0, -arm, 0), (0.9 * thick, 0.75 * thick), sleeve)
        elbow = s.joint(shoulder, (0, -arm, 0), "forearm", (-0.15, 0, 0), side=side, phase=gait)
        s.rod(elbow, (0, 0.02, 0), (0, -arm, 0), (0.78 * thick, 0.6 * thick), sleeve if s.rng.random() < 0.5 else hand)
        s.ball(elbow, (0, -arm - 0.3 * thick, 0), 0.85 * thick, hand)
    return pelvis, body


def person(s: Sketch, p: Palette) -> str:
    rng = s.rng
    child = rng.random() < 0.4
    leg = rng.uniform(0.45, 0.8) * (0.72 if child else 1)
    torso = rng.uniform(0.45, 0.65)
    radius = rng.uniform(0.2, 0.3) * (1.15 if child else 0.85)
    width = rng.uniform(0.2, 0.31)
    frame = {"leg": leg, "arm": 0.95 * torso, "thick": rng.uniform(0.085, 0.13), "hip": 0.5 * width, "torso": torso}
    pelvis, body = limbs(s, {**frame, "shoulder": width + 0.05}, p.main, p.skin, p.second, p.dark)
    skirt = rng.random() < 0.3
    s.rod(body, (0, -0.03, 0), (0, torso, 0), (0.8 * width, 1.05 * width), p.main)
    s.ball(body, (0, torso * 0.97, 0), (1.05 * width, 0.1, 0.95 * width), p.main)
    s.cone(pelvis, (0, -0.06, 0), (0.9 * width, 0.08, 0.85 * width), p.second, 0.95)
    if skirt:
        s.cone(pelvis, (0, -0.2 * leg, 0), (1.7 * width, 0.3 * leg, 1.6 * width), p.accent, 0.45)
    elif rng.random() < 0.5:
        s.cone(body, (0, 0.02, 0), (0.92 * width, 0.035, 0.9 * width), p.accent, 1.0)
    head = s.joint(body, (0, torso + 0.04, 0), "head")
    s.rod(head, (0, -0.05, 0), (0, 0.1, 0), (0.07, 0.07), p.skin)
    up = 0.06 + radius
    s.ball(head, (0, up, 0), (0.9 * radius, radius, 0.92 * radius), p.skin)
    eyes(s, head, (0.38 * radius, up + 0.1 * radius, 0.78 * radius), 0.17 * radius, bool(rng.random() < 0.6))
    s.ball(head, (0, up - 0.12 * radius, 0.95 * radius), 0.13 * radius, p.skin)
    s.box(
        head,
        (0, up - 0.42 * radius, 0.8 * radius),
        (0.3 * radius, 0.05 * radius, 0.06 * radius),
        Paint((0.75, 0.15, 0.2)),
    )
    hair = p.dark if rng.random() < 0.5 else p.accent
    if rng.random() < 0.85:
        s.ball(head, (0, up + 0.22 * radius, -0.22 * radius), (1.0 * radius, 0.92 * radius, 0.95 * radius), hair)
    if rng.random() < 0.3:
        s.ball(head, (0, up - 0.5 * radius, -0.75 * radius), (0.6 * radius, 1.1 * radius, 0.35 * radius), hair)
    if rng.random() < 0.45:
        hat(s, head, up + 0.8 * radius, radius, p)
    if rng.random() < 0.3:
        s.box(body, (0, 0.55 * torso, -1.15 * width), (0.8 * width, 0.36 * torso, 0.5 * width), p.accent)
    elif rng.random() < 0.2:
        s.box(body, (0, 0.35 * torso, -1.15 * width), (1.1 * width, 0.6 * torso, 0.03), p.accent, (0.2, 0, 0))
    return f"{p.name} {'child' if child else 'person'}"


def robot(s: Sketch, p: Palette) -> str:
    rng = s.rng
    width, torso = rng.uniform(0.26, 0.42), rng.uniform(0.4, 0.65)
    leg = rng.uniform(0.4, 0.8)
    metal = Paint(mixed(p.light.colour, p.main.colour, rng.uniform(0, 0.5)))
    frame = {"leg": leg, "arm": rng.uniform(0.5, 0.8), "thick": rng.uniform(0.075, 0.13), "hip": 0.55 * width}
    pelvis, body = limbs(s, {**frame, "shoulder": width + 0.1, "torso": torso}, metal, p.accent, metal, p.second)
    if rng.random() < 0.65:
        s.box(body, (0, torso / 2, 0), (width, torso / 2, 0.7 * width), p.main)
    else:
        s.cone(body, (0, torso / 2, 0), (width, torso / 2, 0.85 * width), p.main, rng.uniform(0.6, 1))
    front = 0.72 * width
    s.box(
        body,
        (0, 0.62 * torso, front),
        (0.6 * width, 0.2 * torso, 0.05),
        Paint(p.accent.colour, p.light.colour, Pattern.STRIPES, (3, 0, 0)),
    )
    s.ball(body, (0.4 * width, 0.25 * torso, front), 0.06, Paint((0.95, 0.15, 0.1)))
    s.ball(body, (-0.4 * width, 0.25 * torso, front), 0.06, Paint((0.15, 0.9, 0.2)))
    s.box(body, (0, 0.6 * torso, -0.85 * width), (0.6 * width, 0.3 * torso, 0.25 * width), p.second)
    s.box(pelvis, (0, -0.02, 0), (0.8 * width, 0.07, 0.5 * width), p.dark)
    head = s.joint(body, (0, torso + 0.03, 0), "head")
    size = rng.uniform(0.17, 0.3)
    s.rod(head, (0, -0.05, 0), (0, 0.08, 0), (0.06, 0.06), p.dark)
    if rng.random() < 0.6:
        s.box(head, (0, 0.06 + 0.8 * size, 0), (size, 0.8 * size, 0.85 * size), p.second)
    else:
        s.cone(head, (0, 0.06 + 0.8 * size, 0), (size, 0.8 * size, size), p.second, rng.uniform(0.5, 1))
    glow = Paint(((0.2, 1.0, 0.9), (1.0, 0.9, 0.2), (1.0, 0.25, 0.15))[rng.integers(3)])
    if rng.random() < 0.6:
        for side in (-1, 1):
            s.cone(
                head,
                (side * 0.45 * size, 0.06 + size, 0.9 * size),
                (0.26 * size, 0.1 * size, 0.26 * size),
                glow,
                1.0,
                (np.pi / 2, 0, 0),
            )
    else:
        s.box(head, (0, 0.06 + size, 0.87 * size), (0.8 * size, 0.22 * size, 0.06), glow)
    s.box(head, (0, 0.06 + 0.35 * size, 0.86 * size), (0.5 * size, 0.1 * size, 0.05), p.dark)
    antenna = s.joint(head, (0, 0.06 + 1.6 * size, 0), "antenna")
    s.rod(antenna, (0, 0, 0), (0, 0.2, 0), (0.02, 0.015), p.dark)
    s.ball(antenna, (0, 0.22, 0), 0.05, glow)
    for side in (-1, 1):
        s.cone(
            head,
            (side * 1.05 * size, 0.06 + 0.8 * size, 0),
            (0.3 * size, 0.12 * size, 0.3 * size),
            p.accent,
            0.7,
            (0, 0, -side * np.pi / 2),
        )
    return f"{p.name} robot"


def teddy(s: Sketch, p: Palette) -> str:
    """Plump sitting-height figures with round ears: bears, mice, rabbits, cats."""
    rng = s.rng
    p = p.natural(
        ("brown", (0.6, 0.36, 0.17)), ("golden", (0.9, 0.66, 0.25)), ("grey", (0.6, 0.6, 0.66)), rng=rng, share=0.5
    )
    name = str(rng.choice(["teddy bear", "rabbit", "cat", "mouse"]))
    torso, radius = rng.uniform(0.5, 0.7), rng.uniform(0.27, 0.36)
    fur, pale = Paint(p.main.colour), Paint(mixed(p.main.colour, (1, 0.95, 0.85), 0.65))
    frame = {"leg": rng.uniform(0.3, 0.5), "arm": 0.5, "thick": rng.uniform(0.1, 0.14), "hip": 0.18, "shoulder": 0.27}
    _, body = limbs(s, {**frame, "torso": torso}, fur, pale, fur, pale)
    s.ball(body, (0, 0.42 * torso, 0), (0.3, 0.58 * torso, 0.27), p.main)
    s.ball(body, (0, 0.38 * torso, 0.1), (0.21, 0.4 * torso, 0.2), pale)
    head = s.joint(body, (0, torso * 0.9, 0), "head")
    s.ball(head, (0, radius, 0), (1.08 * radius, radius, radius), fur)
    s.ball(head, (0, 0.75 * radius, 0.82 * radius), (0.48 * radius, 0.38 * radius, 0.38 * radius), pale)
    s.ball(head, (0, 0.9 * radius, 1.18 * radius), (0.15 * radius, 0.11 * radius, 0.1 * radius), p.dark)
    eyes(s, head, (0.42 * radius, 1.2 * radius, 0.85 * radius), 0.13 * radius, False)
    for side in (-1, 1):
        ear = s.joint(head, (side * 0.68 * radius, 1.72 * radius, 0), "ear", (0, 0, -side * 0.3), side=side)
        if name == "rabbit":
            s.ball(ear, (0, 0.55 * radius, 0), (0.24 * radius, 0.85 * radius, 0.14 * radius), fur)
            s.ball(ear, (0, 0.55 * radius, 0.08 * radius), (0.13 * radius, 0.65 * radius, 0.1 * radius), pale)
        elif name == "cat":
            s.cone(ear, (0, 0.25 * radius, 0), (0.35 * radius, 0.4 * radius, 0.2 * radius), fur)
        else:
            size = (0.65 if name == "mouse" else 0.4) * radius
            s.ball(ear, (0, 0.1, 0), (size, size, 0.4 * size), fur)
            s.ball(ear, (0, 0.1, 0.03), (0.65 * size, 0.65 * size, 0.38 * size), Paint((0.95, 0.6, 0.65)))
    if rng.random() < 0.5:
        for side in (-1, 1):
            s.ball(body, (side * 0.13, 0.88 * torso, 0.24), (0.12, 0.08, 0.05), p.accent, (0, 0, side * 0.4))
    if name in ("cat", "mouse"):
        tail(s, body, (0, 0.1, -0.25), 4, 0.18, (0.055, 0.03), fur)
    return f"{p.name} {name}"


def tail(
    s: Sketch, parent: int, at: Vector, links: int, length: float, radii: Pair, paint: Paint, turn: float = 0.25
) -> int:
    """A tail: `links` rods that run backwards and curl up by `turn` radians each; returns the last joint."""
    joint = parent
    for index in range(links):
        joint = s.joint(joint, at if index == 0 else (0, 0, -length), "tail", (turn, 0, 0), index=index)
        start, end = (radii[0] + (radii[1] - radii[0]) * share / links for share in (index, index + 1))
        s.rod(joint, (0, 0, 0), (0, 0, -length), (start, end), paint)
        s.ball(joint, (0, 0, -length), end, paint)
    return joint


# legs, leg thickness, body (half width, half height, half length), neck length, neck angle from upright, head
SPECIES = {
    "dog": (0.45, 0.065, (0.2, 0.22, 0.45), 0.25, 0.6, 0.2),
    "cat": (0.4, 0.05, (0.17, 0.18, 0.42), 0.18, 0.6, 0.19),
    "horse": (0.7, 0.065, (0.22, 0.25, 0.52), 0.55, 0.6, 0.2),
    "giraffe": (0.75, 0.06, (0.2, 0.24, 0.42), 1.0, 0.25, 0.16),
    "elephant": (0.5, 0.14, (0.38, 0.4, 0.55), 0.15, 0.9, 0.32),
    "cow": (0.5, 0.08, (0.3, 0.3, 0.55), 0.25, 0.9, 0.22),
    "pig": (0.25, 0.08, (0.3, 0.3, 0.48), 0.1, 1.2, 0.25),
    "sheep": (0.35, 0.06, (0.32, 0.32, 0.46), 0.2, 0.7, 0.19),
    "lion": (0.5, 0.085, (0.24, 0.25, 0.52), 0.22, 0.8, 0.25),
    "dinosaur": (0.4, 0.13, (0.3, 0.33, 0.6), 0.8, 0.7, 0.19),
    "turtle": (0.2, 0.1, (0.42, 0.28, 0.5), 0.25, 1.0, 0.17),
}
COATS = {
    "dog": ("brown", (0.62, 0.4, 0.2)),
    "cat": ("ginger", (0.95, 0.55, 0.2)),
    "horse": ("chestnut", (0.55, 0.28, 0.13)),
    "giraffe": ("golden", (0.95, 0.75, 0.35)),
    "elephant": ("grey", (0.55, 0.57, 0.65)),
    "cow": ("white", (0.95, 0.94, 0.9)),
    "pig": ("pink", (0.97, 0.66, 0.68)),
    "sheep": ("white", (0.96, 0.95, 0.9)),
    "lion": ("golden", (0.9, 0.64, 0.25)),
    "dinosaur": ("green", (0.35, 0.7, 0.3)),
    "turtle": ("green", (0.25, 0.6, 0.35)),
}


def coat(s: Sketch, name: str, p: Palette) -> Paint:
    """The body's paint: spots on giraffes and cows, stripes on some horses and cats, anything on others."""
    colour = p.main.colour
    phase = float(s.rng.uniform(-1, 1))
    if name in ("giraffe", "cow"):
        dark = (0.5, 0.28, 0.1) if name == "giraffe" else BLACK
        return Paint(colour, dark, Pattern.SPOTS, (2.2, 2.2, 2.6), phase)
    if name in ("horse", "cat", "dinosaur") and s.rng.random() < 0.4:
        return Paint(
            WHITE if name == "horse" else colour, mixed(colour, BLACK, 0.8), Pattern.STRIPES, (0.3, 0.5, 4.5), phase
        )
    if s.rng.random() < 0.5:
        return belly(Paint(colour), mixed(colour, (1, 1, 1), 0.6))
    return patterned(s.rng, colour, mixed(colour, p.second.colour, 0.7))


def quadruped(s: Sketch, p: Palette) -> str:
    rng = s.rng
    name = str(rng.choice(list(SPECIES)))
    legs, thick, (wide, high, long), neck_length, lean, size = SPECIES[name]
    legs, neck_length, thick, size = (value * rng.uniform(0.8, 1.25) for value in (legs, neck_length, thick, size))
    long *= rng.uniform(0.85, 1.2)
    p = p.natural(COATS[name], rng=rng, share=0.6)
    fur, colour = coat(s, name, p), Paint(p.main.colour)
    pale, hoof = Paint(mixed(colour.colour, (1, 0.95, 0.9), 0.5)), p.dark
    body = s.joint(0, (0, legs + 0.7 * high, 0), "body")
    s.ball(body, (0, 0, 0), (wide, high, long), fur)
    if name == "turtle":
        s.ball(
            body,
            (0, 0.04, 0),
            (1.08 * wide, 1.1 * high, 1.02 * long),
            Paint(p.second.colour, p.dark.colour, Pattern.CHECKER, (2, 2, 2)),
        )
    s.joint(body, (0, 0, 0), "hoof")
    for side in (-1, 1):
        for end in (-1, 1):
            gait = 0.0 if side * end > 0 else 0.5
            at = (side * 0.62 * wide, -0.35 * high, end * 0.66 * long)
            hip = s.joint(body, at, "leg", side=side, phase=gait)
            half = (legs + 0.35 * high) / 2
            s.rod(hip, (0, 0.08, 0), (0, -half, 0), (1.5 * thick, thick), colour)
            knee = s.joint(hip, (0, -half, 0), "shin", side=side, phase=gait)
            s.rod(knee, (0, 0, 0), (0, -half, 0), (thick, 0.85 * thick), colour)
            s.ball(knee, (0, 0, 0), thick, colour)
            s.ball(knee, (0, -half, 0.03), (1.1 * thick, 0.6 * thick, 1.35 * thick), hoof)
    head = neck_and_head(s, name, body, (wide, high, long), (neck_length, lean, size), colour, pale, p)
    if name == "elephant":
        trunk = head
        for index in range(5):
            trunk = s.joint(
                trunk, (0, -0.05, 0.8 * size) if index == 0 else (0, -0.15, 0), "trunk", (-0.12, 0, 0), index=index
            )
            s.rod(trunk, (0, 0.02, 0), (0, -0.16, 0), (0.1 - 0.013 * index, 0.087 - 0.013 * index), colour)
    tails = {"dinosaur": (5, 0.17, (0.2, 0.03)), "horse": (3, 0.16, (0.06, 0.05)), "turtle": (1, 0.15, (0.06, 0.02))}
    links, length, radii = tails.get(name, (3, 0.14, (0.05, 0.03)))
    last = tail(s, body, (0, 0.15 * high, -0.93 * long), links, length, radii, colour, rng.uniform(-0.35, 0.35))
    if name in ("lion", "cow"):
        s.ball(last, (0, 0, -length), 0.07, p.dark)
    return f"{p.name} {name}"


def neck_and_head(
    s: Sketch, name: str, body: int, half: Vector, neck: Vector, colour: Paint, pale: Paint, p: Palette
) -> int:
    rng = s.rng
    (wide, high, long), (length, lean, size) = half, neck
    joint = s.joint(body, (0, 0.35 * high, 0.72 * long), "neck", (lean, 0, 0))
    s.rod(
        joint,
        (0, -0.05, 0),
        (0, length + 0.05, 0),
        (0.62 * wide, 0.5 * size),
        coat(s, name, p) if name == "giraffe" else colour,
    )
    head = s.joint(joint, (0, length + 0.1, 0), "head", (-lean, 0, 0))
    snout = rng.uniform(0.55, 0.9) * (1.3 if name in ("horse", "giraffe") else 1)
    s.ball(head, (0, 0.1 * size, 0), (0.85 * size, 0.85 * size, 0.95 * size), colour)
    if name != "elephant":
        s.ball(head, (0, -0.15 * size, snout * size), (0.5 * size, 0.42 * size, 0.75 * size), pale)
        s.ball(head, (0, -0.05 * size, (snout + 0.68) * size), (0.2 * size, 0.16 * size, 0.14 * size), p.dark)
    eyes(s, head, (0.5 * size, 0.35 * size, 0.72 * size), 0.16 * size, bool(rng.random() < 0.5))
    if name == "lion":
        s.ball(
            head,
            (0, 0.05 * size, -0.25 * size),
            (1.5 * size, 1.5 * size, 0.75 * size),
            Paint(mixed(p.dark.colour, (0.6, 0.25, 0.05), 0.7)),
        )
    if name == "sheep":
        s.ball(head, (0, 0.6 * size, -0.2 * size), (0.8 * size, 0.5 * size, 0.7 * size), p.light)
    if name == "horse":
        s.box(joint, (0, 0.5 * length, -0.32 * wide - 0.05), (0.03, 0.55 * length, 0.1), p.dark)
    ears_and_horns(s, name, head, size, (colour, pale, p.light))
    return head


def ears_and_horns(s: Sketch, name: str, head: int, size: float, paints: tuple[Paint, Paint, Paint]) -> None:
    colour, pale, ivory = paints
    for side in (-1, 1):
        ear = s.joint(head, (side * 0.6 * size, 0.7 * size, -0.1 * size), "ear", side=side)
        if name == "elephant":
            s.ball(
                ear,
                (side * 0.75 * size, -0.5 * size, -0.1),
                (0.85 * size, 0.95 * size, 0.12 * size),
                pale,
                (0, -side * 0.4, 0),
            )
            s.rod(
                head,
                (side * 0.4 * size, -0.4 * size, 0.7 * size),
                (side * 0.45 * size, -0.75 * size, 1.5 * size),
                (0.055, 0.02),
                ivory,
            )
        elif name in ("cat", "horse"):
            s.cone(ear, (0, 0.3 * size, 0), (0.26 * size, 0.42 * size, 0.15 * size), colour)
        elif name != "turtle":
            droop = -0.25 if name in ("dog", "sheep", "cow", "pig") else 0.25
            s.ball(
                ear,
                (side * 0.25 * size, droop * size, 0),
                (0.3 * size, 0.5 * size, 0.15 * size),
                pale,
                (0, 0, side * 0.5),
            )
        if name in ("giraffe", "cow"):
            s.rod(
                head,
                (side * 0.3 * size, 0.7 * size, 0),
                (side * 0.5 * size, 1.35 * size, 0),
                (0.16 * size, 0.08 * size),
                ivory,
            )

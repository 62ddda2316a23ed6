"""Families that drive, fly and sail: cars, tanks, aircraft, rockets, boats."""

from __future__ import annotations

import numpy as np

from loom4d.sources.procedural.build import Paint, Palette, Sketch, patterned
from loom4d.sources.procedural.scene import Pattern

GLASS = Paint((0.45, 0.8, 0.95), (0.85, 0.95, 1.0), Pattern.GRADIENT, (0.0, 1.0, 0.0))
TYRE, LAMP, BRAKE = Paint((0.1, 0.1, 0.12)), Paint((1.0, 0.95, 0.55)), Paint((0.9, 0.1, 0.1))
STEEL = Paint((0.7, 0.73, 0.78))


def car(s: Sketch, p: Palette) -> str:
    rng = s.rng
    name = str(rng.choice(["car", "bus", "truck", "tractor", "train"]))
    wide, long = rng.uniform(0.26, 0.36), rng.uniform(0.65, 0.95)
    high = {"car": 0.16, "bus": 0.35, "truck": 0.14, "tractor": 0.18, "train": 0.14}[name] * rng.uniform(0.9, 1.25)
    radius = rng.uniform(0.14, 0.2)
    body = s.joint(0, (0, radius + high, 0), "body")
    if name in ("car", "bus"):
        s.box(body, (0, 0, 0), (wide, high, long), p.main)
        if name == "car":
            cabin, at = rng.uniform(0.12, 0.18), rng.uniform(-0.25, 0.05)
            s.box(body, (0, high + cabin, at), (0.85 * wide, cabin, 0.5 * long), GLASS)
            s.box(body, (0, high + 2 * cabin, at), (0.88 * wide, 0.03, 0.45 * long), p.main)
            if rng.random() < 0.3:
                s.cone(body, (0, high + 2 * cabin + 0.06, at), (0.09, 0.06, 0.09), p.accent, 0.8)
        else:
            s.box(body, (0, 0.4 * high, 0), (wide + 0.01, 0.32 * high, 0.85 * long), GLASS)
            s.box(body, (0, 0.4 * high, long), (0.85 * wide, 0.4 * high, 0.02), GLASS)
            s.box(body, (0, high + 0.02, 0), (0.9 * wide, 0.03, 0.95 * long), p.light)
    elif name == "truck":
        s.box(body, (0, -0.3 * high, 0), (0.8 * wide, 0.5 * high, long), p.dark)
        s.box(body, (0, 0.25, 0.7 * long), (wide, 0.28, 0.3 * long), p.main)
        s.box(body, (0, 0.35, long), (0.85 * wide, 0.12, 0.02), GLASS)
        s.box(
            body,
            (0, 0.3, -0.35 * long),
            (1.05 * wide, 0.32, 0.65 * long),
            patterned(rng, p.second.colour, p.light.colour),
        )
    else:
        s.box(body, (0, -0.5 * high, 0), (0.8 * wide, 0.5 * high, long), p.dark)
        s.cone(body, (0, 0.15, 0.35 * long), (0.22, 0.6 * long, 0.22), p.main, 1.0, (np.pi / 2, 0, 0))
        s.box(body, (0, 0.28, -0.55 * long), (wide, 0.33, 0.4 * long), p.second)
        s.box(body, (0, 0.38, -0.55 * long), (wide + 0.01, 0.14, 0.3 * long), GLASS)
        s.box(body, (0, 0.64, -0.55 * long), (1.15 * wide, 0.03, 0.48 * long), p.accent)
        s.cone(body, (0, 0.45, 0.6 * long), (0.08, 0.16, 0.08), p.dark, 1.0)
    for side in (-1, 1):
        s.ball(body, (side * 0.65 * wide, -0.1 * high, long), (0.08, 0.08, 0.05), LAMP)
        s.box(body, (side * 0.7 * wide, 0, -long), (0.07, 0.05, 0.02), BRAKE)
        for end in (-1, 1):
            size = 1.5 * radius if name == "tractor" and end < 0 else radius
            wheel = s.joint(0, (side * (wide + 0.02), size, end * 0.62 * long), "wheel", side=side)
            s.wheel(wheel, size, 0.07, TYRE, p.light)
    return f"{p.name} {name}"


def tank(s: Sketch, p: Palette) -> str:
    rng = s.rng
    p = p.natural(("olive", (0.42, 0.48, 0.22)), ("sand", (0.8, 0.68, 0.42)), rng=rng, share=0.5)
    body = s.joint(0, (0, 0.3, 0), "body")
    s.box(body, (0, 0, 0), (0.32, 0.14, 0.65), p.main)
    for side in (-1, 1):
        tread = Paint((0.14, 0.14, 0.16), (0.4, 0.4, 0.42), Pattern.STRIPES, (0, 0, 9))
        s.box(body, (side * 0.4, -0.12, 0), (0.1, 0.16, 0.62), tread)
        s.ball(body, (side * 0.22, 0.02, 0.66), 0.05, LAMP)
        for index in range(3):
            wheel = s.joint(0, (side * 0.5, 0.16, -0.42 + 0.42 * index), "wheel", side=side)
            s.wheel(wheel, 0.14, 0.03, p.dark, p.accent)
    turret = s.joint(body, (0, 0.14, -0.05), "turret", (0, rng.normal(0, 0.3), 0))
    s.cone(turret, (0, 0.12, 0), (0.3, 0.13, 0.33), p.second, 0.7)
    barrel = s.joint(turret, (0, 0.13, 0.25), "barrel", (-rng.uniform(0, 0.3), 0, 0))
    s.rod(barrel, (0, 0, 0), (0, 0, rng.uniform(0.4, 0.75)), (0.06, 0.05), p.dark)
    s.ball(turret, (0.1, 0.27, -0.05), (0.1, 0.05, 0.1), p.accent)
    return f"{p.name} tank"


def aircraft(s: Sketch, p: Palette) -> str:
    rng = s.rng
    if rng.random() < 0.4:
        return helicopter(s, p)
    body = s.joint(0, (0, 0.5, 0), "body")
    long, girth = rng.uniform(0.55, 0.8), rng.uniform(0.17, 0.26)
    s.ball(body, (0, 0, 0), (girth, girth, long), p.main)
    s.ball(body, (0, 0.6 * girth, 0.4 * long), (0.65 * girth, 0.6 * girth, 0.28 * long), GLASS)
    span, sweep, level = rng.uniform(0.45, 0.75), rng.uniform(-0.05, 0.45), rng.choice([-0.04, 0.1])
    double = rng.random() < 0.3
    for side in (-1, 1):
        for floor in (0, 1) if double else (0,):
            s.box(
                body,
                (side * 0.5 * span, level + 0.28 * floor, 0.05 - 0.25 * sweep),
                (0.55 * span, 0.03, 0.2),
                p.second,
                (0, side * sweep, side * 0.05),
            )
        if double:
            s.rod(body, (side * 0.6 * span, level, 0), (side * 0.6 * span, level + 0.28, 0), (0.02, 0.02), p.dark)
        else:
            s.ball(body, (side * 0.45 * span, level - 0.07, 0.1), (0.07, 0.07, 0.18), p.accent)
        s.box(body, (side * 0.18, 0.03, -0.88 * long), (0.2, 0.02, 0.09), p.accent, (0, side * 0.3, 0))
    s.box(body, (0, 0.2, -0.88 * long), (0.02, 0.17, 0.1), p.accent, (-0.35, 0, 0))
    propeller = s.joint(body, (0, 0, 1.0 * long), "propeller")
    s.ball(propeller, (0, 0, 0), 0.07, p.dark)
    for turn in range(2):
        s.box(propeller, (0, 0, 0.03), (0.24, 0.045, 0.015), p.dark if turn else p.light, (0, 0, turn * np.pi / 2))
    return f"{p.name} aeroplane"


def helicopter(s: Sketch, p: Palette) -> str:
    body = s.joint(0, (0, 0.45, 0), "body")
    s.ball(body, (0, 0, 0.1), (0.3, 0.3, 0.42), p.main)
    s.ball(body, (0, 0.05, 0.3), (0.25, 0.25, 0.27), GLASS)
    s.rod(body, (0, 0.06, -0.15), (0, 0.12, -0.75), (0.13, 0.06), p.main)
    s.box(body, (0, 0.22, -0.75), (0.025, 0.16, 0.1), p.accent)
    tail = s.joint(body, (0.06, 0.15, -0.78), "propeller_x")
    s.box(tail, (0, 0, 0), (0.01, 0.16, 0.03), p.dark)
    rotor = s.joint(body, (0, 0.36, 0.05), "blade")
    s.rod(body, (0, 0.2, 0.05), (0, 0.38, 0.05), (0.04, 0.04), p.dark)
    blades = int(s.rng.integers(2, 5))
    for index in range(blades):
        angle = index * 2 * np.pi / blades
        at = (0.33 * np.cos(angle), 0.02, -0.33 * np.sin(angle))
        s.box(rotor, at, (0.33, 0.015, 0.065), p.second if index else p.accent, (0, angle, 0))
    for side in (-1, 1):
        s.rod(body, (side * 0.2, -0.33, -0.25), (side * 0.2, -0.33, 0.4), (0.03, 0.03), p.dark)
        for end in (-0.05, 0.22):
            s.rod(body, (side * 0.12, -0.18, end), (side * 0.2, -0.33, end), (0.02, 0.02), p.dark)
    return f"{p.name} helicopter"


def rocket(s: Sketch, p: Palette) -> str:
    rng = s.rng
    long, girth = rng.uniform(0.4, 0.6), rng.uniform(0.2, 0.32)
    body = s.joint(0, (0, 0.4 + long, 0), "body")
    s.cone(body, (0, 0, 0), (girth, long, girth), p.main, 1.0)
    s.cone(body, (0, long + 0.18, 0), (girth, 0.18, girth), p.accent, rng.choice([0.0, 0.3]))
    s.cone(body, (0, -long - 0.05, 0), (0.8 * girth, 0.08, 0.8 * girth), p.dark, 0.7)
    s.cone(body, (0, 0.45 * long, 0.96 * girth), (0.11, 0.04, 0.11), p.light, 1.0, (np.pi / 2, 0, 0))
    s.ball(body, (0, 0.45 * long, 0.98 * girth), (0.08, 0.08, 0.06), GLASS)
    fins = int(rng.integers(3, 5))
    for index in range(fins):
        angle = index * 2 * np.pi / fins
        fin = s.joint(body, (0, -0.75 * long, 0), "", (0, angle, 0))
        s.box(fin, (0, -0.02, girth + 0.1), (0.03, 0.22, 0.16), p.second, (0.5, 0, 0))
    flame = s.joint(body, (0, -long - 0.1, 0), "flame")
    s.cone(
        flame,
        (0, -0.16, 0),
        (0.7 * girth, 0.18, 0.7 * girth),
        Paint((1.0, 0.85, 0.2), (1.0, 0.3, 0.05), Pattern.GRADIENT, (0, -1, 0)),
        0.0,
        (np.pi, 0, 0),
    )
    return f"{p.name} rocket"


def boat(s: Sketch, p: Palette) -> str:
    rng = s.rng
    body = s.joint(0, (0, 0.2, 0), "body")
    s.joint(body, (0, 0, 0), "stem")
    s.ball(body, (0, 0, 0), (0.28, 0.2, 0.75), Paint(p.main.colour, p.light.colour, Pattern.TWO_TONE, (0, 1, 0), -0.3))
    s.box(body, (0, 0.15, 0), (0.2, 0.04, 0.5), Paint((0.75, 0.5, 0.28)))
    if rng.random() < 0.55:
        mast = s.joint(body, (0, 0.15, 0.1), "branch")
        s.rod(mast, (0, 0, 0), (0, 1.0, 0), (0.03, 0.02), p.dark)
        sail = patterned(rng, p.second.colour, p.light.colour)
        s.cone(mast, (0, 0.5, -0.22), (0.02, 0.4, 0.3), sail)
        s.cone(mast, (0, 0.42, 0.2), (0.02, 0.3, 0.2), p.accent)
        s.box(mast, (0.0, 1.03, -0.08), (0.01, 0.05, 0.1), p.accent)
        return f"{p.name} sailing boat"
    s.box(body, (0, 0.3, -0.1), (0.17, 0.14, 0.25), p.light)
    s.box(body, (0, 0.34, 0.16), (0.14, 0.06, 0.01), GLASS)
    s.cone(
        body,
        (0, 0.58, -0.18),
        (0.09, 0.2, 0.09),
        Paint(p.accent.colour, p.dark.colour, Pattern.STRIPES, (0, 1.5, 0)),
        0.9,
    )
    s.rod(body, (0, 0.15, 0.45), (0, 0.55, 0.5), (0.02, 0.02), p.dark)
    return f"{p.name} steamer"

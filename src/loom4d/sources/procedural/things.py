"""Families that stand: plants, machines, toys."""

from __future__ import annotations

import numpy as np

from loom4d.sources.procedural.build import Paint, Palette, Sketch, hsv, patterned
from loom4d.sources.procedural.creatures import eyes
from loom4d.sources.procedural.scene import Pattern

GLASS = Paint((0.45, 0.8, 0.95), (0.85, 0.95, 1.0), Pattern.GRADIENT, (0.0, 1.0, 0.0))
TYRE, LAMP, BRAKE = Paint((0.1, 0.1, 0.12)), Paint((1.0, 0.95, 0.55)), Paint((0.9, 0.1, 0.1))
STEEL = Paint((0.7, 0.73, 0.78))


def flower(s: Sketch, p: Palette) -> str:
    rng = s.rng
    green = Paint(hsv(rng.uniform(0.25, 0.4), rng.uniform(0.6, 0.9), rng.uniform(0.45, 0.75)))
    if rng.random() < 0.6:
        s.cone(0, (0, 0.16, 0), (0.2, 0.18, 0.2), p.accent, 0.75, (np.pi, 0, 0))
        s.cone(0, (0, 0.34, 0), (0.24, 0.04, 0.24), p.accent, 1.0)
    links, length = 4, rng.uniform(0.18, 0.3)
    stem = s.joint(0, (0, 0.3, 0), "stem")
    for index in range(links):
        if index:
            stem = s.joint(stem, (0, length, 0), "stem", (rng.normal(0, 0.12), 0, rng.normal(0, 0.12)), index=index)
        s.rod(stem, (0, 0, 0), (0, length, 0), (0.05, 0.05), green)
        if index in (1, 2):
            side = -1 if index == 1 else 1
            leaf = s.joint(stem, (0, 0.05, 0), "leaf", (0.9, side * 1.3, 0), index=index)
            s.ball(leaf, (0, 0.22, 0), (0.1, 0.24, 0.03), green)
    bud = s.joint(stem, (0, length, 0), "head", (rng.uniform(0.2, 1.2), 0, 0))
    s.ball(bud, (0, 0.03, 0), (0.15, 0.1, 0.15), Paint((1.0, 0.8, 0.15), (0.5, 0.25, 0.05), Pattern.SPOTS, (4, 4, 4)))
    count, reach, wide = int(rng.integers(5, 10)), rng.uniform(0.22, 0.34), rng.uniform(0.11, 0.17)
    open_by = rng.uniform(0.9, 1.5)
    for index in range(count):
        petal = s.joint(bud, (0, 0, 0), "petal", (open_by, index * 2 * np.pi / count, 0))
        s.ball(petal, (0, 0.1 + reach, 0), (wide, reach, 0.03), p.main if index % 2 else Paint(p.main.colour))
    return f"{p.name} flower"


def tree(s: Sketch, p: Palette) -> str:
    rng = s.rng
    name = str(rng.choice(["tree", "fir tree", "palm tree", "cactus", "mushroom"]))
    bark = Paint(hsv(0.08, rng.uniform(0.4, 0.7), rng.uniform(0.3, 0.5)))
    hue = rng.uniform(0.22, 0.42) if rng.random() < 0.65 else rng.random()
    leaf = patterned(rng, hsv(hue, 0.8, rng.uniform(0.5, 0.8)), hsv(hue + 0.07, 0.8, 0.9))
    if name == "cactus":
        leaf = Paint(hsv(0.36, 0.7, 0.55), hsv(0.3, 0.5, 0.85), Pattern.STRIPES, (4.0, 0, 0))
    stem, length = 0, rng.uniform(0.2, 0.3)
    thick = 0.18 if name in ("cactus", "mushroom") else rng.uniform(0.08, 0.13)
    for index in range(4):
        stem = s.joint(stem, (0, length * (index > 0), 0), "stem", index=index)
        paint = leaf if name == "cactus" else p.light if name == "mushroom" else bark
        s.rod(stem, (0, -0.02, 0), (0, length, 0), (thick, thick * (1 if name == "cactus" else 0.88)), paint)
        thick *= 1 if name == "cactus" else 0.88
        side = 1 if index % 2 else -1
        if name == "cactus" and index in (1, 2):
            arm = s.joint(stem, (side * 0.15, 0.1, 0), "branch", side=side, index=index)
            s.rod(arm, (0, 0, 0), (side * 0.22, 0, 0), (0.1, 0.1), leaf)
            s.ball(arm, (side * 0.22, 0, 0), 0.1, leaf)
            s.rod(arm, (side * 0.22, 0, 0), (side * 0.22, 0.3, 0), (0.1, 0.09), leaf)
            s.ball(arm, (side * 0.22, 0.3, 0), 0.09, leaf)
        if name == "fir tree" and index:
            size = 0.55 - 0.12 * index
            s.cone(stem, (0, 0.5 * length, 0), (size, 0.7 * length, size), leaf)
    if name == "fir tree":
        s.ball(stem, (0, 1.3 * length, 0), 0.07, p.accent)
    elif name == "cactus":
        s.ball(stem, (0, length, 0), thick, leaf)
        s.ball(stem, (0.05, length + 0.9 * thick, 0.05), 0.08, p.accent)
    elif name == "mushroom":
        s.ball(
            stem, (0, length, 0), (0.5, 0.32, 0.5), Paint(p.main.colour, p.light.colour, Pattern.SPOTS, (2.5, 2.5, 2.5))
        )
        eyes(s, s.joint(0, (0, 0, 0), "face"), (0.08, 1.5 * length, 0.17), 0.05)
    elif name == "palm tree":
        for index in range(7):
            frond = s.joint(stem, (0, length, 0), "branch", (1.2, index * 2 * np.pi / 7, 0), index=index)
            s.ball(frond, (0, 0.36, 0), (0.17, 0.42, 0.04), leaf)
        s.ball(stem, (0.08, 0.9 * length, 0.08), 0.08, Paint((0.45, 0.28, 0.12)))
    else:
        for index in range(int(rng.integers(3, 6))):
            branch = s.joint(stem, (0, length, 0), "branch", index=index)
            at = (0.28 * rng.normal(), rng.uniform(-0.05, 0.35), 0.28 * rng.normal())
            s.ball(branch, at, rng.uniform(0.24, 0.38), leaf)
            out = np.array(at) + [0.15, 0.0, 0.27]
            s.ball(branch, (float(out[0]), float(out[1]), float(out[2])), 0.06, p.accent)
    return f"{p.name} {name}"


def machine(s: Sketch, p: Palette) -> str:
    rng = s.rng
    name = str(rng.choice(["crane", "excavator", "robot arm", "windmill", "lamp"]))
    stripe = Paint((1.0, 0.8, 0.1), (0.12, 0.12, 0.14), Pattern.STRIPES, (2.5, 2.5, 0))
    if name == "windmill":
        s.cone(0, (0, 0.55, 0), (0.3, 0.55, 0.3), p.main, 0.6)
        s.cone(0, (0, 1.2, 0), (0.26, 0.14, 0.26), p.accent)
        s.box(0, (0, 0.15, 0.28), (0.09, 0.15, 0.03), p.dark)
        sails = s.joint(0, (0, 1.05, 0.28), "propeller")
        s.ball(sails, (0, 0, 0), 0.07, p.dark)
        for index in range(4):
            angle = index * np.pi / 2
            at = (0.34 * np.cos(angle), 0.34 * np.sin(angle), 0.02)
            s.box(sails, at, (0.3, 0.09, 0.015), p.second if index else p.accent, (0, 0, angle))
        return f"{p.name} {name}"
    if name == "lamp":
        s.cone(0, (0, 0.04, 0), (0.28, 0.05, 0.28), p.main, 0.9)
        joint = s.joint(0, (0, 0.08, 0), "boom", (-0.4, 0, 0))
        s.rod(joint, (0, 0, 0), (0, 0.5, 0), (0.04, 0.04), p.second)
        joint = s.joint(joint, (0, 0.5, 0), "boom", (1.2, 0, 0), index=1)
        s.ball(joint, (0, 0, 0), 0.07, p.accent)
        s.rod(joint, (0, 0, 0), (0, 0.5, 0), (0.04, 0.04), p.second)
        head = s.joint(joint, (0, 0.5, 0), "head", (0.7, 0, 0))
        s.cone(head, (0, 0.1, 0), (0.26, 0.18, 0.26), p.main, 0.35, (np.pi, 0, 0))
        s.ball(head, (0, 0.2, 0), 0.13, LAMP)
        return f"{p.name} {name}"
    base = s.joint(0, (0, 0, 0), "body")
    if name == "excavator":
        for side in (-1, 1):
            s.box(
                base,
                (side * 0.28, 0.12, 0),
                (0.1, 0.12, 0.45),
                Paint((0.12, 0.12, 0.14), (0.4, 0.4, 0.4), Pattern.STRIPES, (0, 0, 7)),
            )
    else:
        s.cone(base, (0, 0.1, 0), (0.4, 0.11, 0.4), stripe, 0.85)
    height = 0.8 if name == "crane" else 0.25
    cab = s.joint(base, (0, height, 0), "cab")
    if name == "crane":
        s.box(
            base, (0, 0.45, 0), (0.09, 0.36, 0.09), Paint(p.main.colour, p.dark.colour, Pattern.CHECKER, (1.2, 5, 1.2))
        )
    s.box(cab, (0, 0.14, -0.05), (0.22, 0.16, 0.26), p.main)
    s.box(cab, (0.1, 0.2, 0.2), (0.09, 0.08, 0.03), GLASS)
    s.box(cab, (0, 0.12, -0.36), (0.2, 0.13, 0.1), p.dark)
    boom = s.joint(cab, (-0.08, 0.2, 0.15), "boom", (rng.uniform(0.5, 1.0), 0, 0))
    s.rod(boom, (0, 0, 0), (0, 0.7, 0), (0.07, 0.05), p.second)
    if name == "crane":
        rope = s.joint(boom, (0, 0.7, 0), "rope", (-0.75, 0, 0))
        s.rod(rope, (0, 0, 0), (0, -0.4, 0), (0.015, 0.015), p.dark)
        s.box(rope, (0, -0.48, 0), (0.12, 0.1, 0.12), p.accent)
        return f"{p.name} {name}"
    elbow = s.joint(boom, (0, 0.7, 0), "boom", (rng.uniform(0.8, 1.5), 0, 0), index=1)
    s.ball(elbow, (0, 0, 0), 0.07, p.accent)
    s.rod(elbow, (0, 0, 0), (0, 0.45, 0), (0.05, 0.04), p.second)
    for half in (-1, 1):
        claw = s.joint(elbow, (0, 0.45, 0), "claw", (half * 0.4, 0, 0), side=half)
        s.box(claw, (0, 0.1, 0.03 * half), (0.1, 0.12, 0.025), p.accent)
    return f"{p.name} {name}"


def snowman(s: Sketch, p: Palette, body: int) -> None:
    rng = s.rng
    y, radius = 0.0, rng.uniform(0.36, 0.46)
    for _ in range(2):
        s.ball(body, (0, y + radius, 0), radius, p.light)
        s.ball(body, (0, y + 1.2 * radius, radius), 0.05, p.dark)
        y, radius = y + 1.6 * radius, 0.75 * radius
    head = s.joint(body, (0, y, 0), "head")
    s.ball(head, (0, radius, 0), radius, p.light)
    eyes(s, head, (0.35 * radius, 1.3 * radius, 0.85 * radius), 0.13 * radius, False)
    s.cone(
        head,
        (0, 1.0 * radius, 1.3 * radius),
        (0.13 * radius, 0.45 * radius, 0.13 * radius),
        Paint((1, 0.5, 0.05)),
        0,
        (np.pi / 2, 0, 0),
    )
    s.cone(head, (0, 1.8 * radius, 0), (1.05 * radius, 0.03, 1.05 * radius), p.main, 1.0)
    s.cone(head, (0, 2.15 * radius, 0), (0.7 * radius, 0.4 * radius, 0.7 * radius), p.main, 0.85)
    s.cone(head, (0, 0.1 * radius, 0), (0.85 * radius, 0.06, 0.85 * radius), p.accent, 1.0)
    for side in (-1, 1):
        arm = s.joint(body, (side * 0.3, 0.9, 0), "arm", (0, 0, side * 1.6), side=side)
        s.rod(arm, (0, 0, 0), (0, -0.5, 0), (0.035, 0.025), Paint((0.4, 0.25, 0.12)))


def stack(s: Sketch, p: Palette, body: int) -> None:
    rng = s.rng
    joint, y = body, 0.0
    for index in range(int(rng.integers(3, 6))):
        size, high = rng.uniform(0.2, 0.42) * (1 - 0.1 * index), rng.uniform(0.12, 0.24)
        joint = s.joint(joint, (0, y, 0), "stem", (0, rng.uniform(0, 3), 0), index=index)
        paint = patterned(rng, hsv(rng.random(), 0.85, 0.95), p.light.colour)
        kind = rng.integers(3)
        if kind == 0:
            s.box(joint, (0, high, 0), (size, high, size), paint)
        elif kind == 1:
            s.cone(joint, (0, high, 0), (size, high, size), paint, rng.choice([1.0, 0.5]))
        else:
            s.ball(joint, (0, high, 0), (size, high, size), paint)
        y = 2 * high
    s.cone(joint, (0, y + 0.18, 0), (0.2, 0.2, 0.2), p.accent)


def top(s: Sketch, p: Palette, body: int) -> None:
    top = s.joint(body, (0, 0, 0), "blade")
    s.cone(
        top,
        (0, 0.25, 0),
        (0.5, 0.25, 0.5),
        Paint(p.main.colour, p.second.colour, Pattern.CHECKER, (1.6, 1.2, 1.6), 0.4),
        0.05,
        (np.pi, 0, 0),
    )
    s.ball(top, (0, 0.5, 0), (0.5, 0.14, 0.5), Paint(p.accent.colour, p.second.colour, Pattern.STRIPES, (2.4, 0, 0)))
    s.rod(top, (0, 0.6, 0), (0, 0.95, 0), (0.05, 0.05), p.dark)
    s.ball(top, (0.32, 0.6, 0), 0.08, p.light)


def jack(s: Sketch, p: Palette, body: int) -> None:
    rng = s.rng
    s.box(0, (0, 0.28, 0), (0.32, 0.28, 0.32), patterned(rng, p.main.colour, p.second.colour, 1.0))
    lid = s.joint(0, (0, 0.57, -0.32), "lid", (-1.6, 0, 0))
    s.box(lid, (0, 0, 0.32), (0.33, 0.025, 0.32), p.accent)
    spring = s.joint(0, (0, 0.5, 0), "spring")
    s.cone(
        spring,
        (0, 0.25, 0),
        (0.12, 0.25, 0.12),
        Paint(p.light.colour, p.second.colour, Pattern.STRIPES, (0, 4, 0)),
        1.0,
    )
    head = s.joint(spring, (0, 0.5, 0), "head")
    s.ball(head, (0, 0.17, 0), 0.22, p.skin)
    eyes(s, head, (0.09, 0.24, 0.18), 0.05)
    s.ball(head, (0, 0.15, 0.23), 0.05, BRAKE)
    s.cone(head, (0, 0.5, 0), (0.17, 0.2, 0.17), p.accent)


def balloon(s: Sketch, p: Palette, body: int) -> None:
    rng = s.rng
    balloon = patterned(rng, p.main.colour, p.second.colour, 0.9)
    stem = s.joint(body, (0, 0.35, 0), "stem")
    s.ball(stem, (0, 0.75, 0), (0.48, 0.52, 0.48), balloon)
    s.box(stem, (0, 0, 0), (0.16, 0.12, 0.16), Paint((0.6, 0.38, 0.18), (0.4, 0.25, 0.1), Pattern.CHECKER, (3, 3, 3)))
    s.ball(stem, (0.04, 0.17, 0), 0.07, p.skin)
    for x in (-1, 1):
        for z in (-1, 1):
            s.rod(stem, (0.14 * x, 0.1, 0.14 * z), (0.26 * x, 0.4, 0.26 * z), (0.012, 0.012), p.dark)


def duck(s: Sketch, p: Palette, body: int) -> None:
    s.ball(body, (0, 0.28, -0.05), (0.36, 0.28, 0.48), Paint(p.main.colour))
    s.ball(body, (0, 0.42, -0.48), (0.16, 0.14, 0.2), Paint(p.main.colour), (0.6, 0, 0))
    head = s.joint(body, (0, 0.5, 0.22), "head")
    s.ball(head, (0, 0.22, 0), 0.26, Paint(p.main.colour))
    s.ball(head, (0, 0.16, 0.28), (0.13, 0.05, 0.13), Paint((1.0, 0.5, 0.05)))
    eyes(s, head, (0.11, 0.3, 0.2), 0.055)
    for side in (-1, 1):
        wing = s.joint(body, (side * 0.32, 0.35, 0.05), "wing", (0, 0, -side * 0.6), side=side)
        s.ball(wing, (side * 0.08, 0, -0.12), (0.16, 0.05, 0.28), p.second)


TOYS = {
    "snowman": snowman,
    "stack of shapes": stack,
    "spinning top": top,
    "jack-in-the-box": jack,
    "balloon": balloon,
    "rubber duck": duck,
}


def toy(s: Sketch, p: Palette) -> str:
    name = str(s.rng.choice(list(TOYS)))
    if name == "rubber duck":
        p = p.natural(("yellow", (1.0, 0.85, 0.1)), rng=s.rng)
    TOYS[name](s, p, s.joint(0, (0, 0, 0), "body"))
    return f"{p.name} {name}"

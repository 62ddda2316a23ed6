"""Families that fly, swim or crawl: birds, butterflies, fish, worms, insects."""

from __future__ import annotations

import numpy as np

from loom4d.sources.procedural.build import Paint, Pair, Palette, Sketch, Vector, belly, patterned
from loom4d.sources.procedural.creatures import eyes, tail
from loom4d.sources.procedural.scene import Pattern

BEAK = Paint((1.0, 0.62, 0.08))


def wings(
    s: Sketch,
    body: int,
    at: Vector,
    size: Pair,
    paint: Paint,
    tip: Paint,
    dihedral: float = 0.15,
) -> None:
    """A pair of two-segment wings of the given span of one side and chord."""
    x, y, z = at
    span, chord = size
    for side in (-1, 1):
        wing = s.joint(body, (side * x, y, z), "wing", (0, 0, side * dihedral), side=side)
        s.ball(wing, (side * 0.3 * span, 0, 0), (0.34 * span, 0.035, chord), paint)
        outer = s.joint(wing, (side * 0.55 * span, 0, 0), "wingtip", side=side)
        s.ball(outer, (side * 0.22 * span, 0, -0.12 * chord), (0.3 * span, 0.03, 0.8 * chord), tip, (0, side * 0.25, 0))


def bird(s: Sketch, p: Palette) -> str:
    rng = s.rng
    name = str(rng.choice(["bird", "parrot", "duck", "penguin", "owl", "chicken", "flamingo"]))
    if name == "penguin":
        p = p.natural(("black", (0.13, 0.15, 0.2)), rng=rng, share=0.7)
    upright = name in ("penguin", "owl")
    legs = {"flamingo": 0.6, "penguin": 0.08, "duck": 0.15}.get(name, 0.22) * rng.uniform(0.8, 1.2)
    wide, long = rng.uniform(0.24, 0.36), rng.uniform(0.36, 0.52)
    pitch = -1.1 if upright else -rng.uniform(0.0, 0.45)
    body = s.joint(0, (0, legs + (0.9 * long if upright else 0.85 * wide), 0), "body")
    trunk = belly(Paint(p.main.colour), p.light.colour) if rng.random() < 0.6 or name == "penguin" else p.main
    if upright:
        s.ball(body, (0, 0, 0), (wide, 1.05 * long, wide), p.main)
        s.ball(body, (0, -0.1 * long, 0.15 * wide), (0.82 * wide, 0.88 * long, 0.92 * wide), p.light)
    else:
        s.ball(body, (0, 0, 0), (wide, 0.9 * wide, long), trunk, (pitch, 0, 0))
    size = rng.uniform(0.18, 0.27)
    up = 0.95 * long if upright else rng.uniform(0.28, 0.42) + (0.4 if name == "flamingo" else 0)
    out = 0.02 if upright else 0.75 * long
    neck = s.joint(body, (0, 0.1, 0.6 * out), "neck")
    s.rod(neck, (0, 0, 0), (0, up - 0.1, 0.4 * out), (0.55 * size, 0.5 * size), Paint(p.main.colour))
    bird_head(s, name, s.joint(neck, (0, up - 0.08, 0.4 * out), "head"), size, p)
    span = rng.uniform(0.35, 0.7) * (0.75 if name == "penguin" else 1)
    droop = -0.9 if name == "penguin" else rng.uniform(-0.25, 0.35)
    at = (0.8 * wide, (0.35 * long if upright else 0.25 * wide), 0.05)
    wings(
        s,
        body,
        at,
        (span, rng.uniform(0.18, 0.3)),
        p.main if name != "penguin" else Paint(p.main.colour),
        p.second,
        droop,
    )
    feathers = s.joint(
        body, (0, -0.6 * long if upright else 0.05, -0.8 * (wide if upright else long)), "tail", (0.2, 0, 0)
    )
    s.ball(feathers, (0, 0, -0.18), (0.13, 0.03, 0.26), p.second)
    for side in (-1, 1):
        leg = s.joint(
            body,
            (side * 0.45 * wide, -0.7 * (1.2 * long if upright else wide), 0),
            "leg",
            side=side,
            phase=0.25 + 0.25 * side,
        )
        s.rod(leg, (0, 0.05, 0), (0, -legs, 0), (0.04, 0.03), BEAK)
        s.ball(leg, (0, -legs, 0.07), (0.08, 0.025, 0.13), BEAK)
    return f"{p.name} {name}"


def bird_head(s: Sketch, name: str, head: int, size: float, p: Palette) -> None:
    s.ball(head, (0, 0.1 * size, 0), size, p.second if name == "parrot" else Paint(p.main.colour))
    s.cone(
        head,
        (0, 0, 1.25 * size),
        (0.35 * size, 0.55 * size, 0.3 * size),
        BEAK,
        0.3 if name == "duck" else 0.0,
        (np.pi / 2, 0, 0),
    )
    eyes(s, head, (0.45 * size, 0.3 * size, 0.72 * size), (0.34 if name == "owl" else 0.2) * size)
    if name == "chicken" or (name == "parrot" and s.rng.random() < 0.7):
        for index in range(3):
            s.ball(head, (0, 1.1 * size, (0.4 - 0.4 * index) * size), (0.12 * size, 0.35 * size, 0.25 * size), p.accent)


def dragon(s: Sketch, p: Palette) -> str:
    """Dragons and bats: big wings, a long tail, horns."""
    rng = s.rng
    bat = rng.random() < 0.35
    legs, long = 0.2, 0.24 if bat else rng.uniform(0.32, 0.45)
    body = s.joint(0, (0, legs + 0.25, 0), "body")
    s.ball(body, (0, 0, 0), (0.25, 0.27, long), belly(Paint(p.main.colour), p.accent.colour))
    neck = s.joint(body, (0, 0.1, 0.7 * long), "neck", (0.6, 0, 0))
    length = 0.08 if bat else rng.uniform(0.25, 0.5)
    s.rod(neck, (0, -0.05, 0), (0, length, 0), (0.14, 0.1), Paint(p.main.colour))
    head = s.joint(neck, (0, length + 0.08, 0), "head", (-0.5, 0, 0))
    s.ball(head, (0, 0, 0), 0.16, Paint(p.main.colour))
    s.ball(head, (0, -0.02, 0.17), (0.1, 0.07, 0.16), Paint(p.main.colour))
    jaw = s.joint(head, (0, -0.06, 0.02), "jaw")
    s.ball(jaw, (0, -0.03, 0.14), (0.085, 0.04, 0.14), p.accent)
    eyes(s, head, (0.09, 0.08, 0.1), 0.05)
    for side in (-1, 1):
        s.rod(head, (side * 0.08, 0.1, -0.02), (side * 0.13, 0.3, -0.12), (0.05, 0.01), p.light)
    wings(
        s,
        body,
        (0.12, 0.12, 0),
        (rng.uniform(0.55, 0.85), rng.uniform(0.24, 0.36)),
        p.second,
        patterned(rng, p.second.colour, p.accent.colour),
        0.3,
    )
    if not bat:
        last = tail(s, body, (0, 0, -0.9 * long), 5, 0.17, (0.13, 0.03), Paint(p.main.colour), rng.uniform(-0.1, 0.25))
        s.cone(last, (0, 0, -0.22), (0.1, 0.1, 0.03), p.accent, 0.0, (-np.pi / 2, 0, 0))
        for index in range(4):
            s.cone(body, (0, 0.24, 0.5 * long - 0.3 * long * index), (0.04, 0.08, 0.06), p.accent)
    for side in (-1, 1):
        for end in (-1, 1):
            leg = s.joint(
                body, (side * 0.14, -0.15, end * 0.5 * long), "leg", side=side, phase=0.25 + 0.25 * side * end
            )
            s.rod(leg, (0, 0.02, 0), (0, -legs, 0), (0.08, 0.05), Paint(p.main.colour))
            s.ball(leg, (0, -legs, 0.04), (0.06, 0.03, 0.09), p.dark)
    return f"{p.name} {'bat' if bat else 'dragon'}"


def butterfly(s: Sketch, p: Palette) -> str:
    rng = s.rng
    body = s.joint(0, (0, 0.6, 0), "body", (-rng.uniform(0.2, 1.2), 0, 0))
    s.ball(body, (0, 0, 0.05), (0.07, 0.07, 0.25), p.dark)
    s.ball(body, (0, 0, -0.25), (0.06, 0.06, 0.28), Paint(p.dark.colour, p.accent.colour, Pattern.STRIPES, (0, 0, 4)))
    head = s.joint(body, (0, 0.03, 0.33), "head")
    s.ball(head, (0, 0, 0), 0.1, p.accent)
    eyes(s, head, (0.06, 0.04, 0.06), 0.04)
    for side in (-1, 1):
        feeler = s.joint(head, (side * 0.04, 0.06, 0.05), "antenna", side=side)
        s.rod(feeler, (0, 0, 0), (side * 0.14, 0.16, 0.14), (0.014, 0.012), p.dark)
        s.ball(feeler, (side * 0.14, 0.16, 0.14), 0.03, p.dark)
        for end, span, chord in (
            (1, rng.uniform(0.35, 0.5), rng.uniform(0.25, 0.36)),
            (-1, rng.uniform(0.25, 0.4), rng.uniform(0.18, 0.28)),
        ):
            wing = s.joint(
                body,
                (side * 0.05, 0.03, 0.12 * end),
                "wing",
                (0, -side * end * 0.35, side * 0.35),
                side=side,
                phase=-0.04 * (end < 0),
            )
            s.ball(wing, (side * span, 0, 0), (span, 0.02, chord), p.main if end > 0 else p.second)
            s.ball(wing, (side * 1.2 * span, 0.0, 0), (0.35 * span, 0.035, 0.5 * chord), p.accent)
    return f"{p.name} butterfly"


def fish(s: Sketch, p: Palette) -> str:
    """Fish, sharks and whales: a chain of overlapping balls whose tail follows the head."""
    rng = s.rng
    name = str(rng.choice(["fish", "fish", "shark", "whale"]))
    if name != "fish":
        p = p.natural(("grey", (0.45, 0.52, 0.62)), ("blue", (0.2, 0.4, 0.75)), rng=rng)
    links, step = int(rng.integers(4, 7)), rng.uniform(0.2, 0.28)
    high, wide = rng.uniform(0.26, 0.46), rng.uniform(0.17, 0.28)
    if name != "fish":
        high, wide = rng.uniform(0.26, 0.34), rng.uniform(0.25, 0.33)
    skin = belly(Paint(p.main.colour), p.light.colour) if name != "fish" or rng.random() < 0.3 else p.main
    body = s.joint(0, (0, 0.6, 0), "body")
    s.ball(body, (0, 0, 0.05), (wide, 0.9 * high, 1.7 * step), skin)
    eyes(s, body, (0.72 * wide, 0.2 * high, 0.85 * step), 0.05 + 0.08 * high)
    s.ball(body, (0, -0.25 * high, 1.35 * step), (0.5 * wide, 0.1 * high, 0.4 * step), p.accent)
    joint = body
    for index in range(links):
        joint = s.joint(
            joint, (0, 0, -0.3 * step if index == 0 else -step), "fluke" if name == "whale" else "spine", index=index
        )
        share = 1 - 0.82 * ((index + 0.6) / links) ** 1.3
        s.ball(joint, (0, 0, -0.5 * step), (wide * share, high * share, 1.15 * step), skin)
    end = (0, 0, -step)
    flat = name == "whale"
    for side in (-1, 1):
        size = (0.24, 0.03, 0.13) if flat else (0.03, rng.uniform(0.2, 0.3), 0.12)
        turn = (0, side * 0.5, 0) if flat else (side * 0.6, 0, 0)
        at = (side * 0.2, 0, -step - 0.1) if flat else (0, side * 0.18, -step - 0.12)
        s.ball(joint, at, size, p.second, turn)
        fin = s.joint(body, (side * 0.85 * wide, -0.3 * high, -0.1), "fin", (0, side * 0.4, -side * 0.5), side=side)
        s.ball(fin, (side * 0.16, 0, -0.05), (0.2, 0.025, 0.1), p.second)
    s.ball(joint, end, (0.03, 0.1, 0.15), p.second)
    if name == "shark":
        s.cone(body, (0, 1.1 * high, -0.15), (0.04, 0.2, 0.2), p.second)
    elif name == "fish":
        s.ball(body, (0, 0.95 * high, -0.1), (0.03, 0.14, 0.3), p.second)
        s.ball(body, (0, -0.9 * high, -0.15), (0.03, 0.12, 0.18), p.second)
    return f"{p.name} {name}"


def worm(s: Sketch, p: Palette) -> str:
    """Caterpillars and snakes."""
    rng = s.rng
    snake = rng.random() < 0.35
    links, radius = (8, rng.uniform(0.11, 0.15)) if snake else (6, rng.uniform(0.15, 0.22))
    step = radius * (1.9 if snake else 1.3)
    body = s.joint(0, (0, radius + 0.02, 0.45 * links * step), "body")
    head = s.joint(body, (0, 0.5 * radius, 0), "head", (0.0 if snake else -0.3, 0, 0))
    size = 1.25 * radius
    s.ball(head, (0, 0.1, 0.05), (size, 0.85 * size, 1.3 * size if snake else size), p.second)
    eyes(s, head, (0.5 * size, 0.1 + 0.45 * size, 0.7 * size), 0.24 * size)
    if snake:
        s.box(head, (0, 0.05, 0.12 + 1.3 * size), (0.012, 0.008, 0.09), Paint((0.9, 0.1, 0.15)))
    else:
        for side in (-1, 1):
            feeler = s.joint(head, (side * 0.08, 0.1 + 0.7 * size, 0.05), "antenna", side=side)
            s.rod(feeler, (0, 0, 0), (side * 0.08, 0.18, 0.05), (0.02, 0.015), p.dark)
            s.ball(feeler, (side * 0.08, 0.18, 0.05), 0.04, p.accent)
    joint = body
    bands = patterned(rng, p.main.colour, p.accent.colour, 1.0)
    for index in range(links):
        curl = rng.uniform(-0.75, 0.75) if snake else 0.0
        joint = s.joint(joint, (0, 0, -0.5 * step if index == 0 else -step), "spine", (0, curl, 0), index=index)
        girth = radius * (1 - 0.6 * (index / links) ** 2 if snake else 1 - 0.08 * (index % 2))
        s.ball(joint, (0, 0, -0.4 * step), (girth, girth, 0.85 * step), bands if index % 2 else p.main)
        if not snake:
            for side in (-1, 1):
                s.ball(joint, (side * 0.6 * radius, -0.85 * radius, -0.4 * step), (0.06, 0.08, 0.06), p.dark)
    return f"{p.name} {'snake' if snake else 'caterpillar'}"


def insect(s: Sketch, p: Palette) -> str:
    """Ants, beetles, bees, spiders, crabs: many two-segment legs around a low body."""
    rng = s.rng
    name = str(rng.choice(["ant", "ladybird", "bee", "spider", "crab"]))
    natural = {
        "ladybird": ("red", (0.9, 0.1, 0.08)),
        "bee": ("yellow", (1.0, 0.8, 0.1)),
        "crab": ("red", (0.95, 0.3, 0.15)),
    }
    if name in natural:
        p = p.natural(natural[name], rng=rng)
    low = rng.uniform(0.18, 0.3)
    body = s.joint(0, (0, low, 0), "body")
    s.joint(body, (0, 0, 0), "foot")
    front = 0.25
    if name == "ladybird":
        s.ball(
            body,
            (0, 0.02, -0.05),
            (0.4, 0.32, 0.45),
            Paint(p.main.colour, p.dark.colour, Pattern.SPOTS, (2.2, 2.2, 2.2), 0.3),
        )
        front = 0.38
    elif name == "crab":
        s.ball(body, (0, 0, 0), (0.52, 0.26, 0.38), p.main)
        front = 0.2
    else:
        rear = Paint(p.main.colour, p.dark.colour, Pattern.STRIPES, (0, 0.4, 3.2)) if name == "bee" else p.main
        s.ball(body, (0, 0, 0), (0.19, 0.18, 0.24), p.second)
        s.ball(body, (0, 0.07, -0.48), (0.28, 0.26, 0.38), rear, (-0.15, 0, 0))
    head = s.joint(body, (0, 0.02, front), "head")
    size = 0.16 if name != "crab" else 0.1
    if name != "crab":
        s.ball(head, (0, 0, 0.1), (1.1 * size, size, size), p.dark if name == "ladybird" else p.second)
    eyes(s, head, (0.6 * size, 0.6 * size + (0.12 if name == "crab" else 0), 0.1 + 0.6 * size), 0.34 * size)
    for side in (-1, 1):
        if name in ("ant", "bee", "ladybird"):
            feeler = s.joint(head, (side * 0.07, 0.12, 0.15), "antenna", side=side)
            s.rod(feeler, (0, 0, 0), (side * 0.1, 0.18, 0.16), (0.02, 0.012), p.dark)
            s.ball(feeler, (side * 0.1, 0.18, 0.16), 0.03, p.dark)
        if name == "bee":
            wing = s.joint(body, (side * 0.08, 0.17, 0), "wing", (0, side * 0.5, side * 0.4), side=side)
            s.ball(wing, (side * 0.3, 0, 0), (0.33, 0.02, 0.16), p.light)
        if name == "crab":
            claw = s.joint(body, (side * 0.4, 0, 0.2), "claw", (0, -side * 0.5, 0), side=side)
            s.rod(claw, (0, 0, 0), (side * 0.12, 0.05, 0.25), (0.06, 0.07), p.main)
            for half in (-1, 1):
                s.ball(claw, (side * 0.12, 0.05 + half * 0.06, 0.38), (0.1, 0.06, 0.18), p.accent, (-half * 0.35, 0, 0))
        insect_legs(s, name, body, side, low, p)
    return f"{p.name} {name}"


def insect_legs(s: Sketch, name: str, body: int, side: int, low: float, p: Palette) -> None:
    """Three or four legs of one side, in alternating steps."""
    pairs = 4 if name in ("spider", "crab") else 3
    for pair in range(pairs):
        angle = side * (1.0 - 2.0 * pair / (pairs - 1)) * 0.75
        reach = s.rng.uniform(0.2, 0.28) + (0.06 if name == "spider" else 0)
        hip = s.joint(
            body,
            (side * (0.4 if name == "crab" else 0.15), -0.02, 0.12 * (pairs / 2 - 0.5 - pair)),
            "leg",
            (0, -angle, 0),
            side=side,
            phase=0.5 * ((pair + (side > 0)) % 2),
        )
        s.rod(hip, (0, 0, 0), (side * reach, 0.18, 0), (0.045, 0.035), p.accent if name != "crab" else p.main)
        knee = s.joint(hip, (side * reach, 0.18, 0), "shin", side=side, phase=0.5 * ((pair + (side > 0)) % 2))
        s.rod(knee, (0, 0, 0), (side * 0.14, -low - 0.16, 0), (0.035, 0.015), p.dark)

"""Motions: each asks a sketch for roles and hangs waves on them. Turns about +x swing what hangs down backwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from loom4d.sources.procedural.build import Sketch
from loom4d.sources.procedural.scene import Channel as C
from loom4d.sources.procedural.scene import Wave as W

Motion = Callable[[Sketch, Generator, float], None]


def tempo(rng: Generator, low: float = 0.5, high: float = 1.6) -> tuple[float, float]:
    """Cycles per clip, and where the cycle starts."""
    return rng.uniform(low, high), rng.random()


def pick(rng: Generator, channels: list[C]) -> C:
    return channels[rng.integers(len(channels))]


def walk(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.9, 1.7)
    swing = 0.5 * power
    s.move("leg", C.TURN_X, W.SINE, swing, rate, phase)
    s.move("shin", C.TURN_X, W.HOP, 0.8 * swing, rate, phase + 0.1)
    s.move("arm", C.TURN_X, W.SINE, -0.9 * swing, rate, phase)
    s.move("forearm", C.TURN_X, W.HOP, -0.7 * swing, rate, phase)
    s.move("body", C.SHIFT_Y, W.HOP, 0.05 * power, 2 * rate, phase)
    s.move("body", C.TURN_Z, W.SINE, 0.05 * power, rate, phase)
    s.move("head", C.TURN_X, W.SINE, 0.06 * power, 2 * rate, phase)
    s.move("tail", C.TURN_Y, W.SINE, 0.2 * power, rate, phase, lag=0.1)


def run(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 1.4, 2.0)
    s.move("leg", C.TURN_X, W.SINE, 0.9 * power, rate, phase)
    s.move("shin", C.TURN_X, W.HOP, 1.1 * power, rate, phase + 0.15)
    s.move("arm", C.TURN_X, W.SINE, -0.9 * power, rate, phase)
    s.move("forearm", C.TURN_X, W.RISE, -1.2 * min(power, 1.2), 0, 1)
    s.move("body", C.TURN_X, W.RISE, 0.18 * power, 0, 1)
    s.move("body", C.SHIFT_Y, W.HOP, 0.13 * power, 2 * rate, phase)
    s.move("tail", C.TURN_X, W.SINE, 0.3 * power, 2 * rate, phase, lag=0.1)
    s.move("ear", C.TURN_X, W.SINE, 0.25 * power, 2 * rate, phase)


def gallop(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.9, 1.6)
    for index in s.roles("leg"):
        joint = s.joints[index]
        front = joint.matrix[2, 3] > 0
        start = phase + (0.0 if front else 0.45) + 0.06 * joint.side
        s.waves.append((index, C.TURN_X, W.SINE, 0.75 * power, rate, start))
    s.move("shin", C.TURN_X, W.HOP, 0.9 * power, rate, phase)
    s.move("body", C.TURN_X, W.SINE, 0.16 * power, rate, phase)
    s.move("body", C.SHIFT_Y, W.SINE, 0.10 * power, rate, phase + 0.3)
    s.move("neck", C.TURN_X, W.SINE, 0.18 * power, rate, phase + 0.5)
    s.move("tail", C.TURN_X, W.SINE, 0.3 * power, rate, phase, lag=0.1)


def scuttle(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 1.0, 2.0)
    s.move("leg", C.TURN_Y, W.SINE, 0.35 * power, rate, phase, mirror=True)
    s.move("leg", C.TURN_Z, W.HOP, 0.35 * power, rate, phase + 0.25, mirror=True)
    s.move("shin", C.TURN_Z, W.HOP, 0.3 * power, rate, phase + 0.25, mirror=True)
    s.move("antenna", C.TURN_X, W.WANDER, 0.35 * power, rate, phase)
    s.move("body", C.TURN_Y, W.SINE, 0.08 * power, rate, phase)


def wave(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.9, 2.0)
    arms = s.roles("arm")
    raised = arms if rng.random() < 0.25 else [arms[rng.integers(len(arms))]]
    for index in raised:
        side = s.joints[index].side or 1
        s.waves.append((index, C.TURN_Z, W.RISE, side * 2.3, *(rng.uniform(1.2, 3), rng.uniform(0, 0.8))))
        s.waves.append((index, C.TURN_Z, W.SINE, side * 0.35 * power, rate, phase))
        for child, joint in enumerate(s.joints):
            if joint.parent == index:
                s.waves.append((child, C.TURN_Z, W.SINE, side * 0.7 * power, rate, phase - 0.12))
    s.move("head", C.TURN_Z, W.SINE, 0.15 * power, rate / 2, phase)
    s.move("body", C.TURN_Z, W.SINE, 0.06 * power, rate, phase)


def jump(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.8, 1.6)
    s.move("root", C.SHIFT_Y, W.HOP, 0.35 * power, rate, phase)
    s.move("leg", C.TURN_X, W.RISE, -0.25 * power, 0, 1)
    for index in s.roles("leg"):
        s.waves.append((index, C.TURN_X, W.HOP, -0.5 * power, rate, phase + 0.5))
    for index in s.roles("shin"):
        s.waves.append((index, C.TURN_X, W.HOP, 1.0 * power, rate, phase + 0.5))
    s.move("body", C.SCALE_Y, W.HOP, 0.12 * power, rate, phase)
    for index in s.roles("arm"):
        s.waves.append((index, C.TURN_Z, W.HOP, 1.6 * power * (s.joints[index].side or 1), rate, phase))
    s.move("ear", C.TURN_X, W.SINE, 0.4 * power, rate, phase)


def dance(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.7, 1.5)
    s.move("arm", C.TURN_Z, W.RISE, rng.uniform(0.3, 1.4), 0, 1, mirror=True)
    s.move("arm", C.TURN_Z, W.SINE, 0.7 * power, rate, phase)
    s.move("arm", C.TURN_X, W.WANDER, 0.6 * power, rate, phase + 0.2)
    s.move("forearm", C.TURN_X, W.WANDER, -0.8 * power, rate, phase)
    s.move("body", C.TURN_Y, W.SINE, 0.45 * power, rate, phase)
    s.move("body", C.TURN_Z, W.SINE, 0.12 * power, rate, phase + 0.25)
    s.move("body", C.SHIFT_Y, W.HOP, 0.08 * power, 2 * rate, phase)
    s.move("leg", C.TURN_Z, W.SINE, 0.22 * power, rate, phase)
    s.move("head", C.TURN_Z, W.SINE, 0.2 * power, rate, phase + 0.3)


def exercise(s: Sketch, rng: Generator, power: float) -> None:
    """Jumping jacks: both sides open and close together."""
    rate, phase = tempo(rng, 0.8, 1.7)
    for role, reach in (("arm", 2.2), ("leg", 0.45)):
        for index in s.roles(role):
            s.waves.append((index, C.TURN_Z, W.HOP, reach * power * s.joints[index].side, rate, phase))
    s.move("root", C.SHIFT_Y, W.HOP, 0.1 * power, 2 * rate, phase)


def nod(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.6, 1.6)
    s.move("head", pick(rng, [C.TURN_X, C.TURN_Y, C.TURN_Z]), W.SINE, 0.5 * power, rate, phase)
    s.move("neck", C.TURN_X, W.WANDER, 0.2 * power, rate, phase)
    s.move("ear", C.TURN_Z, W.SINE, 0.3 * power, rate, phase, mirror=True)


def eat(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.4, 1.1)
    s.move("neck", C.TURN_X, W.HOP, 1.1 * power, rate, phase)
    s.move("head", C.TURN_X, W.HOP, 0.3 * power, rate, phase)
    s.move("jaw", C.TURN_X, W.HOP, 0.35 * power, 2 * rate, phase)
    s.move("tail", C.TURN_Y, W.SINE, 0.4 * power, 2 * rate, phase, lag=0.1)


def wag(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 1.0, 2.0)
    s.move("tail", C.TURN_Y, W.SINE, 0.7 * power, rate, phase, lag=0.12)
    s.move("body", C.TURN_Y, W.SINE, -0.1 * power, rate, phase)
    s.move("head", C.TURN_Z, W.SINE, 0.25 * power, rate / 2, phase)


def trumpet(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.5, 1.2)
    s.move("trunk", C.TURN_X, W.HOP, -0.55 * power, rate, phase, lag=0.05)
    s.move("trunk", C.TURN_Z, W.SINE, 0.15 * power, rate, phase, lag=0.1)
    s.move("ear", C.TURN_Y, W.SINE, 0.5 * power, 2 * rate, phase, mirror=True)
    s.move("head", C.TURN_X, W.HOP, -0.25 * power, rate, phase)


def flap(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 1.0, 2.0)
    reach = rng.uniform(0.5, 0.9) * power
    s.move("wing", C.TURN_Z, W.SINE, reach, rate, phase, mirror=True)
    s.move("wingtip", C.TURN_Z, W.SINE, 0.7 * reach, rate, phase - 0.18, mirror=True)
    s.move("body", C.SHIFT_Y, W.SINE, -0.08 * reach, rate, phase)
    s.move("tail", C.TURN_X, W.SINE, 0.2 * power, rate, phase, lag=0.1)
    s.move("leg", C.TURN_X, W.RISE, 0.6, 0, 1)


def take_off(s: Sketch, rng: Generator, power: float) -> None:
    start = -rng.uniform(0, 0.4)
    s.move("root", C.SHIFT_Y, W.RISE, rng.uniform(0.2, 0.6) * power, 1.2, start)
    s.move("root", C.TURN_X, W.RISE, -rng.uniform(-0.1, 0.4) * power, 1.2, start)
    s.move("root", C.TURN_Y, W.RAMP, rng.normal(0, 0.4) * power)
    flap(s, rng, power)
    s.move("flame", C.SCALE_Y, W.WANDER, 0.4, 3.0, rng.random())
    s.move("blade", C.TURN_Y, W.RAMP, 2 * np.pi, rng.uniform(1, 2.2), rng.random())
    s.move("propeller", C.TURN_Z, W.RAMP, 2 * np.pi, rng.uniform(1, 2.2), rng.random())


def swim(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.8, 1.9)
    s.move("spine", C.TURN_Y, W.SINE, 0.32 * power, rate, phase, lag=0.13)
    s.move("fluke", C.TURN_X, W.SINE, 0.3 * power, rate, phase, lag=0.13)
    s.move("fin", C.TURN_Z, W.SINE, 0.4 * power, rate, phase, mirror=True)
    s.move("body", C.SHIFT_X, W.SINE, 0.04 * power, rate, phase)
    s.move("body", C.TURN_Y, W.SINE, -0.12 * power, rate, phase)
    s.move("jaw", C.TURN_X, W.HOP, 0.25, rate, phase)


def crawl(s: Sketch, rng: Generator, power: float) -> None:
    """An upright wave runs along the spine: caterpillars, eels seen from the side."""
    rate, phase = tempo(rng, 0.7, 1.6)
    s.move("spine", C.TURN_X, W.SINE, 0.3 * power, rate, phase, lag=0.2)
    s.move("spine", C.TURN_Y, W.WANDER, 0.12 * power, rate / 2, phase, lag=0.1)
    s.move("antenna", C.TURN_X, W.SINE, 0.3 * power, rate, phase)


def sway(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.5, 1.3)
    for channel in (C.TURN_Z, C.TURN_X):
        s.move("stem", channel, W.WANDER, rng.uniform(0.08, 0.28) * power, rate, phase, lag=0.07)
        s.move("branch", channel, W.WANDER, rng.uniform(0.1, 0.3) * power, rate * 1.3, phase, lag=0.1)
        phase = rng.random()
    s.move("leaf", C.TURN_X, W.SINE, 0.35 * power, rate * 1.5, phase, lag=0.2)


def bloom(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.4, 1.0)
    s.move("petal", C.TURN_X, W.HOP, -1.0 * min(power, 1.2), rate, phase)
    s.move("stem", C.SCALE_Y, W.HOP, 0.06 * power, rate, phase)
    s.move("leaf", C.TURN_X, W.HOP, 0.5 * power, rate, phase)


def drive(s: Sketch, rng: Generator, power: float) -> None:
    turns = rng.choice([-1, 1], p=[0.15, 0.85]) * rng.uniform(0.4, 1.6) * power
    s.move("wheel", C.TURN_X, W.RAMP, 2 * np.pi, turns, rng.random())
    rate, phase = tempo(rng, 1.0, 2.0)
    s.move("body", C.SHIFT_Y, W.WANDER, 0.03 * power, rate, phase)
    s.move("body", C.TURN_X, W.WANDER, 0.05 * power, rate, phase + 0.3)
    s.move("root", C.TURN_Y, W.RISE, rng.normal(0, 0.7) * power, 1.0, 0)
    s.move("root", C.SHIFT_Z, W.RAMP, turns * rng.uniform(0.1, 0.4))


def whirl(s: Sketch, rng: Generator, power: float) -> None:
    """Rotors and propellers turn, slowly enough for eight pictures to show it."""
    turns = rng.choice([-1, 1]) * rng.uniform(0.35, 1.7) * max(power, 0.5)
    s.move("blade", C.TURN_Y, W.RAMP, 2 * np.pi, turns, rng.random())
    s.move("propeller", C.TURN_Z, W.RAMP, 2 * np.pi, turns, rng.random())
    s.move("propeller_x", C.TURN_X, W.RAMP, 2 * np.pi, turns, rng.random())
    s.move("body", C.TURN_Z, W.WANDER, 0.12 * power, 1.0, rng.random())
    s.move("body", C.SHIFT_Y, W.WANDER, 0.08 * power, 1.0, rng.random())


def lift(s: Sketch, rng: Generator, power: float) -> None:
    """Cranes, excavators, arms: the cab turns, the boom rises, the rest follows."""
    s.move("cab", C.TURN_Y, W.SINE, rng.uniform(0.2, 1.2) * power, *tempo(rng, 0.3, 0.9))
    s.move("boom", C.TURN_X, W.SINE, rng.uniform(0.15, 0.5) * power, *tempo(rng, 0.4, 1.1), lag=0.15)
    s.move("claw", C.TURN_X, W.SINE, 0.5 * power, *tempo(rng))
    s.move("rope", C.SCALE_Y, W.SINE, 0.35 * power, *tempo(rng, 0.4, 1.0))


def aim(s: Sketch, rng: Generator, power: float) -> None:
    s.move("turret", C.TURN_Y, W.SINE, rng.uniform(0.4, 1.4) * power, *tempo(rng, 0.3, 0.9))
    s.move("barrel", C.TURN_X, W.SINE, 0.3 * power, *tempo(rng, 0.4, 1.0))


def snap(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.8, 1.8)
    s.move("claw", C.TURN_Y, W.SINE, 0.45 * power, rate, phase, mirror=True)
    s.move("jaw", C.TURN_X, W.HOP, 0.7 * power, rate, phase)
    s.move("lid", C.TURN_X, W.HOP, -1.3 * power, rate, phase)
    s.move("spring", C.SCALE_Y, W.HOP, 0.6 * power, rate, phase)
    s.move("spring", C.TURN_Z, W.WANDER, 0.25 * power, rate, phase)


def ripple(s: Sketch, rng: Generator, power: float) -> None:
    """Tentacles open and close one after another."""
    rate, phase = tempo(rng)
    s.move("tentacle", C.TURN_X, W.SINE, 0.35 * power, rate, phase, lag=0.12)
    s.move("tentacle", C.TURN_Z, W.SINE, 0.2 * power, rate, phase + 0.3, lag=0.12)
    s.move("body", C.SHIFT_Y, W.SINE, 0.12 * power, rate, phase)
    s.move("body", C.SCALE_Y, W.SINE, 0.1 * power, rate, phase + 0.25)


def turn_round(s: Sketch, rng: Generator, power: float) -> None:
    s.move("root", C.TURN_Y, W.RAMP, rng.choice([-1, 1]) * rng.uniform(0.5, 3.5) * power)


def bounce(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.7, 1.9)
    s.move("root", C.SHIFT_Y, W.HOP, rng.uniform(0.15, 0.45) * power, rate, phase)
    s.move("root", C.SCALE_Y, W.HOP, 0.2 * power, rate, phase)
    for channel in (C.SCALE_X, C.SCALE_Z):
        s.move("root", channel, W.HOP, -0.1 * power, rate, phase)


def breathe(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.5, 1.4)
    role = "body" if s.roles("body") else "root"
    s.move(role, C.SCALE_X, W.SINE, 0.1 * power, rate, phase)
    s.move(role, C.SCALE_Z, W.SINE, 0.1 * power, rate, phase)
    s.move(role, C.SCALE_Y, W.SINE, rng.choice([-0.06, 0.06]) * power, rate, phase)


def fall(s: Sketch, rng: Generator, power: float) -> None:
    channel, sign = pick(rng, [C.TURN_X, C.TURN_Z]), rng.choice([-1, 1])
    s.move("root", channel, W.RISE, sign * 1.4 * min(power, 1.1), rng.uniform(1.0, 1.8), -rng.uniform(0, 0.4))


def wobble(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.5, 1.5)
    s.move("root", C.TURN_Z, W.SINE, rng.uniform(0.1, 0.4) * power, rate, phase)
    s.move("root", C.TURN_X, W.SINE, rng.uniform(0.05, 0.35) * power, rate, phase + 0.25)


def twist(s: Sketch, rng: Generator, power: float) -> None:
    rate, phase = tempo(rng, 0.5, 1.4)
    s.move("body", pick(rng, [C.TURN_X, C.TURN_Y, C.TURN_Z]), W.SINE, rng.uniform(0.2, 0.6) * power, rate, phase)
    s.move("head", C.TURN_Y, W.SINE, 0.4 * power, rate, phase + 0.2)


def grow(s: Sketch, rng: Generator, power: float) -> None:
    size = rng.choice([-1, 1]) * rng.uniform(0.2, 0.5) * power
    start = -rng.uniform(0, 0.3)
    for channel in (C.SCALE_X, C.SCALE_Y, C.SCALE_Z):
        s.move("root", channel, W.RISE, size * rng.uniform(0.7, 1.1), 1.1, start)


def glide(s: Sketch, rng: Generator, power: float) -> None:
    way = rng.uniform(0, 2 * np.pi)
    s.move("root", C.SHIFT_X, W.RISE, 0.4 * power * np.cos(way), 1, 0)
    s.move("root", C.SHIFT_Z, W.RISE, 0.4 * power * np.sin(way), 1, 0)
    s.move("root", C.TURN_Z, W.SINE, 0.25 * power, *tempo(rng, 0.4, 1.0))


# what it is called, the roles of which one must exist (none: anything moves so), the motion, how often it is drawn
MOTIONS: dict[str, tuple[tuple[str, ...], Motion, float]] = {
    "walking": (("leg",), walk, 2.0),
    "running": (("shin",), run, 1.5),
    "galloping": (("hoof",), gallop, 3.0),
    "scuttling": (("foot",), scuttle, 12.0),
    "waving": (("arm",), wave, 2.5),
    "jumping": (("leg",), jump, 1.0),
    "dancing": (("arm",), dance, 2.0),
    "doing jumping jacks": (("arm",), exercise, 1.0),
    "nodding": (("head",), nod, 0.7),
    "eating": (("neck",), eat, 1.0),
    "wagging its tail": (("tail",), wag, 0.7),
    "trumpeting": (("trunk",), trumpet, 3.0),
    "flapping": (("wing",), flap, 4.0),
    "taking off": (("wing", "flame", "blade"), take_off, 2.0),
    "swimming": (("spine", "fluke"), swim, 4.0),
    "crawling": (("spine",), crawl, 1.5),
    "swaying": (("stem",), sway, 4.0),
    "blooming": (("petal",), bloom, 3.0),
    "driving": (("wheel",), drive, 4.0),
    "whirling": (("blade", "propeller"), whirl, 4.0),
    "lifting": (("boom", "rope"), lift, 4.0),
    "aiming": (("turret", "barrel"), aim, 3.0),
    "snapping": (("claw", "jaw", "lid", "spring"), snap, 1.5),
    "rippling": (("tentacle",), ripple, 6.0),
    "turning round": ((), turn_round, 0.45),
    "bouncing": ((), bounce, 0.3),
    "breathing": ((), breathe, 0.2),
    "falling over": ((), fall, 0.15),
    "wobbling": ((), wobble, 0.35),
    "twisting": (("body",), twist, 0.35),
    "growing": ((), grow, 0.18),
    "gliding": ((), glide, 0.25),
}


def animate(sketch: Sketch) -> str:
    """Hangs one to three motions on the sketch; returns what they are called."""
    rng = sketch.rng
    present = {joint.role for joint in sketch.joints}
    names = [name for name, (needs, _, _) in MOTIONS.items() if not needs or present & set(needs)]
    if "foot" in present:
        names = [name for name in names if name not in ("walking", "running", "jumping")]
    weights = np.array([MOTIONS[name][2] for name in names])
    count = min(int(rng.choice([1, 2, 3], p=[0.5, 0.38, 0.12])), len(names))
    chosen = rng.choice(len(names), count, replace=False, p=weights / weights.sum())
    still = rng.random() < 0.05
    for order, index in enumerate(chosen):
        power = rng.uniform(0.0, 0.08) if still else rng.uniform(0.4, 1.3) * (1.0 if order == 0 else 0.6)
        MOTIONS[names[index]][1](sketch, rng, power)
    return "standing still" if still else " and ".join(names[index] for index in chosen[:2])

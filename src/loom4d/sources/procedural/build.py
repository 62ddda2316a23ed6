"""A sketch pad for moving objects: joints with roles, painted solids, waves; then one frozen `MovingObject`."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from loom4d.sources.procedural.scene import Channel, MovingObject, Pattern, Shape, Wave, freedom_matrices

Number = float | int
Vector = tuple[Number, Number, Number]
Pair = tuple[Number, Number]
COLOURS = ["red", "orange", "yellow", "lime", "green", "teal", "cyan", "blue", "purple", "violet", "magenta", "pink"]


@dataclass(frozen=True)
class Paint:
    """Two colours and the pattern that mixes them."""

    colour: Vector
    second: Vector = (0.0, 0.0, 0.0)
    pattern: Pattern = Pattern.PLAIN
    wave: Vector = (0.0, 0.0, 0.0)
    phase: float = 0.0


@dataclass(frozen=True)
class Joint:
    """What motions know of a joint: they ask for roles, and read side (+1 towards +x), index in a chain, gait phase."""

    role: str
    parent: int
    matrix: Float[ndarray, "4 4"]
    side: int = 0
    index: int = 0
    phase: Number = 0


@dataclass
class Sketch:
    """Joints, parts and waves as they are drawn; joint 0 is the root, which stands on y = 0 and faces +z."""

    rng: Generator
    joints: list[Joint] = field(default_factory=lambda: [Joint("root", -1, np.eye(4))])
    parts: list[tuple[int, Float[ndarray, "4 4"], Shape, float, Paint]] = field(default_factory=list)
    waves: list[tuple[int, Channel, Wave, Number, Number, Number]] = field(default_factory=list)

    def joint(
        self,
        parent: int,
        at: Vector,
        role: str = "",
        turn: Vector = (0, 0, 0),
        side: int = 0,
        index: int = 0,
        phase: Number = 0,
    ) -> int:
        """A new joint at `at` in its parent's frame, turned by `turn` radians (x, then y, then z)."""
        self.joints.append(Joint(role, parent, placed(at, turn, (1, 1, 1)), side, index, phase))
        return len(self.joints) - 1

    def part(
        self,
        joint: int,
        shape: Shape,
        at: Vector,
        size: Vector,
        paint: Paint,
        taper: Number = 1,
        turn: Vector = (0, 0, 0),
    ) -> None:
        """A solid of half-sizes `size` at `at` in the joint's frame, turned by `turn` radians."""
        self.parts.append((joint, placed(at, turn, size), shape, float(taper), paint))

    def ball(self, joint: int, at: Vector, size: Number | Vector, paint: Paint, turn: Vector = (0, 0, 0)) -> None:
        self.part(joint, Shape.ELLIPSOID, at, size if isinstance(size, tuple) else (size,) * 3, paint, turn=turn)

    def box(self, joint: int, at: Vector, size: Vector, paint: Paint, turn: Vector = (0, 0, 0)) -> None:
        self.part(joint, Shape.BOX, at, size, paint, turn=turn)

    def cone(
        self, joint: int, at: Vector, size: Vector, paint: Paint, taper: Number = 0, turn: Vector = (0, 0, 0)
    ) -> None:
        self.part(joint, Shape.CONE, at, size, paint, taper=taper, turn=turn)

    def rod(self, joint: int, start: Vector, end: Vector, radii: Pair, paint: Paint) -> None:
        """A capped cone between two points, of the two radii there."""
        first, last = np.array(start, float), np.array(end, float)
        if radii[1] > radii[0]:
            first, last, radii = last, first, (radii[1], radii[0])
        along = (last - first) / 2
        length = float(np.linalg.norm(along))
        other = np.array([1.0, 0, 0]) if abs(along[0]) < 0.9 * length else np.array([0, 0, 1.0])
        right = np.cross(along, other)
        right *= radii[0] / np.linalg.norm(right)
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1], matrix[:3, 2] = right, along, np.cross(right, along) / length
        matrix[:3, 3] = (first + last) / 2
        self.parts.append((joint, matrix, Shape.CONE, radii[1] / radii[0], paint))

    def wheel(self, joint: int, radius: float, half_width: float, tyre: Paint, hub: Paint) -> None:
        """A wheel around the joint's x axis, with spokes so that its turning shows."""
        self.part(joint, Shape.CONE, (0, 0, 0), (radius, half_width, radius), tyre, turn=(0, 0, np.pi / 2))
        for turn in (0.0, np.pi / 2):
            self.box(joint, (0, 0, 0), (half_width * 1.12, radius * 0.62, radius * 0.16), hub, turn=(turn, 0, 0))

    def roles(self, role: str) -> list[int]:
        return [index for index, joint in enumerate(self.joints) if joint.role == role]

    def move(
        self,
        role: str,
        channel: Channel,
        wave: Wave,
        amplitude: Number,
        rate: Number = 1,
        phase: Number = 0,
        lag: Number = 0,
        mirror: bool = False,
    ) -> None:
        """One wave on every joint of a role. `lag`: cycles of delay per index; `mirror`: opposite on the side −1."""
        for index in self.roles(role):
            joint = self.joints[index]
            sign = -1.0 if mirror and joint.side < 0 else 1.0
            delayed = phase + joint.phase - lag * joint.index
            self.waves.append((index, channel, wave, sign * amplitude, rate, delayed))

    def finish(self, caption: str, world_from_root: Float[ndarray, "4 4"], light: Float[ndarray, 3]) -> MovingObject:
        joints, matrices, shapes, tapers, paints = zip(*self.parts, strict=True)
        waves = self.waves or [(0, Channel.SHIFT_X, Wave.SINE, 0.0, 0.0, 0.0)]
        return MovingObject(
            caption,
            world_from_root,
            np.array([joint.parent for joint in self.joints]),
            np.stack([joint.matrix for joint in self.joints]),
            np.array([wave[:3] for wave in waves], np.int64),
            np.array([wave[3:] for wave in waves], np.float64),
            np.array(joints),
            np.stack(matrices),
            np.array(shapes, np.int64),
            np.array(tapers, np.float64),
            np.array([(paint.colour, paint.second) for paint in paints], np.float64),
            np.array([paint.pattern for paint in paints], np.int64),
            np.array([(*paint.wave, paint.phase) for paint in paints], np.float64),
            light,
        )


def placed(at: Vector, turn: Vector, size: Vector) -> Float[ndarray, "4 4"]:
    """shift · turn_z · turn_y · turn_x · scale."""
    return freedom_matrices(np.concatenate([np.array(at, float), np.array(turn, float), np.log(np.array(size, float))]))


# --- colours ---------------------------------------------------------------------------------------------------------


def vector(array: Float[ndarray, 3]) -> Vector:
    x, y, z = array.tolist()
    return x, y, z


def hsv(hue: float, saturation: float, value: float) -> Vector:
    return colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))


def mixed(first: Vector, second: Vector, share: float) -> Vector:
    red, green, blue = (a + share * (b - a) for a, b in zip(first, second, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Palette:
    """Paints of one object: three bodies of colour, and the small things every figure needs."""

    name: str  # of the main colour
    main: Paint
    second: Paint
    accent: Paint
    dark: Paint
    light: Paint
    skin: Paint

    def natural(self, *colours: tuple[str, Vector], rng: Generator, share: float = 0.6) -> Palette:
        """With the given share of chances, the main colour replaced by one of the named natural ones."""
        if rng.random() > share:
            return self
        name, colour = colours[rng.integers(len(colours))]
        jitter = rng.uniform(0.85, 1.1)
        tint = min(jitter * colour[0], 1), min(jitter * colour[1], 1), min(jitter * colour[2], 1)
        return replace(self, name=name, main=replace(self.main, colour=tint, second=mixed(tint, (1, 1, 1), 0.55)))


def palette(rng: Generator) -> Palette:
    hue = rng.random()
    gap = rng.choice([0.08, 0.33, 0.5, -0.33, 0.17]) + rng.normal(0, 0.03)

    def vivid(at: float) -> Vector:
        return hsv(at, rng.uniform(0.6, 1.0), rng.uniform(0.65, 1.0))

    first, other, third = vivid(hue), vivid(hue + gap), vivid(hue + rng.uniform(0.3, 0.7))
    name = COLOURS[round(hue * 12) % 12]
    if rng.random() < 0.15:
        name, first = ("white", (0.93, 0.93, 0.9)) if rng.random() < 0.6 else ("black", (0.14, 0.14, 0.17))
    skin = hsv(rng.uniform(0.04, 0.08), rng.uniform(0.3, 0.6), rng.uniform(0.4, 1.0))
    dark = hsv(rng.random(), 0.4, rng.uniform(0.08, 0.2))
    light = hsv(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.9, 1))
    return Palette(
        name, patterned(rng, first, other), Paint(other), Paint(third), Paint(dark), Paint(light), Paint(skin)
    )


def patterned(rng: Generator, colour: Vector, second: Vector, share: float = 0.6) -> Paint:
    """A random pattern of the two colours; plain in 1 − `share` of cases."""
    if rng.random() > share:
        return Paint(colour)
    pattern = Pattern(int(rng.integers(1, 6)))
    axis = np.eye(3)[rng.choice(3, p=[0.25, 0.5, 0.25])]
    wave = rng.uniform(1.5, 4.0) * (axis + rng.normal(0, 0.12, 3))
    if pattern in (Pattern.SPOTS, Pattern.CHECKER):
        wave = rng.uniform(1.2, 2.6, 3)
    if pattern in (Pattern.GRADIENT, Pattern.TWO_TONE):
        wave = wave / np.linalg.norm(wave) * rng.choice([-1, 1])
    reach = 0.35 if pattern == Pattern.TWO_TONE else 1.0
    phase = rng.uniform(-reach, reach) * (pattern != Pattern.GRADIENT)
    return Paint(colour, second, pattern, vector(wave), float(phase))


def belly(paint: Paint, light: Vector, level: float = -0.25) -> Paint:
    """The paint's colour above, `light` below: fish, penguins, dolphins."""
    return Paint(paint.colour, light, Pattern.TWO_TONE, (0.0, -1.0, 0.25), level)

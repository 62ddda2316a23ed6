"""Exact pictures of a `MovingObject`: rays against unit solids in their own frames.

Two backends, one law: `reference` is plain tensors on any device and the specification; the native one is the same
arithmetic in C++ with parts culled tile by tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from loom4d import native
from loom4d.cameras import Cameras
from loom4d.sources.procedural.scene import MovingObject, Pattern, Shape

FAR = 1e30
RAYS_TIMES_PARTS = 1 << 23  # of one chunk of the reference: about 1 GB at its peak
AMBIENT, SKY, SUN = 0.57, 0.11, 0.52


@dataclass(frozen=True)
class PosedScene:
    """A `MovingObject` seen by a batch of cells: everything both backends need, in float32.

    A pixel at (u, v) in image units looks along `direction + u · direction_u + v · direction_v`, here already in each
    unit solid's frame. Affine maps keep the depth along a ray, so the nearest part is the one of least depth.
    """

    rays: Float[Tensor, "cell part 4 3"]  # camera, direction, direction_u, direction_v
    image_from_part: Float[Tensor, "cell part 3 4"]  # homogeneous
    part_from_world: Float[Tensor, "cell part 3 3"]
    paint: Float[Tensor, "part 12"]  # taper, first and second colour, wave vector, phase, 0
    kinds: Int[Tensor, "part 2"]  # Shape, Pattern
    light: Float[Tensor, 3]


def posed(figure: MovingObject, cameras: Cameras, times: Float[Tensor, " cell"]) -> PosedScene:
    """The object at each cell's time, from each cell's camera, on the cameras' device."""
    double = cameras.to(torch.float64)
    device = cameras.intrinsics.device
    instants, which = torch.unique(times.double().cpu(), return_inverse=True)
    world_from_part = figure.world_from_part(instants).double()  # (instant, part, 4, 4)
    part_from_world = torch.linalg.inv(world_from_part)[which].to(device)  # (cell, part, 4, 4)
    world_from_part = world_from_part[which].to(device)
    world_from_camera = double.world_from_camera
    inverse = torch.linalg.inv(double.intrinsics)  # (cell, 3, 3)
    down_from_up = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64, device=device)  # OpenGL's axes to the image's
    basis = world_from_camera[:, :3, :3] * down_from_up @ inverse  # world direction of (u, v, 1)
    vectors = torch.stack([world_from_camera[:, :3, 3], basis[..., 2], basis[..., 0], basis[..., 1]], -1)
    rays = part_from_world[..., :3, :3] @ vectors[:, None]  # (cell, part, 3, 4)
    rays[..., 0] += part_from_world[..., :3, 3]
    camera_from_part = (double.camera_from_world[:, None] @ world_from_part)[..., :3, :]
    image_from_part = double.intrinsics[:, None] @ (down_from_up[:, None] * camera_from_part)
    numbers = [
        figure.tapers[:, None],
        figure.colours.reshape(-1, 6),
        figure.pattern_numbers,
        0 * figure.tapers[:, None],
    ]
    kinds = [torch.from_numpy(figure.shapes), torch.from_numpy(figure.patterns)]
    return PosedScene(
        rays.mT.float().contiguous(),
        image_from_part.float().contiguous(),
        part_from_world[..., :3, :3].float().contiguous(),
        torch.cat([torch.from_numpy(number) for number in numbers], -1).float().to(device),
        torch.stack(kinds, -1).int().to(device),
        torch.from_numpy(figure.light).float().to(device),
    )


def sample_offsets(samples: int) -> Float[Tensor, "sample 2"]:
    """Hammersley points in a pixel: x uniform, y its bits reversed; no two share a row or a column."""
    bits = max(1, math.ceil(math.log2(samples)))
    reversed_index = [int(format(i, f"0{bits}b")[::-1], 2) / 2**bits for i in range(samples)]
    x = (torch.arange(samples, device="cpu") + 0.5) / samples
    return torch.stack([x, torch.tensor(reversed_index, device="cpu") + 0.5 / 2**bits], -1)


def render(
    figure: MovingObject,
    cameras: Cameras,
    times: Float[Tensor, " cell"],
    height: int,
    width: int,
    samples: int = 4,
    backend: str = "auto",
    threads: int = 1,
) -> Float[Tensor, "cell 4 height width"]:
    """Straight-alpha RGBA in 0..1 of one object, cell by cell: camera i sees it at time i (0..1, the clip's length).

    Pixels are box-filtered over `samples` rays, premultiplied; colour is 0 where alpha is. `backend` is "native" (CPU),
    "reference" (any device) or "auto": native where the cameras are on the CPU and a library is there.
    `threads` is the native backend's; 0 takes every core.
    """
    if cameras.batch_shape != tuple(times.shape):
        raise ValueError(f"one camera per cell expected: cameras {cameras.batch_shape}, times {tuple(times.shape)}")
    if not 1 <= samples <= 256:
        raise ValueError(f"samples per pixel must be 1..256, got {samples}")
    if backend == "auto":
        fast = cameras.intrinsics.device.type == "cpu" and native.load() is not None
        backend = "native" if fast else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    return BACKENDS[backend](posed(figure, cameras, times), height, width, samples, threads)


def render_native(
    scene: PosedScene, height: int, width: int, samples: int, threads: int = 1
) -> Float[Tensor, "cell 4 height width"]:
    """The C++ kernel of native/raycast.cpp."""
    library = native.load()
    if library is None:
        raise RuntimeError(
            "the native ray caster needs a C++ compiler (or unset LOOM4D_NATIVE=0); use backend='reference'"
        )
    cells, parts = scene.rays.shape[:2]
    image = torch.zeros(cells, 4, height, width)
    sizes = torch.tensor([cells, parts, height, width, samples, threads], dtype=torch.int32)
    arrays = [sizes, scene.rays, scene.image_from_part, scene.part_from_world, scene.paint, scene.kinds, scene.light]
    arrays += [sample_offsets(samples), image]
    library.loom4d_raycast(*(native.pointer(array) for array in arrays))
    return image


def render_reference(
    scene: PosedScene, height: int, width: int, samples: int, threads: int = 1
) -> Float[Tensor, "cell 4 height width"]:
    """Every ray against every part, in chunks of rays; `threads` is torch's own business here."""
    device = scene.rays.device
    cells, parts = scene.rays.shape[:2]
    offsets = sample_offsets(samples).to(device)
    image = torch.zeros(cells, 4, height, width, device=device)
    rows = max(1, min(height, RAYS_TIMES_PARTS // (parts * width * samples)))
    together = max(1, RAYS_TIMES_PARTS // (parts * width * samples * rows))
    u = (torch.arange(width, device=device)[:, None] + offsets[:, 0]) / width  # (W, sample)
    v = (torch.arange(height, device=device)[:, None] + offsets[:, 1]) / height
    for cell in range(0, cells, together):
        for row in range(0, height, rows):
            band = v[row : row + rows, None]  # (rows, 1, sample)
            flat_u = u.expand(band.shape[0], width, samples).reshape(-1)
            flat_v = band.expand(-1, width, samples).reshape(-1)
            rgba = trace(scene, slice(cell, cell + together), flat_u, flat_v)  # (cell, ray, 4) premultiplied
            mean = reduce(rgba, "cell (y x sample) c -> cell c y x", "mean", x=width, sample=samples)
            image[cell : cell + together, :, row : row + rows] = mean
    return torch.cat([image[:, :3] / image[:, 3:].clamp_min(1e-9), image[:, 3:]], 1)


def trace(
    scene: PosedScene, cells: slice, u: Float[Tensor, " ray"], v: Float[Tensor, " ray"]
) -> Float[Tensor, "cell ray 4"]:
    """Premultiplied colour and 0-or-1 alpha of each ray of each cell."""
    rays = scene.rays[cells]
    best = torch.full((rays.shape[0], len(u)), FAR, device=u.device)
    nearest = torch.zeros_like(best, dtype=torch.long)
    for shape, hit in ((Shape.ELLIPSOID, hit_ball), (Shape.BOX, hit_box), (Shape.CONE, hit_cone)):
        chosen = torch.nonzero(scene.kinds[:, 0] == shape)[:, 0]
        if len(chosen) == 0:
            continue
        local = local_rays(rays[:, chosen, None], u, v)  # (cell, part, ray)
        depth, index = hit(*local, scene.paint[chosen, None, 0]).min(1)
        nearest = torch.where(depth < best, chosen[index], nearest)
        best = torch.minimum(depth, best)
    colour = shade(scene, cells, nearest, u, v, best)
    seen = (best < FAR).float()[..., None]
    return torch.cat([torch.where(seen > 0, colour, 0.0), seen], -1)


def local_rays(
    rays: Float[Tensor, "*batch ray_or_1 4 3"], u: Float[Tensor, " ray"], v: Float[Tensor, " ray"]
) -> tuple[
    Float[Tensor, "*batch ray 3"],
    Float[Tensor, "*batch ray 3"],
    Float[Tensor, "*batch ray"],
    Float[Tensor, "*batch ray"],
]:
    """In the unit solid's frame: the point nearest to its centre, the unit direction, and that point's depth and the
    depth per unit of length. Working from the nearest point keeps thin parts exact in float32."""
    camera, direction, along_u, along_v = rays.unbind(-2)
    direction = direction + u[:, None] * along_u + v[:, None] * along_v
    step = 1 / direction.norm(dim=-1)
    unit = direction * step[..., None]
    s = -(camera * unit).sum(-1)
    return camera + s[..., None] * unit, unit, s * step, step


def guarded(x: Tensor) -> Tensor:
    """x, away from 0, to divide by."""
    return torch.where(x.abs() < 1e-9, torch.full_like(x, 1e-9), x)


def hit_ball(point: Tensor, unit: Tensor, near: Tensor, step: Tensor, taper: Tensor) -> Tensor:
    """Depth at which the ray enters the unit ball, FAR where it misses."""
    rest = 1 - (point * point).sum(-1)
    return torch.where(rest > 0, near - rest.clamp_min(0).sqrt() * step, FAR)


def hit_box(point: Tensor, unit: Tensor, near: Tensor, step: Tensor, taper: Tensor) -> Tensor:
    """Depth at which the ray enters the cube [−1, 1]³, FAR where it misses."""
    inverse = 1 / guarded(unit)
    centre, half = -point * inverse, inverse.abs()
    enter, leave = (centre - half).amax(-1), (centre + half).amin(-1)
    return torch.where(enter < leave, near + enter * step, FAR)


def hit_cone(point: Tensor, unit: Tensor, near: Tensor, step: Tensor, taper: Tensor) -> Tensor:
    """Depth at which the ray enters the capped cone of radius (1 + taper)/2 + (taper − 1)/2 · y, |y| ≤ 1.

    From where the ray enters the slab |y| ≤ 1 at s = 0, f(s) = a s² + 2 b s + c is negative inside; the solid is
    convex, so either c ≤ 0 (through a cap) or the entry is the first root.
    """
    inverse = 1 / guarded(unit[..., 1])
    middle, half = -point[..., 1] * inverse, inverse.abs()
    enter, leave = (middle - half).clamp_min(-1.4143), (middle + half).clamp_max(1.4143)
    x, y, z = (point + enter[..., None] * unit).unbind(-1)
    ex, ey, ez = unit.unbind(-1)
    slope = (taper - 1) / 2
    radius = (taper + 1) / 2 + slope * y
    a = ex * ex + ez * ez - slope * slope * ey * ey
    b = x * ex + z * ez - slope * ey * radius
    c = x * x + z * z - radius * radius
    square = b * b - a * c
    root = square.clamp_min(0).sqrt()
    inward = c / (root - b + 1e-20)
    outward = (-b - root) / torch.where(a < 0, a, torch.full_like(a, -1e-20))
    s = torch.where(b >= 0, outward, inward)
    side = (square > 0) & ((b < 0) | (a < 0)) & (s < leave - enter)
    s = torch.where(c <= 0, 0.0, torch.where(side, s, FAR))
    return torch.where((enter < leave) & (s < FAR), near + (enter + s) * step, FAR)


def shade(
    scene: PosedScene,
    cells: slice,
    parts: Int[Tensor, "cell ray"],
    u: Float[Tensor, " ray"],
    v: Float[Tensor, " ray"],
    depth: Float[Tensor, "cell ray"],
) -> Float[Tensor, "cell ray 3"]:
    """Painted colour times a light that depends on the world normal only, so all views agree."""
    cell = torch.arange(parts.shape[0], device=parts.device)[:, None]
    point, unit, near, step = local_rays(scene.rays[cells][cell, parts], u, v)
    point = point + ((depth - near) / step).clamp(-2, 2)[..., None] * unit  # a miss must not overflow
    paint = scene.paint[parts]  # (cell, ray, 12)
    normal = unit_normal(point, scene.kinds[parts, 0], paint[..., 0])
    matrix = scene.part_from_world[cells][cell, parts]
    world = (normal[..., None] * matrix).sum(-2)
    world = world / (world.square().sum(-1, keepdim=True) + 1e-20).sqrt()
    wrapped = 0.5 + 0.5 * (world * scene.light).sum(-1)
    shine = AMBIENT + SKY * world[..., 1] + SUN * wrapped * wrapped
    weight = mix_weight(point, scene.kinds[parts, 1], paint[..., 7:10], paint[..., 10])
    colour = torch.lerp(paint[..., 1:4], paint[..., 4:7], weight[..., None])
    return (colour * shine[..., None]).clamp(0, 1)


def unit_normal(
    point: Float[Tensor, "*batch 3"], shapes: Int[Tensor, "*batch"], taper: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch 3"]:
    """Outward normals, of any length, at points on the unit solids."""
    x, y, z = point.unbind(-1)
    size = point.abs()
    by_x = (size[..., 0] >= size[..., 1]) & (size[..., 0] >= size[..., 2])
    by_y = ~by_x & (size[..., 1] >= size[..., 2])
    face = torch.stack([by_x, by_y, ~(by_x | by_y)], -1)
    slope = (taper - 1) / 2
    radius = (taper + 1) / 2 + slope * y
    cap = (y.abs() > 0.9995) & (x * x + z * z < 0.998 * radius * radius)
    zero = torch.zeros_like(y)
    side = torch.stack([x, -slope * radius, z], -1)
    cone = torch.where(cap[..., None], torch.stack([zero, y, zero], -1), side)
    shapes = shapes[..., None]
    return torch.where(shapes == Shape.BOX, point * face, torch.where(shapes == Shape.CONE, cone, point))


def mix_weight(
    point: Float[Tensor, "*batch 3"],
    patterns: Int[Tensor, "*batch"],
    wave: Float[Tensor, "*batch 3"],
    phase: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """Share 0..1 of the second colour; edges are soft so that they do not crawl."""
    along = (point * wave).sum(-1) + phase
    angles = math.pi * (point * wave + phase[..., None])
    table = {
        Pattern.STRIPES: 0.5 + 2.5 * torch.sin(math.pi * along),
        Pattern.SPOTS: 2 * torch.cos(angles).sum(-1) - 1.5,
        Pattern.CHECKER: 0.5 + 4 * torch.sin(angles).prod(-1),
        Pattern.GRADIENT: 0.5 + 0.5 * along,
        Pattern.TWO_TONE: 0.5 + 8 * along,
    }
    level = torch.zeros_like(along)
    for pattern, value in table.items():
        level = torch.where(patterns == pattern, value, level)
    level = level.clamp(0, 1)
    return level * level * (3 - 2 * level)


BACKENDS = {"native": render_native, "reference": render_reference}

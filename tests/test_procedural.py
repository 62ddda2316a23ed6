"""Procedural moving objects: exact solids, two equal renderers, and laws that hold for every seed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from loom4d import native
from loom4d.cameras import Cameras, cells, orbit, turntable
from loom4d.sources.procedural import (
    BACKENDS,
    FAMILIES,
    MOTIONS,
    MovingObject,
    Pattern,
    Shape,
    bounding_box,
    describe,
    moving_object,
    procedural_grid,
    render,
)
from loom4d.sources.procedural.build import Paint, Sketch
from loom4d.sources.procedural.raycast import hit_ball, hit_box, hit_cone, local_rays, sample_offsets
from loom4d.sources.procedural.scene import extents, pose, surface_points

HITS = {Shape.ELLIPSOID: hit_ball, Shape.BOX: hit_box, Shape.CONE: hit_cone}
USABLE = [name for name in BACKENDS if name == "reference" or native.load() is not None]


def still_life(*parts: tuple) -> MovingObject:
    """Unmoving parts, each (shape, centre, half-sizes, colour[, taper]), lit from +z."""
    sketch = Sketch(np.random.default_rng(0))
    for shape, at, size, colour, *taper in parts:
        sketch.part(0, shape, at, size, Paint(colour), *taper)
    return sketch.finish("a still life", np.eye(4), np.array([0.0, 0.0, 1.0]))


def seen_from(figure: MovingObject, azimuths: list[float], resolution: int = 48, **how) -> torch.Tensor:
    cameras = orbit(torch.tensor(azimuths), how.pop("elevation", 0.0))
    return render(figure, cameras, torch.zeros(len(azimuths)), resolution, resolution, **how)


def depth_in_unit_solid(shape: Shape, origin: torch.Tensor, direction: torch.Tensor, taper: float) -> torch.Tensor:
    """Depth of rays (ray, 3), in units of the direction's length, by the renderer's own functions."""
    zero = torch.zeros_like(origin)
    local = local_rays(torch.stack([origin, direction, zero, zero], 1)[:, None], torch.zeros(1), torch.zeros(1))
    return HITS[shape](*local, torch.tensor(taper))[:, 0]


def inside(shape: Shape, point: torch.Tensor, taper: float) -> torch.Tensor:
    x, y, z = point.unbind(-1)
    if shape == Shape.ELLIPSOID:
        return x * x + y * y + z * z < 1
    if shape == Shape.BOX:
        return (point.abs() < 1).all(-1)
    radius = (1 + taper) / 2 + (taper - 1) / 2 * y
    return (y.abs() < 1) & (x * x + z * z < radius * radius)


@pytest.mark.parametrize("offset", [0.0, 0.5, 0.9])
def test_hits_have_their_closed_form(offset):
    origin, down_z = torch.tensor([[offset, 0.3, 5.0]]), torch.tensor([[0.0, 0.0, -2.0]])
    ball = depth_in_unit_solid(Shape.ELLIPSOID, origin, down_z, 1.0)
    cylinder = depth_in_unit_solid(Shape.CONE, origin, down_z, 1.0)
    cone = depth_in_unit_solid(Shape.CONE, origin, down_z, 0.5)
    half_chords = [math.sqrt(max(square - offset**2, 0)) for square in (1 - 0.3**2, 1, (0.75 - 0.25 * 0.3) ** 2)]
    expected = [(5 - half) / 2 if half > 0 else 1e30 for half in half_chords]
    torch.testing.assert_close(torch.cat([ball, cylinder, cone]), torch.tensor(expected))
    torch.testing.assert_close(depth_in_unit_solid(Shape.BOX, origin, down_z, 1.0), torch.tensor([2.0]))
    from_above = torch.tensor([[0.4 * offset, 4.0, 0.0]]), torch.tensor([[0.0, -1.0, 0.0]])
    torch.testing.assert_close(depth_in_unit_solid(Shape.CONE, *from_above, 0.5), torch.tensor([3.0]))  # the cap


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("taper", [0.0, 0.4, 1.0])
def test_hits_agree_with_marching_along_the_ray(shape, taper):
    generator = torch.Generator().manual_seed(3)
    origin = 4 * torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=-1)
    target = 3 * torch.rand(400, 3, generator=generator) - 1.5
    direction = torch.nn.functional.normalize(target - origin, dim=-1)
    t = torch.linspace(1.5, 6.5, 8001)
    within = inside(shape, origin[:, None] + t[:, None] * direction[:, None], taper)  # (ray, t)
    length = within.sum(1) * (t[1] - t[0])
    marched = torch.where(within.any(1), t[within.int().argmax(1)], 1e30)
    depth = depth_in_unit_solid(shape, origin, direction, taper)
    clear = (length > 0.01) | (length == 0)  # rays that graze an edge may be told apart either way
    hits = clear & (length > 0)
    assert hits.sum() > 100
    torch.testing.assert_close(depth[hits], marched[hits], atol=1e-3, rtol=0)
    missed = depth[clear & (length == 0)]
    assert len(missed) > 50 and (missed > 1e29).float().mean() > 0.97


@pytest.mark.parametrize("backend", USABLE)
def test_a_ball_covers_the_area_of_its_outline(backend):
    figure = still_life((Shape.ELLIPSOID, (0, 0, 0), (0.4, 0.4, 0.4), (0.2, 0.5, 0.8)))
    rgba = seen_from(figure, [0.0, 77.0], 64, samples=16, backend=backend, elevation=20.0)
    focal = 0.5 / math.tan(math.radians(33.8) / 2)
    area = math.pi * (focal * 0.4) ** 2 / (4 - 0.4**2)  # the tangent cone's section at distance 1
    torch.testing.assert_close(rgba[:, 3].mean((1, 2)), torch.full((2,), area), rtol=3e-3, atol=0)


@pytest.mark.parametrize("backend", USABLE)
def test_sides_are_those_of_the_camera_convention(backend):
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    figure = still_life(
        (Shape.ELLIPSOID, (0.35, 0, 0), (0.1, 0.1, 0.1), red), (Shape.ELLIPSOID, (0, 0.35, 0), (0.1, 0.1, 0.1), blue)
    )
    front, right, back = seen_from(figure, [0.0, 90.0, 180.0], backend=backend)
    red_at = [(picture[0] * picture[3] > 0.2).nonzero().float().mean(0) for picture in (front, right, back)]
    assert red_at[0][1] > 30  # +x is to the right of the camera at azimuth 0
    assert red_at[2][1] < 18  # and to the left from behind
    assert abs(red_at[1][1] - 23.5) < 0.6
    sizes = [(picture[0] * picture[3] > 0.2).sum() for picture in (front, right)]
    assert sizes[1] > 1.2 * sizes[0]  # nearest to the camera at azimuth 90
    assert (front[2] * front[3] > 0.2).nonzero().float().mean(0)[0] < 18  # +y is up


@pytest.mark.parametrize("backend", USABLE)
def test_the_nearer_part_hides_the_farther(backend):
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    figure = still_life((Shape.BOX, (0, 0, 0.3), (0.2, 0.2, 0.05), red), (Shape.CONE, (0, 0, 0), (0.1, 0.1, 0.1), blue))
    front, back = seen_from(figure, [0.0, 180.0], backend=backend)
    assert front[2].max() < 1e-6
    assert back[2, 24, 24] > 0.3 and back[0, 24, 24] < 1e-6


@pytest.mark.parametrize("backend", USABLE)
def test_a_turned_object_under_a_turned_camera_and_light_looks_the_same(backend):
    figure = moving_object(5, "test", "robot")
    angle = math.radians(50)
    turn = np.eye(4)
    turn[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    turned = replace(figure, world_from_root=turn @ figure.world_from_root, light=turn[:3, :3] @ figure.light)
    ours = seen_from(turned, [70.0], backend=backend)
    twin = seen_from(figure, [20.0], backend=backend)
    assert ((ours - twin).abs().amax(1) > 1e-3).float().mean() < 2e-3


def test_colours_do_not_depend_on_the_view():
    """A flat patch that two cameras see has one colour: the light knows the world only."""
    figure = still_life((Shape.BOX, (0, 0, 0), (0.3, 0.3, 0.3), (0.4, 0.6, 0.2)))
    pictures = seen_from(figure, [-20.0, 0.0, 20.0])
    torch.testing.assert_close(pictures[0, :, 24, 24], pictures[1, :, 24, 24])
    torch.testing.assert_close(pictures[2, :, 24, 24], pictures[1, :, 24, 24])


def mismatch(first: torch.Tensor, second: torch.Tensor) -> tuple[float, float]:
    """Share of pixels further apart than 1e-4 in premultiplied colour, and the mean distance of all."""
    apart = (first[:, :3] * first[:, 3:] - second[:, :3] * second[:, 3:]).abs().amax(1)
    apart = torch.maximum(apart, (first[:, 3] - second[:, 3]).abs())
    return (apart > 1e-4).float().mean().item(), apart.mean().item()


@pytest.mark.skipif("native" not in USABLE, reason="no native library")
@pytest.mark.parametrize("family", FAMILIES)
def test_native_equals_reference(family):
    """Exactly but for rounding at edges: there a ray may fall on either side, in at most one pixel in a thousand."""
    cameras = cells(turntable(4, 2, 17.0))
    times = torch.tensor([0.1, 0.8]).repeat(4)
    figure = moving_object(11, "test", family)
    pictures = [render(figure, cameras, times, 40, 52, 4, backend) for backend in ("native", "reference")]
    share, mean = mismatch(*pictures)
    assert share < 1e-3 and mean < 2e-5
    assert pictures[0][:, 3].mean() > 0.01


@pytest.mark.skipif("native" not in USABLE, reason="no native library")
@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("shape", Shape)
def test_native_paints_every_pattern_as_the_reference(shape, pattern):
    sketch = Sketch(np.random.default_rng(0))
    paint = Paint((0.9, 0.2, 0.1), (0.1, 0.7, 0.3), pattern, (1.3, 2.1, -0.7), 0.2)
    sketch.part(0, shape, (0.05, 0, 0.1), (0.3, 0.4, 0.2), paint, 0.3, (0.4, 0.2, 1.0))
    figure = sketch.finish("a sample", np.eye(4), np.array([0.6, 0.8, 0.0]))
    share, mean = mismatch(*(seen_from(figure, [10.0, 200.0], backend=name, elevation=40.0) for name in USABLE))
    assert share < 1e-3 and mean < 2e-5


@pytest.mark.skipif("native" not in USABLE, reason="no native library")
def test_threads_and_sample_counts():
    figure, cameras = moving_object(2), cells(turntable(3, 2))
    times = torch.linspace(0, 1, 6)
    one, many = (render(figure, cameras, times, 33, 21, 5, "native", threads=count) for count in (1, 3))
    assert torch.equal(one, many)
    fine = render(figure, cameras, times, 33, 21, 200, "native")
    assert (one[:, 3] - fine[:, 3]).abs().mean() < 0.02
    offsets = sample_offsets(7)
    assert ((offsets > 0) & (offsets < 1)).all() and len(offsets[:, 1].unique()) == 7


def test_reference_chunks_do_not_show(monkeypatch):
    figure, cameras = moving_object(3), cells(turntable(3, 1))
    whole = render(figure, cameras, torch.zeros(3), 16, 16, 2, "reference")
    monkeypatch.setattr("loom4d.sources.procedural.raycast.RAYS_TIMES_PARTS", 2000)
    assert torch.equal(whole, render(figure, cameras, torch.zeros(3), 16, 16, 2, "reference"))


def test_plain_tensors_stay_on_the_cameras_device():
    """With another default device, whatever is made without naming its own lands there and cannot meet the rest."""
    cameras, times = cells(turntable(2, 1)), torch.zeros(2)
    truth = render(moving_object(3), cameras, times, 16, 16, 2, "reference")
    with torch.device("meta"):
        ours = render(moving_object(3), cameras, times, 16, 16, 2, "reference")
    assert ours.device.type == "cpu" and torch.equal(ours, truth)


def test_a_seed_is_an_object_and_splits_do_not_meet():
    first, again = procedural_grid(8, 2, 2, 24), procedural_grid(8, 2, 2, 24)
    assert torch.equal(first.rgba, again.rgba)
    assert torch.equal(first.cameras.camera_from_world, again.cameras.camera_from_world)
    roots = {
        split: {moving_object(seed, split).world_from_root.tobytes() for seed in range(20)}
        for split in ("train", "valid", "test")
    }
    assert len(set.union(*roots.values())) == 60


def test_version_1_never_changes():
    """Weights say that they were trained on it."""
    known = {
        0: ("a lime excavator lifting and bouncing", 10, 14.832057, 16.72344, 3.473115),
        1: ("an orange pig wobbling and wagging its tail", 33, 12.814909, 44.682437, 2.781862),
        2: ("a white butterfly growing and flapping", 19, 22.202315, 29.27296, 3.718153),
    }
    for seed, (caption, parts, waves, colours, root) in known.items():
        figure = moving_object(seed)
        assert (figure.caption, len(figure.shapes)) == (caption, parts)
        sums = [figure.wave_numbers.sum(), figure.colours.sum(), np.abs(figure.world_from_root).sum()]
        np.testing.assert_allclose(sums, [waves, colours, root], atol=1e-5)


def test_version_2_is_version_1_with_decals_that_stay_on_it():
    decals = quieter = 0
    for seed in range(40):
        plain, figure = moving_object(seed, "test"), moving_object(seed, "test", version=2)
        count = len(plain.shapes)
        assert figure.caption == plain.caption and np.array_equal(figure.joints[:count], plain.joints)
        ratio = figure.wave_numbers[:, 0] / np.where(plain.wave_numbers[:, 0] == 0, 1, plain.wave_numbers[:, 0])
        moving = plain.wave_numbers[:, 0] != 0
        assert np.ptp(ratio[moving]) < 1e-9 and 0.19 < ratio[moving][0] < 1.51
        decals += len(figure.shapes) > count
        quieter += not np.allclose(figure.colours[:count], plain.colours)
        assert np.ptp(figure.colours[:count], axis=-1).mean() < np.ptp(plain.colours, axis=-1).mean() + 1e-9
        points = np.einsum("pij,pnj->pni", figure.joint_from_part[:, :3, :3], surface_points(figure))
        points = points + figure.joint_from_part[:, None, :3, 3]
        for decal in range(count, len(figure.shapes)):
            hosts = [part for part in range(count) if figure.joints[part] == figure.joints[decal]]
            maps = np.linalg.inv(figure.joint_from_part[hosts])  # each host's unit solid from the joint
            local = np.einsum("hij,nj->hni", maps[:, :3, :3], points[decal]) + maps[:, None, :3, 3]
            assert np.abs(local).max((1, 2)).min() < 1.12  # it lies on one of them
    assert 20 < decals < 35 and 10 < quieter < 30
    with pytest.raises(ValueError, match="1, 2"):
        moving_object(0, version=3)


@pytest.mark.skipif("native" not in USABLE, reason="no native library")
def test_native_draws_decals_as_the_reference():
    figures = [moving_object(seed, "test", version=2) for seed in range(6)]
    figure = max(figures, key=lambda one: len(one.shapes))
    share, mean = mismatch(*(seen_from(figure, [10.0, 200.0], backend=name, elevation=20.0) for name in USABLE))
    assert share < 1e-3 and mean < 2e-5


def test_a_grid_is_a_turntable():
    grid = procedural_grid(4, 4, 3, 24)
    assert grid.rgba.shape == (4, 3, 4, 24, 24) and grid.rgba.min() >= 0 and grid.rgba.max() <= 1
    torch.testing.assert_close(grid.times, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(grid.cameras.azimuths_deg()[:, 0], torch.tensor([0.0, 90.0, 180.0, 270.0]))
    elevations = torch.stack([procedural_grid(seed, 1, 1, 4).cameras.elevations_deg()[0, 0] for seed in range(60)])
    assert elevations.min() > -10.01 and elevations.max() < 30.01
    assert 0.4 < ((elevations > 0) & (elevations < 10)).float().mean() < 0.9


def test_objects_fill_the_picture_and_stay_inside():
    for seed in range(40):
        figure = moving_object(seed, "test")
        low, high = bounding_box(figure, np.linspace(0, 1, 33))
        longest = (high - low).max()
        assert longest < 1.001
        np.testing.assert_allclose(low + high, 0, atol=1e-6)
        poses = pose(figure, np.linspace(0, 1, 33))
        points = np.einsum("tpij,pnj->tpni", poses[..., :3, :3], surface_points(figure)) + poses[:, :, None, :3, 3]
        assert longest > 0.899 or np.linalg.norm(points, axis=-1).max() > 0.559
        rgba = seen_from(figure, [0.0, 45.0, 90.0, 135.0], 32, elevation=30.0, samples=2)
        alpha = rgba[:, 3]
        assert max(alpha[:, 0].max(), alpha[:, -1].max(), alpha[..., 0].max(), alpha[..., -1].max()) == 0


def test_bounding_boxes_hold_every_part_and_touch_it():
    figure = moving_object(1, "test", "robot")
    poses = pose(figure, np.array([0.3]))
    low, high = extents(figure, poses)
    rng = np.random.default_rng(0)
    cube = rng.uniform(-1, 1, (4000, 3))
    for part in range(len(figure.shapes)):
        flat = np.linalg.norm(cube[:, [0, 2]], axis=-1)
        radius = (1 + figure.tapers[part]) / 2 + (figure.tapers[part] - 1) / 2 * cube[:, 1]
        if figure.shapes[part] == Shape.ELLIPSOID:
            solid = cube / np.linalg.norm(cube, axis=-1, keepdims=True)
        elif figure.shapes[part] == Shape.BOX:
            solid = np.where(rng.random(cube.shape) < 0.5, np.sign(cube), cube)
        else:
            height = np.where(rng.random(len(cube)) < 0.6, np.sign(cube[:, 1]), cube[:, 1])
            radius = (1 + figure.tapers[part]) / 2 + (figure.tapers[part] - 1) / 2 * height
            solid = np.stack([cube[:, 0] / flat * radius, height, cube[:, 2] / flat * radius], -1)
        world = solid @ poses[0, part, :3, :3].T + poses[0, part, :3, 3]
        size = (high - low)[0, part].max()
        assert (world > low[0, part] - 1e-9).all() and (world < high[0, part] + 1e-9).all()
        assert np.abs(world.min(0) - low[0, part]).max() < 0.05 * size
        assert np.abs(world.max(0) - high[0, part]).max() < 0.05 * size


def test_motion_is_continuous_and_most_objects_move():
    moved = []
    for seed in range(60):
        poses = pose(moving_object(seed, "test"), np.linspace(0, 1, 257))
        steps = np.abs(np.diff(poses, axis=0)).max((1, 2, 3))
        assert steps.max() < 0.06  # of the picture, in 1/256 of the clip
        moved.append(np.linalg.norm(poses[::32, :, :3, 3] - poses[:1, :, :3, 3], axis=-1).max())
    assert 0.8 < np.mean(np.array(moved) > 0.02) < 1
    assert max(moved) > 0.3


def test_a_single_time_is_one_of_many():
    figure = moving_object(9)
    many = figure.world_from_part(torch.tensor([0.0, 0.4, 1.0]))
    torch.testing.assert_close(figure.world_from_part(0.4), many[1])
    assert many.shape == (3, len(figure.shapes), 4, 4)


def test_captions_name_what_is_drawn():
    captions = [describe(moving_object(seed)) for seed in range(120)]
    assert all(caption.startswith(("a ", "an ")) for caption in captions)
    assert sum(any(verb in caption for caption in captions) for verb in MOTIONS) > 0.7 * len(MOTIONS)
    assert len(set(captions)) > 100


def test_errors_name_what_would_have_worked():
    figure, cameras = moving_object(0), cells(turntable(2, 1))
    with pytest.raises(ValueError, match="auto, native, reference"):
        render(figure, cameras, torch.zeros(2), 8, 8, backend="metal")
    with pytest.raises(ValueError, match="one camera per cell"):
        render(figure, cameras, torch.zeros(3), 8, 8)
    with pytest.raises(ValueError, match="train, valid, test"):
        procedural_grid(0, 1, 1, 8, split="held-out")
    with pytest.raises(ValueError, match="person"):
        moving_object(0, family="unicorn")
    assert isinstance(cameras, Cameras)

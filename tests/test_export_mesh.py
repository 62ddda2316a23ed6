"""The mesh of an asset: closed, where the object is, within its budget, and moving as the object does."""

import math
from collections import Counter

import pytest
import torch

from loom4d.cameras import orbit
from loom4d.export.coverage import outlines
from loom4d.export.decimate import decimated
from loom4d.export.mesh import MeshOptions, canonical_mesh, moving_mesh
from loom4d.export.surface import (
    Distance,
    Mesh,
    SurfaceOptions,
    around,
    bounds,
    normals,
    smoothed,
    surface_nets,
    without_crumbs,
)
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.runs import InputError
from moving_assets import Swinging, as_spacetime

COARSE = SurfaceOptions(resolution=36, views=20, picture=96)


def distance_of(shape, side: int = 40, half: float = 1.2) -> Distance:
    """A lattice sample of a signed distance function over a cube."""
    axis = torch.linspace(-half, half, side)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    cell = 2 * half / (side - 1)
    return Distance((shape(points) / (3 * cell)).clamp(-1, 1), torch.full((3,), -half), cell, 3 * cell)


def ball(points: torch.Tensor) -> torch.Tensor:
    return points.norm(dim=-1) - 0.8


def ring(points: torch.Tensor) -> torch.Tensor:
    x, y, z = points.unbind(-1)
    return torch.hypot(torch.hypot(x, z) - 0.7, y) - 0.25


def is_closed(mesh: Mesh) -> bool:
    """Every edge is used as often one way as the other."""
    edges = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    there, back = (Counter(tuple(edge) for edge in pairs.tolist()) for pairs in (edges, edges.flip(1)))
    return there == back


def handles(mesh: Mesh) -> int:
    """Of one closed part: 1 − χ / 2."""
    return 1 - (len(mesh.vertices) - len(mesh.faces) // 2) // 2


def volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, corner]].double() for corner in range(3))
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


@pytest.mark.parametrize(
    ("shape", "genus", "expected"),
    [(ball, 0, 4 / 3 * math.pi * 0.8**3), (ring, 1, 2 * math.pi**2 * 0.7 * 0.25**2)],
)
def test_a_surface_is_closed_outward_and_where_the_distance_is_zero(shape, genus, expected):
    distance = distance_of(shape)
    mesh = surface_nets(distance)
    assert is_closed(mesh) and handles(mesh) == genus
    assert volume(mesh) == pytest.approx(expected, rel=0.03)  # positive: seen from outside counter-clockwise
    assert shape(mesh.vertices).abs().max() < 0.25 * distance.cell
    slope = distance.gradients(mesh.vertices)
    assert (normals(mesh) * slope).sum(-1).min() > 0.8


@pytest.mark.parametrize(("shape", "genus"), [(ball, 0), (ring, 1)])
def test_fewer_triangles_keep_the_shape(shape, genus):
    mesh = smoothed(surface_nets(distance_of(shape)))
    small = decimated(mesh, 600)
    assert len(small.faces) == 600 and is_closed(small) and handles(small) == genus
    assert shape(small.vertices).abs().max() < 0.03
    assert volume(small) == pytest.approx(volume(mesh), rel=0.04)
    assert decimated(mesh, len(mesh.faces)) is mesh


def test_flat_sides_need_few_triangles():
    cube = smoothed(surface_nets(distance_of(lambda points: points.abs().amax(-1) - 0.7)), 1)
    small = decimated(cube, 300)
    assert is_closed(small) and volume(small) == pytest.approx(1.4**3, rel=0.05)
    sides = normals(small).abs().amax(-1)
    assert (small.vertices.abs().amax(-1) - 0.7).abs().max() < 0.05 and sides.median() > 0.5


def test_smoothing_keeps_the_volume_and_takes_the_steps():
    mesh = surface_nets(distance_of(ball, side=30))
    rough = Mesh(
        mesh.vertices + 0.01 * torch.randn(mesh.vertices.shape, generator=torch.Generator().manual_seed(0)), mesh.faces
    )
    assert volume(smoothed(rough)) == pytest.approx(volume(mesh), rel=0.01)
    assert ball(smoothed(rough).vertices).std() < 0.6 * ball(rough.vertices).std()
    flat = torch.ones(len(mesh.vertices), 2)
    torch.testing.assert_close(around(flat, mesh.faces), flat)


def test_crumbs_go_and_large_parts_stay():
    def scene(points):
        small = (points - torch.tensor([1.0, 1.0, 1.0])).norm(dim=-1) - 0.1
        large = (points - torch.tensor([-0.8, 0.8, 0.8])).norm(dim=-1) - 0.3
        return torch.minimum(torch.minimum(points.norm(dim=-1) - 0.5, small), large)

    mesh = without_crumbs(surface_nets(distance_of(scene)), least=0.1)
    assert is_closed(mesh) and mesh.vertices[:, 0].max() < 0.6
    assert len(mesh.vertices) - len(mesh.faces) // 2 == 4  # two balls


@pytest.mark.parametrize("kind", ["carried by its Gaussians", "along velocities"])
def test_the_mesh_moves_as_the_object_does(kind):
    truth = Swinging(800, scale=0.05)
    asset = truth if kind == "carried by its Gaussians" else as_spacetime(truth)
    moving = moving_mesh(asset, MeshOptions(frames=6, most_faces=800, canonical=0.0, surface=COARSE))
    assert moving.vertices.shape[0] == 6 and len(moving.faces) <= 800
    assert all(is_closed(moving.at(frame)) for frame in range(6))
    radius = moving.vertices[0].norm(dim=-1)
    assert radius.std() < 0.03 and radius.mean() == pytest.approx(seen_radius(asset.at(0.0)), rel=0.06)  # a soft ball
    assert moving.times.tolist() == pytest.approx([frame / 5 for frame in range(6)])
    for frame, time in enumerate(moving.times.tolist()):
        away = (moving.vertices[frame] - truth.place(moving.vertices[0], time)).norm(dim=-1)
        assert away.mean() < 0.05, f"at {time}: vertices are {away.mean():.3f} from where the object took them"
    travelled = (moving.vertices[1] - moving.vertices[0]).norm(dim=-1).mean()
    assert travelled > 0.2  # of which the error above is a small part
    assert (moving.colours - (0.5 + 0.5 * moving.vertices[0] / radius[:, None]).clamp(0, 1)).abs().mean() < 0.06


def test_the_outline_is_the_assets_at_every_time():
    asset = Swinging(1500, scale=0.04)
    moving = moving_mesh(asset, MeshOptions(frames=5, most_faces=1500, surface=COARSE))
    camera = orbit(torch.tensor(35.0), 20.0)
    for frame, time in enumerate(moving.times.tolist()):
        mask = rasterize(asset.at(time), camera, RasterOptions(64, 64)).alpha[0] > 0.5
        outline = drawn(moving.at(frame), camera, 64)
        assert (mask & outline).sum() / (mask | outline).sum() > 0.88


def seen_radius(gaussians) -> float:
    """Of a ball around the origin, from its outline's area: a ball is seen under the angle asin(r / distance)."""
    camera = orbit(torch.tensor(0.0), 0.0, radius=8.0, fov_deg=8.0)
    share = float((rasterize(gaussians, camera, RasterOptions(96, 96)).alpha > 0.5).float().mean())
    slope = math.sqrt(share / math.pi) / float(camera.intrinsics[0, 0])
    return 8.0 * math.sin(math.atan(slope))


def drawn(mesh: Mesh, camera, size: int) -> torch.Tensor:
    """Which pixels a mesh covers, by points all over its faces."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(60, len(mesh.faces), 3, generator=draw).add(1e-3)
    weight = weight / weight.sum(-1, keepdim=True)
    points = torch.einsum("pfc,fcx->pfx", weight, mesh.vertices[mesh.faces]).reshape(-1, 3)
    image = (camera.project(points)[0] * size).long().clamp(0, size - 1)
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[image[:, 1], image[:, 0]] = True
    return mask


def test_what_cannot_be_seen_has_no_mesh():
    asset = Swinging(10)
    asset.opacities = torch.zeros(10)
    with pytest.raises(InputError, match="nothing of this asset can be seen"):
        bounds(asset.at(0.0))


def test_what_is_thinner_than_a_cell_keeps_its_outline():
    """A leaf of one layer of Gaussians: its distances alone leave holes, which the outlines in the pictures close."""
    asset = Swinging(2500, scale=0.03)
    asset.means = asset.means * torch.tensor([1.0, 1.0, 0.02])
    asset.opacities = torch.full_like(asset.opacities, 0.95)
    mesh = canonical_mesh(asset, MeshOptions(frames=1, surface=COARSE)).mesh
    cameras = orbit(torch.tensor([0.0, 30.0, 200.0]), 15.0)
    shown = rasterize(asset.at(0.0), cameras, RasterOptions(96, 96)).alpha[:, 0] > 0.5
    outline = outlines(mesh.vertices, mesh.faces, cameras, 96)
    overlap = (outline & shown).sum((1, 2)) / (outline | shown).sum((1, 2))
    assert overlap.min() > 0.93 and is_closed(mesh)

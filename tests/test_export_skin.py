"""Skeletons, textures and the GLB files that hold them: read back by our own reader of 3D models and by others."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from loom4d.cameras import orbit
from loom4d.export.atlas import painted, spread, unrolled
from loom4d.export.coverage import covered, outlines
from loom4d.export.glb import GlbOptions, Texture, jpeg, morphing_glb, skinned_glb, write_glb
from loom4d.export.mesh import MeshOptions, canonical_mesh, moving_mesh
from loom4d.export.skin import skeleton_of, skinned_mesh
from loom4d.export.surface import Mesh, SurfaceOptions, smoothed, surface_nets
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.runs import InputError
from loom4d.sources.assets import read_asset
from loom4d.sources.posing import pose
from loom4d.sources.render import render
from moving_assets import Swinging, bending, spacetime_asset
from test_export_mesh import distance_of, is_closed, ring
from test_export_scenes import validated

OPTIONS = MeshOptions(frames=9, most_faces=800, surface=SurfaceOptions(resolution=40, views=20, picture=112))


@pytest.fixture(scope="module")
def asset():
    return bending(900)


@pytest.fixture(scope="module")
def taken(asset):
    return canonical_mesh(asset, OPTIONS)


@pytest.fixture(scope="module")
def skinned(asset, taken):
    return skinned_mesh(asset, OPTIONS, taken=taken)


@pytest.fixture(scope="module")
def texture(taken):
    atlas = unrolled(taken.mesh, 256)
    return Texture(atlas, jpeg(painted(taken.mesh, atlas, taken.views, 256)))


def test_the_skeleton_moves_as_the_control_points_do(asset, skinned):
    """A point at a joint's rest that only this joint carries goes where the motion's key has it."""
    skeleton = skinned.skeleton
    for key, time in enumerate(skeleton.times.tolist()):
        if time in asset.keys:
            places = asset.points + asset.shifts[asset.keys.index(time)]
            torch.testing.assert_close(skeleton.places[key], places, atol=1e-5, rtol=0)
    matrices = skeleton.matrices()
    carried = (matrices[..., :3] @ skeleton.rest[..., None])[..., 0] + matrices[..., 3]
    torch.testing.assert_close(carried, skeleton.places, atol=1e-6, rtol=0)
    assert ((skeleton.turns[1:] * skeleton.turns[:-1]).sum(-1) > 0).all()


def test_vertices_follow_at_most_four_joints_and_start_as_the_surface(taken, skinned):
    assert skinned.joints.shape == (len(taken.mesh.vertices), 4) and (skinned.weights >= 0).all()
    torch.testing.assert_close(skinned.weights.sum(1), torch.ones(len(skinned.vertices)))
    torch.testing.assert_close(skinned.at(taken.start).vertices, taken.mesh.vertices, atol=1e-5, rtol=0)
    assert all(is_closed(skinned.at(key)) for key in range(9))


def test_fewer_joints_err_more(asset, taken, skinned):
    eight = skinned_mesh(asset, OPTIONS, 8, taken)
    assert eight.joints.shape[1] == 7  # all there are
    assert eight.cut_error < 1e-5 < skinned.cut_error < 0.03


def test_the_skinned_mesh_is_where_the_gaussians_are(asset, skinned):
    camera = orbit(torch.tensor([35.0]), 10.0)
    for key in (0, 2, 5, 8):
        mask = rasterize(asset.at(float(skinned.skeleton.times[key])), camera, RasterOptions(80, 80)).alpha[:, 0] > 0.5
        mesh = skinned.at(key)
        image = outlines(mesh.vertices, mesh.faces, camera, 80)
        assert (mask & image).sum() / (mask | image).sum() > 0.9


@pytest.mark.parametrize("kind", ["skinned", "morph", "skinned textured", "morph textured", "eight"])
def test_another_reader_sees_the_same_motion(kind, asset, taken, skinned, texture, tmp_path):
    """The reader of 3D models, which takes files from anywhere, poses the file as we pose the mesh."""
    paint = texture if "textured" in kind else None
    if kind.startswith("morph"):
        mesh = moving_mesh(asset, OPTIONS, taken)
        content, truth, times = morphing_glb(mesh, paint), mesh.vertices, mesh.times
    else:
        mesh = skinned_mesh(asset, OPTIONS, 8, taken) if kind == "eight" else skinned
        content, times = skinned_glb(mesh, paint), mesh.skeleton.times
        truth = torch.stack([mesh.at(key).vertices for key in range(len(times))])
    (tmp_path / "asset.glb").write_bytes(content)
    read = read_asset(tmp_path / "asset.glb")
    source = texture.atlas.source if paint else torch.arange(truth.shape[1])
    faces = texture.atlas.faces if paint else taken.mesh.faces
    corners = source[faces.reshape(-1)]  # that reader shares no vertex between faces
    for frame, time in enumerate((times - times[0]).tolist()):
        posed = pose(read, "motion", time)
        torch.testing.assert_close(posed.vertices, truth[frame][corners], atol=2e-4, rtol=0)
        assert torch.equal(posed.faces.reshape(-1), torch.arange(len(corners)))
    if kind.startswith("skinned"):  # without its clip a file shows its first instant
        torch.testing.assert_close(pose(read, None, 0.0).vertices, truth[0][corners], atol=2e-4, rtol=0)
        joints = read.parts[0].joints
        assert int(joints.max()) <= 7 and len(read.skins[0].joints) == 8
    issues = validated(content)
    if issues is not None:
        assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


@pytest.mark.parametrize(("keys", "most"), [(9, 0.04), (17, 0.013)])
def test_between_keys_the_file_stays_near_the_motions_curve(keys, most, asset, skinned, tmp_path):
    """Half the step, a quarter of the error: of an object 1 high whose tip swings by a half."""
    mesh = replace(skinned, skeleton=skeleton_of(asset, torch.linspace(0.5, 1.5, keys).tolist()))
    (tmp_path / "asset.glb").write_bytes(skinned_glb(mesh))
    read = read_asset(tmp_path / "asset.glb")
    fine = torch.linspace(0, 1, 2 * keys - 1)
    exact = replace(skinned, skeleton=skeleton_of(asset, (0.5 + fine).tolist()))
    for index in range(1, len(fine), 4):
        truth = exact.at(index).vertices[skinned.faces.reshape(-1)]
        assert (pose(read, "motion", float(fine[index])).vertices - truth).norm(dim=-1).max() < most


def test_the_texture_shows_what_the_gaussians_show(asset, taken, skinned, texture, tmp_path):
    (tmp_path / "asset.glb").write_bytes(skinned_glb(skinned, texture))
    read, camera = read_asset(tmp_path / "asset.glb"), orbit(torch.tensor([35.0, 160.0]), 10.0)
    seconds = taken.times[taken.start] - taken.times[0]
    ours = render(pose(read, "motion", seconds), camera, 96, 96)[0]
    truth = rasterize(asset.at(taken.times[taken.start]), camera, RasterOptions(96, 96))
    both = (ours[:, 3] > 0.99) & (truth.alpha[:, 0] > 0.98)
    assert both.sum() > 1500
    away = (ours[:, :3] - truth.rgb / truth.alpha.clamp_min(0.5)).abs().mean(1)[both]
    assert away.mean() < 0.02


def test_charts_share_no_texel_and_keep_triangles_whole():
    mesh = smoothed(surface_nets(distance_of(ring, side=26)))
    atlas = unrolled(mesh, 512)
    assert torch.equal(atlas.source[atlas.faces], mesh.faces)
    assert float(atlas.uv.min()) >= 0 and float(atlas.uv.max()) <= 1
    texels, owner, weights = covered(atlas.uv[atlas.faces].double().numpy() * 512, 512, 0.02)
    assert len(np.unique(texels)) == len(texels) > 0.3 * 512**2  # none twice, and the page is used
    assert len(np.unique(owner)) > 0.99 * len(mesh.faces)
    np.testing.assert_allclose(weights.sum(1), 1)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    area = torch.linalg.cross(b - a, c - a).norm(dim=-1)
    p, q, r = atlas.uv[atlas.faces].unbind(1)
    flat = ((q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0]).abs()
    stretch = (flat / area) / (flat / area).max()
    assert stretch.median() > 0.7 and stretch.min() > 0.1  # flattened along the axis they face: never edge on


def test_a_part_behind_another_gets_its_own_place():
    """Two plates in front of each other, joined at one end: flattened along their normal they would overlap."""
    left, right = [torch.tensor([[0.0, y, z] for y in (0.0, 1.0) for z in (0.0, 1.0)]) for _ in range(2)]
    vertices = torch.cat([left, right + torch.tensor([0.2, 0.0, 0.0])])
    vertices[5] += torch.tensor([0.0, 0.0, 0.1])
    faces = torch.tensor([[0, 2, 3], [0, 3, 1], [4, 6, 7], [4, 7, 5], [1, 3, 7], [1, 7, 5]])
    atlas = unrolled(Mesh(vertices, faces), 128)
    texels, _, _ = covered(atlas.uv[atlas.faces].double().numpy() * 128, 128, 0.02)
    assert len(np.unique(texels)) == len(texels)


def test_gaps_are_filled_from_their_neighbours():
    picture, there = torch.zeros(3, 40, 40), torch.zeros(40, 40, dtype=torch.bool)
    picture[0, :, :10], picture[2, :, 30:] = 1.0, 1.0
    there[:, :10] = there[:, 30:] = True
    full = spread(picture, there)
    torch.testing.assert_close(full[:, there], picture[:, there])
    assert full[0, 20, 12] > 0.7 > 0.3 > full[0, 20, 27] and full[2, 20, 27] > 0.7
    assert (full[:, ~there].sum(0) > 0.9).all()


def test_jpeg_of_a_texture_is_a_picture():
    with Image.open(io.BytesIO(jpeg(torch.rand(3, 32, 32)))) as image:
        assert image.size == (32, 32) and image.format == "JPEG"


def test_trimesh_reads_the_file(skinned, texture, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    (tmp_path / "asset.glb").write_bytes(skinned_glb(skinned, texture))
    scene = trimesh.load(tmp_path / "asset.glb")
    (mesh,) = scene.geometry.values()
    assert len(mesh.faces) == len(skinned.faces)
    assert mesh.visual.uv.shape == (len(mesh.vertices), 2)
    assert mesh.visual.material.baseColorTexture.size == (256, 256)


def test_what_has_no_skeleton_is_said_and_refused(tmp_path):
    with pytest.raises(InputError, match="control"):
        skinned_mesh(spacetime_asset(50))
    with pytest.raises(InputError, match="4 or 8"):
        skinned_mesh(bending(50), influences=5)
    small = GlbOptions(texture=256, mesh=MeshOptions(frames=2, most_faces=200, surface=OPTIONS.surface))
    assert "no skeleton" in write_glb(Swinging(200), tmp_path / "a.glb", small)
    assert len(read_asset(tmp_path / "a.glb").parts[0].targets) == 1


def test_a_texture_that_is_too_small_is_refused(taken):
    with pytest.raises(InputError, match="64 texels"):
        unrolled(taken.mesh, 32)
    scraps = Mesh(torch.rand(9000, 3), torch.arange(9000).reshape(-1, 3))  # each a chart of its own
    with pytest.raises(InputError, match="charts do not fit into a texture of 64 texels"):
        unrolled(scraps, 64)

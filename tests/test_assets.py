"""3D models: tiny files made here whose poses have a closed form, the rasteriser and its twin, and a real robot."""

import base64
import json
import math
import struct
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loom4d import native
from loom4d.cameras import orbit, turntable
from loom4d.runs import InputError, result_of
from loom4d.sources.assets import asset_grid, fit, read_asset
from loom4d.sources.framing import Config, load
from loom4d.sources.gltf import seen
from loom4d.sources.posing import (
    Channel,
    Mesh,
    Surface,
    cofactor,
    pose,
    rotation_matrix,
    sampled,
    slerp,
    vertex_normals,
)
from loom4d.sources.render import BACKENDS, FAR, projected, render, sampled_texture

ROBOT = Path(__file__).parents[2] / "shared" / "data" / "real" / "robot.glb"
QUARTER = [0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)]  # a quarter turn around z, (x, y, z, w)


class Gltf:
    """Writes a small glTF file: arrays in, accessors out."""

    def __init__(self):
        self.json = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": [], "materials": []}
        self.blob = b""

    def view(self, data):
        self.blob += b"\0" * (-len(self.blob) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data)})
        self.blob += data
        return len(self.json["bufferViews"]) - 1

    def add(self, values, dtype="<f4", **facts):
        array = np.asarray(values, dtype)
        array = array[:, None] if array.ndim == 1 else array
        codes = {"<f4": 5126, "<u2": 5123, "|u1": 5121, "<u4": 5125}
        kind = "MAT4" if array.ndim == 3 else {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}[array.shape[1]]
        self.json["accessors"].append(
            {
                "bufferView": self.view(array.tobytes()),
                "componentType": codes[array.dtype.str],
                "count": len(array),
                "type": kind,
                **facts,
            }
        )
        return len(self.json["accessors"]) - 1

    def mesh(self, vertices, faces, **attributes):
        primitive = {
            "attributes": {"POSITION": self.add(vertices), **attributes},
            "indices": self.add(np.ravel(faces), "<u2"),
        }
        self.json.setdefault("meshes", []).append({"primitives": [primitive]})
        return primitive

    def animate(self, *channels, name="move"):
        """(node, path, times, values[, interpolation])"""
        animation = {"name": name, "channels": [], "samplers": []}
        for node, path, times, values, *kind in channels:
            sampler = {"input": self.add(times), "output": self.add(values), "interpolation": (kind or ["LINEAR"])[0]}
            animation["channels"].append(
                {"sampler": len(animation["samplers"]), "target": {"node": node, "path": path}}
            )
            animation["samplers"].append(sampler)
        self.json.setdefault("animations", []).append(animation)

    def save(self, path):
        if path.suffix == ".gltf":
            uri = "data:application/octet-stream;base64," + base64.b64encode(self.blob).decode()
            self.json["buffers"] = [{"byteLength": len(self.blob), "uri": uri}]
            path.write_text(json.dumps(self.json))
        else:
            self.json["buffers"] = [{"byteLength": len(self.blob)}]
            text = json.dumps(self.json).encode()
            text += b" " * (-len(text) % 4)
            blob = self.blob + b"\0" * (-len(self.blob) % 4)
            body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
            path.write_bytes(b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body)
        return path


TRIANGLE = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def triangle_file(suffix=".glb"):
    file = Gltf()
    file.mesh(TRIANGLE, [0, 1, 2])
    file.json["nodes"] = [{"mesh": 0}]
    return file


# --- reading and posing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_nodes_compose_from_the_root(tmp_path, suffix):
    file = triangle_file()
    file.json["nodes"] = [
        {"mesh": 0, "scale": [2, 2, 2]},
        {"children": [0], "translation": [0, 0, 5], "rotation": QUARTER},
        {"children": [1], "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 10, 0, 0, 1]},
        {"mesh": 0, "translation": [99, 0, 0]},  # not in the scene
    ]
    file.json |= {"scenes": [{"nodes": [2]}], "scene": 0}
    asset = read_asset(file.save(tmp_path / f"x{suffix}"))
    mesh = pose(asset, None, 0.0)
    truth = torch.tensor([[10.0, 0, 5], [10, 2, 5], [8, 0, 5]])
    torch.testing.assert_close(mesh.vertices, truth)
    torch.testing.assert_close(mesh.normals, torch.tensor([[0.0, 0, 1]]).expand(3, 3))
    assert asset.seconds(None) == 0 and not asset.clips


def test_a_turning_node_is_slerped_exactly(tmp_path):
    file = triangle_file()
    file.animate((0, "rotation", [0, 2], [[0, 0, 0, 1], QUARTER]), name="turn")
    asset = read_asset(file.save(tmp_path / "x.glb"))
    assert asset.seconds("turn") == 2
    for time in (-1.0, 0.0, 0.5, 1.3, 2.0, 7.0):
        angle = math.pi / 2 * min(max(time / 2, 0), 1)
        cosine, sine = math.cos(angle), math.sin(angle)
        truth = torch.tensor([[0, 0, 0], [cosine, sine, 0], [-sine, cosine, 0]])
        torch.testing.assert_close(pose(asset, "turn", time).vertices, truth, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="no clip 'jump'; this model has turn"):
        pose(asset, "jump", 0.0)


def test_steps_lines_and_splines():
    times = torch.tensor([0.0, 1.0, 3.0])
    values = torch.tensor([[0.0], [2.0], [-2.0]])[:, None]
    step, line = (Channel(0, "translation", kind, times, values) for kind in ("STEP", "LINEAR"))
    assert [sampled(step, t).item() for t in (-1.0, 0.99, 1.0, 2.9, 3.0, 9.0)] == [0, 0, 2, 2, -2, -2]
    assert [sampled(line, t).item() for t in (-1.0, 0.5, 1.0, 2.0, 9.0)] == [0, 1, 2, 0, -2]
    # A cubic is its own Hermite spline: values and slopes of p(t) = t³ − 2t² + 1 at the keys give p everywhere.
    value, slope = times**3 - 2 * times**2 + 1, 3 * times**2 - 4 * times
    cubic = Channel(0, "translation", "CUBICSPLINE", times, torch.stack([slope, value, slope], 1)[..., None])
    for time in np.linspace(0, 3, 13):
        assert sampled(cubic, float(time)).item() == pytest.approx(time**3 - 2 * time**2 + 1, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_slerp_has_constant_speed_and_takes_the_short_way(seed, s):
    torch.manual_seed(seed)
    start, end = F.normalize(torch.randn(2, 4), dim=1)
    whole = 2 * torch.acos((start * end).sum().abs().clamp(max=1))
    middle = slerp(start, end, s)
    assert middle.norm().item() == pytest.approx(1, abs=1e-4)
    part = 2 * torch.acos((start * middle).sum().abs().clamp(max=1))
    assert part.item() == pytest.approx(s * whole.item(), abs=3e-3)
    matrix = rotation_matrix(middle)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.linalg.det(matrix).item() == pytest.approx(1, abs=1e-5)


def test_a_skin_of_two_joints(tmp_path):
    """An arm along x, its elbow at x = 1: the second joint bends; half-way weights give the mean (linear blending)."""
    file = Gltf()
    vertices = [[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 0.5, 0], [1, 0.5, 0], [2, 0.5, 0]]
    weights = [[255, 0], [128, 127], [0, 255], [255, 0], [128, 127], [0, 255]]
    quads = [[0, 1, 4], [0, 4, 3], [1, 2, 5], [1, 5, 4]]
    influence = {
        "JOINTS_0": file.add([[0, 1, 0, 0]] * 6, "|u1"),
        "WEIGHTS_0": file.add([[*w, 0, 0] for w in weights], "|u1", normalized=True),
        "NORMAL": file.add([[0, 0, 1]] * 6),
    }
    file.mesh(vertices, quads, **influence)
    inverse = np.stack([np.eye(4), np.eye(4)])
    inverse[1, 3, 0] = -1  # column-major: the elbow's joint lies at x = 1
    file.json["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [50, 50, 50]},  # a skinned mesh does not follow its own node
        {"children": [2]},
        {"translation": [1, 0, 0]},
    ]
    file.json["skins"] = [{"joints": [1, 2], "inverseBindMatrices": file.add(inverse)}]
    file.animate((2, "rotation", [0, 1], [[0, 0, 0, 1], QUARTER]), (1, "translation", [0, 1], [[0, 0, 0], [0, 0, 3]]))
    asset = read_asset(file.save(tmp_path / "x.glb"))
    torch.testing.assert_close(pose(asset, "move", 0.0).vertices, torch.tensor(vertices, dtype=torch.float32))
    bent = torch.tensor([[0, 0, 3], [1, 0, 3], [1, 1, 3], [0, 0.5, 3], [1, 0.5, 3], [0.5, 1, 3]], dtype=torch.float32)
    bent[4] = 128 / 255 * torch.tensor([1, 0.5, 3]) + 127 / 255 * torch.tensor([0.5, 0, 3])
    posed = pose(asset, "move", 1.0)
    torch.testing.assert_close(posed.vertices, bent, atol=1e-5, rtol=0)
    torch.testing.assert_close(posed.normals, torch.tensor([[0.0, 0, 1]]).expand(6, 3))


def test_morph_targets_add_up_also_where_they_are_sparse(tmp_path):
    file = Gltf()
    primitive = file.mesh(TRIANGLE, [0, 1, 2])
    whole = file.add([[0, 0, 1]] * 3)
    rows, moved = file.view(struct.pack("<H", 2)), file.view(struct.pack("<3f", 0, 4, 0))
    sparse = {
        "componentType": 5126,
        "count": 3,
        "type": "VEC3",
        "sparse": {"count": 1, "indices": {"bufferView": rows, "componentType": 5123}, "values": {"bufferView": moved}},
    }
    file.json["accessors"].append(sparse)
    primitive["targets"] = [{"POSITION": whole}, {"POSITION": len(file.json["accessors"]) - 1}]
    file.json["meshes"][0]["weights"] = [0.5, 0]
    file.json["nodes"] = [{"mesh": 0}]
    file.animate((0, "weights", [0, 1], [0, 0, 1, 0.5]))
    asset = read_asset(file.save(tmp_path / "x.glb"))
    rest = torch.tensor(TRIANGLE, dtype=torch.float32)
    torch.testing.assert_close(pose(asset, None, 0.0).vertices, rest + torch.tensor([0, 0, 0.5]))
    torch.testing.assert_close(pose(asset, "move", 0.0).vertices, rest)
    half = rest + torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 1, 0.5]])
    torch.testing.assert_close(pose(asset, "move", 0.5).vertices, half)


def test_a_mirrored_node_keeps_its_outside_out(tmp_path):
    file = triangle_file()
    file.json["nodes"] = [{"mesh": 0, "scale": [-1, 1, 1]}]
    mesh = pose(read_asset(file.save(tmp_path / "x.glb")), None, 0.0)
    torch.testing.assert_close(mesh.normals, torch.tensor([[0.0, 0, 1]]).expand(3, 3))
    turned = vertex_normals(mesh.vertices, mesh.faces)
    assert (turned[:, 2] > 0).all()


def test_normals_move_by_the_cofactor():
    torch.manual_seed(0)
    matrix = torch.randn(5, 3, 3)
    torch.testing.assert_close(
        cofactor(matrix), torch.linalg.det(matrix)[:, None, None] * torch.linalg.inv(matrix).mT, atol=1e-4, rtol=1e-4
    )


def test_strips_fans_and_colours(tmp_path):
    file = Gltf()
    square = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    strip = file.mesh(square, [0, 1, 2, 3], COLOR_0=file.add([[255, 0, 0]] * 4, "|u1", normalized=True))
    strip["mode"] = 5
    fan = file.mesh([square[0], square[1], square[3], square[2]], [0, 1, 2, 3])
    fan |= {"mode": 6, "material": 0}
    file.json["meshes"][0]["primitives"] += [fan, {**fan, "mode": 1}]
    factor = {"baseColorFactor": [0.5, 0.0, 1.0, 1.0]}
    file.json["materials"] = [{"pbrMetallicRoughness": factor, "extensions": {"KHR_materials_unlit": {}}}]
    file.json["extensionsUsed"] = ["KHR_materials_unlit"]
    file.json["nodes"] = [{"mesh": 0}]
    mesh = pose(read_asset(file.save(tmp_path / "x.gltf")), None, 0.0)
    assert len(mesh.faces) == 4
    normals = vertex_normals(mesh.vertices, mesh.faces)
    assert (normals[:, 2] > 0).all()  # every second triangle of a strip is turned back
    torch.testing.assert_close(mesh.colours[0], torch.tensor([1.0, 0, 0, 1]))
    assert mesh.surfaces[0].unlit and not mesh.surfaces[1].unlit
    assert mesh.surfaces[0].colour == pytest.approx((0.7354, 0, 1, 1), abs=1e-3)  # linear 0.5 is seen as 188 / 255
    torch.testing.assert_close(
        seen(torch.tensor([0.0, 0.002, 1.0])), torch.tensor([0, 0.02584, 1.0]), atol=1e-5, rtol=0
    )


def test_obj_with_its_colours(tmp_path):
    (tmp_path / "x.mtl").write_text("newmtl red\nKd 1 0 0\nnewmtl glass\nKd 0 0 1\nd 0.25\n")
    (tmp_path / "x.obj").write_text(
        "# a square and a triangle\nmtllib x.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0.25 0.75\nvn 0 0 1\n"
        "usemtl red\nf 1/1/1 2/1/1 3/1/1 4/1/1\nusemtl glass\nf -4 -3 -2\n"
    )
    asset = read_asset(tmp_path / "x.obj")
    mesh = pose(asset, None, 0.0)
    assert len(mesh.faces) == 3
    colours = [mesh.surfaces[i].colour for i in mesh.surface_of_face.tolist()]
    assert colours == [(1, 0, 0, 1), (1, 0, 0, 1), (0, 0, 1, 0.25)]
    torch.testing.assert_close(mesh.normals[mesh.faces.unique()][:, 2], torch.ones(len(mesh.faces.unique())))
    assert mesh.uv[mesh.faces[0, 0]].tolist() == [0.25, 0.25]  # v points down in pictures
    area = vertex_normals(mesh.vertices, mesh.faces[:2])[:, 2].sum() / 6  # each face's doubled area three times
    assert area.item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.glb", b"", "not a glTF file"),
        ("x.glb", b"glTF\2\0\0\0\xff\0\0\0", "truncated"),
        ("x.gltf", b"{]", "not a glTF file"),
        ("x.gltf", b"{}", "holds no triangles"),
        ("x.gltf", b'{"nodes": [{"mesh": 3}]}', "damaged"),
        ("x.gltf", b'{"extensionsRequired": ["KHR_draco_mesh_compression"]}', "KHR_draco_mesh_compression"),
        ("x.gltf", b'{"buffers": [{"uri": "away.bin"}]}', "away.bin"),
        ("x.gltf", b'{"buffers": [{"uri": "../../secret.bin"}]}', "outside of its folder"),
        ("x.obj", b"v 1 2\nf 1 2 3\n", "f 1 2 3"),
        ("x.obj", b"hello\n", "without faces"),
        ("x.stl", b"solid", "no 3D model; known are .glb, .gltf, .obj"),
    ],
)
def test_bad_models_are_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_asset(tmp_path / name)
    assert words in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)


def test_truncated_and_flipped_files_end_in_one_line(tmp_path):
    file = triangle_file()
    file.animate((0, "rotation", [0, 2], [[0, 0, 0, 1], QUARTER]))
    whole = file.save(tmp_path / "x.glb").read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(150):
        data = bytearray(whole)
        if trial % 3:
            data[rng.integers(len(data))] = rng.integers(256)
        else:
            data = data[: rng.integers(len(data))]
        (tmp_path / "y.glb").write_bytes(data)
        try:
            asset_grid(tmp_path / "y.glb", views=1, frames=1, resolution=4, samples=1)
        except InputError as error:
            assert "\n" not in str(error)


# --- rendering -----------------------------------------------------------------------------------------------------


def plain_mesh(vertices, faces, **surface):
    vertices = torch.as_tensor(vertices, dtype=torch.float32)
    faces = torch.as_tensor(faces)
    return Mesh(
        vertices,
        F.normalize(vertex_normals(vertices, faces), dim=-1),
        torch.ones(len(vertices), 4),
        vertices[:, :2] * torch.tensor([1.0, -1.0]) + 0.5,
        faces,
        torch.zeros(len(faces), dtype=torch.long),
        (Surface(**{"colour": (1.0, 1.0, 1.0, 1.0), "unlit": True, **surface}),),
    )


def square_mesh(half=0.25, z=0.0, **surface):
    corners = [[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]]
    return plain_mesh(corners, [[0, 1, 2], [0, 2, 3]], **surface)


def random_mesh(seed, faces=60):
    torch.manual_seed(seed)
    centres = torch.rand(faces, 1, 3) * 0.8 - 0.4
    vertices = (centres + 0.3 * (torch.rand(faces, 3, 3) - 0.5)).reshape(-1, 3)
    mesh = plain_mesh(vertices, torch.arange(3 * faces).reshape(-1, 3))
    return replace(mesh, colours=torch.cat([torch.rand(3 * faces, 3), torch.ones(3 * faces, 1)], 1))


@pytest.mark.skipif(native.load() is None, reason="no native library")
@pytest.mark.parametrize("seed", range(3))
def test_native_visibility_equals_its_twin(seed):
    mesh = random_mesh(seed)
    cameras = orbit(torch.tensor([0.0, 77.0, 200.0]), 20.0)
    points, faces = projected(mesh, cameras, 40, 56)
    beyond = torch.zeros(3, 40, 56, dtype=torch.float64)
    for _ in range(2):  # the second round looks behind the first
        ours, truth = (BACKENDS[name](points, faces, beyond) for name in ("native", "reference"))
        assert torch.equal(ours.face, truth.face) and (truth.face >= 0).float().mean() > 0.02
        torch.testing.assert_close(ours.depth, truth.depth, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.weights, truth.weights, rtol=1e-7, atol=1e-9)
        beyond = torch.where(truth.face >= 0, truth.depth * (1 + 1e-9), FAR)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_square_has_its_exact_place_size_and_depth(backend):
    if backend == "native" and native.load() is None:
        pytest.skip("no native library")
    cameras = orbit(torch.zeros(1))
    rgba, depth = render(square_mesh(0.25, z=0.5), cameras, 64, 64, 4, backend)
    side = 0.5 / (2 * 1.5 * math.tan(math.radians(33.8 / 2)))  # of the picture, at distance 1.5
    assert rgba[0, 3].mean().item() == pytest.approx(side**2, rel=0.02)
    assert (rgba[0, :3, rgba[0, 3] > 0] > 0.999).all()
    torch.testing.assert_close(depth[0][rgba[0, 3] > 0], torch.tensor(1.5).expand(int((rgba[0, 3] > 0).sum())))
    assert (depth[0][rgba[0, 3] == 0] == 0).all()
    torch.testing.assert_close(rgba[0, 3], rgba[0, 3].flip(0), atol=0.3, rtol=0)


def test_attributes_are_interpolated_in_space_not_in_the_picture():
    """Colour is the x coordinate of a plane that recedes: each pixel shows the x of the point that its ray meets."""
    mesh = plain_mesh(
        [[-0.5, -0.5, 0.5], [0.5, -0.5, -0.5], [0.5, 0.5, -0.5], [-0.5, 0.5, 0.5]], [[0, 1, 2], [0, 2, 3]]
    )
    ramp = (mesh.vertices[:, :1] + 0.5).expand(4, 3)
    mesh = replace(mesh, colours=torch.cat([ramp, torch.ones(4, 1)], 1))
    cameras = orbit(torch.zeros(1))
    rgba, depth = render(mesh, cameras, 48, 48, 1)
    origin, rays = cameras.rays(48, 48)
    distance = -(origin[0, 0] + origin[0, 2]) / (rays[0, ..., 0] + rays[0, ..., 2])  # to the plane x + z = 0
    point = origin[0] + distance[..., None] * rays[0]
    hit = rgba[0, 3] > 0
    torch.testing.assert_close(rgba[0, 0][hit], point[..., 0][hit] + 0.5, atol=1e-4, rtol=0)
    torch.testing.assert_close(depth[0][hit], (2 - point[..., 2])[hit], atol=1e-4, rtol=0)


def test_backs_are_seen_only_of_double_sided_surfaces():
    for double_sided in (False, True):
        rgba, _ = render(square_mesh(double_sided=double_sided), orbit(torch.tensor([0.0, 180.0])), 16, 16)
        assert rgba[0, 3].max() == 1 and rgba[1, 3].max() == float(double_sided)


def test_glass_blends_front_to_back_and_masks_cut():
    red = square_mesh(0.25, 0.0, colour=(1.0, 0.0, 0.0, 1.0))
    glass = square_mesh(0.25, 0.3, colour=(0.0, 0.0, 1.0, 0.25), opacity="blend")
    both = Mesh(
        *(torch.cat([getattr(red, name), getattr(glass, name)]) for name in ("vertices", "normals", "colours", "uv")),
        torch.cat([red.faces, glass.faces + 4]),
        torch.tensor([0, 0, 1, 1]),
        (*red.surfaces, *glass.surfaces),
    )
    rgba, depth = render(both, orbit(torch.tensor([0.0, 180.0])), 16, 16, 2)
    torch.testing.assert_close(rgba[0, :, 8, 8], torch.tensor([0.75, 0, 0.25, 1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(rgba[1, :, 8, 8], torch.tensor([1.0, 0, 0, 1]), atol=1e-5, rtol=0)
    assert depth[0, 8, 8].item() == pytest.approx(2)  # glass is looked through
    texture = torch.ones(1, 2, 4)
    texture[0, 0, 3] = 0.3  # the left half is cut out
    for cutoff, left in ((0.5, 0.0), (0.2, 1.0)):
        masked = square_mesh(0.5, texture=texture, opacity="mask", cutoff=cutoff)
        rgba, _ = render(masked, orbit(torch.zeros(1)), 32, 32, 1)
        assert rgba[0, 3, 16, 9].item() == left and rgba[0, 3, 16, 22].item() == 1


def test_textures_are_bilinear_and_repeat():
    torch.manual_seed(0)
    texture = torch.rand(3, 5, 4)
    y, x = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
    centres = torch.stack([(x + 0.5) / 5, (y + 0.5) / 3], -1).reshape(-1, 2)
    for shift in (0, 1, -2):
        torch.testing.assert_close(sampled_texture(texture, centres + shift), texture.reshape(-1, 4), atol=1e-5, rtol=0)
    between = sampled_texture(texture, torch.tensor([[0.2, 0.5], [0.0, 0.5]]))
    torch.testing.assert_close(between[0], (texture[1, 0] + texture[1, 1]) / 2)
    torch.testing.assert_close(between[1], (texture[1, 4] + texture[1, 0]) / 2)


def test_a_textured_glb_shows_its_picture_upright(tmp_path):
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    buffer = BytesIO()
    Image.fromarray(np.kron(pixels, np.ones((16, 16, 1), np.uint8))).save(buffer, "PNG")
    file = Gltf()
    uv = file.add([[0, 1], [1, 1], [1, 0], [0, 0]])
    square = [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]
    file.mesh(square, [[0, 1, 2], [0, 2, 3]], TEXCOORD_0=uv)["material"] = 0
    file.json["images"] = [{"bufferView": file.view(buffer.getvalue()), "mimeType": "image/png"}]
    file.json["textures"] = [{"source": 0}]
    file.json["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}, "extensions": {"KHR_materials_unlit": {}}}
    ]
    file.json["nodes"] = [{"mesh": 0}]
    grid = asset_grid(file.save(tmp_path / "x.glb"), views=1, resolution=32)
    picture = grid.rgba[0, 0, :3]
    seen_colours = [picture[:, y, x].round().tolist() for y, x in ((10, 10), (10, 21), (21, 10), (21, 21))]
    assert seen_colours == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_light_comes_from_above_and_is_the_same_from_all_sides():
    up = plain_mesh([[-1, 0, 1], [1, 0, 1], [0, 0, -1]], [[0, 1, 2]], unlit=False)
    down = plain_mesh([[-1, 0, 1], [0, 0, -1], [1, 0, 1]], [[0, 1, 2]], unlit=False)
    above = [
        render(m, orbit(torch.tensor([0.0, 90.0]), e), 8, 8)[0][:, 0, 4, 4] for m, e in ((up, 60.0), (down, -60.0))
    ]
    assert above[0][0] == pytest.approx(above[0][1].item(), abs=1e-5) and above[0][0] > 1.5 * above[1][0]


# --- grids ---------------------------------------------------------------------------------------------------------


def test_the_object_is_normalised_over_the_whole_clip(tmp_path):
    file = triangle_file()
    file.animate((0, "translation", [0, 1], [[0, 0, 0], [3, 0, 0]]))
    path = file.save(tmp_path / "x.glb")
    scale, centre = fit(read_asset(path), "move")
    torch.testing.assert_close(centre, torch.tensor([2, 0.5, 0]))  # the box spans 0..4 × 0..1
    assert scale == pytest.approx(0.25)
    grid = asset_grid(path, views=4, frames=3, resolution=48)
    assert (grid.views, grid.frames) == (4, 3) and grid.times.tolist() == [0, 0.5, 1]
    torch.testing.assert_close(grid.cameras.camera_from_world, turntable(4, 3).camera_from_world)
    assert max(grid.rgba[..., 3][..., i].max().item() for i in (0, -1)) == 0  # nothing leaves the picture
    columns = grid.rgba[0, :, 3].sum(1).argmax(-1)
    assert columns[0] < columns[1] < columns[2]


def test_a_model_without_motion_is_a_turntable(tmp_path):
    path = triangle_file().save(tmp_path / "x.glb")
    grid = result_of(load(path, 8, 16, Config(views=3)))
    assert (grid.views, grid.frames) == (3, 1) and grid.times.tolist() == [0]
    file = triangle_file()
    file.animate((0, "translation", [0, 1], [[0, 0, 0], [0, 2, 0]]))
    path = file.save(tmp_path / "y.glb")
    assert result_of(load(path, 5, 16, Config(views=2))).rgba.shape == (2, 5, 4, 16, 16)
    assert result_of(load(path, 5, 16, Config(kind="orbit"))).rgba.shape == (5, 1, 4, 16, 16)
    with pytest.raises(InputError, match=r"y\.glb: no clip 'jump'"):
        result_of(load(path, 5, 16, Config(clip="jump")))


@pytest.mark.skipif(not ROBOT.exists(), reason="the real model is not on this machine")
def test_a_real_robot_jumps():
    asset = read_asset(ROBOT)
    assert len(asset.clips) == 14 and len(asset.skins[0].joints) == 43
    grid = asset_grid(ROBOT, "Robot_Jump", views=4, frames=5, resolution=48)
    assert grid.rgba.shape == (4, 5, 4, 48, 48)
    alpha = grid.rgba[:, :, 3]
    assert max(alpha[..., i].max().item() for i in (0, -1)) == 0 and alpha[..., 0, :].max() == 0
    lowest = (alpha[0] > 0.5).any(-1).float().flip(-1).argmax(-1)  # rows of air below the feet
    assert lowest.max() - lowest[0] >= 5
    front, back = grid.rgba[0, 0], grid.rgba[2, 0].flip(-1)
    assert (front[3] - back[3]).abs().mean() < 0.05  # outlines from behind are those from the front, mirrored (nearly)
    dark = ((front[:3].amax(0) < 0.4) & (front[3] > 0.9)).sum()
    assert dark > 20 and ((back[:3].amax(0) < 0.4) & (back[3] > 0.9)).sum() < dark / 3  # the eyes look to the front

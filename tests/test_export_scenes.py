"""GLB and USD files, read back by other readers: the mesh, its colours and its motion are what was written."""

import json
import re
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from loom4d.cameras import orbit
from loom4d.cli import main
from loom4d.export import FORMATS, export
from loom4d.export.glb import GlbOptions, linear_rgb, morphing_glb
from loom4d.export.mesh import MeshOptions, MovingMesh
from loom4d.export.surface import SurfaceOptions
from loom4d.export.usd import UsdOptions, write_usd
from loom4d.export.video import OrbitOptions
from loom4d.gaussians.asset import motion_name, save_asset
from loom4d.gaussians.gaussians import Gaussians
from loom4d.gaussians.motion import MOTIONS
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.runs import InputError
from moving_assets import Swinging, bending, spacetime_asset, waving

TINY = MeshOptions(frames=3, most_faces=300, surface=SurfaceOptions(resolution=20, views=10, picture=48))


def tetrahedron(frames: int) -> MovingMesh:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    path = vertices + torch.randn(frames, 4, 3, generator=torch.Generator().manual_seed(0))
    return MovingMesh(0.5 + torch.arange(frames) / 4, path, faces, torch.rand(4, 3))


class ReadGlb:
    """The few parts of glTF 2.0 that a moving mesh uses."""

    def __init__(self, data: bytes):
        magic, version, length, json_length, json_kind = struct.unpack_from("<IIIII", data)
        assert (magic, version, length, json_kind) == (0x46546C67, 2, len(data), 0x4E4F534A)
        self.document = json.loads(data[20 : 20 + json_length])
        size, kind = struct.unpack_from("<II", data, 20 + json_length)
        assert kind == 0x004E4942
        self.binary = data[28 + json_length : 28 + json_length + size]

    def array(self, index: int) -> np.ndarray:
        accessor = self.document["accessors"][index]
        view = self.document["bufferViews"][accessor["bufferView"]]
        dtype = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[accessor["componentType"]]
        columns = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        values = np.frombuffer(self.binary, dtype, accessor["count"] * columns, view["byteOffset"])
        values = values.reshape(-1, columns)
        if "min" in accessor:
            np.testing.assert_array_equal(values.min(0), np.array(accessor["min"], "<f4"))
            np.testing.assert_array_equal(values.max(0), np.array(accessor["max"], "<f4"))
        return values / 65535 if accessor.get("normalized") else values

    def vertices_at(self, time: float) -> np.ndarray:
        """As an engine plays it: weights between key times, targets added to the base."""
        primitive = self.document["meshes"][0]["primitives"][0]
        vertices = self.array(primitive["attributes"]["POSITION"]).astype(np.float64)
        if "animations" not in self.document:
            return vertices
        sampler = self.document["animations"][0]["samplers"][0]
        times = self.array(sampler["input"])[:, 0]
        weights = self.array(sampler["output"]).reshape(len(times), -1)
        for target, column in zip(primitive["targets"], weights.T, strict=True):
            vertices += np.interp(time, times, column) * self.array(target["POSITION"])
        return vertices


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_glb_moves_through_every_instant_and_straight_between(frames):
    mesh = tetrahedron(frames)
    read = ReadGlb(morphing_glb(mesh))
    primitive = read.document["meshes"][0]["primitives"][0]
    np.testing.assert_array_equal(read.array(primitive["indices"]).reshape(-1, 3), mesh.faces.numpy())
    for frame in range(frames):
        time = float(mesh.times[frame] - mesh.times[0])  # a clip of its own starts at 0
        np.testing.assert_allclose(read.vertices_at(time), mesh.vertices[frame].numpy(), atol=1e-6)
    if frames > 1:
        middle = mesh.vertices[:2].mean(0)
        np.testing.assert_allclose(read.vertices_at(0.125), middle.numpy(), atol=1e-6)
    colour = read.array(primitive["attributes"]["COLOR_0"])
    np.testing.assert_allclose(colour[:, :3], linear_rgb(mesh.colours.double().numpy()), atol=1e-5)
    assert (colour[:, 3] == 1).all()
    assert [view["byteOffset"] % 4 for view in read.document["bufferViews"]] == [0] * len(read.document["bufferViews"])


def test_displayed_colours_become_amounts_of_light():
    np.testing.assert_allclose(linear_rgb(np.array([0.0, 0.5, 1.0])), [0, 0.21404114, 1], atol=1e-7)


VALIDATE = """
const report = require("gltf-validator").validateBytes(new Uint8Array(require("fs").readFileSync(0)));
report.then((found) => console.log(JSON.stringify(found.issues)));
"""


def validated(content: bytes) -> dict | None:
    """What npm's gltf-validator says of a file; None where node does not find it (NODE_PATH)."""
    if shutil.which("node") is None:
        return None
    if subprocess.run(["node", "-e", "require('gltf-validator')"], capture_output=True).returncode:
        return None
    found = subprocess.run(["node", "-e", VALIDATE], input=content, capture_output=True, check=True)
    return json.loads(found.stdout)


@pytest.mark.parametrize("frames", [1, 3])
def test_the_khronos_validator_finds_nothing(frames):
    issues = validated(morphing_glb(tetrahedron(frames)))
    if issues is None:
        pytest.skip("no gltf-validator in node's path")
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


@pytest.mark.parametrize("asset", [spacetime_asset(250), Swinging(250)], ids=["4d", "other"])
@pytest.mark.parametrize("suffix", [".usdc", ".usdz"])
def test_usd_splats_draw_the_asset_at_every_time(asset, suffix, tmp_path):
    usd = pytest.importorskip("pxr.Usd")
    vol = pytest.importorskip("pxr.UsdVol")
    path = tmp_path / f"asset{suffix}"
    write_usd(asset, path, UsdOptions(frames=3, fps=10.0))
    stage = usd.Stage.Open(str(path))
    (prim,) = [one for one in stage.Traverse() if one.IsA(vol.ParticleField3DGaussianSplat)]
    splats = vol.ParticleField3DGaussianSplat(prim)
    start, end = asset.time_range
    assert stage.GetDefaultPrim().GetPath() == "/Asset"
    assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, pytest.approx((end - start) * 10))
    camera = orbit(torch.tensor(40.0), 20.0)
    for part in (0.0, 0.5, 1.0):
        code = part * (end - start) * 10
        numbers = lambda attribute, code=code: torch.tensor(np.array(attribute.Get(code)))  # noqa: E731
        quaternions = [[q.GetReal(), *q.GetImaginary()] for q in splats.GetOrientationsAttr().Get(code)]
        read = Gaussians(
            numbers(splats.GetPositionsAttr()),
            torch.tensor(quaternions),
            numbers(splats.GetScalesAttr()).log(),
            numbers(splats.GetOpacitiesAttr()),
            numbers(splats.GetRadianceSphericalHarmonicsCoefficientsAttr())[:, None],
        )
        assert splats.GetRadianceSphericalHarmonicsDegreeAttr().Get() == 0
        ours = rasterize(read, camera, RasterOptions(48, 48))
        truth = rasterize(asset.at(start + part * (end - start)), camera, RasterOptions(48, 48))
        torch.testing.assert_close(ours.premultiplied, truth.premultiplied, rtol=1e-3, atol=1e-4)


def test_a_usd_mesh_has_moving_points_and_fixed_faces(tmp_path):
    usd = pytest.importorskip("pxr.Usd")
    geom = pytest.importorskip("pxr.UsdGeom")
    write_usd(Swinging(400), tmp_path / "mesh.usda", UsdOptions(content="mesh", mesh=TINY))
    stage = usd.Stage.Open(str(tmp_path / "mesh.usda"))
    mesh = geom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    points = [np.array(mesh.GetPointsAttr().Get(code)) for code in (0, 12, 24)]
    assert points[0].shape == points[1].shape and np.abs(points[1] - points[0]).max() > 0.01
    faces = np.array(mesh.GetFaceVertexIndicesAttr().Get())
    assert not mesh.GetFaceVertexIndicesAttr().ValueMightBeTimeVarying()
    assert faces.max() == len(points[0]) - 1 and len(faces) == 3 * len(mesh.GetFaceVertexCountsAttr().Get())


def test_what_usd_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="USD files end in"):
        write_usd(Swinging(5), tmp_path / "a.fbx")


SMALL = {
    **{name: {"seconds": 0.2, "fps": 10, "size": 16} for name in ("mp4", "webp", "gif")},
    "glb": {"mesh": TINY, "texture": 128},
    "glb-morph": {"mesh": TINY, "texture": 0},
    "usd": {"frames": 2},
    "ply": {"frames": 2},
    "splatv": {},
    "grid": {"views": 2, "frames": 2, "size": 16},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_an_asset_and_nothing_else(name, tmp_path):
    if name == "usd":
        pytest.importorskip("pxr.UsdVol")
    chosen = FORMATS[name]
    path = tmp_path / f"asset{chosen.suffix}"
    export(spacetime_asset(400), path, name, chosen.options(**SMALL[name]))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.is_dir() == (chosen.suffix == "")
    with pytest.raises(TypeError, match=f"takes {chosen.options.__name__}"):
        export(spacetime_asset(5), path, name, object())


MOVING = {
    "spacetime": lambda: spacetime_asset(300),
    "controlled": lambda: bending(300),
    "deformed": lambda: waving(300),
}


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_offered_for_just_the_motions_that_it_can_hold(name, motion, tmp_path):
    """Whatever it says that it can hold is written; whatever it refuses it cannot write, even when it is made to."""
    chosen, path = FORMATS[name], tmp_path / f"asset{FORMATS[name].suffix}"
    asset, options = MOVING[motion](), chosen.options(**SMALL[name])
    assert motion_name(asset) == motion
    reason = chosen.refusal(motion)
    if not reason:
        export(asset, path, name, options)
        assert path.exists()
        return
    with pytest.raises(InputError, match=re.escape(reason)):
        export(asset, path, name, options)
    if not chosen.missing():
        with pytest.raises((TypeError, AttributeError)):
            chosen.write(asset, path, options)
    assert not path.exists()


def test_an_extra_that_is_not_installed_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pxr", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "loom4d[usd]" in FORMATS["usd"].refusal("controlled")
    with pytest.raises(InputError, match=r"loom4d\[usd\]"):
        write_usd(bending(20), tmp_path / "asset.usdc")


def test_values_out_of_range_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"mesh\.surface\.resolution is 3; it takes 4 to 256"):
        export(
            bending(20), tmp_path / "a.glb", "glb", GlbOptions(mesh=MeshOptions(surface=SurfaceOptions(resolution=3)))
        )
    with pytest.raises(InputError, match="size is 100000; it takes 2 to 4096"):
        export(bending(20), tmp_path / "a.gif", "gif", OrbitOptions(size=100_000))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="mp4, webp"):
        export(spacetime_asset(5), tmp_path / "asset", "fbx")


def test_the_command_takes_each_formats_options_and_says_what_it_wrote(tmp_path, capsys):
    save_asset(bending(200), tmp_path / "asset.safetensors")
    small = [
        "--options.mesh.frames",
        "2",
        "--options.mesh.most-faces",
        "200",
        "--options.mesh.surface.resolution",
        "20",
    ]
    main(["export", str(tmp_path), "--to", "glb", "--options.texture", "0", *small])
    assert "200 triangles on 7 joints, 4 a vertex" in capsys.readouterr().out
    assert (tmp_path / "export" / "asset.glb").exists()
    for arguments, says in (
        ([str(tmp_path), "--to", "fbx"], "the formats are"),
        ([str(tmp_path / "none"), "--to", "glb"], "give the folder of a finished run"),
        ([str(tmp_path), "--to", "splatv"], "it holds spacetime motion only, and this asset's is controlled"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["export", *arguments])
        assert left.value.code == 2 and says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--to", "usd", "--help"])
    listed = capsys.readouterr().out
    assert "--options.content" in listed and "--options.texture" not in listed

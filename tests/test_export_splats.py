"""PLY sequences, .splatv and picture grids, each read back by a reader written from the format's description."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from loom4d.cameras import Cameras, from_blender, orbit, turntable
from loom4d.export import export
from loom4d.export.ply import PlyOptions, half_turn, sample_times, write_ply_sequence
from loom4d.export.splatv import SplatvOptions, write_splatv
from loom4d.export.transforms import TransformsOptions, write_asset_transforms, write_transforms
from loom4d.gaussians.asset import render
from loom4d.gaussians.gaussians import Gaussians, quaternions_of, rotations, sh_of
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.runs import InputError
from moving_assets import Swinging, spacetime_asset


def read_ply(path) -> dict[str, np.ndarray]:
    """Any binary little-endian PLY of one float element."""
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    assert lines[0] == "ply" and "format binary_little_endian 1.0" in lines
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[2])
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return {name: table[:, index] for index, name in enumerate(names)}


def gaussians_of(columns: dict[str, np.ndarray]) -> Gaussians:
    stack = lambda *names: torch.from_numpy(np.stack([columns[name] for name in names], -1))  # noqa: E731
    rest = sum(name.startswith("f_rest_") for name in columns) // 3
    per_channel = [[f"f_dc_{c}", *(f"f_rest_{c * rest + k}" for k in range(rest))] for c in range(3)]
    return Gaussians(
        stack("x", "y", "z"),
        stack(*(f"rot_{i}" for i in range(4))),
        stack(*(f"scale_{i}" for i in range(3))),
        torch.sigmoid(torch.from_numpy(columns["opacity"].copy())),
        torch.stack([stack(*names) for names in per_channel], -1),
    )


@pytest.mark.parametrize("asset", [spacetime_asset(150, harmonics=2, degree=3), Swinging(100)], ids=["4d", "other"])
def test_a_ply_sequence_shows_the_asset_at_every_instant(asset, tmp_path):
    write_ply_sequence(asset, tmp_path / "frames", PlyOptions(frames=3, y_down=False))
    times = json.loads((tmp_path / "frames" / "times.json").read_text())["seconds"]
    assert times == pytest.approx(np.linspace(*asset.time_range, 3))
    camera = orbit(torch.tensor(40.0), 20.0)
    for index, time in enumerate(times):
        columns = read_ply(tmp_path / "frames" / f"frame_{index:04}.ply")
        assert list(columns)[:6] == ["x", "y", "z", "nx", "ny", "nz"] and list(columns)[-1] == "rot_3"
        read = rasterize(gaussians_of(columns), camera, RasterOptions(48, 48))
        truth = rasterize(asset.at(time), camera, RasterOptions(48, 48))
        torch.testing.assert_close(read.premultiplied, truth.premultiplied, rtol=1e-3, atol=1e-3)


def test_half_a_turn_of_the_world_is_half_a_turn_of_the_camera():
    gaussians = spacetime_asset(150, degree=3).at(1.5)
    camera = orbit(torch.tensor([40.0]), 20.0)
    turned = Cameras(camera.camera_from_world @ torch.diag(torch.tensor([-1.0, -1, 1, 1])), camera.intrinsics)
    ours, truth = (
        rasterize(scene, view, RasterOptions(48, 48))
        for scene, view in ((half_turn(gaussians), turned), (gaussians, camera))
    )
    torch.testing.assert_close(ours.premultiplied, truth.premultiplied, rtol=1e-3, atol=1e-4)


def test_times_reach_both_ends():
    assert sample_times((1.0, 2.0), 4.0, None) == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert sample_times((1.0, 1.0), 24.0, None) == [1.0] == sample_times((1.0, 2.0), 24.0, 1)
    with pytest.raises(InputError, match="positive rate"):
        sample_times((0.0, 1.0), 0.0, None)


def test_splatv_moves_as_the_asset_does(tmp_path):
    asset = spacetime_asset(1500)
    write_splatv(asset, tmp_path / "clip.splatv", SplatvOptions(azimuth_deg=30.0, size=64))
    data = (tmp_path / "clip.splatv").read_bytes()
    magic, length = struct.unpack_from("<II", data)
    (chunk,) = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    assert magic == 0x674B and chunk["type"] == "splat" and len(body) == chunk["size"]
    assert chunk["texwidth"] * chunk["texheight"] * 16 == len(body)
    place = np.frombuffer(body, "<f4").reshape(-1, 16)[:, :3]
    halves = torch.from_numpy(np.frombuffer(body, "<f2").reshape(-1, 32).astype(np.float32))
    colour = torch.from_numpy(np.frombuffer(body, np.uint8).reshape(-1, 64)[:, 28:32] / np.float32(255))
    position, rotation = (torch.tensor(chunk["cameras"][0][name]) for name in ("position", "rotation"))
    view = torch.eye(4)
    view[:3, :3], view[:3, 3] = rotation.T, -rotation.T @ position
    lens = torch.tensor([[chunk["cameras"][0]["fx"] / 64, 0, 0.5], [0, chunk["cameras"][0]["fy"] / 64, 0.5], [0, 0, 1]])
    player = Cameras(torch.diag(torch.tensor([1.0, -1, -1, 1])) @ view, lens)
    for part in (0.0, 0.4, 1.0):
        # what the players' shader computes, of a time from 0 to 1
        away = part - halves[:, 30]
        weight = torch.exp(-((away / halves[:, 31]) ** 2))
        means = torch.from_numpy(place.copy()) + halves[:, 16:19] * away[:, None]
        opacity = colour[:, 3] * weight * (weight > 0.05)
        shown = Gaussians(means, halves[:, 6:10], halves[:, 10:13].clamp_min(1e-9).log(), opacity, sh_of(colour[:, :3]))
        truth = rasterize(asset.at(0.5 + 2 * part), orbit(torch.tensor(30.0), 10.0), RasterOptions(64, 64))
        read = rasterize(shown.select(opacity > 0), player, RasterOptions(64, 64))
        error = ((read.premultiplied - truth.premultiplied) ** 2).mean()
        assert -10 * torch.log10(error) > 40 and truth.alpha.mean() > 0.05


def test_splatv_refuses_motions_that_it_cannot_hold(tmp_path):
    with pytest.raises(InputError, match="spacetime motion only, and this asset's is Swinging"):
        export(Swinging(5), tmp_path / "clip.splatv", "splatv")


def test_transforms_bring_back_pictures_cameras_and_times(tmp_path):
    asset = Swinging(100)
    times = torch.tensor([0.0, 0.25, 1.0])
    grid = render(asset, turntable(4, 3, 15.0), times, 32, 48)
    write_transforms(grid, tmp_path / "grid")
    facts = json.loads((tmp_path / "grid" / "transforms.json").read_text())
    assert len(facts["frames"]) == 12 and (facts["w"], facts["h"]) == (48, 32)
    for index, frame in enumerate(facts["frames"]):
        view, column = divmod(index, 3)
        camera = from_blender(torch.tensor(frame["transform_matrix"]), 33.8)
        torch.testing.assert_close(camera.camera_from_world, grid.cameras.camera_from_world[view, column])
        assert frame["time"] == pytest.approx(float(times[column])) == frame["seconds"]
        assert frame["fl_y"] == pytest.approx(float(grid.cameras.intrinsics[view, column, 1, 1]) * 32)
        with Image.open(tmp_path / "grid" / frame["file_path"]) as image:
            read = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        torch.testing.assert_close(read, grid.rgba[view, column], rtol=0, atol=0.51 / 255)


def test_an_asset_is_written_as_a_turntable(tmp_path):
    write_asset_transforms(spacetime_asset(50), tmp_path / "grid", TransformsOptions(views=3, frames=2, size=16))
    facts = json.loads((tmp_path / "grid" / "transforms.json").read_text())
    assert [frame["seconds"] for frame in facts["frames"]] == [0.5, 2.5] * 3


@pytest.mark.parametrize("write", [write_ply_sequence, write_asset_transforms])
def test_a_file_is_not_overwritten_by_a_folder(write, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="folder"):
        write(spacetime_asset(5), tmp_path / "taken")


def test_quaternions_survive_half_a_turn():
    gaussians = spacetime_asset(20).at(1.0)
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    expected = rotations(quaternions_of(turn @ rotations(gaussians.quaternions)))
    torch.testing.assert_close(rotations(half_turn(gaussians).quaternions), expected, rtol=1e-4, atol=1e-5)

"""Folders of posed pictures: every convention on numbers known by hand, round trips, and what is refused."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from loom4d.cameras import FOV_DEG, Placement, cells, flip_yz, orbit, seen_region, turntable
from loom4d.export.transforms import write_transforms
from loom4d.grid import ImageGrid, save_grid
from loom4d.runs import InputError, result_of
from loom4d.sources.captures import Capture, CaptureConfig, is_capture, read_capture, shots
from loom4d.sources.captures.colmap import seconds_of
from loom4d.sources.captures.shots import HALF, merged_instants

FLAT = [[1, 0, 0, 0], [0, 0, -1, -4], [0, 1, 0, 0], [0, 0, 0, 1]]  # Blender: stands on −y at 4, looks along +y, z up
ANGLE = 2 * math.atan(0.5)  # a picture as wide as it is far away


def picture(file: Path, width: int = 8, height: int = 8, colour: tuple[int, ...] = (200, 100, 50, 255)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", (width, height), colour).save(file)


def transforms(folder: Path, name: str = "transforms.json", count: int = 1, **facts: object) -> dict:
    """A file of `count` frames that stand at the same place, and its pictures."""
    frames = []
    for index in range(count):
        picture(folder / "rgb" / f"{index}.png")
        frames.append({"file_path": f"rgb/{index}", "transform_matrix": copy.deepcopy(FLAT)})
    content = {"camera_angle_x": ANGLE, "frames": frames, **facts}
    (folder / name).write_text(json.dumps(content))
    return content


def read(path: Path, **config: object) -> Capture:
    return result_of(read_capture(path, CaptureConfig(**config)))


def refused(path: Path, **config: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pixel(capture: Capture, point: tuple[float, float, float]) -> list[float]:
    """Where the first camera sees a point of the capture's world, given in our axes."""
    inside = capture.placement.inverse().points(torch.tensor([point]))
    return capture.grid.cameras[0, 0].project(inside)[0][0].tolist()


# --- conventions ----------------------------------------------------------------------------------------------------


def test_transforms_json_is_z_up_and_its_camera_looks_down_minus_z(tmp_path):
    transforms(tmp_path)
    capture = read(tmp_path)
    # Blender's (1, 0, 0) is right of the middle by ¼ of a picture that is 4 wide there; its (0, 0, 1) is above
    assert_close(torch.tensor(pixel(capture, (1.0, 0.0, 0.0))), torch.tensor([0.75, 0.5]))
    assert_close(torch.tensor(pixel(capture, (0.0, 1.0, 0.0))), torch.tensor([0.5, 0.25]))
    assert_close(torch.tensor(pixel(capture, (0.0, 1.0, 2.0))), torch.tensor([0.5, 0.0]), atol=1e-6, rtol=0)
    assert is_capture(tmp_path) and "z" in capture.world


def test_focal_lengths_in_pixels_belong_to_the_size_that_the_file_names(tmp_path):
    transforms(tmp_path, fl_x=16.0, fl_y=8.0, cx=4.0, cy=12.0, w=16, h=16)  # pictures were halved since
    lens = read(tmp_path).grid.cameras.intrinsics[0, 0]
    assert_close(lens, torch.tensor([[1.0, 0, 0.25], [0, 0.5, 0.75], [0, 0, 1]]))


def test_wide_pictures_have_square_pixels(tmp_path):
    content = transforms(tmp_path)
    picture(tmp_path / "rgb" / "0.png", width=16, height=8)
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    lens = read(tmp_path).grid.cameras.intrinsics[0, 0]
    assert_close(lens.diagonal(), torch.tensor([1.0, 2.0, 1.0]))


def colmap(folder: Path, names: list[str], model: str = "PINHOLE 8 8 8 8 4 4", points: bool = True) -> None:
    """Cameras 4 in front of COLMAP's origin (t = (0, 0, 4), no rotation); pictures are 8 × 8."""
    (folder / "sparse" / "0").mkdir(parents=True)
    for name in names:
        picture(folder / "images" / name)
    (folder / "sparse/0/cameras.txt").write_text(f"# cameras\n1 {model}\n")
    lines = [f"{i + 1} 1 0 0 0 0 0 4 1 {name}\n\n" for i, name in enumerate(names)]
    (folder / "sparse/0/images.txt").write_text("# images\n" + "".join(lines))
    if points:
        (folder / "sparse/0/points3D.txt").write_text("# points\n7 1 0 0 255 0 0 0.1 1 0\n8 0 1 0 0 0 255 0.1\n")


def test_colmap_looks_down_plus_z_with_y_down(tmp_path):
    colmap(tmp_path, ["a.png"])
    capture = read(tmp_path)
    # COLMAP's (1, 0, 0) lies ¼ right of the middle, its (0, 1, 0) ¼ below; ours are turned half around z
    assert_close(torch.tensor(pixel(capture, (-1.0, 0.0, 0.0))), torch.tensor([0.75, 0.5]))
    assert_close(torch.tensor(pixel(capture, (0.0, -1.0, 0.0))), torch.tensor([0.5, 0.75]))
    assert capture.points is not None and capture.rgb is not None
    world = capture.placement.points(capture.points)
    assert_close(world, torch.tensor([[-1.0, 0, 0], [0, -1, 0]], dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(capture.rgb, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))


def test_colmap_quaternions_are_wxyz(tmp_path):
    """A quarter turn around y: the camera stands on −x and looks along +x, COLMAP's +z is on its left."""
    colmap(tmp_path, ["a.png"], points=False)
    half = math.sqrt(0.5)
    (tmp_path / "sparse/0/images.txt").write_text(f"1 {half} 0 {-half} 0 0 0 4 1 a.png\n1.5 2.5 -1\n")
    capture = read(tmp_path)
    position = capture.placement.points(capture.grid.cameras.positions[0, 0])
    assert_close(position, torch.tensor([4.0, 0.0, 0.0]), atol=1e-5, rtol=0)  # ours: x is turned
    assert pixel(capture, (0.0, 0.0, 1.0))[0] < 0.5 and capture.points is None


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("cam3/frame_0012.png", 0.5),
        ("frame12_left.png", 0.5),
        ("left_f24.jpg", 1.0),
        ("a_t0.25.png", 0.25),
        ("time_3/cam_2.png", 3.0),
        ("IMG_0012.png", None),
        ("part4.png", None),
    ],
)
def test_the_time_in_a_name(name, seconds):
    assert seconds_of(name, 24.0) == seconds


def test_colmap_names_hold_the_time_in_all_pictures_or_in_none(tmp_path):
    colmap(tmp_path / "all", ["a_frame_0.png", "b_frame_0.png", "a_frame_6.png", "b_frame_6.png"])
    grid = read(tmp_path / "all", fps=12.0).grid
    assert (grid.views, grid.frames) == (2, 2) and grid.times.tolist() == [0.0, 0.5]
    colmap(tmp_path / "none", ["a.png", "b.png"])
    assert (read(tmp_path / "none").grid.views, read(tmp_path / "none").grid.frames) == (2, 1)
    colmap(tmp_path / "some", ["a_frame_0.png", "b.png"])
    assert "some names hold a time" in refused(tmp_path / "some")


def camera_list(folder: Path, cameras: list[dict], **shared: object) -> None:
    pictures = []
    for index, camera in enumerate(cameras):
        picture(folder / f"{index}.png")
        pictures.append({"file": f"{index}.png", "time": 0.0, "camera": camera})
    (folder / "cameras.json").write_text(json.dumps({"camera": shared, "pictures": pictures}))


def test_a_list_of_cameras_takes_angles_and_matrices_of_both_conventions(tmp_path):
    ours = orbit(torch.tensor(30.0, dtype=torch.float64), 10.0)
    opengl, opencv = ours.world_from_camera.tolist(), flip_yz(ours.camera_from_world).tolist()
    poses = [
        {"azimuth_deg": 30, "elevation_deg": 10, "radius": 2.0},
        {"world_from_camera": opengl},
        {"camera_from_world": opencv, "convention": "opencv", "fx": 8 * 0.5 / math.tan(math.radians(FOV_DEG / 2))},
    ]
    camera_list(tmp_path, poses)
    cameras = read(tmp_path).grid.cameras
    for view in range(3):
        assert_close(cameras.camera_from_world[view, 0], cameras.camera_from_world[0, 0], atol=1e-5, rtol=0)
        assert_close(cameras.intrinsics[view, 0], cameras.intrinsics[0, 0])
    assert_close(cameras.azimuths_deg()[0, 0], torch.tensor(30.0), atol=1e-3, rtol=0)


# --- round trips ----------------------------------------------------------------------------------------------------


def noisy_grid(views: int, frames: int, **lens: float) -> ImageGrid:
    rgba = torch.rand(views, frames, 4, 6, 6, generator=torch.Generator().manual_seed(views * 10 + frames))
    times = torch.arange(frames) * 0.25 + 0.5
    return ImageGrid((rgba * 255).round() / 255, turntable(views, frames, 15.0, **lens), times)


@pytest.mark.parametrize(("views", "frames"), [(3, 4), (1, 3), (4, 1)])
def test_an_exported_grid_comes_back(tmp_path, views, frames):
    grid = noisy_grid(views, frames, radius=5.0)
    placement = Placement(1.0, (10.0, -20.0, 300.0))  # the pictures' world is somewhere else
    write_transforms(replace(grid, cameras=placement.cameras(grid.cameras)), tmp_path)
    capture = read(tmp_path)
    assert torch.equal(capture.grid.rgba, grid.rgba) and torch.equal(capture.grid.times, grid.times)
    there = capture.placement.cameras(capture.grid.cameras.to(torch.float64)).camera_from_world
    assert_close(there.float(), placement.cameras(grid.cameras).camera_from_world, atol=2e-4, rtol=0)
    if views > 1:
        assert_close(torch.tensor(capture.placement.shift), torch.tensor(placement.shift), atol=2e-3, rtol=0)
    assert_close(capture.grid.cameras.intrinsics, grid.cameras.intrinsics)


def test_a_run_folder_and_a_saved_grid_are_taken_as_they_are(tmp_path):
    grid = noisy_grid(2, 2)
    save_grid(grid, tmp_path / "run" / "grid")
    for folder in (tmp_path / "run", tmp_path / "run" / "grid"):
        capture = read(folder)
        assert torch.equal(capture.grid.rgba, grid.rgba) and capture.placement == Placement()


def test_the_box_is_the_standard_one_and_placed_cameras_see_the_same(tmp_path):
    write_transforms(noisy_grid(4, 2, radius=7.0), tmp_path)
    capture = read(tmp_path)
    region = seen_region(capture.grid.cameras)
    assert region.centre.abs().max() < 1e-4 and abs(region.half - HALF) < 1e-4
    assert_close(capture.grid.cameras.positions.norm(dim=-1), torch.full((4, 2), 2.0), atol=1e-4, rtol=0)
    points = torch.rand(5, 3) - 0.5
    here, _ = cells(capture.grid.cameras).project(points.expand(8, 5, 3))
    there, _ = cells(capture.placement.cameras(capture.grid.cameras)).project(
        capture.placement.points(points).expand(8, 5, 3)
    )
    assert_close(here, there, atol=1e-5, rtol=0)


# --- what is no matrix of views and frames --------------------------------------------------------------------------


def test_one_view_per_instant_is_a_row_with_a_moving_camera(tmp_path):
    content = transforms(tmp_path, "transforms_train.json", count=3)
    for index, frame in enumerate(content["frames"]):
        frame["time"] = 1 - index / 2
        frame["transform_matrix"] = [[1, 0, 0, 0], [0, 0, -1, -4 - index], [0, 1, 0, 0], [0, 0, 0, 1]]
    (tmp_path / "transforms_train.json").write_text(json.dumps(content))
    test = {**content, "frames": content["frames"][:1]}
    (tmp_path / "transforms_test.json").write_text(json.dumps(test))
    capture = read(tmp_path, seconds=2.0)
    assert (capture.grid.views, capture.grid.frames) == (1, 3) and capture.grid.times.tolist() == [0.0, 1.0, 2.0]
    distances = capture.grid.cameras.positions[0].norm(dim=-1)
    assert distances[0] > distances[1] > distances[2]  # sorted by time, cameras with their pictures
    assert capture.held_out is not None and capture.held_out.times.tolist() == [2.0]


def test_a_ragged_capture_is_a_row_whose_instants_repeat(tmp_path):
    content = transforms(tmp_path, count=3)
    for frame, seconds in zip(content["frames"], (0.0, 1.0, 1.0), strict=True):
        frame["time"] = seconds
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    grid = read(tmp_path).grid
    assert (grid.views, grid.frames) == (1, 3) and grid.times.tolist() == [0.0, 1.0, 1.0]


def test_rows_keep_their_camera_where_a_rig_stands_still(tmp_path):
    poses = [{"azimuth_deg": azimuth} for azimuth in (0, 90, 90, 0)]
    camera_list(tmp_path, poses)
    content = json.loads((tmp_path / "cameras.json").read_text())
    for index, entry in enumerate(content["pictures"]):
        entry["time"] = index // 2
    (tmp_path / "cameras.json").write_text(json.dumps(content))
    azimuths = read(tmp_path).grid.cameras.azimuths_deg() % 359.99
    assert_close(azimuths, torch.tensor([[0.0, 0.0], [90.0, 90.0]]), atol=1e-2, rtol=0)


def test_instants_that_rounding_tells_apart_are_one():
    assert merged_instants([0.5, 0.0, 0.5 + 1e-9, 1.0]) == [0.5, 0.0, 0.5, 1.0]


def test_held_out_pictures_are_not_given(tmp_path):
    transforms(tmp_path, count=6)
    capture = read(tmp_path, hold_out=3)
    assert capture.grid.views == 4 and capture.held_out is not None and capture.held_out.views == 2


def test_masks_become_alpha_and_large_sets_are_shrunk(tmp_path):
    content = transforms(tmp_path)
    picture(tmp_path / "rgb" / "0.png", 16, 16, (10, 20, 30))
    Image.new("L", (16, 16), 51).save(tmp_path / "mask.png")
    content["frames"][0]["mask_path"] = "mask.png"
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    notes: list = []
    grid = result_of(read_capture(tmp_path, CaptureConfig(side=8)), notes.append).grid
    assert grid.size == (8, 8) and torch.allclose(grid.rgba[0, 0, 3], torch.tensor(0.2))
    assert any("shrunk from 16 × 16 to 8 × 8" in note.message for note in notes)


def test_pictures_without_transparency_are_announced(tmp_path):
    transforms(tmp_path)
    notes: list = []
    result_of(read_capture(tmp_path), notes.append)
    assert any("background is fitted too" in note.message for note in notes)


def test_an_object_on_a_plain_background_is_cut_out_where_asked(tmp_path):
    transforms(tmp_path)
    sheet = Image.new("RGB", (32, 32), (250, 250, 250))
    sheet.paste((200, 30, 30), (8, 8, 24, 24))
    sheet.save(tmp_path / "rgb" / "0.png")
    alpha = read(tmp_path, matting="auto").grid.rgba[0, 0, 3]
    assert alpha[16, 16] == 1 and alpha[2, 2] == 0 and read(tmp_path).grid.rgba[0, 0, 3].min() == 1
    assert "unknown matting" in refused(tmp_path, matting="scissors")


# --- what is refused ------------------------------------------------------------------------------------------------


def spoilt(change, tmp_path: Path) -> str:
    content = transforms(tmp_path, count=2)
    change(content)
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    return refused(tmp_path)


def scaled(content: dict) -> None:
    content["frames"][1]["transform_matrix"] = [[2 * value for value in row] for row in FLAT[:3]] + [FLAT[3]]


def mirrored(content: dict) -> None:
    content["frames"][0]["transform_matrix"] = [[-1, 0, 0, 0], *FLAT[1:]]


SPOILT = {
    "does not exist": lambda content: content["frames"][0].update(file_path="rgb/none"),
    "not rigid": scaled,
    "determinant -1": mirrored,
    "not finite": lambda content: content["frames"][0]["transform_matrix"].__setitem__(0, [math.nan, 0, 0, 0]),
    "4 rows of 4": lambda content: content["frames"][0].update(transform_matrix=[[1, 2], [3]]),
    "shape (2, 4)": lambda content: content["frames"][0].update(transform_matrix=FLAT[:2]),
    "distorted lens (None, k1)": lambda content: content.update(k1=0.1),
    "distorted lens (OPENCV_FISHEYE)": lambda content: content.update(camera_model="OPENCV_FISHEYE"),
    "no lens": lambda content: content.pop("camera_angle_x"),
    "between 0 and π": lambda content: content.update(camera_angle_x=40.0),
    "1 of 2 frames have a time": lambda content: content["frames"][0].update(time=0.0),
    "expected a number": lambda content: [frame.update(time="soon") for frame in content["frames"]],
    "has 16 × 4 pixels": lambda content: content.update(w=16, h=4),
    "list of frames is empty": lambda content: content.update(frames=[]),
    "needs a list called frames": lambda content: content.pop("frames"),
    "is no camera": lambda content: content.update(fl_x=-5.0),
}


@pytest.mark.parametrize("expected", SPOILT)
def test_a_spoilt_file_is_refused_in_one_line(tmp_path, expected):
    assert expected in spoilt(SPOILT[expected], tmp_path)


def test_folders_that_hold_no_posed_pictures_are_refused(tmp_path):
    assert "no such file" in refused(tmp_path / "nothing")
    assert "holds none of" in refused(tmp_path)
    (tmp_path / "transforms.json").write_text("{")
    assert "not readable as JSON" in refused(tmp_path)


def test_mixed_sizes_are_refused(tmp_path):
    transforms(tmp_path, count=3)
    picture(tmp_path / "rgb" / "1.png", 9, 8)
    assert "is 9 × 8 pixels, others are 8 × 8" in refused(tmp_path)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("OPENCV 8 8 8 8 4 4 0.1 0 0 0", "distorted"),
        ("FOV 8 8 8 8 4 4 1", "not supported"),
        ("PINHOLE 8 8 8 8 4", "has 4 parameters"),
        ("PINHOLE 8 9 8 8 4 4", "8 × 9 pixels"),
    ],
)
def test_colmap_cameras_that_cannot_be_used_are_refused(tmp_path, model, expected):
    colmap(tmp_path, ["a.png"], model)
    assert expected in refused(tmp_path)


def test_colmap_models_without_distortion_are_taken_and_binary_ones_named(tmp_path):
    colmap(tmp_path / "text", ["a.png"], "OPENCV 8 8 8 8 4 4 0 0 0 0")
    assert read(tmp_path / "text").grid.views == 1
    (tmp_path / "binary" / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "binary" / "sparse" / "0" / "cameras.bin").write_bytes(b"")
    assert "model_converter" in refused(tmp_path / "binary")


@pytest.mark.parametrize(
    ("camera", "expected"),
    [
        ({"azimut_deg": 3}, "azimut_deg"),
        ({"world_from_camera": FLAT, "azimuth_deg": 3}, "one pose is wanted"),
        ({"world_from_camera": FLAT, "convention": "maya"}, "choose opengl"),
        ({"fov_deg": 20}, "no pose"),
        ({"azimuth_deg": 0, "fov_deg": 190}, "between 0 and 180"),
        ({"azimuth_deg": 0, "elevation_deg": 90}, "±90"),
    ],
)
def test_cameras_of_a_list_that_cannot_be_are_refused(tmp_path, camera, expected):
    camera_list(tmp_path, [camera])
    assert expected in refused(tmp_path)


def test_cameras_that_look_away_from_each_other_are_refused(tmp_path):
    away = [orbit(torch.tensor(angle)).world_from_camera for angle in (0.0, 120.0, 240.0)]
    for matrix in away:
        matrix[:3, 0], matrix[:3, 2] = -matrix[:3, 0], -matrix[:3, 2]
    camera_list(tmp_path, [{"world_from_camera": matrix.tolist()} for matrix in away])
    assert "look away" in refused(tmp_path)


def test_a_grid_of_shots_reads_each_picture_once(tmp_path, monkeypatch):
    transforms(tmp_path, count=3)
    seen: list[Path] = []
    original = shots.read_picture
    monkeypatch.setattr(shots, "read_picture", lambda file, scale: seen.append(file) or original(file, scale))
    read(tmp_path)
    assert len(seen) == len(set(seen)) == 3

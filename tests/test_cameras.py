"""The one camera convention, on numbers known by hand, and its adapters."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from loom4d.cameras import (
    Cameras,
    cells,
    flip_yz,
    from_blender,
    from_opencv,
    orbit,
    pinhole,
    sv3d_angles,
    turntable,
)


def test_azimuth_zero_stands_on_plus_z_and_sees_plus_x_on_the_right_and_plus_y_above():
    camera = orbit(torch.tensor(0.0), 0.0, radius=2.0)
    assert_close(camera.positions, torch.tensor([0.0, 0.0, 2.0]))
    points, depth = camera.project(torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0], [0.0, 0.0, 0.5]]))
    assert points[0, 0] > 0.5 and math.isclose(points[0, 1].item(), 0.5, abs_tol=1e-6)
    assert points[1, 1] < 0.5 and math.isclose(points[1, 0].item(), 0.5, abs_tol=1e-6)
    assert_close(depth, torch.tensor([2.0, 2.0, 1.5]))


def test_growing_azimuth_moves_the_camera_to_its_own_right():
    camera = orbit(torch.tensor(90.0))
    assert_close(camera.positions, torch.tensor([2.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    point, _ = camera.project(torch.tensor([[0.0, 0.0, -0.3]]))
    assert point[0, 0] > 0.5  # what was behind is now on the right


def test_a_field_of_view_touches_the_picture_edge():
    camera = orbit(torch.tensor(0.0), radius=2.0, fov_deg=33.8)
    edge = 2.0 * math.tan(math.radians(16.9))
    point, _ = camera.project(torch.tensor([[edge, edge, 0.0]]))
    assert_close(point, torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0)


@given(azimuth=st.floats(0, 359), elevation=st.floats(-80, 80), radius=st.floats(0.5, 5))
def test_angles_come_back_and_the_inverse_is_an_inverse(azimuth, elevation, radius):
    camera = orbit(torch.tensor(azimuth, dtype=torch.float64), elevation, radius)
    difference = (camera.azimuths_deg() - azimuth + 180) % 360 - 180
    assert abs(difference.item()) < 1e-6
    assert abs(camera.elevations_deg().item() - elevation) < 1e-6
    assert_close(camera.world_from_camera @ camera.camera_from_world, torch.eye(4, dtype=torch.float64))


@given(azimuth=st.floats(0, 360), elevation=st.floats(-60, 60))
def test_rays_hit_the_pixels_they_start_from(azimuth, elevation):
    cameras = orbit(torch.tensor([azimuth, azimuth + 7], dtype=torch.float64), elevation)
    origins, directions = cameras.rays(3, 5)
    assert_close(directions.norm(dim=-1), torch.ones(2, 3, 5, dtype=torch.float64))
    points = origins[:, None, None] + 1.7 * directions
    pixels, _ = cameras.project(points.flatten(1, 2))
    u = (torch.arange(5, dtype=torch.float64) + 0.5) / 5
    v = (torch.arange(3, dtype=torch.float64) + 0.5) / 3
    assert_close(
        pixels.reshape(2, 3, 5, 2), torch.stack(torch.meshgrid(v, u, indexing="ij")[::-1], -1).expand(2, 3, 5, 2)
    )


def test_turntable_repeats_each_view_over_the_frames():
    cameras = turntable(4, 3, 10.0)
    assert cameras.batch_shape == (4, 3)
    assert_close(cameras.azimuths_deg(), torch.tensor([0.0, 90, 180, 270])[:, None].expand(4, 3), atol=1e-4, rtol=0)
    assert cells(cameras).batch_shape == (12,)
    assert_close(cells(cameras).camera_from_world[4], cameras.camera_from_world[1, 1])


def test_opencv_cameras_look_down_plus_z_with_y_down():
    ours = orbit(torch.tensor([0.0, 30.0]), 20.0)
    theirs = flip_yz(ours.camera_from_world)
    inside = torch.tensor([0.1, 0.2, 0.0, 1.0])
    x, y, z, _ = (theirs[0] @ inside).tolist()
    assert z > 0
    point, depth = ours[0].project(inside[None, :3])
    focal = pinhole()[0, 0].item()
    assert_close(point[0], torch.tensor([0.5 + focal * x / z, 0.5 + focal * y / z]))
    assert math.isclose(depth.item(), z, rel_tol=1e-6)
    again = from_opencv(theirs, ours.intrinsics)
    assert_close(again.camera_from_world, ours.camera_from_world)


def test_blender_world_is_z_up_and_its_minus_y_is_our_plus_z():
    world_from_camera = torch.eye(4)  # Diffusion4D's first camera: on −y, looking at the origin, z up
    world_from_camera[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    world_from_camera[:3, 3] = torch.tensor([0.0, -2.0, 0.0])
    camera = from_blender(world_from_camera, 39.598)
    assert_close(camera.positions, torch.tensor([0.0, 0.0, 2.0]))
    assert_close(camera.intrinsics[0, 0], torch.tensor(355.56 / 256), atol=1e-4, rtol=0)
    assert_close(camera.camera_from_world, orbit(torch.tensor(0.0)).camera_from_world, atol=1e-6, rtol=0)


def test_sv3d_angles_put_the_reference_at_a_full_turn():
    polar, azimuth = sv3d_angles(orbit(torch.tensor([0.0, 90.0]), 10.0))
    assert_close(polar, torch.full((2,), math.radians(80)), atol=1e-5, rtol=0)
    assert_close(azimuth, torch.tensor([2 * math.pi, math.pi / 2]), atol=1e-5, rtol=0)


def test_indexing_reshaping_and_conversion_keep_the_cameras():
    cameras = turntable(4, 2)
    assert cameras[1:3, :1].batch_shape == (2, 1)
    assert cameras.reshape(8).batch_shape == (8,)
    assert cameras.to(torch.float64).intrinsics.dtype == torch.float64
    assert isinstance(cameras[0, 0], Cameras)

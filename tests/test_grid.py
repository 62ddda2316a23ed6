"""The image grid: what it holds, how it is shown, saved and resized."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from loom4d.cameras import turntable
from loom4d.grid import ImageGrid, contact_sheet, load_grid, save_grid, straight
from loom4d.runs import InputError


def some_grid(views: int = 3, frames: int = 2, size: int = 8) -> ImageGrid:
    generator = torch.Generator().manual_seed(0)
    rgba = (torch.rand(views, frames, 4, size, size, generator=generator) * 255).round() / 255
    return ImageGrid(rgba, turntable(views, frames, 10.0), torch.linspace(0, 0.5, frames))


def test_a_grid_refuses_cameras_or_times_of_another_size():
    grid = some_grid()
    with pytest.raises(ValueError, match=r"\(3, 2\) pictures"):
        ImageGrid(grid.rgba, turntable(2, 2), grid.times)
    with pytest.raises(ValueError, match="cameras"):
        ImageGrid(grid.rgba, grid.cameras.reshape(6), grid.times)


def test_saving_and_loading_is_exact_for_eight_bit_pictures(tmp_path):
    grid = some_grid()
    save_grid(grid, tmp_path / "grid")
    again = load_grid(tmp_path / "grid")
    assert_close(again.rgba, grid.rgba)
    assert_close(again.cameras.camera_from_world, grid.cameras.camera_from_world)
    assert_close(again.cameras.intrinsics, grid.cameras.intrinsics)
    assert_close(again.times, grid.times)


def test_a_folder_that_is_no_grid_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="not a saved image grid") as error:
        load_grid(tmp_path)
    assert "\n" not in str(error.value)


def test_slices_keep_both_axes():
    grid = some_grid()
    assert grid[1:2, :].rgba.shape == (1, 2, 4, 8, 8)
    assert grid[1:2, :].cameras.batch_shape == (1, 2)
    assert grid[:, 1:].times.tolist() == [0.5]


def test_pictures_over_a_background_follow_the_over_operator():
    grid = some_grid()
    alpha = grid.rgba[:, :, 3:]
    expected = grid.rgba[:, :, :3] * alpha + torch.tensor([0.2, 0.4, 0.6])[:, None, None] * (1 - alpha)
    assert_close(grid.on((0.2, 0.4, 0.6)), expected)
    assert_close(grid.premultiplied[:, :, :3] + (1 - alpha), grid.on(1.0))


def test_straight_undoes_premultiplication_where_there_is_something():
    grid = some_grid()
    visible = grid.rgba[:, :, 3:] > 0.01
    again = straight(grid.premultiplied)
    assert_close(again * visible, grid.rgba * visible, atol=1e-5, rtol=1e-5)


def test_resizing_leaves_no_dark_rim():
    rgba = torch.zeros(1, 1, 4, 32, 32)
    rgba[..., 8:24, 8:24] = 1.0  # a white square whose surroundings are transparent black
    small = ImageGrid(rgba, turntable(1), torch.zeros(1)).resized(12, 12)
    assert small.size == (12, 12)
    rim = small.rgba[0, 0, 3] > 0.05
    assert_close(small.rgba[0, 0, :3][:, rim], torch.ones(3, int(rim.sum())), atol=1e-3, rtol=0)


def test_the_contact_sheet_shows_each_cell_in_its_place():
    rgba = torch.zeros(2, 3, 4, 8, 8)
    rgba[:, :, 3] = 1
    rgba[1, 2, 0] = 1  # one red cell
    sheet = np.array(contact_sheet(ImageGrid(rgba, turntable(2, 3), torch.zeros(3)), cell=16)).astype(int)
    red = (sheet[..., 0] > 200) & (sheet[..., 1] < 50)
    ys, xs = red.nonzero()
    assert red.sum() == 256
    assert ys.min() > sheet.shape[0] // 2 and xs.min() > 2 * sheet.shape[1] // 3

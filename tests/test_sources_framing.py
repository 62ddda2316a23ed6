"""From a path to a grid: one crop for the whole clip, and resizing that is exact where it can be."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loom4d.grid import to_bytes
from loom4d.runs import InputError, result_of
from loom4d.sources.framing import Config, Crop, common_crop, cropped, load, sampling

REAL = Path(__file__).parents[2] / "shared" / "data" / "real"


def loaded(path, frames=None, resolution=32, config=None):
    events = []
    return result_of(load(path, frames, resolution, config), events.append), events


def save(path, rgba):
    Image.fromarray(to_bytes(rgba)).save(path)


def square(height, width, top, left, side, colour=(1.0, 1.0, 1.0)):
    picture = torch.zeros(4, height, width)
    picture[:, top : top + side, left : left + side] = torch.tensor([*colour, 1.0])[:, None, None]
    return picture


def centroid(alpha):
    size = alpha.shape[-1]
    grid = (torch.arange(size) + 0.5) / size
    mass = alpha.sum((-1, -2))
    return torch.stack([(alpha.sum(-2) * grid).sum(-1), (alpha.sum(-1) * grid).sum(-1)], -1) / mass[..., None]


@settings(deadline=None, max_examples=40)
@given(st.floats(-50, 50), st.floats(0.5, 300), st.integers(1, 60), st.integers(1, 60))
def test_sampling_is_an_average_that_keeps_straight_lines(start, length, given_pixels, wanted):
    weights = sampling(start, length, given_pixels, wanted)
    assert weights.shape == (wanted, given_pixels) and (weights >= 0).all()
    scale = length / wanted
    centres = start + (torch.arange(wanted) + 0.5) * scale
    reach = max(scale, 1.0) + 1
    inside = (centres - reach > 0) & (centres + reach < given_pixels)
    total = weights.sum(1)
    torch.testing.assert_close(total[inside], torch.ones_like(total[inside]), atol=1e-5, rtol=0)
    assert (total <= 1 + 1e-5).all()
    if scale <= 1:  # enlarging: bilinear, exact for a ramp
        ramp = weights @ (torch.arange(given_pixels) + 0.5)
        torch.testing.assert_close(ramp[inside], centres[inside], atol=1e-3, rtol=0)
    outside = (centres + reach < 0) | (centres - reach > given_pixels)
    assert (total[outside] == 0).all()


def test_the_crop_of_the_same_size_changes_nothing():
    torch.manual_seed(0)
    rgba = torch.rand(2, 4, 20, 20) * 0.9 + 0.1
    torch.testing.assert_close(cropped(rgba, Crop(0.0, 0.0, 20.0), 20), rgba)
    shifted = cropped(rgba, Crop(3.0, -2.0, 20.0), 20)
    torch.testing.assert_close(shifted[:, :, 2:, :17], rgba[:, :, :18, 3:])
    assert (shifted[:, :, :2] == 0).all() and (shifted[..., 17:] == 0).all()


def test_a_white_disc_keeps_a_white_rim():
    y, x = torch.meshgrid(torch.arange(101.0), torch.arange(101.0), indexing="ij")
    disc = torch.zeros(1, 4, 101, 101)  # transparent black around it
    disc[0, :, (x - 50) ** 2 + (y - 50) ** 2 < 40**2] = 1
    for resolution in (16, 33, 64, 200):
        small = cropped(disc, Crop(-3.3, 1.7, 107.0), resolution)[0]
        assert (small[:3, small[3] > 1e-3] > 0.999).all()
        assert (small[3] - small[3].round()).abs().max() > 0.05  # its rim is soft


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.2, 1.0), st.integers(0, 10**6))
def test_the_object_fills_its_share_and_is_centred(height, width, fill, seed):
    torch.manual_seed(seed)
    alpha = torch.zeros(1, height + 40, width + 40)
    top, left = (int(v) for v in torch.randint(0, 40, (2,)))
    alpha[0, top : top + height, left : left + width] = 1
    crop = common_crop(alpha, fill)
    assert max(height, width) / crop.side == pytest.approx(fill)
    assert crop.left + crop.side / 2 == pytest.approx(left + width / 2)
    assert crop.top + crop.side / 2 == pytest.approx(top + height / 2)


def test_motion_survives(tmp_path):
    """Frames share one crop: where the object was in the clip is where it is in the grid, up to one scale."""
    places = [(70, 10), (60, 30), (20, 30), (5, 61)]
    for index, (top, left) in enumerate(places):
        save(tmp_path / f"{index}.png", square(100, 120, top, left, 15))
    grid, events = loaded(tmp_path, config=Config(fps=8.0))
    assert (grid.views, grid.frames, grid.size) == (1, 4, (32, 32))
    torch.testing.assert_close(grid.times, torch.arange(4) / 8)
    side = (70 + 15 - 5) / 0.85
    truth = torch.tensor([[left + 7.5, top + 7.5] for top, left in places])
    centre = torch.tensor([(10 + 76) / 2, (5 + 85) / 2])
    torch.testing.assert_close(centroid(grid.rgba[0, :, 3]), (truth - centre) / side + 0.5, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        grid.rgba[0, :, 3].sum((1, 2)), torch.full((4,), (15 / side * 32) ** 2), rtol=1e-3, atol=0
    )
    assert [event.kind for event in events] == ["start", "note", "note", "done"]
    assert all(event.stage == "sources" and "\n" not in event.message for event in events)


def test_frames_are_resampled_and_said(tmp_path):
    for index in range(11):
        save(tmp_path / f"{index}.png", square(40, 60, 10, 3 * index, 12))
    grid, events = loaded(tmp_path, frames=6)
    assert grid.frames == 6 and any("11 frames of 60 × 40, resampled to 6 (nearest)" in e.message for e in events)
    steps = centroid(grid.rgba[0, :, 3])[:, 0].diff()
    torch.testing.assert_close(steps, steps[:1].expand(5), atol=1e-3, rtol=0)


def test_a_photo_is_one_by_one_and_an_orbit_v_by_one(tmp_path):
    for index in range(6):
        save(tmp_path / f"{index}.png", square(30, 30, 5, (0, 5, 9, 9, 3, 4)[index], 10))
    photo, _ = loaded(tmp_path / "0.png", frames=8, config=Config(elevation_deg=10.0))
    assert (photo.views, photo.frames) == (1, 1) and photo.times.tolist() == [0]
    assert photo.cameras.azimuths_deg().item() == 0
    assert photo.cameras.elevations_deg().item() == pytest.approx(10, abs=1e-4)
    orbit, events = loaded(tmp_path, config=Config(kind="orbit"))
    assert (orbit.views, orbit.frames) == (6, 1) and "6 views" in events[1].message
    torch.testing.assert_close(orbit.cameras.azimuths_deg()[:, 0], torch.arange(6) * 60.0, atol=1e-3, rtol=0)
    half, _ = loaded(tmp_path, frames=3, config=Config(kind="orbit"))
    torch.testing.assert_close(half.rgba, orbit.rgba[::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(half.cameras.positions, orbit.cameras.positions[::2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (1, 1), (20, 400), (400, 20), (7, 13)])
@pytest.mark.parametrize("resolution", [1, 31, 64])
def test_any_aspect(tmp_path, size, resolution):
    save(tmp_path / "x.png", torch.tensor([1.0, 0.5, 0.25, 0.8])[:, None, None].expand(4, *size))
    save(tmp_path / "y.png", torch.tensor([1.0, 0.5, 0.25, 0.0])[:, None, None].expand(4, *size))
    clip = tmp_path / "clip"
    clip.mkdir()
    for index, name in enumerate("xyx"):
        (clip / f"{index}.png").write_bytes((tmp_path / f"{name}.png").read_bytes())
    grid, _ = loaded(clip, resolution=resolution)
    assert grid.size == (resolution, resolution) and torch.isfinite(grid.rgba).all()
    if max(size) > 1 and resolution > 1:
        side = max(size) / 0.85
        assert grid.rgba[0, 0, 3].mean().item() == pytest.approx(0.8 * size[0] * size[1] / side**2, rel=0.05)
    assert grid.rgba[0, 0, 3].max() > 0
    assert grid.rgba[0, 1, 3].max() == 0  # a frame without the object is kept empty


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(kind="film"), "clip, orbit"),
        (Config(matting="magic"), "unknown matting"),
        (Config(fill=0.0), "fill is in"),
        (Config(fps=0.0), "fps"),
    ],
)
def test_bad_options(tmp_path, config, words):
    save(tmp_path / "0.png", square(9, 9, 2, 2, 5))
    with pytest.raises(InputError, match=words):
        loaded(tmp_path, config=config)


def test_bad_input_names_the_file(tmp_path):
    save(tmp_path / "clear.png", torch.zeros(4, 9, 9))
    for path, words in ((tmp_path / "clear.png", "fully transparent"), (tmp_path / "none.png", "no such file")):
        with pytest.raises(InputError) as caught:
            loaded(path)
        assert path.name in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_a_photo_before_a_plain_wall(tmp_path):
    """The whole way without alpha: cut out, cropped, and the same picture as with its alpha."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 200), torch.linspace(-1, 1, 300), indexing="ij")
    alpha = ((1.5 * x - 0.3) ** 2 + y**2 < 0.5).float()
    colour = torch.stack([0.6 + 0.3 * x, 0.3 + 0.2 * y, 0.2 + 0 * x])
    save(tmp_path / "alpha.png", torch.cat([colour, alpha[None]]))
    save(tmp_path / "wall.jpg", colour * alpha + 0.85 * (1 - alpha))
    truth, _ = loaded(tmp_path / "alpha.png", resolution=64)
    found, events = loaded(tmp_path / "wall.jpg", resolution=64, config=Config(matting="key"))
    assert "matting by key: a plain background" in events[2].message
    error = (found.premultiplied - truth.premultiplied).square().mean().item()
    assert -10 * math.log10(error) > 26


@pytest.mark.skipif(not (REAL / "ironman").exists(), reason="the real clip is not on this machine")
def test_the_take_off_survives():
    grid, _ = loaded(REAL / "ironman", frames=8, resolution=64)
    height = 1 - centroid(grid.rgba[0, :, 3])[:, 1]
    assert height[5:].min() > height[:4].max() + 0.03  # in the air it is higher than it ever was on the ground
    visible = (grid.rgba[0, :, 3] > 0.5).any(0).any(1).sum().item()
    assert visible == pytest.approx(0.85 * 64, abs=2)

"""Clips hold the pictures that were drawn, close on themselves, and come out the same twice."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loom4d.cameras import orbit, turntable
from loom4d.export.video import OrbitOptions, as_fitted, clip_times, orbit_frames, write_orbit
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.grid import ImageGrid, save_grid
from loom4d.runs import InputError
from moving_assets import Swinging, spacetime_asset

SMALL = OrbitOptions(seconds=1.0, fps=8, size=64)


def decoded(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_an_mp4_holds_the_pictures_of_the_orbit(tmp_path):
    asset, options = spacetime_asset(), replace(SMALL, quality=100)
    write_orbit(asset, tmp_path / "orbit.mp4", options)
    drawn, read = np.stack(list(orbit_frames(asset, options))), decoded(tmp_path / "orbit.mp4")
    assert drawn.shape == read.shape == (8, 64, 64, 3)
    error = ((drawn / 255.0 - read / 255.0) ** 2).mean()
    assert -10 * np.log10(error) > 28  # colours are kept at half resolution
    with av.open(str(tmp_path / "orbit.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 8.0)


def test_each_frame_is_the_rasterisers_picture_from_its_own_camera():
    asset, options = Swinging(), replace(SMALL, azimuth_deg=30.0, turns=0.5, background=(0.2, 0.5, 0.1))
    for index, (array, time) in enumerate(
        zip(orbit_frames(asset, options), clip_times(asset.time_range, options), strict=True)
    ):
        camera = orbit(torch.tensor(30 + 180 * index / 8), options.elevation_deg)
        picture = rasterize(asset.at(time), camera, RasterOptions(64, 64)).on(torch.tensor([0.2, 0.5, 0.1]))
        np.testing.assert_allclose(array.transpose(2, 0, 1) / 255, picture.clamp(0, 1).numpy(), atol=0.51 / 255)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_animations_can_be_transparent(suffix, tmp_path):
    asset, path = Swinging(), tmp_path / f"clip{suffix}"
    write_orbit(asset, path, replace(SMALL, fps=10, seconds=0.8, background=None, quality=95))
    truth = list(orbit_frames(asset, replace(SMALL, fps=10, seconds=0.8, background=None)))
    with Image.open(path) as animation:
        assert animation.n_frames == 8 and animation.info["loop"] == 0
        for index in range(8):
            animation.seek(index)
            read = np.array(animation.convert("RGBA")).astype(float) / 255
            drawn = truth[index].astype(float) / 255
            solid = drawn[..., 3] > 0.95
            assert solid.sum() > 200
            assert np.abs(read[solid] - drawn[solid])[..., :3].mean() < 0.05
            assert ((read[..., 3] > 0.5) == (drawn[..., 3] > 0.5)).mean() > 0.99
            assert read[0, 0, 3] == 0


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif"])
def test_the_same_clip_twice_is_the_same_file(suffix, tmp_path):
    for name in ("one", "two"):
        write_orbit(spacetime_asset(50), tmp_path / f"{name}{suffix}", replace(SMALL, seconds=0.5))
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


@given(st.floats(-5, 5), st.floats(0, 4), st.sampled_from(["pingpong", "loop"]), st.floats(0.1, 9), st.integers(1, 30))
def test_motion_stays_in_its_range_and_closes(start, length, motion, seconds, fps):
    options = OrbitOptions(seconds=seconds, fps=fps, motion=motion)
    times = clip_times((start, start + length), options)
    assert len(times) == options.frames and times[0] == start
    assert min(times) >= start and max(times) <= start + length + 1e-9
    if motion == "pingpong" and options.frames > 1:
        assert abs(times[1] - times[-1]) < 1e-6 * max(1, length)  # the end runs into the start as it came from it


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("clip.avi", {}, "written as .mp4"),
        ("clip.mp4", {"size": 63}, "even size"),
        ("clip.mp4", {"background": None}, "write .webp"),
    ],
)
def test_what_cannot_be_written_is_refused(name, changes, says, tmp_path):
    with pytest.raises(InputError, match=says):
        write_orbit(spacetime_asset(5), tmp_path / name, replace(SMALL, **changes))
    assert not (tmp_path / name).exists()


def test_a_clip_of_a_run_is_as_sharp_as_what_the_run_fitted(tmp_path):
    assert as_fitted(OrbitOptions(), tmp_path).fitted_size is None
    pictures = torch.rand(2, 3, 4, 24, 24)
    save_grid(ImageGrid(pictures, turntable(2, 3), torch.linspace(0, 1, 3)), tmp_path / "grid")
    assert as_fitted(OrbitOptions(), tmp_path).fitted_size == 24
    assert as_fitted(OrbitOptions(fitted_size=7), tmp_path).fitted_size == 7

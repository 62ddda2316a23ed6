"""SVD and SV3D against plain twins of the original code, on tiny checkpoints of the original layout."""

import copy
import importlib.util
import math
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import originals
from checkpoint_files import VECTORS, write_diffusers
from loom4d.denoisers import checkpoints, clip, stable, sv3d, svd, unet, vae
from loom4d.denoisers.clip import TowerConfig
from loom4d.denoisers.family import Guidance
from loom4d.denoisers.stable import Sizes
from loom4d.denoisers.unet import UNetConfig
from loom4d.denoisers.vae import VAEConfig
from loom4d.diffusion.denoiser import cell_noise
from loom4d.diffusion.samplers import euler
from loom4d.diffusion.schedules import karras

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="needs the full-size extra (diffusers)"
)

SIZES = Sizes(
    UNetConfig(width=32, head_width=16, token_width=24),
    VAEConfig(width=32),
    TowerConfig(32, 2, 16, 7, 28, 24),
    64,
    5,
    4,
)
LOADERS = {"svd": svd.load_svd, "sv3d": sv3d.load_sv3d}
CLIPS, PICTURES = 2, 3


def relative(ours, truth):
    return ((ours - truth).abs().max() / truth.abs().max()).item()


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """kind -> (twin with the original names, the model that was loaded from its checkpoint)."""
    folder, pairs = tmp_path_factory.mktemp("checkpoints"), {}
    for seed, (kind, load) in enumerate(LOADERS.items()):
        torch.manual_seed(seed)
        twin = originals.original(kind).eval().requires_grad_(False)
        for name, parameter in twin.named_parameters():
            if parameter.ndim == 1 and "mix" not in name:  # norms and biases that do not show would prove nothing
                parameter.add_(0.2 * torch.randn_like(parameter))
        path = folder / f"{kind}.safetensors"
        save_file(twin.state_dict(), path)
        pairs[kind] = twin, load(path, SIZES)
    return pairs


@pytest.fixture(params=LOADERS)
def kind(request):
    return request.param


def inputs(kind, seed=7):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "x": draw(CLIPS, PICTURES, 4, 8, 8),
        "picture": draw(CLIPS, 4, 8, 8),
        "token": draw(CLIPS, 24),
        "vector": draw(CLIPS, PICTURES, VECTORS[kind]),
    }


def twin_velocity(network, x, level, picture, token, vector):
    """The twin fed as the original sampler feeds it: pictures flat, everything repeated for each."""
    clips, pictures = x.shape[:2]
    beside = picture[:, None].expand(-1, pictures, -1, -1, -1)
    out = network(
        torch.cat([x, beside], 2).flatten(0, 1),
        level.repeat_interleave(pictures),
        token[:, None].repeat_interleave(pictures, 0),
        vector.flatten(0, 1),
        pictures,
    )
    return out.unflatten(0, (clips, pictures))


# --- networks ------------------------------------------------------------------------------------------------------


def test_the_unet_equals_the_original(twins, kind):
    twin, model = twins[kind]
    given, level = inputs(kind), torch.tensor([1.5, -0.7])
    condition = model.unet.condition(given["picture"], given["token"], given["vector"])
    ours = model.unet(given["x"], level, condition)
    truth = twin_velocity(
        twin.model.diffusion_model, given["x"], level, *(given[n] for n in ("picture", "token", "vector"))
    )
    assert relative(ours, truth) < 1e-5


def test_every_normalisation_has_the_originals_epsilon(twins, kind):
    """An epsilon of 1e-6 instead of 1e-5 moves the result by less than some tolerances: here it is looked at."""
    for name, module in twins[kind][1].unet.named_modules():
        if isinstance(module, torch.nn.GroupNorm):
            assert module.eps == (1e-6 if name.endswith(".stock.norm") else 1e-5), name


def test_weak_signals_show_the_epsilon(twins, kind):
    """Where a block's input varies little, epsilon is what counts, and a wrong one would be off by percents."""
    twin, model = twins[kind]
    for ours, theirs in (
        (model.unet.stock.down_blocks[0].resnets[0], twin.model.diffusion_model.input_blocks[1][0]),
        (model.unet.stock.up_blocks[3].resnets[2], twin.model.diffusion_model.output_blocks[11][0]),
        (model.unet.stock.mid_block.resnets[1], twin.model.diffusion_model.middle_block[2]),
    ):
        width = theirs.in_layers[0].num_channels
        x, embedding = 1e-3 * torch.randn(PICTURES, width, 4, 4), torch.randn(PICTURES, 128)
        result = ours(x, embedding, image_only_indicator=torch.zeros(1, PICTURES))
        assert relative(result, theirs(x, embedding, PICTURES)) < 1e-5


def test_known_cross_attention_equals_diffusers_own(twins):
    """The stock network, which works the cross-attention out at every step, agrees for SVD's one vector per clip."""
    twin, model = twins["svd"]
    stock = unet.stock_unet(replace(SIZES.unet, vector_width=768))
    names = unet.original_names(SIZES.unet, "")
    state = twin.model.diffusion_model.state_dict()
    stock.load_state_dict({name: state[names(name).names[0]] for name in stock.state_dict()}, assign=True)
    given, level = inputs("svd"), torch.tensor([1.5, -0.7])
    told = torch.tensor([[24.0, 127.0, 0.02]]).expand(CLIPS, -1)
    vector = stable.sinusoids(told, 256).flatten(1)[:, None].expand(-1, PICTURES, -1)
    ours = model.unet(given["x"], level, model.unet.condition(given["picture"], given["token"], vector))
    beside = given["picture"][:, None].expand(-1, PICTURES, -1, -1, -1)
    theirs = stock(torch.cat([given["x"], beside], 2), level, given["token"][:, None], told, return_dict=False)[0]
    assert relative(ours, theirs) < 1e-5


def test_the_layout_of_weights_changes_nothing(twins):
    model, given, level = twins["sv3d"][1], inputs("sv3d"), torch.tensor([0.3, 0.3])
    condition = model.unet.condition(given["picture"], given["token"], given["vector"])
    before = model.unet(given["x"], level, condition)
    assert relative(unet.channels_last(model.unet)(given["x"], level, condition), before) < 1e-5


def test_the_conditioning_encoder_equals_the_original(twins, kind):
    twin, model = twins[kind]
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    embedder = twin.conditioner.embedders[3 if kind == "svd" else 1]
    noise = cell_noise(0, 0, 0, (3, 64, 64), stream=2**32 - 1)
    truth = embedder.encoder.mode(pictures + 0.02 * noise)  # the mode, and not scaled
    assert relative(stable.condition_latents(model, pictures, 0.02), truth) < 1e-5


def test_diffused_latents_come_from_the_first_stage_of_svd(twins):
    twin, model = twins["svd"]
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    assert relative(stable.encode(model, pictures), 0.18215 * twin.first_stage_model.encoder(pictures)[:, :4]) < 1e-5


def test_the_decoders_equal_the_originals(twins, kind):
    twin, model = twins[kind]
    latents = 0.18215 * torch.randn(4, 4, 8, 8)
    truth = (twin.first_stage_model.decoder(latents / 0.18215) + 1) / 2
    assert relative(stable.decode(model, latents), truth.clamp(0, 1)) < 1e-5


def test_the_image_tower_equals_the_original(twins, kind):
    twin, model = twins[kind]
    pictures = torch.rand(2, 3, 64, 80) * 2 - 1
    truth = twin.conditioner.embedders[0].open_clip.model.visual(twin_prepared(pictures, 28))
    assert relative(stable.embed(model, pictures), truth) < 1e-5


def twin_prepared(pictures, side):
    """The original's antialiased bicubic as two dense matrices: a mirrored Gaussian, then Keys' cubic (a = −3/4)."""
    for axis in (2, 3):
        matrix = cubic_matrix(pictures.shape[axis], side) @ blur_matrix(pictures.shape[axis], side)
        pictures = torch.tensordot(matrix, pictures.double(), ([1], [axis])).movedim(0, axis)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    return ((pictures.float() + 1) / 2 - mean) / std


def blur_matrix(size, side):
    sigma = max((size / side - 1) / 2, 0.001)
    reach = int(max(4 * sigma, 3)) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    weights = [math.exp(-(tap**2) / (2 * sigma**2)) for tap in range(-reach, reach + 1)]
    for row in range(size):
        for tap, weight in zip(range(-reach, reach + 1), weights, strict=True):
            column = abs(row + tap)
            matrix[row, column if column < size else 2 * (size - 1) - column] += weight / sum(weights)
    return matrix


def cubic_matrix(size, side):
    matrix, a = torch.zeros(side, size, dtype=torch.float64), -0.75
    for row in range(side):
        place = row * (size - 1) / (side - 1)  # aligned corners
        first = math.floor(place)
        for tap in range(-1, 3):
            d = abs(place - first - tap)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            weight = near if d <= 1 else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0
            matrix[row, min(max(first + tap, 0), size - 1)] += weight
    return matrix


@pytest.mark.parametrize("size", [(576, 576), (100, 300), (224, 224)])
def test_preprocessing_is_the_originals_antialiased_bicubic(size):
    pictures = torch.rand(1, 3, *size) * 2 - 1
    rows, columns = (cubic_matrix(side, 224) @ blur_matrix(side, 224) for side in size)
    truth = torch.einsum("ij,bcjk,lk->bcil", rows, pictures.double(), columns)
    torch.testing.assert_close(clip.resized(pictures.double(), 224), truth, rtol=0, atol=4e-7)
    torch.testing.assert_close(clip.prepared(pictures), twin_prepared(pictures, 224), rtol=0, atol=3e-4)  # float32


# --- conditions and guidance ---------------------------------------------------------------------------------------


def test_svd_is_told_fps_motion_and_noise():
    told = svd.vector(svd.SVDConfig(), 3)
    truth = torch.cat([originals.waves(torch.tensor([value]), 256)[0] for value in (24.0, 127.0, 0.02)])
    assert torch.equal(told[0], told[2])
    torch.testing.assert_close(told[1], truth, rtol=0, atol=3e-5)


def test_sv3d_is_told_noise_polar_angle_and_azimuth():
    azimuths, elevations = torch.tensor([90.0, 360.0]), torch.tensor([10.0, -20.0])
    told = sv3d.vector(sv3d.SV3DConfig(), azimuths, elevations)
    for row, polar, azimuth in ((0, math.radians(80), math.pi / 2), (1, math.radians(110), 2 * math.pi)):
        parts = ((1e-5, 256), (polar, 512), (azimuth, 512))
        truth = torch.cat([originals.waves(torch.tensor([value]), width)[0] for value, width in parts])
        torch.testing.assert_close(told[row], truth, rtol=0, atol=1e-6)


def test_sinusoids_are_bit_for_bit_those_of_the_original():
    values = torch.tensor([0.0, 1e-5, 0.02, 24.0, 127.0, 2 * math.pi])
    for width in (256, 512):
        theirs = unet.diffusers_module("models.embeddings").Timesteps(width, True, 0)
        assert torch.equal(stable.sinusoids(values, width), theirs(values))
    torch.testing.assert_close(stable.sinusoids(values, 256), originals.waves(values, 256), rtol=0, atol=3e-5)
    assert torch.equal(stable.sinusoids(torch.zeros(1), 8), torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]]))


def test_the_given_view_is_last_and_a_full_turn():
    order, azimuths = sv3d.orbit_order(torch.tensor([0.0, 90.0, 180.0, -90.0]))
    assert order.tolist() == [1, 2, 3, 0]
    assert azimuths.tolist() == [90, 180, 270, 360]


def twin_trajectory(twin, kind, picture, vector, noise, scales, sigmas):
    """Euler with classifier-free guidance as the original sampler has it, every half on its own."""
    network = twin.model.diffusion_model
    embedders = twin.conditioner.embedders
    spread = 0.02 if kind == "svd" else 1e-5
    shown = picture[:3] * 2 - 1
    seen = shown + spread * cell_noise(0, 0, 0, tuple(shown.shape), stream=2**32 - 1)
    latent = embedders[3 if kind == "svd" else 1].encoder.mode(seen[None])
    token = embedders[0].open_clip.model.visual(twin_prepared(shown[None], 28))
    x = noise * math.sqrt(1 + sigmas[0] ** 2)
    for sigma, sigma_next in pairwise(sigmas):
        clean = []
        for keep in (0, 1):
            level = torch.tensor([math.log(sigma) / 4])
            v = twin_velocity(network, x / math.sqrt(sigma**2 + 1), level, keep * latent, keep * token, vector)
            clean.append(x / (sigma**2 + 1) - sigma / math.sqrt(sigma**2 + 1) * v)
        guided = clean[0] + scales[None, :, None, None, None] * (clean[1] - clean[0])
        x = x + (sigma_next - sigma) * (x - guided) / sigma
    return x


@pytest.mark.parametrize("sequences", [1, 2, 4])
def test_a_guided_trajectory_of_rows_equals_the_originals(twins, sequences):
    twin, model = twins["svd"]
    pictures = torch.cat([torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64)], 1)
    noise, sigmas = torch.randn(2, 4, 4, 8, 8), karras(3)
    prior = svd.video_prior(model, model.unet, svd.SVDConfig(), sequences)
    denoise = prior(pictures, torch.zeros(2), torch.arange(4.0), 0, Guidance(1.5, 3.0))
    ours = euler(denoise, noise * math.sqrt(1 + 700**2), sigmas)
    vector, scales = svd.vector(svd.SVDConfig(), 4)[None], torch.linspace(1.5, 3, 4)
    for clip_, picture, drawn in zip(ours, pictures, noise, strict=True):
        truth = twin_trajectory(twin, "svd", picture, vector, drawn[None], scales, sigmas.tolist())
        assert relative(clip_, truth[0]) < 1e-5


def test_a_guided_trajectory_of_columns_equals_the_originals(twins):
    twin, model = twins["sv3d"]
    pictures = torch.cat([torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)], 1)
    azimuths, elevations = torch.tensor([0.0, 90, 180, 270]), torch.tensor([5.0, 5, 5, 5])
    noise, sigmas = torch.randn(1, 4, 4, 8, 8), karras(3)
    prior = sv3d.multiview_prior(model, model.unet, sv3d.SV3DConfig(), 2)
    denoise = prior(pictures, azimuths, elevations, Guidance(2.5, 2.5))
    ours = euler(denoise, noise * math.sqrt(1 + 700**2), sigmas)
    own = [1, 2, 3, 0]  # SV3D's order: the given view last
    vector = sv3d.vector(sv3d.SV3DConfig(), torch.tensor([90.0, 180, 270, 360]), elevations)[None]
    scales = torch.full((4,), 2.5)
    truth = twin_trajectory(twin, "sv3d", pictures[0], vector, noise[:, own], scales, sigmas.tolist())
    assert relative(ours[:, own], truth) < 1e-5


def test_a_clip_whose_last_frame_is_given_runs_backwards(twins):
    model = twins["svd"][1]
    pictures = torch.rand(1, 4, 64, 64)
    prior = svd.video_prior(model, model.unet, svd.SVDConfig(), 2)
    x, times = torch.randn(1, 4, 4, 8, 8), torch.arange(4.0)
    forward = prior(pictures, torch.zeros(1), times, 0, Guidance(1.5, 3.0))
    backward = prior(pictures, torch.zeros(1), times, 3, Guidance(1.5, 3.0))
    torch.testing.assert_close(backward(x, 2.0), forward(x.flip(1), 2.0).flip(1))
    with pytest.raises(ValueError, match="frame 1 of 4 is neither"):
        prior(pictures, torch.zeros(1), times, 1, Guidance())


def test_no_guidance_asks_the_network_once_per_clip(twins):
    model, calls = twins["svd"][1], []

    def counting(x, level, condition):
        calls.append(len(x))
        return model.unet(x, level, condition)

    prior = svd.video_prior(model, counting, svd.SVDConfig(), 4)
    pictures, x = torch.rand(3, 4, 64, 64), torch.randn(3, 2, 4, 8, 8)
    prior(pictures, torch.zeros(3), torch.arange(2.0), 0, Guidance())(x, 1.0)
    assert calls == [2, 1]
    calls.clear()
    denoise = prior(pictures, torch.zeros(3), torch.arange(2.0), 0, Guidance(2.0, 2.0, high=5.0))
    denoise(x, 1.0)
    denoise(x, 10.0)  # outside the interval
    assert calls == [4, 2, 2, 1]


def test_the_prior_of_single_cells_is_the_network_without_its_layers_over_time(twins):
    """The twin's mixing factors are turned to "space alone"; it is told the token and no latent."""
    twin, model = twins["svd"]
    flat = copy.deepcopy(twin.model.diffusion_model)
    for name, value in flat.named_parameters():
        if name.endswith("mix_factor"):
            value.fill_(40.0)
    pictures, angles, x = torch.rand(3, 4, 64, 64), torch.tensor([0.0, 90.0, 90.0]), torch.randn(3, 1, 4, 8, 8)
    pictures[2] = pictures[1]
    prior = svd.image_prior(model, model.unet, svd.SVDConfig(), 2, (4, 8, 8))
    ours = prior(pictures, angles, torch.zeros(3), torch.zeros(3), Guidance())(x, 1.5)
    tokens = stable.embed(model, stable.on_white(pictures))
    vector = svd.vector(svd.SVDConfig(), 1).expand(3, 1, -1)
    level = torch.full((3,), math.log(1.5) / 4)
    v = twin_velocity(flat, x / math.sqrt(1.5**2 + 1), level, torch.zeros(3, 4, 8, 8), tokens, vector)
    assert relative(ours, x / (1.5**2 + 1) - 1.5 / math.sqrt(1.5**2 + 1) * v) < 1e-5


# --- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames,window", [(25, 10), (25, 3), (7, 7), (5, 9), (10, 1), (9, 2)])
def test_windows_cover_the_clip_with_weights_that_sum_to_one(frames, window):
    total, (ranges, weights) = torch.zeros(frames), vae.windows(frames, window)
    for (first, last), weight in zip(ranges, weights, strict=True):
        assert last - first == min(window, frames)
        total[first:last] += weight
    torch.testing.assert_close(total, torch.ones(frames))
    if 2 < window < frames:
        assert all(later[0] < earlier[1] for earlier, later in pairwise(ranges))
    if 5 < window < frames:  # a window comes in and goes out softly
        assert all(weight[0] < 0.34 for (first, _), weight in zip(ranges, weights, strict=True) if first > 0)
        assert all(weight[-1] < 0.34 for (_, last), weight in zip(ranges, weights, strict=True) if last < frames)


def test_windows_without_a_temporal_decoder_change_nothing(twins):
    """With the temporal branch mixed out, every frame is its own, however the clip is cut."""
    model = twins["svd"][1]
    state = {name: value.clone() for name, value in model.vae.state_dict().items()}
    try:
        for name, value in model.vae.named_parameters():
            if name.endswith("mix_factor"):
                value.fill_(-40.0)
        out = model.vae.decoder.time_conv_out
        out.weight.zero_()
        out.weight[:, :, 1, 0, 0] = torch.eye(3)
        latents = torch.randn(7, 4, 4, 4)
        torch.testing.assert_close(
            vae.decode_clip(model.vae, latents, 3), vae.decode_clip(model.vae, latents, 7), rtol=1e-4, atol=1e-5
        )
    finally:
        model.vae.load_state_dict(state)


def test_windows_leave_no_seam(twins):
    """Windows put end to end jump where one ends; ours fade, and stay closer to the clip decoded in one go."""
    model, (frames, window) = twins["svd"][1], (12, 6)
    latents = torch.randn(1, 4, 4, 4).expand(frames, -1, -1, -1) + 0.1 * torch.randn(frames, 4, 4, 4)
    whole, faded = (vae.decode_clip(model.vae, latents, one) for one in (frames, window))
    apart = torch.cat([vae.decode_clip(model.vae, part, window) for part in latents.split(window)])
    apart_jumps, faded_jumps = ((one[1:] - one[:-1]).abs().mean((1, 2, 3)) for one in (apart, faded))
    assert faded_jumps[2:-2].max() < 0.6 * apart_jumps[window - 1]  # a clip's own ends jump by themselves
    assert (faded - whole).abs().mean() < 0.8 * (apart - whole).abs().mean()


# --- files ---------------------------------------------------------------------------------------------------------


def test_both_layouts_load_to_the_same_networks(twins, kind, tmp_path):
    twin, model = twins[kind]
    write_diffusers(twin, kind, tmp_path, SIZES)
    other = LOADERS[kind](tmp_path, SIZES)
    for part in ("unet", "tower", "vae"):
        ours, theirs = getattr(model, part).state_dict(), getattr(other, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype,close", [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_sixteen_bits_stay_close_and_leave_the_encoders_in_float32(twins, tmp_path, dtype, close):
    path = tmp_path / "svd_xt.safetensors"
    twin, exact = twins["svd"]
    save_file(twin.state_dict(), path)
    model = svd.load_svd(path, SIZES, dtype)
    assert model.unet.dtype == model.tower.proj.dtype == dtype
    assert model.vae.encoder.conv_in.weight.dtype == model.encoder.conv_in.weight.dtype == torch.float32
    assert model.vae.decoder.conv_in.weight.dtype == torch.float16
    x, pictures, latents = torch.randn(1, 2, 4, 8, 8), torch.rand(1, 4, 64, 64), torch.randn(2, 4, 4, 4)
    ours, truth = (
        svd.video_prior(one, one.unet, svd.SVDConfig(), 2)(
            pictures, torch.zeros(1), torch.arange(2.0), 0, Guidance(2.0, 2.0)
        )(x, 1.0)
        for one in (model, exact)
    )
    assert ours.dtype == torch.float32 and (ours - truth).norm() < close * truth.norm()
    assert (stable.decode(model, latents) - stable.decode(exact, latents)).abs().max() < 0.02


def broken(state, change):
    state = dict(state)
    change(state)
    return state


NAME = "model.diffusion_model.middle_block.1.proj_in.weight"
FAULTS = {
    "missing": (lambda state: state.pop(NAME), rf"tensor {NAME} is missing"),
    "unknown": (lambda state: state.update(spare=torch.zeros(2)), r"unknown tensor spare"),
    "misshapen": (
        lambda state: state.update({NAME: torch.zeros(3, 3)}),
        r"\[3, 3\] does not fit mid_block.* \[128, 128\]",
    ),
    "integers": (lambda state: state.update({NAME: torch.zeros(128, 128, dtype=torch.int8)}), r"stored as I8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_one_line_that_names_the_tensor(twins, tmp_path, fault):
    change, message = FAULTS[fault]
    path = tmp_path / "svd_xt.safetensors"
    save_file(broken(twins["svd"][0].state_dict(), change), path)
    with pytest.raises(ValueError, match=message) as caught:
        svd.load_svd(path, SIZES)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_another_model_is_named(twins, tmp_path):
    path = tmp_path / "svd_xt.safetensors"
    save_file(twins["sv3d"][0].state_dict(), path)
    with pytest.raises(ValueError, match="holds SV3D_p, expected SVD"):
        svd.load_svd(path, SIZES)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no SVD"):
        svd.load_svd(path, SIZES)


def test_missing_and_truncated_files_and_pickles_are_refused(twins, tmp_path):
    path = tmp_path / "svd_xt.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        svd.load_svd(path, SIZES)
    save_file(twins["svd"][0].state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        svd.load_svd(path, SIZES)
    with pytest.raises(ValueError, match="never read"):
        svd.load_svd(tmp_path / "svd_xt.ckpt", SIZES)
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    (tmp_path / "folder" / "unet" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"pickled diffusion_pytorch_model\.bin"):
        svd.load_svd(tmp_path / "folder", SIZES)


def test_reading_takes_one_tensor_beyond_the_network(twins, tmp_path):
    state = twins["svd"][0].state_dict()
    save_file(state, tmp_path / "svd_xt.safetensors")
    read = stable.opened(tmp_path / "svd_xt.safetensors", svd.KIND, SIZES, torch.bfloat16)
    tracemalloc.start()
    try:
        model = read()
        # The lone encoder and the condition's stay in float32, so what was read for them stays.
        kept = sum(4 * value.numel() for part in (model.encoder, model.vae.encoder) for value in part.parameters())
        assert tracemalloc.get_traced_memory()[1] - kept < 3e6 + max(4 * value.numel() for value in state.values())
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind,tensors,parameters", [("svd", 2446, 2_389_819_785), ("sv3d", 2212, 2_342_222_549)])
def test_every_name_of_the_full_size_files_is_used_or_knowingly_unused(kind, tensors, parameters):
    """On the meta device: the published architecture has these many tensors, and each of ours is one of them."""
    with torch.device("meta"):
        state = originals.original(kind, originals.FULL).state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (tensors, parameters)
    used = set()
    vector = replace(UNetConfig(), vector_width=VECTORS[kind])
    with torch.device("meta"):
        tower = clip.ImageTower(TowerConfig())
    given = f"conditioner.embedders.{3 if kind == 'svd' else 1}.encoder.encoder."
    parts = [
        (unet.stock_unet(vector), unet.original_names(vector)),
        (tower, checkpoints.same_names("conditioner.embedders.0.open_clip.model.visual.")),
        (
            vae.video_vae(VAEConfig()) if kind == "svd" else vae.image_vae(VAEConfig()),
            vae.original_names(VAEConfig(), given, "first_stage_model.decoder."),
        ),
    ]
    if kind == "svd":
        parts.append(
            (vae.lone_encoder(VAEConfig()), vae.original_names(VAEConfig(), "first_stage_model.encoder.", None))
        )
    for network, origins in parts:
        for name, value in network.state_dict().items():
            origin = origins(name)
            shape = origin.make(*(state[one] for one in origin.names)).shape
            assert shape == value.shape, name
            used.update(origin.names)
    text = [name for name in state if "open_clip" in name and ".visual." not in name]
    decoder = [name for name in state if ".encoder.decoder." in name or ".encoder.post_quant_conv." in name]
    assert set(state) - used == {*text, *decoder}
    assert (len(text), len(decoder)) == (6, 140)


def test_resizing_leaves_small_pictures_unblurred():
    pictures = torch.rand(1, 3, 20, 20)
    exact = F.interpolate(pictures, (28, 28), mode="bicubic", align_corners=True)
    assert torch.equal(clip.resized(pictures, 28), exact)

"""Training: shards are whole, a killed run goes on to the same curve, and the objective is the one sampling inverts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from loom4d.denoisers.layers import ResidualBlock
from loom4d.denoisers.small import ClipCondition, bound
from loom4d.denoisers.weights import load_autoencoder, load_prior
from loom4d.diffusion.denoiser import from_velocity
from loom4d.runs import InputError, load_tensors, result_of, save_tensors
from loom4d.training.clips import LatentGrids, some_cells, some_clips
from loom4d.training.curation import Examined, Verdict, write_shard
from loom4d.training.estimates import drawn, estimated
from loom4d.training.loop import (
    COLOURS,
    LoopConfig,
    arithmetic,
    curve,
    learning_rate,
    optimizers,
    peak_arithmetic,
    read_log,
)
from loom4d.training.objective import cropped, training_sigmas, velocity_error
from loom4d.training.recipes import RECIPES, run_recipe, tiny
from loom4d.training.shards import ShardConfig, make_shards, open_shards


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def family(tmp_path_factory, data):
    """A tiny family trained by the recipes themselves: folder with both weight files."""
    out = tmp_path_factory.mktemp("family")
    for name in ("autoencoder", "prior"):
        file = result_of(run_recipe(tiny(RECIPES[name]), out / name, data, weights=out))
        file.rename(out / file.name)
    return out


def test_every_recipe_ends_in_its_weight_file(family):
    assert {file.name for file in family.glob("*.safetensors")} == {"autoencoder.safetensors", "prior.safetensors"}
    _, facts = load_tensors(family / "prior.safetensors")
    assert facts["step"] == 6
    kinds = {"video", "multiview", "cell"}
    kinds |= {f"{kind} crossed" for kind in kinds}
    assert set(facts["scores"]) == kinds | {f"{kind} from noise" for kind in kinds}
    assert (family / "prior" / "curve.png").exists() and (family / "prior" / "samples_000006.png").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_goes_on_to_the_same_weights(name, family, data, tmp_path):
    recipe = tiny(RECIPES[name])
    recipe = replace(recipe, loop=replace(recipe.loop, checkpoint_seconds=0.0))
    work = run_recipe(recipe, tmp_path, data, weights=family)
    for event in work:
        if event.stage == "train" and event.kind == "preview" and event.step == 3:
            next(work, None)  # past the checkpoint of step 3
            break
    work.close()
    torch.manual_seed(123)  # whatever happened in between
    ours, _ = load_tensors(result_of(run_recipe(recipe, tmp_path, data, weights=family)))
    truth, _ = load_tensors(result_of(run_recipe(recipe, tmp_path / "whole", data, weights=family)))
    for key, value in truth.items():
        assert_close(ours[key], value, msg=key)


def test_shards_resume_and_hold_what_the_objects_look_like(tmp_path):
    config = ShardConfig(tmp_path, 3, "train", views=2, frames=2, resolution=16, workers=1)
    result_of(make_shards(config))
    first = open_shards(tmp_path)
    assert first.grids == 3
    picture = first.premultiplied(2, 1, 0)
    assert picture.shape == (4, 16, 16) and (picture[:3] <= picture[3:] + 1 / 255).all()
    before = (tmp_path / "pictures_00000.npy").read_bytes()
    (tmp_path / "facts_00000.json").unlink()  # as if killed between the two files
    result_of(make_shards(config))
    assert (tmp_path / "pictures_00000.npy").read_bytes() == before
    with pytest.raises(InputError, match="no training shards"):
        open_shards(tmp_path / "empty")


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    config = LoopConfig(steps=100, learning_rate=2.0, warmup=10, decay=20)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[50] == rates[80] == 2.0
    assert rates[90] == pytest.approx(1.0) and rates[100] == 0.0


def test_the_log_continues_without_gaps(family):
    steps = [line["step"] for line in read_log(family / "prior") if "scores" in line]
    assert steps == [3, 6]


def test_a_network_without_error_is_the_exact_denoiser():
    """Zero velocity error means D(x; σ) = clean, for any σ that the objective draws."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 2, 3, 2, 2, generator=generator)
    condition = ClipCondition(clean[:, :1], *(torch.zeros(4, 2) for _ in range(3)))
    seen = []

    def perfect(x, label, condition, kept):
        sigma = (4 * label).exp()[:, None, None, None, None]
        unit = (1 + sigma**2) ** -0.5
        noise = (x / unit - clean) / sigma
        velocity = unit * (noise - sigma * clean)
        denoise = from_velocity(lambda scaled, _: velocity)
        seen.append((denoise(x / unit, sigma) - clean).abs().max())
        return velocity

    sigma = training_sigmas(4, generator)
    error = velocity_error(perfect, clean, condition, torch.ones(4, dtype=torch.bool), sigma, generator)
    assert error.max() < 1e-6
    assert max(seen) < 1e-2  # float32 at σ up to 100


def test_training_visits_the_noise_that_sampling_does():
    """Of a sampler's sixteen steps from 80 to 0.02 half lie above σ = 5, and one that leaps asks at pure noise."""
    sigma = training_sigmas(20_000, torch.Generator().manual_seed(0))
    assert sigma.min() >= 0.01 and sigma.max() <= 100
    assert 0.45 < (sigma > 5).float().mean() < 0.55
    assert 0.15 < ((sigma > 50) & (sigma < 100)).float().mean() < 0.25


def test_clips_are_cut_as_they_are_told():
    cells = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)[..., None, None, None]
    grids = LatentGrids(cells, torch.tensor([5.0, 7.0]))
    video = grids.videos(torch.tensor([1]), torch.tensor([2]), torch.tensor([1]))
    assert video.latents.flatten().tolist() == [18.0, 19.0, 20.0]
    assert video.condition.picture.item() == 19.0
    assert video.condition.times.tolist() == [[-0.5, 0.0, 0.5]]
    orbit = grids.orbits(torch.tensor([0]), torch.tensor([1]), torch.tensor([3]))
    assert orbit.latents.flatten().tolist() == [10.0, 1.0, 4.0, 7.0]
    assert orbit.condition.azimuths_deg.tolist() == [[0.0, 90.0, 180.0, 270.0]]
    assert orbit.condition.elevations_deg.tolist() == [[5.0] * 4]
    single = grids.cells(torch.tensor([1]), torch.tensor([[0, 2]]), torch.tensor([[3, 1]]))
    assert single.latents.flatten().tolist() == [14.0] and single.condition.picture.item() == 22.0
    assert single.condition.azimuths_deg.tolist() == [[90.0]] and single.condition.times.tolist() == [[0.5]]


def test_crossing_clips_are_cut_as_they_are_told():
    """A picture's own camera gives it what is known of it, another camera what crosses it, rows and columns alike."""
    cells = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)[..., None, None, None]
    grids = LatentGrids(cells, torch.tensor([5.0, 7.0]))
    one, two, three = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])
    condition = grids.videos(one, two, one, three).condition
    assert condition.picture.flatten().tolist() == [19.0] * 3
    assert condition.crossing.pictures.flatten().tolist() == [21.0, 22.0, 23.0]  # view 3, all frames
    assert condition.crossing.azimuths_deg.tolist() == [[90.0] * 3]
    condition = grids.orbits(one - 1, one, three, two).condition
    assert condition.picture.flatten().tolist() == [11.0, 2.0, 5.0, 8.0]  # frame 2, views from 3 on
    assert condition.azimuths_deg.tolist() == [[0.0] * 4] and condition.times.tolist() == [[-0.5] * 4]
    assert condition.crossing.pictures.flatten().tolist() == [10.0] * 4  # frame 1, view 3
    assert condition.crossing.azimuths_deg.tolist() == [[0.0, -90.0, -180.0, -270.0]]
    untold = grids.orbits(one - 1, one, three, two, torch.tensor([False])).condition
    plain = grids.orbits(one - 1, one, three).condition
    assert_close(untold.picture, plain.picture.expand_as(untold.picture))
    assert_close(untold.azimuths_deg, plain.azimuths_deg)
    assert_close(untold.times, plain.times)
    drawn = some_cells(grids, 2, torch.Generator().manual_seed(0), crossed=1.0)
    place, condition = drawn.latents.flatten().long(), drawn.condition
    own, other = condition.picture.flatten().long(), condition.crossing.pictures.flatten().long()
    assert (own // 3 == place // 3).all() and (other % 3 == place % 3).all()
    assert_close(condition.times[:, 0], (place % 3 - own % 3) * 0.5)
    assert_close(condition.crossing.azimuths_deg[:, 0], (other // 3 - place // 3) * 90.0)


def test_checkpoints_and_weight_files_describe_themselves(family):
    for file in (family / "prior" / "checkpoint.safetensors", family / "prior.safetensors"):
        _, facts = load_tensors(file)
        assert facts["config"]["crossings"] and facts["made by"] == "a changed recipe" and facts["step"] == 6
        assert facts["training"]["data"]["grids"] == 4 and facts["training"]["loop"]["steps"] == 6
    assert load_tensors(family / "prior.safetensors")[1]["licence"] == "Apache-2.0"


def test_the_log_says_how_fast(family):
    rated = [line for line in read_log(family / "prior") if "loss" in line]
    assert rated and all(line["pictures_per_second"] > 0 and 0 < line["peak_share"] < 1 for line in rated)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(30, 50, bias=False)

    def forward(self, x):
        return self.layer(x)


class Fit:
    """A task of one matrix product: 2 · 7 · 30 · 50 operations forth, as many back for the weights."""

    pictures = 7

    def __init__(self):
        self.network = Line()

    def loss(self, call, generator):
        return call(torch.randn(7, 30, generator=generator)).square().mean()

    def preview(self):
        raise NotImplementedError

    def scores(self):
        raise NotImplementedError


def test_arithmetic_is_counted_and_leaves_no_trace():
    task = Fit()
    before = task.network.layer.weight.clone()
    assert arithmetic(task, task.network) == 2 * 2 * 7 * 30 * 50
    assert torch.equal(task.network.layer.weight, before) and task.network.layer.weight.grad is None
    assert 1e8 < peak_arithmetic(torch.device("cpu"), False, 0.01) < 1e14


def test_the_curve_shows_the_loss_and_every_task():
    lines = [{"step": step, "loss": 1 / step} for step in range(1, 100)]
    assert (np.asarray(curve(lines[:1])) == 255).all()
    lines += [{"step": step, "scores": {"video": 1 / step, "orbit": 2 / step}} for step in (50, 99)]
    pixels = {tuple(pixel) for pixel in np.asarray(curve(lines)).reshape(-1, 3).tolist()}
    assert {(30, 90, 200), COLOURS[0], COLOURS[1]} <= pixels and COLOURS[2] not in pixels


def test_kernels_are_stepped_as_the_matrices_that_they_are():
    generator = torch.Generator().manual_seed(0)
    block = ResidualBlock(8)
    network = nn.Sequential(block)
    adam, muon = optimizers(network, 0.01)
    assert {id(weight) for weight in muon.kernels} == {id(block.conv1.weight), id(block.conv2.weight)}
    assert len(adam.param_groups[0]["params"]) == 6  # norms and biases
    twin = nn.Parameter(block.conv1.weight.detach().flatten(1).clone())
    plain = torch.optim.Muon([twin], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        muon.zero_grad()
        network(torch.randn(2, 8, 4, 4, generator=generator)).square().sum().backward()
        block.conv1.weight.grad = torch.randn(8, 8, 3, 3, generator=generator)
        twin.grad = block.conv1.weight.grad.flatten(1)
        muon.step()
        plain.step()
    assert_close(block.conv1.weight.flatten(1), twin)
    assert not torch.equal(block.conv2.weight, torch.zeros(8, 8, 3, 3))
    block.conv1.weight.requires_grad_(False)
    assert [id(weight) for weight in optimizers(network, 0.01)[1].kernels] == [id(block.conv2.weight)]


def test_a_checkpoint_of_other_optimisers_is_refused(family, data, tmp_path):
    recipe = tiny(RECIPES["prior"])
    result_of(run_recipe(recipe, tmp_path, data, weights=family))
    tensors, facts = load_tensors(tmp_path / "checkpoint.safetensors")
    name = next(name for name, value in tensors.items() if name.startswith("optimizer.0.0.") and value.ndim)
    save_tensors(tmp_path / "checkpoint.safetensors", tensors | {name: tensors[name].flatten()[:-1].clone()}, facts)
    with pytest.raises(InputError, match="other optimisers"):
        result_of(run_recipe(recipe, tmp_path, data, weights=family))


def test_pieces_hold_as_much_of_the_object_as_they_can():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(300, 4, 32, 32)
    for index, (y, x) in enumerate(torch.randint(0, 20, (300, 2), generator=generator).tolist()):
        pictures[index, :, y : y + 9, x : x + 12] = 1.0
    pieces = cropped(pictures, 16, generator)
    assert (pieces.sum((1, 2, 3)) == 4 * 9 * 12).all()
    firsts = pieces[:, 0].any(2).int().argmax(1)
    assert firsts.unique().tolist() == list(range(8))  # anywhere in the piece
    tall = torch.zeros(200, 4, 32, 32)
    tall[:, :, 3:31, 10:14] = 1.0
    tall *= torch.arange(32.0)[:, None]
    pieces = cropped(tall, 16, generator)
    assert (pieces[:, 0].amax(2) > 0).all()
    tops = pieces[:, 0].amax((1, 2)) - 15
    assert tops.min() == 3 and tops.max() == 15
    assert cropped(torch.zeros(5, 4, 32, 32), 8, generator).shape == (5, 4, 8, 8)


def test_an_anchor_holds_the_latent_space(family, data, tmp_path):
    """Codes move freely without one; where it weighs more than all else they stay."""
    before = load_autoencoder(family)[0]
    pictures = open_shards(data / "valid_3x3x16", 2).premultiplied(0, 0, slice(None))
    moved = {}
    for anchor in (1e-6, 1e3):
        recipe = tiny(replace(RECIPES["autoencoder-again"], anchor=anchor))
        recipe = replace(recipe, loop=replace(recipe.loop, steps=60, preview_steps=60))
        result_of(run_recipe(recipe, tmp_path / str(anchor), data, weights=family))
        after, facts = load_autoencoder(tmp_path / str(anchor))
        assert facts["recipe"] == "autoencoder-again"
        assert torch.equal(after.latent_std, before.latent_std)
        with torch.no_grad():
            moved[anchor] = (after.encode(pictures) - before.encode(pictures)).square().mean().item()
    assert moved[1e3] < 0.3 * moved[1e-6]


def test_clips_come_with_their_own_pictures(data):
    """What the decoder is asked for are the very pictures whose latents the prior was given."""
    shards = open_shards(data / "train_3x3x16", 4)
    cells = [shards.premultiplied(grid, slice(None), slice(None)) for grid in range(4)]
    grids = LatentGrids(torch.stack(cells), shards.elevations_deg)  # pictures for latents
    clips, pictures = drawn(grids, shards, 5, 0.5, torch.Generator().manual_seed(0))
    assert_close(clips.latents.flatten(0, 1), pictures)
    assert len(pictures) == 15


def test_estimates_want_a_latent_space_that_stays():
    for changes in ({"decoder_only": False}, {"crop": 40}):
        with pytest.raises(ValueError, match="estimates"):
            replace(RECIPES["decoder-on-estimates"], **changes)


def test_estimates_are_the_priors_clean_ones(family):
    prior = load_prior(family)[0]
    generator = torch.Generator().manual_seed(0)
    grids = LatentGrids(torch.randn(3, 3, 3, 4, 2, 2, generator=generator), torch.zeros(3))
    clips = some_clips(grids, 4, generator, crossed=0.5)
    assert_close(estimated(prior, clips, torch.full((4,), 1e-4), generator), clips.latents, atol=1e-3, rtol=0)
    sigma = torch.tensor([0.5, 1.0, 2.0, 4.0])
    ours = estimated(prior, clips, sigma, torch.Generator().manual_seed(1))
    noise = torch.randn(clips.latents.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for index in range(4):
            one = from_velocity(bound(prior, clips.condition, kept=True))
            x = clips.latents + sigma[index] * noise
            assert_close(ours[index], one(x, sigma[index].item())[index], atol=0.05, rtol=0)


# --- real assets beside procedural objects ---------------------------------------------------------------------------


def curated(folder, licence, count=3, value=40):
    """A folder as curation leaves it: grids of 3 × 3 pictures of 16²."""
    (folder / "train").mkdir(parents=True)
    pictures = np.full((3, 3, 4, 16, 16), value, np.uint8)
    facts = {"name": folder.name, "licence": licence, "attribution": f"the makers of {folder.name}"}
    write_shard(folder / "train", 0, [(Examined(Verdict("kept", {}), b"", pictures, 12.0), facts)] * count)
    return folder


def test_assets_are_trained_on_beside_procedural_objects_and_change_the_licence(tmp_path, family, data):
    curated(tmp_path / "assets" / "beasts", "CC-BY-SA-3.0")
    curated(tmp_path / "assets" / "toys", "CC0-1.0", 2)
    work = run_recipe(tiny(RECIPES["prior"]), tmp_path / "out", data, weights=family, assets=tmp_path / "assets")
    events = []
    _, facts = load_tensors(result_of(work, events.append))
    assert "30 grids of real assets in every order of colours beside 4" in [event.message for event in events]
    assert facts["licence"] == "CC-BY-SA-3.0" and facts["assets"]["grids"] == 30
    assert facts["assets"]["attribution"] == ["the makers of beasts", "the makers of toys"]
    alone = run_recipe(tiny(RECIPES["prior"]), tmp_path / "cc0", data, weights=family, assets=tmp_path / "assets/toys")
    assert load_tensors(result_of(alone))[1]["licence"] == "Apache-2.0"


@pytest.mark.parametrize("licences", [("unknown",), ("CC-BY-SA-3.0", "CC-BY-SA-4.0")])
def test_assets_that_may_not_be_mixed_are_refused(tmp_path, family, data, licences):
    for licence in licences:
        curated(tmp_path / "assets" / licence, licence)
    with pytest.raises(InputError, match="cannot be trained on together"):
        result_of(run_recipe(tiny(RECIPES["prior"]), tmp_path, data, weights=family, assets=tmp_path / "assets"))


def test_a_folder_without_curated_grids_is_refused(tmp_path, family, data):
    with pytest.raises(InputError, match="loom4d curate"):
        result_of(run_recipe(tiny(RECIPES["prior"]), tmp_path, data, weights=family, assets=tmp_path))

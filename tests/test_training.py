"""Training: shards are whole, a killed run goes on to the same curve, and the objective is the one sampling inverts."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from loom4d.denoisers.small import ClipCondition
from loom4d.diffusion.denoiser import from_velocity
from loom4d.runs import InputError, load_tensors, result_of
from loom4d.training.loop import LoopConfig, learning_rate, read_log
from loom4d.training.objective import LatentGrids, some_cells, velocity_error
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
    assert facts["step"] == 6 and set(facts["scores"]) == {"video", "multiview", "cell"}
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
    condition = ClipCondition(clean[:, 0], *(torch.zeros(4, 2) for _ in range(3)))
    seen = []

    def perfect(x, label, condition, kept):
        sigma = (4 * label).exp()[:, None, None, None, None]
        unit = (1 + sigma**2) ** -0.5
        noise = (x / unit - clean) / sigma
        velocity = unit * (noise - sigma * clean)
        denoise = from_velocity(lambda scaled, _: velocity)
        seen.append((denoise(x / unit, sigma) - clean).abs().max())
        return velocity

    error = velocity_error(perfect, clean, condition, torch.ones(4, dtype=torch.bool), generator)
    assert error.max() < 1e-6
    assert max(seen) < 1e-2  # float32 at σ up to 100


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
    cells = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)[..., None, None, None]
    grids = LatentGrids(cells, torch.tensor([5.0, 7.0]))
    one, two, three = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])
    across = grids.videos(one, two, one, three).condition.crossing
    assert across.pictures.flatten().tolist() == [21.0, 22.0, 23.0]  # view 3, all frames
    assert across.azimuths_deg.tolist() == [90.0] and across.times.tolist() == [0.0]
    across = grids.orbits(one - 1, one, three, two).condition.crossing
    assert across.pictures.flatten().tolist() == [11.0, 2.0, 5.0, 8.0]  # frame 2, views from 3 on
    assert across.azimuths_deg.tolist() == [0.0] and across.times.tolist() == [0.5]
    drawn = some_cells(grids, 2, torch.Generator().manual_seed(0), crossed=True)
    place, condition = drawn.latents.flatten().long(), drawn.condition
    row, column = condition.picture.flatten().long(), condition.crossing.pictures.flatten().long()
    assert (row // 3 == place // 3).all() and (column % 3 == place % 3).all()  # of its own row, of its own column
    assert_close(condition.times[:, 0], (place - row) % 3 * 0.5 - ((place % 3) < (row % 3)) * 1.5)
    assert_close(condition.crossing.azimuths_deg, (column // 3 - place // 3) * 90.0)

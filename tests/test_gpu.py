"""What must hold on a GPU as it does on the processor; skipped where there is none."""

import pytest
import torch
from torch.testing import assert_close

from loom4d.cameras import cells, turntable
from loom4d.denoisers.small import ClipCondition, SmallConfig, SmallPrior
from loom4d.runs import load_tensors, result_of
from loom4d.sources.procedural import moving_object, render
from loom4d.training.recipes import RECIPES, run_recipe, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_the_prior_answers_alike_on_both():
    torch.manual_seed(0)
    prior = SmallPrior(SmallConfig(4, 4, 64, 4, 2))
    for weight in prior.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    condition = ClipCondition(torch.randn(2, 1, 4, 4, 4), *(torch.rand(2, 3) for _ in range(3)))
    x, level, kept = torch.randn(2, 3, 4, 4, 4), torch.zeros(2), torch.tensor([True, False])
    with torch.inference_mode():
        ours = prior(x, level, condition, kept)
        fields = (condition.picture, condition.azimuths_deg, condition.elevations_deg, condition.times)
        there = ClipCondition(*(field.to("cuda") for field in fields))
        theirs = prior.to("cuda")(x.to("cuda"), level.to("cuda"), there, kept.to("cuda")).cpu()
    assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["autoencoder", "prior"])
def test_recipes_train_on_the_gpu(name, tmp_path):
    result_of(run_recipe(tiny(RECIPES["autoencoder"]), tmp_path / "family", tmp_path / "data", device="cuda"))
    path = result_of(
        run_recipe(tiny(RECIPES[name]), tmp_path / name, tmp_path / "data", weights=tmp_path / "family", device="cuda")
    )
    tensors, facts = load_tensors(path)
    assert facts["step"] == 6 and all(value.isfinite().all() for value in tensors.values())


def test_procedural_objects_look_alike_on_both():
    figure, cameras, times = moving_object(3), cells(turntable(2, 2, 10.0)), torch.tensor([0.0, 1.0, 0.0, 1.0])
    ours = render(figure, cameras, times, 32, 32, backend="reference")
    theirs = render(figure, cameras.to("cuda"), times.to("cuda"), 32, 32, backend="reference").cpu()
    assert ((ours - theirs).abs() > 1e-3).float().mean() < 1e-3

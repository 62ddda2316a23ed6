"""The full-size family on a GPU against the processor, on tiny checkpoints; skipped where there is no GPU."""

import importlib.util

import pytest
import torch

from checkpoint_files import VECTORS, twin_of, write_original, write_sizes
from loom4d.denoisers import full_size, memory, stable, sv3d, svd
from loom4d.denoisers.family import Guidance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the full-size extra (diffusers)"),
]
ANGLES = torch.tensor([0.0, 180.0]), torch.tensor([5.0, 5.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    write_sizes(path)
    for kind in VECTORS:
        write_original(twin_of(kind), kind, path)
    return path


def answers(folder, device, dtype, resident=True, compiled=False):
    """Rows, columns, cells and decoded pictures of one family."""
    sizes = stable.read_sizes(folder)
    video = svd.load_svd(folder / "svd_xt.safetensors", sizes, dtype)
    multiview = sv3d.load_sv3d(folder / "sv3d_p.safetensors", sizes, dtype)
    plan = memory.Plan(dtype, sequences=4, resident=resident)
    family = full_size.family(video, multiview, sizes, plan, full_size.FullSizeConfig(device, compiled=compiled))
    draw = torch.Generator().manual_seed(3)
    x, pictures = torch.randn(3, 2, 4, 8, 8, generator=draw), torch.rand(3, 4, 64, 64, generator=draw)
    return [
        family.video(pictures, torch.zeros(3), torch.arange(2.0), 0, Guidance(1.5, 3.0))(x, 3.0),
        family.multiview(pictures, *ANGLES, Guidance(2.5, 2.5))(x, 3.0),
        family.image(pictures, torch.zeros(3), torch.zeros(3), torch.zeros(3), Guidance())(x[:, :1], 3.0),
        family.decode(0.18215 * x),
    ]


def relative(ours, truth):
    return ((ours - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("resident", [True, False])
def test_both_devices_answer_alike_in_float32(folder, resident):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    truth = answers(folder, "cpu", torch.float32)
    for ours, one in zip(answers(folder, "cuda", torch.float32, resident), truth, strict=True):
        assert ours.device.type == "cpu" and relative(ours, one) < 1e-3


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_close(folder, dtype, compiled):
    truth = answers(folder, "cpu", torch.float32)
    for ours, one in zip(answers(folder, "cuda", dtype, compiled=compiled)[:3], truth, strict=False):
        assert relative(ours, one) < 0.05


def test_settings_are_chosen_for_the_device(folder):
    plan = full_size.planned(stable.read_sizes(folder), full_size.FullSizeConfig("cuda"))
    assert plan.dtype == torch.bfloat16 and plan.predicted_gb <= memory.whole_gb(torch.device("cuda"))

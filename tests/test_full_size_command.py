"""`loom4d generate --priors svd-sv3d` as its users meet it, on tiny checkpoints in both layouts."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from checkpoint_files import twin_of, write_diffusers, write_original, write_sizes
from loom4d import pipeline
from loom4d.cli import main
from loom4d.pipeline import STAGES
from loom4d.runs import load_tensors

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None, reason="needs the full-size extra (diffusers)"
)

QUICK = [
    "--priors", "svd-sv3d", "--imagining.steps", "2", "--imagining.views", "2", "--imagining.frames", "2",
    "--fitting.iterations", "2", "--fitting.count", "40", "--orbit.seconds", "0.2", "--orbit.size", "32",
]  # fmt: skip
KILLED = """
import os, signal, sys
from loom4d.cli import main
from loom4d.cli.show import Show

shown = Show.__call__

def show(self, event):
    shown(self, event)
    if (event.stage, event.step) == ("grid", 1):
        os.kill(os.getpid(), signal.SIGKILL)

Show.__call__ = show
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> dict[str, Path]:
    """Layout -> folder with both priors in it; the weights are the same."""
    folder = tmp_path_factory.mktemp("layouts")
    folders = {"original": folder / "original", "diffusers": folder / "diffusers"}
    sizes, _ = (write_sizes(one) for one in folders.values())
    for kind, name in (("svd", "svd_xt"), ("sv3d", "sv3d_p")):
        twin = twin_of(kind, seed=len(kind))
        write_original(twin, kind, folders["original"])
        write_diffusers(twin, kind, folders["diffusers"] / name, sizes)
    return folders


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[8:56, 16:48] = [200, 60, 30, 255]
    Image.fromarray(pixels).save(tmp_path / "thing.png")
    return tmp_path / "thing.png"


def command(picture: Path, out: Path, checkpoints: Path, *more: object) -> list[str]:
    return ["generate", str(picture), "--out", str(out), "--checkpoints", str(checkpoints), *QUICK, *map(str, more)]


def call(arguments: list[str], capsys) -> tuple[int, str, str]:
    """Exit code, what was printed, and the error."""
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def outputs(folder: Path) -> dict[str, bytes]:
    names = ["asset.safetensors", "orbit.mp4", "viewer.html", "grid.png", "grid/cameras.json"]
    return {name: (folder / name).read_bytes() for name in names}


def test_a_run_killed_while_sampling_goes_on_to_the_bytes_of_a_whole_run_from_the_other_layout(
    tmp_path, picture, layouts, capsys
):
    """Original files, killed after the grid's first step and taken up again; diffusers' layout in one go."""
    killed = command(picture, tmp_path / "killed", layouts["original"], "--max-memory", "3GB")
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    died = subprocess.run([sys.executable, "-c", KILLED, *killed], capture_output=True, text=True, env=environment)
    assert died.returncode == -signal.SIGKILL, died.stderr
    state = tmp_path / "killed" / "state" / "grid.safetensors"
    assert state.exists() and not (tmp_path / "killed" / "grid").exists()
    assert load_tensors(state)[1]["step"] == 1  # of 2
    code, printed, error = call(killed, capsys)
    assert code == 0, error
    assert "the default preset of svd-sv3d is paper" in printed and "predicted peak" in printed

    whole = command(picture, tmp_path / "whole", layouts["diffusers"], "--max-memory", "3GB")
    code, printed, error = call(whole, capsys)
    assert code == 0, error
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")

    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert list(report["stages"]) == list(STAGES)
    memory = {name: report["stages"]["imagine"][name] for name in ("predicted_peak_gb", "peak_gb")}
    assert 0.5 < memory["predicted_peak_gb"] <= 3 and 0 < memory["peak_gb"] < 8
    assert all(f"{name} {value}" in printed for name, value in memory.items())
    configuration = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert configuration["full_size"]["max_memory_gb"] == 3.0
    assert configuration["imagining"]["share"]["shape"] == "logistic"  # the paper's


def without(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1000])


def changed(change):
    def rewrite(path: Path) -> None:
        state = load_file(path)
        path.unlink()
        change(state)
        save_file(state, path)

    return rewrite


def of_the_other(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("svd_xt.safetensors").resolve())


UNCONDITIONED = {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(128, 256)}
KEY = "model.diffusion_model.out.2.bias"
FAULTS = {  # what happens to sv3d_p.safetensors, more arguments -> what the one line says
    "missing": (without, (), "expected sv3d_p.safetensors there"),
    "truncated": (truncated, (), "sv3d_p.safetensors: not a whole safetensors file"),
    "SVD instead": (of_the_other, (), "holds SVD, expected SV3D_p"),
    "SV3D_u instead": (changed(lambda state: state.update(UNCONDITIONED)), (), "holds SV3D_u, expected SV3D_p"),
    "something else": (changed(lambda state: state.clear() or state.update(a=torch.zeros(1))), (), "holds no SV3D_p"),
    "unknown tensor": (changed(lambda state: state.update(spare=torch.zeros(1))), (), "unknown tensor spare"),
    "missing tensor": (changed(lambda state: state.pop(KEY)), (), f"tensor {KEY} is missing"),
    "misshapen": (changed(lambda state: state.update({KEY: torch.zeros(9)})), (), f"tensor {KEY} [9] does not fit"),
    "too little memory": (None, ("--max-memory", "0.5GB"), "--max-memory 0.5GB is too little for 64² pictures"),
    "no such device": (None, ("--full-size.device", "cuda:99"), "no device 'cuda:99' here"),
    "no such kind of number": (None, ("--full-size.dtype", "int8"), "unknown dtype 'int8'; choose one of auto"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_one_clear_line_and_exit_code_2(tmp_path, picture, layouts, fault, capsys):
    spoil, more, message = FAULTS[fault]
    folder = tmp_path / "checkpoints"
    write_sizes(folder)
    for name in ("svd_xt.safetensors", "sv3d_p.safetensors"):
        os.link(layouts["original"] / name, folder / name)
    if spoil is not None:
        spoil(folder / "sv3d_p.safetensors")
    code, _, error = call(command(picture, tmp_path / "run", folder, *more), capsys)
    assert code == 2
    assert error.count("\n") == 1 and error.startswith("loom4d: ") and message in error, error


def test_no_folder_and_a_full_device_are_one_clear_line(tmp_path, picture, capsys, monkeypatch):
    code, _, error = call(["generate", str(picture), "--out", str(tmp_path / "run"), *QUICK], capsys)
    assert code == 2 and "svd-sv3d needs its files: pass --checkpoints DIR" in error and error.count("\n") == 1

    def exhausted(*_):
        raise torch.OutOfMemoryError("tried to allocate\nmore")

    monkeypatch.setitem(pipeline.DENOISERS, "svd-sv3d", exhausted)
    code, _, error = call(["generate", str(picture), "--out", str(tmp_path / "two"), *QUICK], capsys)
    assert code == 2 and "a smaller --max-memory" in error and error.count("\n") == 1

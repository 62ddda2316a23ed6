"""The command line as its users meet it: one clear line and exit code 2 for bad input; same seed, same bytes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import loom4d
from loom4d.cli import commands, main
from loom4d.cli.making import gigabytes
from loom4d.denoisers.autoencoder import Autoencoder, AutoencoderConfig
from loom4d.denoisers.small import SmallConfig, SmallPrior
from loom4d.denoisers.weights import AUTOENCODER, PRIOR, write_weights
from loom4d.export import FORMATS
from loom4d.gaussians.fit_config import PRESETS as FIT_PRESETS
from loom4d.gaussians.fit_config import forgiving
from loom4d.methods.diffusion_squared import PRESETS
from loom4d.options import choices_of
from loom4d.pipeline import STAGES, confidence_of
from loom4d.runs import InputError, save_tensors

QUICK = [
    "--imagining.steps", "3", "--imagining.views", "3", "--imagining.frames", "2",
    "--fitting.iterations", "4", "--fitting.count", "60",
    "--orbit.seconds", "0.2", "--orbit.size", "32",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A tiny untrained family: the path through the program does not depend on how good its priors are."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=4, width=16, deep_width=16, encoder_blocks=1, decoder_blocks=1)
    write_weights(folder / AUTOENCODER, Autoencoder(config), {"config": vars(config), "step": 0, "scores": {}})
    small = SmallConfig(4, 2, 32, 2, 2)
    write_weights(folder / PRIOR, SmallPrior(small), {"config": vars(small), "step": 0, "scores": {}})
    return folder


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[8:32, 12:28] = [200, 60, 30, 255]
    Image.fromarray(pixels).save(tmp_path / "thing.png")
    return tmp_path / "thing.png"


def call(*arguments: object, capsys) -> tuple[int, str]:
    """Exit code and what went to the error stream."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


def outputs(folder: Path) -> dict[str, bytes]:
    names = ["asset.safetensors", "orbit.mp4", "viewer.html", "grid.png", "grid/cameras.json"]
    return {name: (folder / name).read_bytes() for name in names}


def test_generate_writes_the_whole_run_folder_and_the_same_bytes_again(tmp_path, picture, checkpoints, capsys):
    for name in ("one", "two"):
        code, error = call(
            "generate", picture, "--out", tmp_path / name, "--checkpoints", checkpoints, *QUICK, capsys=capsys
        )
        assert code == 0, error
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert list(report["stages"]) == list(STAGES) and report["peak_memory_gb"] > 0
    assert len(list((tmp_path / "one" / "grid").glob("view_*/frame_*.png"))) == 6
    events = [json.loads(line) for line in (tmp_path / "one" / "events.jsonl").read_text().splitlines()]
    assert {event["stage"] for event in events} >= {*STAGES, "column", "row", "grid"} - {"imagine"}
    code, error = call(
        "generate",
        picture,
        "--out",
        tmp_path / "three",
        "--seed",
        1,
        "--checkpoints",
        checkpoints,
        *QUICK,
        capsys=capsys,
    )
    assert outputs(tmp_path / "three")["asset.safetensors"] != outputs(tmp_path / "one")["asset.safetensors"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_lost_a_stage_ends_in_the_same_bytes(tmp_path, picture, checkpoints, stage):
    config = loom4d.GenerateConfig(
        checkpoints=checkpoints,
        imagining=loom4d.DiffusionSquaredConfig(steps=3, views=3, frames=2),
        fitting=loom4d.FitConfig(iterations=4, count=60),
        orbit=loom4d.OrbitOptions(seconds=0.2, size=32),
    )
    loom4d.generate(picture, tmp_path / "whole", config)

    class Killed(Exception):
        pass

    def kill(event: loom4d.Event) -> None:
        if event.stage == stage or (stage == "imagine" and event.stage == "grid" and event.step == 2):
            raise Killed

    with pytest.raises(Killed):
        loom4d.generate(picture, tmp_path / "killed", config, kill)
    loom4d.generate(picture, tmp_path / "killed", config)
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


def bad_inputs(folder: Path) -> dict[str, Path]:
    """One of everything that cannot be used."""
    (folder / "text.png").write_text("not a picture")
    (folder / "zero.png").write_bytes(b"")
    (folder / "empty").mkdir()
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:900])
    (folder / "cut.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(40))
    (folder / "mixed").mkdir()
    Image.new("RGB", (20, 20)).save(folder / "mixed" / "0.png")
    Image.new("RGB", (30, 20)).save(folder / "mixed" / "1.png")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    names = ["text.png", "zero.png", "empty", "clear.png", "cut.png", "cut.mp4", "mixed", "huge.png", "missing.png"]
    return {name: folder / name for name in names}


def test_bad_input_is_one_clear_line_and_exit_code_2(tmp_path, checkpoints, capsys):
    for name, path in bad_inputs(tmp_path).items():
        code, error = call(
            "generate", path, "--out", tmp_path / f"out_{name}", "--checkpoints", checkpoints, capsys=capsys
        )
        assert code == 2, name
        assert error.count("\n") == 1 and error.startswith("loom4d: ") and name in error, error


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path, picture, checkpoints, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    call("generate", picture, "--out", tmp_path / "run", "--checkpoints", checkpoints, *QUICK, capsys=capsys)
    for out, seed in (("file", 0), ("file/below", 0), ("full", 0), ("run", 7)):
        code, error = call(
            "generate",
            picture,
            "--out",
            tmp_path / out,
            "--seed",
            seed,
            "--checkpoints",
            checkpoints,
            *QUICK,
            capsys=capsys,
        )
        assert code == 2 and error.count("\n") == 1 and "choose another --out" in error, error
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_unknown_names_are_answered_with_the_known_ones(tmp_path, picture, capsys):
    code, error = call("generate", picture, "--out", tmp_path / "run", "--priors", "nothing", capsys=capsys)
    assert code == 2 and "choose one of small" in error
    code, error = call("train", "nothing", "--out", tmp_path / "run", capsys=capsys)
    assert code == 2 and "autoencoder, prior" in error


def test_an_amount_of_memory_is_read_or_refused():
    assert gigabytes("12GB") == gigabytes("12") == gigabytes(" 12 gb ") == 12.0
    for wrong in ("lots", "-3GB", "0", "inf", "nan"):
        with pytest.raises(InputError, match="such as 12GB"):
            gigabytes(wrong)


def test_weights_are_listed_and_checked(tmp_path, capsys):
    main(["weights", "list"])
    assert "sv3d_p" in capsys.readouterr().out
    main(["weights", "check", "svd_xt", "--folder", str(tmp_path)])
    assert "not there" in capsys.readouterr().out
    code, error = call("weights", "get", "sv3d_p", "--commercial-only", "--folder", tmp_path, capsys=capsys)
    assert code == 2 and "Community License" in error


def test_fit_and_view_take_a_run_folder(tmp_path, picture, checkpoints, capsys):
    call("generate", picture, "--out", tmp_path / "run", "--checkpoints", checkpoints, *QUICK, capsys=capsys)
    code, error = call(
        "fit",
        tmp_path / "run",
        "--out",
        tmp_path / "fit",
        "--fitting.iterations",
        4,
        "--fitting.count",
        60,
        capsys=capsys,
    )
    assert code == 0, error
    assert (tmp_path / "fit" / "asset.safetensors").exists()
    (tmp_path / "fit" / "viewer.html").unlink()
    code, error = call("view", tmp_path / "fit", "--no-browser", capsys=capsys)
    assert code == 0 and (tmp_path / "fit" / "viewer.html").exists()
    code, error = call("export", tmp_path / "fit", "--to", "ply", capsys=capsys)
    assert code == 0 and list((tmp_path / "fit" / "export" / "asset_ply").glob("*.ply"))
    code, error = call("export", tmp_path / "fit", "--to", "obj", capsys=capsys)
    assert code == 2 and "unknown format 'obj'" in error and "mp4" in error
    code, error = call("view", tmp_path, "--no-browser", capsys=capsys)
    assert code == 2 and "give a run folder" in error


def test_the_installed_command_says_what_the_machine_has():
    command = shutil.which("loom4d", path=str(Path(sys.executable).parent))
    assert command is not None, "the package is not installed"
    result = subprocess.run([command, "doctor"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert {"python", "torch", "kernels", "prior"} <= {line.split()[0] for line in result.stdout.splitlines()}


def imagining_and_fitting(*arguments: str) -> tuple:
    chosen = commands(["generate", "picture.png", *arguments])["generate"].keywords["stages"]
    return chosen.imagining, chosen.fitting


OPTIONS = json.loads((Path(__file__).parent / "cli_options.json").read_text())  # what scripts out there may use


def listed(command: str, capsys) -> set[str]:
    """The options that a command's help names."""
    name, _, format = command.partition(" ")
    with pytest.raises(SystemExit):
        main([name, *(["run", "--to", format] if format else []), "--help"])
    found = re.findall(r"--[a-z0-9][a-z0-9.-]*", capsys.readouterr().out)
    return {option for option in found if not option.endswith(".")}


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_keeps_the_options_that_it_had(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert set(OPTIONS[command]) - listed(command, capsys) == set()


def test_the_list_of_options_knows_every_command_and_format():
    assert {name.split(" ")[0] for name in OPTIONS} == set(commands([]))
    assert {name.split(" ")[1] for name in OPTIONS if " " in name} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_command_and_the_form_have_the_same_options_of_a_format(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    form = {f"--options.{one.name.replace('_', '-')}" for one in choices_of(FORMATS[name].options())}
    off = {re.sub(r"([^.]+)$", r"no-\1", option) for option in form}  # of switches
    shown = {option for option in listed(f"export {name}", capsys) if option.startswith("--options.")}
    assert form <= shown and shown <= form | off


def test_one_dial_sets_the_imagining_and_the_fit_unless_a_preset_is_named():
    for quality, preset in (("preview", "preview"), ("balanced", "default"), ("full", "full")):
        assert imagining_and_fitting("--quality", quality) == (PRESETS[preset](), forgiving(FIT_PRESETS[quality]()))
        named = imagining_and_fitting(f"--quality={quality}", "--preset", "paper")
        assert named == (PRESETS["paper"](), forgiving(FIT_PRESETS[quality]()))
    published = imagining_and_fitting("--quality", "preview", "--priors", "svd-sv3d")
    assert published[0] == PRESETS["paper"]()
    steps = [PRESETS[name]().steps for name in ("preview", "default", "full")]
    assert steps == sorted(steps) and steps[2] >= 8 * steps[0] and steps[2] >= 3 * steps[1]


def test_the_fit_doubts_what_the_priors_disagreed_about(tmp_path):
    assert confidence_of(tmp_path, 0.5) is None
    disagreement = torch.tensor([0.0, 0.5, 1.0, 0.2]).reshape(1, 1, 2, 2)
    save_tensors(tmp_path / "disagreement.safetensors", {"disagreement": disagreement})
    assert confidence_of(tmp_path, 0.0) is None
    expected = torch.tensor([1.0, 0.6, 0.2, 0.84]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(confidence_of(tmp_path, 0.8), expected)
    with pytest.raises(InputError, match="share, 0 to 1"):
        confidence_of(tmp_path, 1.5)

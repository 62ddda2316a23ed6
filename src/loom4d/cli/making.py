"""Commands that make an asset and show it: generate, fit, view, export."""

from __future__ import annotations

import functools
import inspect
import json
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
import tyro

from loom4d import pipeline
from loom4d.cli.show import Flat, Show, console
from loom4d.denoisers.full_size import FullSizeConfig
from loom4d.export import FORMATS
from loom4d.export.video import OrbitOptions
from loom4d.gaussians.asset import load_asset
from loom4d.gaussians.fit_config import FitConfig
from loom4d.grid import load_grid
from loom4d.methods.diffusion_squared import DiffusionSquaredConfig
from loom4d.reconstruct import ReconstructConfig, export_run, reconstruct
from loom4d.runs import InputError
from loom4d.sources.captures import CaptureConfig
from loom4d.sources.framing import Config as SourceConfig
from loom4d.viewer import disagreement_of, write_page

SCORED = {"given_psnr": "the pictures given", "held_out_psnr": "those held out"}  # of a fit's report


@dataclass(frozen=True)
class RunChoice:
    """Which run it is.

    Attributes:
        out: Folder for the results; the same command on an interrupted run goes on with it.
        preset: How the grid is imagined, by default ours with small priors, at the quality asked for, and the paper's
            with svd-sv3d; --imagining.* changes single choices.
        quality: How long the whole may take: preview, balanced (some three times as long) or full (some ten times)
            set both the steps that imagine and those that fit; a named preset keeps its own steps.
        seed: Another seed, another asset; the same seed, the same bytes on this machine.
        doubt: How far the fit distrusts what the priors disagreed about, 0 to 1.
    """

    out: Path
    preset: Literal["default", "paper", "released"] = "default"
    quality: Literal["preview", "balanced", "full"] = "balanced"
    seed: int = 0
    doubt: float = pipeline.GenerateConfig().doubt
    method: str = "diffusion-squared"


@dataclass(frozen=True)
class PriorsChoice:
    """Whose scores are composed, and how they run here.

    Attributes:
        priors: small, which ships with the package, or svd-sv3d, from your own files.
        checkpoints: Folder with the files of the full-size priors.
        max_memory: What full-size priors may take of the device, as 12GB; default is what is fastest.
    """

    priors: str = "small"
    checkpoints: Path | None = None
    max_memory: str | None = None
    full_size: FullSizeConfig = field(default_factory=FullSizeConfig)


@dataclass(frozen=True)
class StageChoice:
    """Every single choice of every stage."""

    source: SourceConfig = pipeline.GenerateConfig().source
    imagining: DiffusionSquaredConfig = field(default_factory=DiffusionSquaredConfig)
    fitting: FitConfig = pipeline.GenerateConfig().fitting
    orbit: OrbitOptions = field(default_factory=OrbitOptions)


def generate(
    input: Annotated[Path, tyro.conf.Positional],
    /,
    run: Annotated[RunChoice, Flat],
    priors: Annotated[PriorsChoice, Flat] = PriorsChoice(),
    stages: Annotated[StageChoice, Flat] = StageChoice(),
) -> None:
    """Make a moving 3D asset of a picture, a clip, a folder of frames or an orbit of a static object.

    Args:
        input: The picture, video file or folder of frames.
    """
    full_size = priors.full_size
    if priors.max_memory is not None:
        full_size = replace(full_size, max_memory_gb=gigabytes(priors.max_memory))
    config = pipeline.GenerateConfig(
        method=run.method,
        preset=run.preset,
        priors=priors.priors,
        checkpoints=priors.checkpoints,
        full_size=full_size,
        seed=run.seed,
        doubt=run.doubt,
        source=stages.source,
        imagining=replace(stages.imagining, seed=run.seed),
        fitting=replace(stages.fitting, seed=run.seed),
        orbit=stages.orbit,
    )
    with Show() as show:
        pipeline.generate(input, run.out, config, show)
    console.print(f"open {run.out / 'viewer.html'}")


def gigabytes(text: str) -> float:
    """ "12GB", "12 gb" or "12" as a number of GB (10⁹ bytes)."""
    number = text.strip().lower().removesuffix("gb").strip()
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--max-memory takes an amount such as 12GB, not {text!r}")
    return value


def fit_command(
    input: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    quality: Literal["preview", "balanced", "full"] = "balanced",
    device: Literal["cpu", "cuda"] = "cpu",
    capture: CaptureConfig = CaptureConfig(),  # noqa: B008
    fitting: FitConfig = FitConfig(),  # noqa: B008
) -> None:
    """Fit dynamic Gaussians to posed pictures: a run folder, transforms.json, COLMAP text or cameras.json.

    Args:
        input: Folder of pictures with cameras (docs/conventions.md has the layouts), or a run folder.
        out: Folder for asset.safetensors and viewer.html; the same command on an interrupted fit goes on with it.
        quality: How long the fit takes; --fitting.* changes single choices.
        device: Where the fit works; cuda wants the extra gpu.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; leave --device out to fit on the processor")
    with Show() as show:
        reconstruct(input, out, ReconstructConfig(capture, fitting, device), show)
    scores = json.loads((out / "report.json").read_text())["stages"]["fit"]
    told = [f"{scores[name]} dB on {what}" for name, what in SCORED.items() if name in scores]
    console.print(f"{', '.join(told)}; open {out / 'viewer.html'}")


def view(run: Annotated[Path, tyro.conf.Positional], /, browser: bool = True) -> None:
    """Open a run's page in the browser; the page is written first where the folder has only the asset.

    Args:
        run: A run folder, or any folder with asset.safetensors.
        browser: Open it, or only say where it is.
    """
    page = run / "viewer.html"
    if not page.exists():
        if not (run / "asset.safetensors").exists():
            raise InputError(f"{run} holds neither viewer.html nor asset.safetensors; give a run folder")
        grid = load_grid(run / "grid") if (run / "grid" / "cameras.json").exists() else None
        asset, disagreement = load_asset(run / "asset.safetensors"), disagreement_of(run) if grid else None
        write_page(asset, page, title=run.name, grid=grid, disagreement=disagreement)
    if browser and not webbrowser.open(page.resolve().as_uri()):
        console.print("no browser could be started here")
    console.print(str(page))


def export_command(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    to: str,
    out: Path | None = None,
    options: Any = None,
) -> None:
    """Write a run's asset in a format that other programs read: mp4, webp, gif, glb, glb-morph, usd, ply, splatv, grid.

    `loom4d export RUN --to FORMAT --help` lists the options of that format.

    Args:
        run: A run folder, or any folder with asset.safetensors.
        to: The format's name.
        out: File or folder to write; by default in the run's folder `export`, named after the format.
        options: Choices of the format.
    """
    if to not in FORMATS:
        known = "\n".join(f"  {name:<10} {one.about}" for name, one in FORMATS.items())
        raise InputError(f"unknown format {to!r}; the formats are\n{known}")
    if not (run / "asset.safetensors").exists():
        raise InputError(f"{run} holds no asset.safetensors; give the folder of a finished run")
    target = out or run / "export" / f"asset{FORMATS[to].suffix or '_' + to}"
    target.parent.mkdir(parents=True, exist_ok=True)
    said = export_run(run, target, to, options)
    console.print(f"wrote {target}" + (f": {said}" if said else ""))


def export_to(name: str) -> Callable[..., None]:
    """The export command with the options of one format, or with none where no format has that name."""

    @functools.wraps(export_command)
    def command(run, /, to, out=None, options=None) -> None:
        export_command(run, to, out, options)

    command.__annotations__ = get_type_hints(export_command, include_extras=True)
    chosen = FORMATS[name].options if name in FORMATS else None
    command.__annotations__["options"] = chosen or tyro.conf.Suppress[None]  # type: ignore[misc]
    signature = inspect.signature(export_command)
    parameters = [
        one.replace(annotation=command.__annotations__[one.name], default=chosen() if chosen else None)
        if one.name == "options"
        else one.replace(annotation=command.__annotations__[one.name])
        for one in signature.parameters.values()
    ]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command

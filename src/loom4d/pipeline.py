"""From a path to a run folder: the whole of Loom4D in one generator of events.

Every stage leaves its result on disk and the next one reads it from there, so a run that was killed and called again
goes through the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loom4d import native
from loom4d.denoisers import DENOISERS, Family
from loom4d.denoisers.full_size import FullSizeConfig
from loom4d.denoisers.weights import load_autoencoder
from loom4d.evaluation.scores import foreground_psnr, psnr
from loom4d.export.video import OrbitOptions, write_orbit
from loom4d.gaussians.asset import load_asset, render, save_asset
from loom4d.gaussians.fit import fit, with_previews
from loom4d.gaussians.fit_config import PRESETS, FitConfig, forgiving
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.objective import Perceptual
from loom4d.gaussians.perceptual import feature_distance, lpips
from loom4d.gaussians.rasterize import default_backend
from loom4d.gaussians.state import FitState
from loom4d.grid import ImageGrid, contact_sheet, load_grid, save_grid
from loom4d.methods import METHODS
from loom4d.runs import Event, InputError, Run, Work, result_of
from loom4d.sources.assets import is_asset
from loom4d.sources.framing import Config as SourceConfig
from loom4d.sources.framing import load
from loom4d.viewer import disagreement_of, write_page

STAGES = ("sources", "imagine", "fit", "orbit", "viewer")


def fitting_of(quality: str) -> FitConfig:
    """How a generated grid is fitted at one of the fit's qualities."""
    return forgiving(PRESETS[quality]())


@dataclass(frozen=True)
class GenerateConfig:
    """Everything a run depends on besides its input; written to `config.json`."""

    method: str = "diffusion-squared"  # of METHODS
    preset: str = "default"  # of the method's presets
    priors: str = "small"  # of DENOISERS
    checkpoints: Path | None = None  # folder of weight files; None takes what ships with the package
    full_size: FullSizeConfig = field(default_factory=FullSizeConfig)  # how full-size priors run here
    seed: int = 0
    source: SourceConfig = field(default_factory=lambda: SourceConfig(fill=0.75, elevation_deg=5.0))
    imagining: Any = None  # the method's configuration; None is the preset's
    fitting: FitConfig = field(default_factory=lambda: fitting_of("balanced"))
    given_trust: float = 3.0  # how much more the fit trusts a given picture than a generated one
    doubt: float = 0.0  # 0..1: how far the fit distrusts what the priors disagreed about while it was drawn
    orbit: OrbitOptions = field(default_factory=OrbitOptions)
    title: str | None = None  # of the page; None is the input's name


def generate(
    path: Path | str,
    out: Path | str | None = None,
    config: GenerateConfig | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> DynamicGaussians:
    """Makes a moving 3D asset of the picture, clip, folder of frames or 3D model at `path`.

    The run folder `out` (by default `runs/NAME`) then holds config.json, events.jsonl, report.json, grid.png, grid/,
    asset.safetensors, orbit.mp4 and viewer.html. An interrupted run with the same input and configuration goes on.
    Raises `InputError` with one clear line when the input or the folder cannot be used.
    """
    path = Path(path)
    folder = Path("runs") / path.stem if out is None else Path(out)
    return result_of(generating(path, folder, config or GenerateConfig()), on_event)


def generating(path: Path, out: Path, config: GenerateConfig) -> Work[DynamicGaussians]:
    """`generate` as a stream of events."""
    imagining = imagining_config(config)
    if config.priors not in DENOISERS:
        raise InputError(f"unknown priors {config.priors!r}; choose one of {', '.join(DENOISERS)}")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    run = Run(
        out, {"input": path.name, "content": fingerprint(path), **as_json(config), "imagining": as_json(imagining)}
    )
    try:
        family = None
        if not run.finished("imagine"):
            family = yield from _family(config, run)
        given = yield from _stage(run, "sources", _prepare(path, config, imagining, family, run))
        grid = yield from _stage(run, "imagine", _imagine(given, config, imagining, family, run))
        del family  # gigabytes, at full size
        asset = yield from _stage(run, "fit", _fit(grid, given, config, run))
        yield from _stage(run, "orbit", _orbit(asset, grid, config, run))
        yield from _stage(run, "viewer", _page(asset, grid, given, config.title or path.stem, run))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError("out of memory; the same command with a smaller --max-memory and --out elsewhere") from error
    finally:
        run.close()
    return asset


def imagining_config(config: GenerateConfig) -> Any:
    """The method's configuration that a run uses: the given one, or the preset's with the run's seed."""
    if config.method not in METHODS:
        raise InputError(f"unknown method {config.method!r}; choose one of {', '.join(METHODS)}")
    method = METHODS[config.method]
    if config.preset not in method.presets:
        raise InputError(f"unknown preset {config.preset!r}; {config.method} has {', '.join(method.presets)}")
    return config.imagining or method.presets[method.meant(config.preset, config.priors)](config.seed)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(file.relative_to(path).as_posix().encode())
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def as_json(record: Any) -> dict[str, Any]:
    """A configuration as plain JSON values; paths become strings, infinities their names."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, Path) or value in (float("inf"), float("-inf")) else value

    return plain(asdict(record))


@dataclass(frozen=True)
class Stage:
    """One stage: how its result is made and kept, and how it is read back."""

    make: Callable[[], Work[dict[str, Any]]]  # leaves the result on disk and returns the facts for the report
    read: Callable[[], Any]


def _stage(run: Run, name: str, stage: Stage) -> Work[Any]:
    """Runs a stage unless the folder already has its result; either way reads the result from the folder."""
    if run.finished(name):
        yield _recorded(run, Event(name, "note", "already done"))
        return stage.read()
    begun = time.monotonic()
    work = stage.make()
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            facts = stop.value
            break
        yield _recorded(run, event)
    run.finish(name, time.monotonic() - begun, **facts)
    yield _recorded(run, Event(name, "done", data={"seconds": round(time.monotonic() - begun, 1), **facts}))
    return stage.read()


def _recorded(run: Run, event: Event) -> Event:
    """The event, after it was written down; pictures of previews stay out of the record."""
    run.record(replace(event, data={name: value for name, value in event.data.items() if name != "png"}))
    return event


def _family(config: GenerateConfig, run: Run) -> Work[Family]:
    """The priors, with what there is to say about how they run here."""
    family = DENOISERS[config.priors](config.checkpoints, config.full_size)
    meant = METHODS[config.method].meant(config.preset, config.priors)
    if meant != config.preset:
        yield _recorded(run, Event("priors", "note", f"the default preset of {config.priors} is {meant}"))
    if family.running is not None:
        said = f"{family.running.settings}; predicted peak {family.running.predicted_gb:.2f} GB"
        facts = {"predicted_peak_gb": family.running.predicted_gb}
        yield _recorded(run, Event("priors", "note", said, data=facts))
    return family


def _prepare(path: Path, config: GenerateConfig, imagining: Any, family: Family | None, run: Run) -> Stage:
    def make() -> Work[dict[str, Any]]:
        assert family is not None  # it is loaded until the grid is there
        views, frames = imagining.views or family.views, imagining.frames or family.frames
        source = replace(config.source, views=views)
        pictures = views if source.kind == "orbit" else frames
        if is_asset(path):
            pictures = 1  # a model is taken as it stands at the first instant; its motion is imagined
        given = yield from load(path, pictures, family.resolution, source)
        save_grid(given, run.path / "input")
        return {"views": given.views, "frames": given.frames, "resolution": family.resolution}

    return Stage(make, lambda: load_grid(run.path / "input"))


def _imagine(given: ImageGrid, config: GenerateConfig, imagining: Any, family: Family | None, run: Run) -> Stage:
    def make() -> Work[dict[str, Any]]:
        assert family is not None
        grid = yield from METHODS[config.method].imagine(given, family, imagining, run)
        save_grid(grid, run.path / "grid")
        contact_sheet(grid).save(run.path / "grid.png")
        facts = {"views": grid.views, "frames": grid.frames}
        if family.running is None:
            return facts
        peak = round(family.running.peak_gb(), 2)
        return facts | {"predicted_peak_gb": family.running.predicted_gb, "peak_gb": peak}

    return Stage(make, lambda: load_grid(run.path / "grid"))


def _fit(grid: ImageGrid, given: ImageGrid, config: GenerateConfig, run: Run) -> Stage:
    def make() -> Work[dict[str, Any]]:
        backend = default_backend()
        if native.load() is None:
            yield Event("fit", "note", "no native kernels (no C++ compiler found): the slower tensor path is used")
        saved = run.load_state("fit")
        resume = None if saved is None else FitState(saved[1]["step"], saved[0], saved[1]["motion"])

        def keep(state: FitState) -> None:
            run.save_state("fit", state.tensors, step=state.step, motion=state.motion)

        trust = torch.ones(grid.views, grid.frames)
        trust[: given.views, : given.frames] = config.given_trust
        perceptual, confidence = perceptual_of(config.fitting), confidence_of(run.path, config.doubt)
        work = fit(grid, config.fitting, trust, confidence, perceptual=perceptual, resume=resume, on_state=keep)
        asset = yield from with_previews(work, run.path / "previews")
        save_asset(asset, run.path / "asset.safetensors")
        shown = render(asset, grid.cameras, grid.times, *grid.size)
        followed = render(asset, given.cameras, given.times, *given.size)
        return {
            "backend": backend,
            "foreground_psnr": round(foreground_psnr(shown, grid).nanmean().item(), 2),
            "input_psnr": round(psnr(followed.on(1.0), given.on(1.0)), 2),
            "input_foreground_psnr": round(foreground_psnr(followed, given).nanmean().item(), 2),
        }

    return Stage(make, lambda: load_asset(run.path / "asset.safetensors"))


def confidence_of(folder: Path, doubt: float) -> Float[Tensor, "view frame h w"] | None:
    """1 − doubt · disagreement of the run's map, where it has one and there is any doubt; None else."""
    if not 0 <= doubt <= 1:
        raise InputError(f"doubt is a share, 0 to 1, not {doubt}")
    disagreement = disagreement_of(folder) if doubt else None
    return None if disagreement is None else 1 - doubt * disagreement


def perceptual_of(fitting: FitConfig) -> Perceptual | None:
    """The distance that a fit with these weights needs; None where it needs none."""
    if not fitting.weights.perceptual:
        return None
    if fitting.perceptual == "autoencoder":
        return feature_distance(load_autoencoder()[0].requires_grad_(False).encode)
    return lpips(fitting.perceptual.removeprefix("lpips-"))


def _orbit(asset: DynamicGaussians, grid: ImageGrid, config: GenerateConfig, run: Run) -> Stage:
    def make() -> Work[dict[str, Any]]:
        yield Event("orbit", "start", "drawing orbit.mp4")
        options = replace(config.orbit, fitted_size=config.orbit.fitted_size or grid.size[0])
        write_orbit(asset, run.path / "orbit.mp4", options)
        return {"frames": config.orbit.frames}

    return Stage(make, lambda: None)


def _page(asset: DynamicGaussians, grid: ImageGrid, given: ImageGrid, title: str, run: Run) -> Stage:
    def make() -> Work[dict[str, Any]]:
        yield Event("viewer", "start", "writing viewer.html")
        page, disagreement = run.path / "viewer.html", disagreement_of(run.path)
        size = write_page(asset, page, title=title, grid=grid, source=given, disagreement=disagreement)
        return {"bytes": size.page}

    return Stage(make, lambda: None)

"""Measuring this machine: a few steps of every preset and quality, in small pieces while the worker is idle."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from loom4d.cameras import turntable
from loom4d.denoisers import Family
from loom4d.export.video import write_orbit
from loom4d.gaussians.fit import fit
from loom4d.gaussians.fit_config import PRESETS as QUALITIES
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.grid import ImageGrid
from loom4d.methods import METHODS
from loom4d.pipeline import fitting_of
from loom4d.runs import Work
from loom4d.serve import choices
from loom4d.serve.records import Timing
from loom4d.serve.settings import Settings
from loom4d.serve.store import Store
from loom4d.viewer import write_page

STEPS = 3  # of imagining
ITERATIONS = 8  # of a fit
FRAMES = 4  # of the film


def trials(form: dict[str, Any], folders: dict[str, Path | None], settings: Settings, store: Store) -> Iterator[None]:
    """Measures what was never measured, and stores it. Between two yields lies one event at most."""
    known = {(one.part, one.key) for one in store.timings()}
    for priors in [name for name in folders if name == form["defaults"]["priors"]]:
        wanted = [
            (method, preset, key)
            for method in METHODS
            for preset in METHODS[method].presets
            if ("imagine", key := "|".join([method, preset, priors, "picture"])) not in known
        ]
        fits = [name for name in QUALITIES if ("fit", f"{name}|{priors}") not in known]
        if not wanted and not fits and ("rest", priors) in known:
            return
        yield
        family, _ = choices.found_family(priors, settings)
        grid = ball(family, family.views, family.frames)
        for method, preset, key in wanted:
            seconds = yield from imagining_seconds(family, METHODS[method], METHODS[method].presets[preset](0))
            if seconds is not None:
                store.add_timing(Timing("imagine", key, "trial", seconds))
        asset = None
        for quality in fits:
            asset, seconds = yield from fit_seconds(grid, quality)
            store.add_timing(Timing("fit", f"{quality}|{priors}", "trial", seconds))
        if asset is not None:
            yield
            store.add_timing(Timing("rest", priors, "trial", rest_seconds(asset, grid)))


def ball(family: Family, views: int, frames: int) -> ImageGrid:
    """A shaded ball, seen from around: something to measure with."""
    side = torch.linspace(-1, 1, family.resolution)
    y, x = torch.meshgrid(side, side, indexing="ij")
    height = (0.36 - x**2 - y**2).clamp_min(0).sqrt()
    rgba = torch.stack([0.4 + height, 0.3 + 0.5 * height, 0.2 + 0.3 * x.abs(), (height > 0).float()]).clamp(0, 1)
    times = torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)
    return ImageGrid(rgba.expand(views, frames, 4, -1, -1).contiguous(), turntable(views, frames), times)


def imagining_seconds(family: Family, method: Any, config: Any) -> Generator[None, None, dict[str, float] | None]:
    """Seconds per stage of a run of `config`, from a run of `STEPS` steps; None where it counts no steps."""
    if not {"steps", "seed"} <= {field.name for field in fields(config)}:
        return None
    few = replace(config, steps=min(STEPS, config.steps))
    marks: dict[str, list[tuple[int, float]]] = {}
    work: Work[Any] = method.imagine(ball(family, 1, 1), family, few, None)
    last = time.monotonic()
    for event in work:
        last = time.monotonic()
        if event.total:
            marks.setdefault(event.stage, []).append((event.step, last))
        yield
        paused = time.monotonic() - last
        marks = {stage: [(step, at + paused) for step, at in ticks] for stage, ticks in marks.items()}
        last += paused
    seconds = {}
    for stage, ticks in marks.items():
        (first, start), (final, end) = ticks[0], ticks[-1]
        seconds[stage] = round((end - start) / max(final - first, 1) * config.steps, 3)
    seconds["imagine"] = round(time.monotonic() - last, 3)  # decoding
    return seconds


def fit_seconds(grid: ImageGrid, quality: str) -> Generator[None, None, tuple[DynamicGaussians, dict[str, float]]]:
    """(an asset, seconds of a whole fit of `quality`), from `ITERATIONS` of it."""
    config = fitting_of(quality)
    few = replace(config, iterations=min(ITERATIONS, config.iterations), preview_every=0, state_every=0)
    spent = 0.0
    ticks: list[float] = []
    work = fit(grid, few)
    while True:
        begun = time.monotonic()
        try:
            event = next(work)
        except StopIteration as end:
            per_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1) if len(ticks) > 1 else spent
            start = spent - per_step * few.iterations
            return end.value, {"fit": round(max(start, 0.0) + per_step * config.iterations, 3)}
        spent += time.monotonic() - begun
        if event.kind == "progress":
            ticks.append(spent)
        yield


def rest_seconds(asset: DynamicGaussians, grid: ImageGrid) -> dict[str, float]:
    """Seconds of the film and the page."""
    options = replace(choices.FILM, fitted_size=grid.size[0])
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        write_orbit(asset, Path(folder) / "orbit.mp4", replace(options, seconds=FRAMES / options.fps))
        filmed = time.monotonic()
        write_page(asset, Path(folder) / "viewer.html", grid=grid)
        done = time.monotonic()
    return {
        "sources": 0.1,
        "orbit": round((filmed - begun) * options.frames / FRAMES, 3),
        "viewer": round(done - filmed, 3),
    }

"""From posed pictures to a run folder: stage two alone, on our own grids or anyone's data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from loom4d.cameras import Placement
from loom4d.export import FORMATS, export
from loom4d.export.transforms import TransformsOptions
from loom4d.export.video import OrbitOptions, as_fitted
from loom4d.gaussians.asset import load_asset, save_asset
from loom4d.gaussians.fit import fit, initial_state, with_previews
from loom4d.gaussians.fit_config import FitConfig, balanced
from loom4d.gaussians.initial import Cloud
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.placing import placed
from loom4d.gaussians.state import FitState
from loom4d.pipeline import as_json, fingerprint, perceptual_of
from loom4d.runs import Event, InputError, Run, Work, result_of, write_json
from loom4d.sources.captures import Capture, CaptureConfig, read_capture
from loom4d.viewer import write_page

PLACEMENT = "placement.json"
FILMED = ("mp4", "webp", "gif")  # pictures: the asset's own place in the world does not show


@dataclass(frozen=True)
class ReconstructConfig:
    """Everything a fit to posed pictures depends on besides them; written to `config.json`."""

    capture: CaptureConfig = field(default_factory=CaptureConfig)
    fitting: FitConfig = field(default_factory=balanced)
    device: str = "cpu"  # where the fit works


def reconstruct(
    path: Path | str,
    out: Path | str,
    config: ReconstructConfig | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> DynamicGaussians:
    """Fits a moving asset to the posed pictures at `path`: a run folder, a saved grid, transforms.json, COLMAP text or
    cameras.json (docs/conventions.md says which of their layouts).

    The run folder `out` then holds config.json, events.jsonl, report.json, asset.safetensors, placement.json and
    viewer.html. The asset is in the box of the fit; `placement.json` and exports have the pictures' own world. An
    interrupted run goes on. Raises `InputError` with one clear line when the input or the folder cannot be used.
    """
    return result_of(reconstructing(Path(path), Path(out), config or ReconstructConfig()), on_event)


def reconstructing(path: Path, out: Path, config: ReconstructConfig) -> Work[DynamicGaussians]:
    """`reconstruct` as a stream of events."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    begun = time.monotonic()
    reading = read_capture(path, config.capture)
    notes, capture = [], None
    while capture is None:  # what cannot be read leaves no folder behind
        try:
            notes.append(next(reading))
        except StopIteration as stop:
            capture = stop.value
    run = Run(out, {"input": path.name, "content": fingerprint(path), **as_json(config)})
    try:
        for event in notes:
            yield _recorded(run, event)
        asset, scores = yield from _fitted(run, capture, config)
        save_asset(asset, out / "asset.safetensors")
        write_json(out / PLACEMENT, {**vars(capture.placement), "world": capture.world})
        write_page(asset, out / "viewer.html", title=path.name, grid=capture.grid)
        sizes = dict(
            zip(("views", "frames", "height", "width"), (*capture.grid.rgba.shape[:2], *capture.grid.size), strict=True)
        )
        run.finish("fit", time.monotonic() - begun, **sizes, **{k: v for k, v in scores.items() if k != "seconds"})
    finally:
        run.close()
    return asset


def _fitted(run: Run, capture: Capture, config: ReconstructConfig) -> Work[tuple[DynamicGaussians, dict[str, Any]]]:
    """The asset and its scores."""
    saved = run.load_state("fit")
    state = None if saved is None else FitState(saved[1]["step"], saved[0], saved[1]["motion"])
    if state is None and capture.points is not None and bool((capture.grid.rgba[:, :, 3] == 1).all()):
        state = initial_state(capture.grid, config.fitting, points=cloud_of(capture, config.fitting))

    def keep(reached: FitState) -> None:
        run.save_state("fit", reached.tensors, step=reached.step, motion=reached.motion)

    scores: dict[str, Any] = {}
    distance = perceptual_of(config.fitting)
    grid = capture.grid.to(config.device)
    work = fit(grid, config.fitting, held_out=capture.held_out, perceptual=distance, resume=state, on_state=keep)
    work = with_previews(work, run.path / "previews")
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            return stop.value, scores
        scores = event.data if event.kind == "done" else scores
        yield _recorded(run, event)


def _recorded(run: Run, event: Event) -> Event:
    run.record(event)
    return event


def cloud_of(capture: Capture, config: FitConfig) -> Cloud:
    """The capture's points, `count` of them, at every moment: they are there before anything is known to move."""
    if capture.points is None:
        raise ValueError("this capture has no points")
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randint(len(capture.points), (config.count,), generator=generator)
    points, moments = capture.points.float(), capture.grid.times.unique()
    some = points[torch.randperm(len(points), generator=generator)[:1000]]
    apart = torch.cdist(some, some).fill_diagonal_(torch.inf).amin(1).median() if len(some) > 1 else torch.tensor(0.1)
    rgb = torch.full_like(points, 0.5) if capture.rgb is None else capture.rgb
    return Cloud(
        points[chosen].repeat(len(moments), 1),
        moments.repeat_interleave(config.count),
        rgb[chosen].repeat(len(moments), 1),
        float(len(some) * apart**2),
    )


def placement_of(folder: Path) -> Placement:
    """Where a run's asset stands in its pictures' world; as it is where the run does not say."""
    file = folder / PLACEMENT
    if not file.exists():
        return Placement()
    try:
        facts = json.loads(file.read_text())
        x, y, z = (float(value) for value in facts["shift"])
        return Placement(float(facts["scale"]), (x, y, z))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: not a placement ({error}); delete it to export the asset as it was fitted"
        ) from error


def export_run(folder: Path, target: Path, name: str, options: Any = None) -> str:
    """Writes a run's asset in a format of `FORMATS`, in the world of the pictures that it was fitted to.

    `options` are the format's; a clip is as sharp as the run's own. Returns what is to be said of the result.
    """
    asset, placement = load_asset(folder / "asset.safetensors"), placement_of(folder)
    if name == "grid":
        options = replace(options or TransformsOptions(), placement=placement)
    elif name in FILMED:
        options = as_fitted(options or OrbitOptions(), folder)
    elif name in FORMATS:
        asset = placed(asset, placement)
    return export(asset, target, name, options)

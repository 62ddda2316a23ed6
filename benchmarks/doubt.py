"""Whether a fit that distrusts what the priors disagreed about comes closer to the truth.

    python benchmarks/doubt.py --objects 6

Takes the grids that `benchmarks/composition.py judge` kept, fits each with several doubts, and scores the asset against
the object itself: at the grid's cells that were not given, and at views half way between the grid's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from loom4d.cameras import cells, orbit
from loom4d.evaluation.scores import foreground_psnr
from loom4d.gaussians.asset import render
from loom4d.gaussians.fit import fit
from loom4d.grid import ImageGrid, load_grid
from loom4d.pipeline import GenerateConfig, fitting_of
from loom4d.runs import load_tensors, result_of, write_json
from loom4d.sources.procedural import moving_object, procedural_grid
from loom4d.sources.procedural import render as render_procedural

SPLIT = "test"


@dataclass(frozen=True)
class Options:
    """What is fitted."""

    objects: int = 6
    first: int = 16
    rule: str = "balanced"  # of benchmarks/composition.py judge
    doubts: tuple[float, ...] = (0.0, 0.5, 1.0)
    fitting: str = "balanced"  # as `loom4d generate` fits at this quality
    grids: Path = Path("runs/composition")
    out: Path = Path("benchmarks/results/doubt.json")


def between(grid: ImageGrid, number: int) -> ImageGrid:
    """The object itself, seen from half way between the grid's views at the grid's instants."""
    azimuths = (torch.arange(grid.views) + 0.5) * 360 / grid.views
    elevation = grid.cameras.elevations_deg()[0, 0].item()
    cameras = orbit(azimuths, elevation).reshape(grid.views, 1).expand(grid.views, grid.frames)
    moments = grid.times.repeat(grid.views)
    rgba = render_procedural(moving_object(number, SPLIT), cells(cameras), moments, *grid.size)
    return ImageGrid(rgba.unflatten(0, cameras.batch_shape), cameras, grid.times)


def scored(folder: Path, number: int, options: Options) -> dict[str, Any]:
    grid, truth = load_grid(folder), procedural_grid(number, 8, 8, 64, split=SPLIT)
    disagreement = load_tensors(folder / "disagreement.safetensors")[0]["disagreement"]
    unseen = torch.ones(grid.views, grid.frames, dtype=torch.bool)
    unseen[0], unseen[:, 0] = False, False
    trust = torch.where(unseen, 1.0, GenerateConfig().given_trust)
    aside = between(truth, number)
    row: dict[str, Any] = {"object": number, "grid": round(float(foreground_psnr(grid, truth)[unseen].nanmean()), 3)}
    for doubt in options.doubts:
        config = replace(fitting_of(options.fitting), preview_every=0)
        asset = result_of(fit(grid, config, trust, 1 - doubt * disagreement))
        shown = [render(asset, one.cameras, one.times, *one.size) for one in (truth, aside)]
        row[f"cells, doubt {doubt}"] = round(float(foreground_psnr(shown[0], truth)[unseen].nanmean()), 3)
        row[f"between, doubt {doubt}"] = round(float(foreground_psnr(shown[1], aside).nanmean()), 3)
    return row


def main(options: Options) -> None:
    """Fits and prints one line an object, then the mean differences to no doubt with their standard errors."""
    rows = []
    for number in range(options.first, options.first + options.objects):
        folder = next(options.grids.glob(f"*/{SPLIT}/{options.rule}/{number:03}"))
        rows.append(scored(folder, number, options))
        print(json.dumps(rows[-1]), flush=True)
    gains = {}
    for doubt in options.doubts[1:]:
        for where in ("cells", "between"):
            gain = np.array(
                [row[f"{where}, doubt {doubt}"] - row[f"{where}, doubt {options.doubts[0]}"] for row in rows]
            )
            error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
            gains[f"{where}, doubt {doubt}"] = f"{gain.mean():+.3f} ± {error:.3f} dB"
    print(json.dumps(gains, indent=1))
    write_json(options.out, {"benchmark": "doubt", "fitting": options.fitting, "gains": gains, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Options))

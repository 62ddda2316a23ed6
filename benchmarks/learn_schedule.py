"""Learns where few steps belong, from fine trajectories of the built-in priors on training objects.

    python benchmarks/learn_schedule.py

A second-order multistep sampler errs, over a step h in λ = −ln σ, by about h³ · ‖d²D/dλ²‖, D being the clean estimate.
All steps err alike when they are spaced by the density ‖d²D/dλ²‖^⅓. The script measures that norm while the multi-view
prior draws columns and the video prior rows, and writes the quantiles of the density, as ln σ between the family's
ends, to benchmarks/results/schedule.json; `schedules.LEARNED_SMALL` holds the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from loom4d.denoisers import DENOISERS
from loom4d.denoisers.weights import load_prior
from loom4d.diffusion.samplers import Sampling
from loom4d.methods.diffusion_squared import Weaver, default
from loom4d.runs import result_of, write_json
from loom4d.sources.procedural import procedural_grid

RESULT = Path(__file__).parent / "results" / "schedule.json"
KNOTS, SIDE = 16, 8


@dataclass
class Recorder:
    """A memory that keeps every clean estimate instead of the last state."""

    estimates: list[Tensor] = field(default_factory=list)

    def save_state(self, name: str, tensors: dict[str, Tensor], **metadata: Any) -> None:
        self.estimates.append(tensors["denoised"].float())

    def load_state(self, name: str) -> None:
        return None

    def keep(self, name: str, tensors: dict[str, Tensor], **facts: Any) -> None:
        return None


def curvature(estimates: list[Tensor], depths: np.ndarray) -> np.ndarray:
    """Root mean square of d²D/dλ² at the inner steps, by divided differences of unequal steps."""
    slopes = [(b - a) / h for a, b, h in zip(estimates, estimates[1:], np.diff(depths), strict=False)]
    gaps = (depths[2:] - depths[:-2]) / 2
    second = [(b - a) / gap for a, b, gap in zip(slopes, slopes[1:], gaps, strict=False)]
    return np.array([float(one.square().mean().sqrt()) for one in second])


def quantiles(depths: np.ndarray, density: np.ndarray, count: int) -> np.ndarray:
    """Places that cut the density into equal parts, both ends included."""
    area = np.concatenate([[0], np.cumsum(np.diff(depths) * (density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0, area[-1], count + 1), area, depths)


def main(objects: int = 3, first: int = 5000, steps: int = 32, out: Path = RESULT) -> None:
    """Measures and writes; objects are of the training branch, from seed `first` on."""
    torch.set_num_threads(1)
    family = DENOISERS["small"](None, None)
    config = replace(default(), steps=steps, schedule="karras", sampling=Sampling("dpmpp_2m"), views=SIDE, frames=SIDE)
    found = []
    for seed in range(first, first + objects):
        truth, own = procedural_grid(seed, SIDE, SIDE, family.resolution), replace(config, seed=seed)
        for stage in (Weaver.column, Weaver.row):
            recorder = Recorder()
            weaver = Weaver(truth[:1, :1], family, own, recorder)
            result_of(stage(weaver))
            depths = -weaver.sigmas[:-1].log().numpy()
            found.append(curvature(recorder.estimates, depths))
    norm = np.mean(found, 0)
    density = np.concatenate([norm[:1], norm, norm[-1:]]) ** (1 / 3)
    knots = (-quantiles(depths, density, KNOTS)).round(4).tolist()
    facts = {"objects": [first, first + objects - 1], "split": "train", "steps": steps, "views": SIDE, "frames": SIDE}
    facts["prior"] = load_prior()[1]["step"]
    table = {"ln_sigma": (-depths).round(3).tolist(), "curvature": [None, *norm.round(4).tolist(), None]}
    write_json(out, {"benchmark": "learn_schedule", "facts": facts, "knots_ln_sigma": knots, "measured": table})
    print(json.dumps(knots))


if __name__ == "__main__":
    tyro.cli(main)

"""Every composition rule along whole trajectories, on a Gaussian field whose right answer is known.

    python benchmarks/laboratory.py --out docs/figures/laboratory.png

prints JSON and draws the figure. Nothing is sampled: the library's own composition and samplers carry coefficient
vectors (loom4d.evaluation.gaussian_field), so every number is exact up to float64. Takes twenty seconds of one core.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from laboratory_figure import draw
from loom4d.diffusion.composition import (
    Bands,
    Curve,
    alternating,
    columns,
    composed,
    marginal_corrected,
    switched,
    view_trust,
    weight_over,
)
from loom4d.diffusion.denoiser import Denoiser, Latents
from loom4d.diffusion.frequency import over_time
from loom4d.diffusion.reuse import by_turns, reused
from loom4d.diffusion.samplers import RENOISING, SAMPLERS, Sampling, Step, euler_step, renoised, start, trajectory
from loom4d.diffusion.schedules import SCHEDULES, Sigmas, karras, schedule
from loom4d.evaluation.gaussian_field import (
    GivenField,
    Verdict,
    along_time,
    around_orbit,
    exact_clips,
    judged,
    one_sigma_error,
    response,
    symbolic,
    symbolic_noise,
    symbolic_renoising,
)

VIEWS, FRAMES = 21, 25  # with the given ones
VIEW_LENGTH, TIME_LENGTH = 6.0, 12.0  # neighbours of the grid correlate by 0.796 and 0.886
GAMMAS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
CELLS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "corner": ("corner",),
    "row": ("row",),
    "column": ("column",),
    "row and column": ("row", "column"),
}
SIGMAS = (0.3, 1.0, 2.0, 5.0)


def blended(field: GivenField, curve: Curve, sigmas: Sigmas, trusting: bool = False) -> Denoiser:
    trust = view_trust(torch.arange(1, VIEWS) * 360 / VIEWS) if trusting else None
    return composed(field.multiview(), field.video(), weight_over(curve, sigmas, trust), negligible=0.0)


def banded(field: GivenField, share: float, fine: float) -> Denoiser:
    """What moves quickly (more than half a turn over the clip) by a share of its own."""
    bands = Bands(lambda sigma: fine, lambda x: over_time(x, 0.5))
    return composed(field.multiview(), field.video(), lambda sigma: share, bands=bands)


def corrected(field: GivenField, gamma: float, knows: tuple[str, ...] = ("corner",)) -> Denoiser:
    even = composed(field.multiview(), field.video(), lambda sigma: 0.5)
    return marginal_corrected(even, field.cell(*knows), lambda sigma: gamma)


RULES: dict[str, Callable[[GivenField, Sigmas], Denoiser]] = {
    "exact joint prior": lambda field, sigmas: field.joint(),
    "video only": lambda field, sigmas: field.video(),
    "multi-view only": lambda field, sigmas: field.multiview(),
    "constant 0.5": lambda field, sigmas: blended(field, Curve("constant", high=0.5), sigmas),
    "constant 0.6, view trust (released)": lambda field, sigmas: blended(
        field, Curve("constant", high=0.6), sigmas, trusting=True
    ),
    "linear": lambda field, sigmas: blended(field, Curve("linear"), sigmas),
    "cosine": lambda field, sigmas: blended(field, Curve("cosine"), sigmas),
    "logistic 0.5, 20 (paper)": lambda field, sigmas: blended(field, Curve(), sigmas),
    "logistic 0.6, 15": lambda field, sigmas: blended(field, Curve(midpoint=0.6, steepness=15.0), sigmas),
    "over log sigma, 0.7 to 0.3": lambda field, sigmas: blended(
        field, Curve("log_sigma", 0.7, 0.3, midpoint=2.0, steepness=2.0), sigmas
    ),
    "over log sigma, 0.3 to 0.7": lambda field, sigmas: blended(
        field, Curve("log_sigma", 0.3, 0.7, midpoint=2.0, steepness=2.0), sigmas
    ),
    "slow from video, quick from multi-view": lambda field, sigmas: banded(field, 0.3, 0.7),
    "slow from multi-view, quick from video": lambda field, sigmas: banded(field, 0.7, 0.3),
    "alternating": lambda field, sigmas: alternating(field.multiview(), field.video(), sigmas),
    "alternating above 2, then 0.5": lambda field, sigmas: switched(
        alternating(field.multiview(), field.video(), sigmas), corrected(field, 0.0), 2.0
    ),
    "corrected, gamma 0.6": lambda field, sigmas: corrected(field, 0.6),
    "corrected, gamma 1 below 5": lambda field, sigmas: switched(corrected(field, 0.0), corrected(field, 1.0), 5.0),
    "sum less cells, gamma 1 (Theorem 3.1)": lambda field, sigmas: corrected(field, 1.0),
}


def walked(field: GivenField, denoise: Denoiser, sigmas: Sigmas, step: Step = euler_step) -> Latents:
    """The symbolic sample of a rule."""
    *_, last = trajectory(step, denoise, start(symbolic_noise(field), sigmas), sigmas)
    return last.x


def verdict(field: GivenField, denoise: Denoiser, sigmas: Sigmas, step: Step = euler_step) -> Verdict:
    return judged(field, walked(field, denoise, sigmas, step))


def repeating(field: GivenField, mode: str, sigmas: Sigmas) -> Step:
    """Euler's step with re-noising over the usual share of the steps."""
    first = round(Sampling.renoised_share * (len(sigmas) - 1))
    return renoised(euler_step, mode, first, symbolic_renoising(field, mode, sigmas))


def correction(field: GivenField, sigmas: Sigmas) -> dict:
    """What the cells' prior may know, against gamma."""
    return {
        name: {str(gamma): shown(verdict(field, corrected(field, gamma, knows), sigmas)) for gamma in GAMMAS}
        for name, knows in CELLS.items()
    }


def renoising(field: GivenField, sigmas: Sigmas) -> dict:
    chosen = {"exact joint prior": field.joint(), "constant 0.5": corrected(field, 0.0)}
    return {
        name: {mode: shown(verdict(field, denoise, sigmas, repeating(field, mode, sigmas))) for mode in RENOISING}
        for name, denoise in chosen.items()
    }


def placed(field: GivenField, sigmas: Sigmas) -> dict:
    """Exact re-noising of the even blend at the steps after which the priors differ by more (rms)."""
    table = {}
    for limit in (0.1, 0.3, 0.5):
        last, repeats = [0.0], [0]

        def told(sigma: float, difference: Latents, last: list[float] = last) -> None:
            parts = difference[..., 0, 0].split([field.given, difference.shape[2] - field.given], 2)
            known = torch.einsum("vfa,ab,vfb->vf", parts[0], field.covariance_of_given, parts[0])
            last[0] = float((known + (parts[1] ** 2).sum(2)).mean().sqrt())

        def where(step: int, last: list[float] = last, repeats: list[int] = repeats, limit: float = limit) -> bool:
            repeats[0] += last[0] > limit
            return last[0] > limit

        even = composed(field.multiview(), field.video(), lambda sigma: 0.5, observe=told)
        step = renoised(euler_step, "exact", where, symbolic_renoising(field, "exact", sigmas))
        table[str(limit)] = shown(verdict(field, even, sigmas, step)) | {"repeats": repeats[0]}
    return table


def shortcuts(field: GivenField) -> dict:
    """What is lost when estimates are used again: 16 aligned steps of DPM++ 2M under the corrected blend."""
    sigmas, mean = schedule("align_your_steps_svd", 16), field.mean_of_columns.transpose(0, 1)

    def turning(every: int) -> Denoiser:
        def bind(frames) -> Denoiser:
            return exact_clips(field.by_views, mean[list(frames)])

        return columns(by_turns(bind, range(len(mean)), every, sigmas, {}, "columns"))

    def rule(multiview: Denoiser, video: Denoiser, cell: Denoiser) -> Denoiser:
        return marginal_corrected(composed(multiview, video, lambda sigma: 0.5), cell, lambda sigma: 0.6)

    around, along, cell = field.multiview(), field.video(), field.cell("corner")
    chosen = {
        "none": rule(around, along, cell),
        "cells every 2nd step": rule(around, along, reused(cell, 2, sigmas, {}, "cells")),
        "multi-view every 2nd step": rule(reused(around, 2, sigmas, {}, "multiview"), along, cell),
        "video every 2nd step": rule(around, reused(along, 2, sigmas, {}, "video"), cell),
        "columns by turns of 2": rule(turning(2), along, cell),
        "all every 2nd step": reused(rule(around, along, cell), 2, sigmas, {}, "all"),
    }
    fewer = schedule("align_your_steps_svd", 8)
    table = {name: shown(verdict(field, denoise, sigmas, SAMPLERS["dpmpp_2m"])) for name, denoise in chosen.items()}
    return table | {"eight steps": shown(verdict(field, rule(around, along, cell), fewer, SAMPLERS["dpmpp_2m"]))}


def samplers(field: GivenField) -> Iterator[dict]:
    """Error of the discretisation alone, with the exact prior, at equal numbers of evaluations."""
    for sampler, step in SAMPLERS.items():
        for name in SCHEDULES:
            for evaluations in (10, 20, 50):
                steps = evaluations // 2 if sampler == "heun" else evaluations
                result = verdict(field, field.joint(), schedule(name, steps), step)
                yield {"sampler": sampler, "schedule": name, "evaluations": evaluations, **shown(result)}


def one_sigma(field: GivenField) -> dict:
    """Squared error of a rule's score at one noise level, relative to the exact score."""
    chosen = {
        "constant 0.5": corrected(field, 0.0),
        "gamma 1, cell knows row and column": corrected(field, 1.0, ("row", "column")),
        "gamma 1, cell knows corner": corrected(field, 1.0),
    }
    return {
        name: {str(sigma): round(one_sigma_error(field, denoise, sigma), 4) for sigma in SIGMAS}
        for name, denoise in chosen.items()
    }


def disagreement(field: GivenField, sigmas: Sigmas) -> dict:
    """Total error when each prior's mean is off by independent noise with a share of the field's variance per cell."""
    table = {}
    for gamma in GAMMAS:

        def rule(multiview: Denoiser, video: Denoiser, cell: Denoiser, gamma: float = gamma) -> Denoiser:
            return marginal_corrected(composed(multiview, video, lambda sigma: 0.5), cell, lambda sigma: gamma)

        result = verdict(field, rule(field.multiview(), field.video(), field.cell("corner")), sigmas)
        priors = (field.multiview(), field.video(), field.cell("corner"))
        gain = sum(response(field, rule, priors, place, sigmas) for place in range(3))
        right = result.spread_error + result.mean_error
        table[str(gamma)] = {str(off): round(right + off * gain, 4) for off in (0.0, 0.1, 0.3, 1.0)}
    return table


def shown(result: Verdict) -> dict[str, float]:
    total = result.spread_error + result.mean_error
    return {"error": round(total, 4)} | {name: round(value, 4) for name, value in asdict(result).items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("docs/figures/laboratory.png"))
    out: Path = options.parse_args().out
    began = time.perf_counter()
    field, sigmas = symbolic(around_orbit(VIEWS, VIEW_LENGTH), along_time(FRAMES, TIME_LENGTH)), karras(50)
    samples = {name: walked(field, make(field, sigmas), sigmas) for name, make in RULES.items()}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    report = {
        "benchmark": "laboratory",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "field": {"views": VIEWS, "frames": FRAMES, "view_length": VIEW_LENGTH, "time_length": TIME_LENGTH},
        "sampling": "50 Euler steps, Karras, 700 to 0.002, unless said otherwise",
        "rules": {name: shown(judged(field, x)) for name, x in samples.items()},
        "correction": correction(field, sigmas),
        "renoising": renoising(field, sigmas),
        "re-noising where they differ": placed(field, sigmas),
        "shortcuts": shortcuts(field),
        "samplers": list(samplers(field)),
        "one_sigma": one_sigma(field),
        "disagreement": disagreement(field, sigmas),
    }
    samples["exact, released re-noising"] = walked(field, field.joint(), sigmas, repeating(field, "released", sigmas))
    draw(out, report, {name: drawn(field, x) for name, x in samples.items()})
    print(json.dumps(report | {"seconds": round(time.perf_counter() - began, 1)}, indent=2))


def drawn(field: GivenField, x: Latents) -> torch.Tensor:
    """One draw of a symbolic sample, with the given pictures in the first row and column; always the same draw."""
    draws = torch.randn(x.shape[2], generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    draws[: field.given] = torch.linalg.cholesky(field.covariance_of_given) @ draws[: field.given]
    frames = len(field.over_time)
    grid = torch.empty(len(field.over_views), frames, dtype=torch.float64)
    grid[0], grid[1:, 0] = draws[:frames], draws[frames : field.given]
    grid[1:, 1:] = x[..., 0, 0] @ draws
    return grid


if __name__ == "__main__":
    main()

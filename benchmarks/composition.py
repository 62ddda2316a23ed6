"""Time against quality of composition rules and shortcuts, on procedural objects that no prior was trained on.

    python benchmarks/composition.py choose     rules and shortcuts on a few objects of the valid branch
    python benchmarks/composition.py judge      the presets on objects of the test branch
    python benchmarks/composition.py ablation   Figure 5 of Diffusion²: s₀, k, the schedule's kind, one prior alone
    python benchmarks/composition.py            all three

Every row of the table is written to benchmarks/results/composition.json as soon as it is measured, with the digest of
its configuration and of the weights: called again, the command goes on where it stopped, and after new weights or
another rule measures only what has changed. The task is completion: the true first row and column are given, the rest
of the grid is scored. Seconds are CPU-seconds of one thread; "pictures" counts the pictures that the network was asked
about, which no other load disturbs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from composition_rules import ABLATION, FINALISTS, RULES
from loom4d.denoisers import Family
from loom4d.denoisers.built_in import SmallPriors, family_of
from loom4d.denoisers.weights import load_autoencoder, load_prior
from loom4d.evaluation.consistency import change_psnr, hull_agreement, motion
from loom4d.evaluation.perceptual import perceptual_distance
from loom4d.evaluation.scores import foreground_psnr, silhouette_iou, similarity
from loom4d.grid import ImageGrid, load_grid, save_grid, to_bytes
from loom4d.methods.diffusion_squared import DiffusionSquaredConfig, Weaver
from loom4d.runs import result_of, save_tensors, write_atomically, write_json
from loom4d.sources.procedural import procedural_grid

RESULTS = Path(__file__).parent / "results" / "composition.json"
SIDE, REFERENCE = 8, "full"  # views and frames; the rule that distances to the 50-step run are measured to


@dataclass(frozen=True)
class Bench:
    """What every run needs: the family, a count of the pictures its network was asked about, and where results lie."""

    family: Family
    asked: list[int]
    features: Any
    weights: str  # digest of the prior's and the autoencoder's
    grids: Path  # finished grids, for distances and pictures
    rows: dict[str, dict[str, Any]]
    out: Path

    def save(self) -> None:
        write_json(self.out, {"facts": facts(self), "rows": sorted(self.rows.values(), key=place_of)})


def place_of(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["split"], row["rule"], row["object"]


def facts(bench: Bench) -> dict[str, Any]:
    return {
        "benchmark": "composition",
        "task": f"{SIDE} x {SIDE} grid of 64² pictures, first row and column given, means over the other cells",
        "weights": bench.weights,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def bench(priors: Path | None, out: Path, grids: Path) -> Bench:
    torch.set_num_threads(1)
    (autoencoder, known), (network, facts) = load_autoencoder(priors), load_prior(priors)
    asked = [0]
    network.register_forward_hook(
        lambda module, inputs, output: asked.__setitem__(0, asked[0] + output[:, :, 0].numel())
    )
    family = family_of(SmallPriors(autoencoder, network))
    digest = hashlib.sha256((known["sha256"] + facts["sha256"]).encode()).hexdigest()[:12]
    kept = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = {key_of(row): row for row in kept}
    return Bench(family, asked, autoencoder.features, digest, grids / digest, rows, out)


def key_of(row: dict[str, Any]) -> str:
    return f"{row['split']}/{row['rule']}/{row['object']}"


@dataclass
class Kept:
    """A memory that keeps the map of disagreement alone."""

    disagreement: torch.Tensor | None = None

    def save_state(self, name: str, tensors: dict[str, torch.Tensor], **metadata: Any) -> None:
        return None

    def load_state(self, name: str) -> None:
        return None

    def keep(self, name: str, tensors: dict[str, torch.Tensor], **facts: Any) -> None:
        self.disagreement = tensors["disagreement"]


def sized(config: DiffusionSquaredConfig, number: int) -> DiffusionSquaredConfig:
    return replace(config, seed=number, views=SIDE, frames=SIDE)


def digest_of(bench: Bench, config: DiffusionSquaredConfig, number: int) -> str:
    """Of all that a row depends on: weights and configuration."""
    text = bench.weights + json.dumps(asdict(sized(config, number)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def current(bench: Bench, split: str, rules: dict[str, DiffusionSquaredConfig], rule: str) -> dict[int, dict[str, Any]]:
    """A rule's rows by object: those made with these weights and this configuration."""
    found = [row for row in bench.rows.values() if (row["split"], row["rule"]) == (split, rule)]
    return {row["object"]: row for row in found if row["digest"] == digest_of(bench, rules[rule], row["object"])}


def measure(bench: Bench, split: str, name: str, rule: DiffusionSquaredConfig, number: int) -> None:
    """One rule on one object: its row goes into the table unless it is there already."""
    config, digest = sized(rule, number), digest_of(bench, rule, number)
    row = {"split": split, "rule": name, "object": number, "digest": digest}
    folder = bench.grids / split / name.replace("/", "-") / f"{number:03}"
    found = bench.rows.get(key_of(row))
    if found is not None and found["digest"] == digest:
        return
    truth = procedural_grid(number, SIDE, SIDE, bench.family.resolution, split=split)
    bench.asked[0], begun = 0, time.process_time()
    kept = Kept()
    weaver = Weaver(truth[:1, :], bench.family, config, kept)
    grid = result_of(weaver.grid(truth.premultiplied[:, 0], truth.premultiplied[0]))
    row["cpu_seconds"] = round(time.process_time() - begun, 2)
    row["pictures"] = bench.asked[0] // bench.family.latent_shape[-1] ** 2
    save_grid(grid, folder)
    bench.rows[key_of(row)] = row | scores(grid, truth, bench)
    if kept.disagreement is not None:
        save_tensors(folder / "disagreement.safetensors", {"disagreement": kept.disagreement})
        bench.rows[key_of(row)]["foretold"] = foretold(kept.disagreement, grid, truth)
    bench.save()


def scores(grid: ImageGrid, truth: ImageGrid, bench: Bench) -> dict[str, float]:
    """Of the cells that were not given."""
    unseen = torch.ones(SIDE, SIDE, dtype=torch.bool)
    unseen[0], unseen[:, 0] = False, False
    named = {
        "psnr": foreground_psnr(grid, truth)[unseen].nanmean(),
        "ssim": similarity(grid, truth)[unseen].mean(),
        "outline": silhouette_iou(grid, truth)[unseen].mean(),
        "perceptual": perceptual_distance(grid, truth, bench.features)[unseen].mean(),
        "change_psnr": change_psnr(grid, truth, torch.arange(SIDE) > 0),
        "motion": motion(grid)[1:].mean() / motion(truth)[1:].mean().clamp_min(1e-4),
        "hull": hull_agreement(grid)[1:].mean(),
    }
    return {name: round(float(value), 4) for name, value in named.items()}


def foretold(disagreement: torch.Tensor, grid: ImageGrid, truth: ImageGrid) -> float:
    """Rank correlation of the disagreement with the error that came of it, over the latent cells of unseen pictures
    in which either shows something: 1 where it knows exactly where the grid will be wrong."""
    error = (grid.premultiplied - truth.premultiplied).square().mean(2)[1:, 1:]
    shown = torch.maximum(grid.rgba[1:, 1:, 3], truth.rgba[1:, 1:, 3])
    pooled = [torch.nn.functional.adaptive_avg_pool2d(one, disagreement.shape[-2:]) for one in (error, shown)]
    chosen = pooled[1] > 0.05
    ranks = [one[chosen].argsort().argsort().double() for one in (disagreement[1:, 1:], pooled[0])]
    return round(float(torch.corrcoef(torch.stack(ranks))[0, 1]), 3)


def against(bench: Bench, split: str, name: str, reference: str, number: int) -> None:
    """Adds the distance in dB between a rule's grid and the reference rule's, of the same object and noise."""
    row = bench.rows[f"{split}/{name}/{number}"]
    folders = [bench.grids / split / one.replace("/", "-") / f"{number:03}" for one in (name, reference)]
    if "to_reference" in row or not all((folder / "cameras.json").exists() for folder in folders):
        return
    ours, theirs = (load_grid(folder) for folder in folders)
    unseen = torch.ones(SIDE, SIDE, dtype=torch.bool)
    unseen[0], unseen[:, 0] = False, False
    row["to_reference"] = round(float(foreground_psnr(ours, theirs)[unseen].nanmean()), 2)


def run(bench: Bench, split: str, rules: dict[str, DiffusionSquaredConfig], objects: range) -> None:
    """Object by object, so that a table that was stopped early compares the same objects."""
    for number in objects:
        for name, config in rules.items():
            measure(bench, split, name, config, number)
            print(line(bench.rows[f"{split}/{name}/{number}"]), flush=True)
        for name in rules:
            against(bench, split, name, REFERENCE, number)
    bench.save()


def line(row: dict[str, Any]) -> str:
    shown = ("psnr", "ssim", "perceptual", "change_psnr", "motion", "hull", "pictures", "cpu_seconds")
    return f"{row['object']:4} {row['rule']:34}" + "".join(f"{row[name]:>10}" for name in shown)


def differences(bench: Bench, split: str, rules: dict[str, Any], pair: tuple[str, str], score: str) -> np.ndarray:
    """The first rule's score less the second's on each object that both were measured on."""
    ours, theirs = (current(bench, split, rules, rule) for rule in pair)
    return np.array([ours[number][score] - theirs[number][score] for number in sorted(ours.keys() & theirs.keys())])


def spread(values: np.ndarray) -> float:
    """Standard error of the mean; what a difference must exceed."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


COLUMNS = ("psnr", "ssim", "perceptual", "change_psnr", "motion", "hull", "foretold", "to_reference", "pictures")
HEADS = ("PSNR, dB", "SSIM", "perceptual", "changes, dB", "motion", "one body", "foretold", "to `full`, dB", "pictures")


def table(bench: Bench, split: str, rules: dict[str, Any], baseline: str) -> Iterator[str]:
    """Markdown: means over the objects that a rule and the baseline were both measured on, the difference in PSNR."""
    yield f"| rule | objects | PSNR less that of `{baseline}` | {' | '.join(HEADS)} | CPU-seconds |"
    yield "|---" * (len(HEADS) + 4) + "|"
    shared = current(bench, split, rules, baseline)
    for name in rules:
        rows = [row for number, row in current(bench, split, rules, name).items() if number in shared]
        if not rows:
            continue
        gap = differences(bench, split, rules, (name, baseline), "psnr")
        means = [np.mean([row[key] for row in rows if key in row] or [np.nan]) for key in COLUMNS]
        cells = [
            f"{mean:.{0 if key == 'pictures' else 3 if mean < 2 else 2}f}"
            for key, mean in zip(COLUMNS, means, strict=True)
        ]
        seconds = np.mean([row["cpu_seconds"] for row in rows])
        change = f"{gap.mean():+.2f} ± {spread(gap):.2f}"
        yield f"| {name} | {len(rows)} | {change} | {' | '.join(cells)} | {seconds:.0f} |".replace("nan", "–")


def verdicts(bench: Bench) -> Iterator[str]:
    """The bars, each with its figures and whether it is met."""
    split, rules = STAGES["judge"]

    def gaps(ours: str, theirs: str, score: str) -> np.ndarray:
        return differences(bench, split, rules, (ours, theirs), score)

    for other in ("paper", "released"):
        gap = gaps("balanced", other, "psnr")
        if len(gap):
            met = "not shown by one" if len(gap) < 2 else "met" if gap.mean() > 2 * spread(gap) else "missed"
            yield f"- `balanced` less `{other}`: {gap.mean():+.2f} ± {spread(gap):.2f} dB on {len(gap)} objects: {met}."
    for name, times in (("balanced", 3.0), ("preview", 8.0)):
        gap, far = gaps(name, REFERENCE, "psnr"), gaps(name, REFERENCE, "perceptual")
        if not len(gap):
            continue
        asked = [
            np.mean([row["pictures"] for row in current(bench, split, rules, rule).values()])
            for rule in (REFERENCE, name)
        ]
        faster = asked[0] / asked[1]
        near = name == "preview" or (gap.mean() > -0.3 and far.mean() < 2 * np.nan_to_num(spread(far)) + 1e-4)
        price = (
            f"{gap.mean():+.2f} ± {spread(gap):.2f} dB and {far.mean():+.4f} ± {spread(far):.4f} perceptual distance"
        )
        met = "met" if faster >= times and near else "missed"
        yield (
            f"- `{name}` asks {faster:.1f} times fewer pictures than `{REFERENCE}` (bar: {times:.0f}), at {price}, "
            f"on {len(gap)} objects: {met}."
        )


def report(bench: Bench) -> str:
    """All tables and verdicts as a page, written beside the rows."""
    parts = [
        "# Composition: the tables",
        f"Written by `benchmarks/composition.py`; {facts(bench)['task']}; ± is one standard error.",
    ]
    for name, (split, rules) in STAGES.items():
        baseline = {"choose": "start", "judge": "balanced", "ablation": "s0 0.5 (paper)"}[name]
        lines = list(table(bench, split, rules, baseline))
        if len(lines) > 2:
            parts += [f"## {name}", "\n".join(lines)]
    bars = "\n".join(verdicts(bench)).replace("nan", "–")
    return "\n\n".join([*parts, "## Bars", bars]) + "\n"


def pictures(bench: Bench, split: str, rules: dict[str, Any], number: int, path: Path) -> None:
    """One row of the grid (a view from the side) for each rule, the truth first."""
    truth = procedural_grid(number, SIDE, SIDE, bench.family.resolution, split=split)
    folders = [bench.grids / split / name.replace("/", "-") / f"{number:03}" for name in rules]
    grids = [truth] + [load_grid(folder) for folder in folders if (folder / "cameras.json").exists()]
    strips = [np.concatenate([to_bytes(picture) for picture in grid.on(1.0)[SIDE // 4]], 1) for grid in grids]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(strips, 0)).save(path)


STAGES = {"choose": ("valid", RULES), "judge": ("test", FINALISTS), "ablation": ("valid", ABLATION)}


def main(
    stage: Literal["choose", "judge", "ablation", "all"] = "all",
    /,
    objects: int | None = None,
    first: int = 16,
    only: tuple[str, ...] = (),
    priors: Path | None = None,
    out: Path = RESULTS,
    grids: Path = Path("runs/composition"),
    figures: Path | None = None,
) -> None:
    """Measures what the table lacks and prints it.

    Args:
        objects: How many held-out objects; 6 to choose and to judge, 2 for the ablation by default.
        first: Seed of the first one.
        only: These rules alone.
        priors: Folder with other weights than the package's.
        grids: Folder for finished grids.
        figures: Folder for pictures of the ablation.
    """
    held = bench(priors, out, grids)
    for name in STAGES if stage == "all" else (stage,):
        split, rules = STAGES[name]
        chosen = {rule: config for rule, config in rules.items() if not only or rule in only}
        count = objects or (2 if name == "ablation" else 6)
        run(held, split, chosen, range(first, first + count))
        write_atomically(out.with_suffix(".md"), report(held))
        print(report(held))
        if figures is not None and name == "ablation":
            pictures(held, split, chosen, first, figures / "ablation.png")


if __name__ == "__main__":
    tyro.cli(main)

"""How good the built-in priors are, on objects never trained on: one command, one table, one picture for each task.

    python benchmarks/priors.py --objects 8 --out docs/figures

Three tasks: *orbit* (one picture -> all views of that instant), *video* (one picture -> a clip), *completion* (the
true first row and column -> the rest of the grid). Beside the priors stand what needs none: copying, the training
object whose picture is nearest, and the autoencoder's ceiling; and each prior alone.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from einops import rearrange
from PIL import Image

from loom4d.denoisers import DENOISERS, Family
from loom4d.denoisers.weights import load_autoencoder, load_prior
from loom4d.diffusion.composition import Curve
from loom4d.evaluation.scores import compare
from loom4d.grid import ImageGrid, straight, to_bytes
from loom4d.methods.diffusion_squared import PRESETS, DiffusionSquaredConfig, Weaver
from loom4d.runs import result_of
from loom4d.sources.procedural import procedural_grid
from loom4d.training.shards import ShardConfig, Shards, default_folder, make_shards, open_shards


def with_pictures(grid: ImageGrid, premultiplied: torch.Tensor) -> ImageGrid:
    return replace(grid, rgba=straight(premultiplied.clamp(0, 1)))


def ceiling(grid: ImageGrid, family: Family) -> ImageGrid:
    """The grid through the autoencoder and back: no latent prior can score higher."""
    flat = rearrange(grid.premultiplied, "v f c h w -> (v f) c h w")
    latents = rearrange(family.encode(flat), "(v f) c h w -> v f c h w", v=grid.views)
    return with_pictures(grid, family.decode(latents))


def nearest_training_view(picture: torch.Tensor, shards: Shards) -> torch.Tensor:
    """Orbit of the training object whose picture (any view, any frame) is nearest, seen from where it matches."""
    ours = (picture * 255).round().short()
    best, found = float("inf"), (0, 0, 0, 0)
    for number, shard in enumerate(shards.pictures):
        small = torch.from_numpy(np.array(shard[..., ::4, ::4])).short()
        distance = (small - ours[..., ::4, ::4]).abs().float().mean((-1, -2, -3))
        if distance.min() < best:
            best = distance.min().item()
            found = (number, *np.unravel_index(int(distance.argmin()), distance.shape))
    number, grid, view, frame = (int(index) for index in found)
    orbit = np.roll(shards.pictures[number][grid, :, frame], -view, axis=0)
    return torch.from_numpy(np.array(orbit)).float() / 255


def orbits(truth: ImageGrid, family: Family, config: DiffusionSquaredConfig, data: Shards) -> dict[str, ImageGrid]:
    picture, first = truth[:1, :1], truth[:, :1]
    column = result_of(Weaver(picture, family, config, None).column())
    copied = picture.premultiplied.expand(truth.views, -1, -1, -1, -1)
    return {
        "multiview prior": with_pictures(first, column[:, None]),
        "copying the input": with_pictures(first, copied),
        "nearest training object": with_pictures(
            first, nearest_training_view(picture.premultiplied[0, 0], data)[:, None]
        ),
        "autoencoder ceiling": ceiling(first, family),
    }


def completions(truth: ImageGrid, family: Family, config: DiffusionSquaredConfig) -> dict[str, ImageGrid]:
    column, row = truth.premultiplied[:, 0], truth.premultiplied[0]

    def woven(**changes) -> ImageGrid:
        return result_of(Weaver(truth[:1, :], family, replace(config, **changes), None).grid(column, row))

    return {
        "composed": woven(),
        "video only": woven(share=Curve("constant", high=0.0)),
        "multiview only": woven(share=Curve("constant", high=1.0)),
        "copying each view's first frame": with_pictures(truth, column[:, None].expand(-1, truth.frames, -1, -1, -1)),
        "copying each instant's first view": with_pictures(truth, row[None].expand(truth.views, -1, -1, -1, -1)),
        "autoencoder ceiling": ceiling(truth, family),
    }


def motion_strength(clip: torch.Tensor) -> float:
    """Mean absolute change between consecutive pictures."""
    return (clip[1:] - clip[:-1]).abs().mean().item()


def sharpness(clip: torch.Tensor) -> float:
    """Mean absolute difference of neighbouring pixels."""
    return ((clip.diff(dim=-1).abs().mean() + clip.diff(dim=-2).abs().mean()) / 2).item()


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def strip(grid: ImageGrid) -> np.ndarray:
    pictures = grid.on(1.0)
    flat = pictures[:, 0] if grid.frames == 1 else pictures[grid.views // 4 * 1]
    return np.concatenate([to_bytes(picture) for picture in flat], 1)


def main(
    objects: int = 8,
    first: int = 0,
    preset: str = "default",
    priors: Path | None = None,
    data: Path | None = None,
    training_objects: int = 640,
    views: int = 8,
    frames: int = 8,
    steps: int | None = None,
    out: Path | None = None,
) -> None:
    """Scores on `objects` held-out procedural objects from seed `first` on, and pictures in `out`."""
    begun = time.monotonic()
    family = DENOISERS["small"](priors)
    config = replace(PRESETS[preset](), views=views, frames=frames)
    config = config if steps is None else replace(config, steps=steps)
    folder = (data or default_folder()) / f"train_{views}x{frames}x{family.resolution}"
    drawn = ShardConfig(folder, training_objects, "train", views, frames, family.resolution)
    result_of(make_shards(drawn))
    seen = open_shards(folder, training_objects)
    scores: dict[str, dict[str, list[dict[str, float]]]] = {"orbit": {}, "completion": {}}
    clips: list[dict[str, float]] = []
    strips: dict[str, list[np.ndarray]] = {"orbit": [], "completion": []}
    unseen = torch.ones(views, frames, dtype=torch.bool)
    unseen[0], unseen[:, 0] = False, False
    for seed in range(first, first + objects):
        truth = procedural_grid(seed, views, frames, family.resolution, split="test")
        tasks = {"orbit": orbits(truth, family, config, seen), "completion": completions(truth, family, config)}
        for task, results in tasks.items():
            target = truth[:, :1] if task == "orbit" else truth
            cells = unseen if task == "completion" else torch.arange(views)[:, None] > 0
            for name, grid in results.items():
                scores[task].setdefault(name, []).append(compare(grid, target, cells))
            shown = [strip(target), strip(next(iter(results.values()))), strip(results["autoencoder ceiling"])]
            strips[task].append(np.concatenate(shown, 0))
        row = result_of(Weaver(truth[:1, :1], family, config, None).row())
        real = truth.premultiplied[0]
        clips.append({"motion": motion_strength(row), "motion of the data": motion_strength(real)})
        clips[-1] |= {"sharpness": sharpness(row), "sharpness of the data": sharpness(real)}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for task, pictures in strips.items():
            Image.fromarray(np.concatenate(pictures, 0)).save(out / f"priors_{task}.png")
    facts = {"prior": load_prior(priors)[1], "autoencoder": load_autoencoder(priors)[1]}
    report = {
        "objects": objects,
        "preset": preset,
        "steps": {name: fact["step"] for name, fact in facts.items()},
        **{task: {name: mean(rows) for name, rows in results.items()} for task, results in scores.items()},
        "video": mean(clips),
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)

"""How good the built-in priors are on objects never trained on: one command, one table, contact sheets.

    python benchmarks/priors.py --objects 32 --out docs/figures

Three tasks: *orbit* (one picture -> all views of that instant), *video* (one picture -> a clip), *completion* (the
true first row and column -> the rest of the grid). Beside the priors stand what needs none: copying, the training
object whose picture is nearest, and the autoencoder's ceiling; and each prior alone.

Every object's result is kept, so a killed run goes on, and the table is written anew after each. Two at once share the
work: give them the same --work, and different --first and --objects.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from einops import rearrange

from loom4d.denoisers import DENOISERS, Family
from loom4d.denoisers.family import Guidance
from loom4d.denoisers.weights import load_autoencoder, load_prior
from loom4d.diffusion.composition import Curve
from loom4d.evaluation.perceptual import Features, perceptual_distance
from loom4d.evaluation.scores import compare, foreground_psnr
from loom4d.grid import ImageGrid, straight
from loom4d.methods.diffusion_squared import PRESETS, DiffusionSquaredConfig, Weaver
from loom4d.runs import load_tensors, result_of, save_tensors, write_json
from loom4d.sources.assets import asset_grid
from loom4d.sources.framing import load
from loom4d.sources.procedural import describe, moving_object, procedural_grid
from loom4d.training.shards import Shards, default_folder, open_shards, shard_grid
from priors_report import margins, merged, save_sheets, show, write_card

CLIPS = ("Robot_Walking", "Robot_Running", "Robot_Jump", "Robot_Dance", "Robot_Wave", "Robot_Punch")
BLURRED = "the same in one step: the blurred mean"
THUMBNAIL = 16  # pixels along a side of the pictures among which the nearest is looked for


Make = Callable[[], tuple[str, ImageGrid]]  # a caption and the grid


@dataclass(frozen=True)
class Options:
    """What is measured, on what."""

    objects: int = 32  # procedural test objects
    first: int = 0  # seed of the first of them
    preset: str = "default"
    steps: int | None = None  # of sampling; None: the preset's. Two are a rehearsal
    priors: Path | None = None  # folder of weight files; None: the package's own
    data: Path | None = None  # training grids, for the nearest of them
    training_objects: int = 1600
    real: Path | None = Path("../shared/data/real")  # robot.glb, ironman/, luigi.png
    clips: tuple[str, ...] = CLIPS  # of the robot
    assets: Path | None = None  # folder of curated shards, held out
    asset_grids: int = 4  # how many of these, spread evenly
    work: Path = Path("runs/priors")  # what is kept between runs
    out: Path | None = None  # for contact sheets
    results: Path = Path("benchmarks/results/priors.json")
    card: Path | None = None  # docs/model_card.md: the tables between its two marks are written anew


@dataclass(frozen=True)
class Subject:
    """One held-out object: its true grid, or the given part of one that has no truth."""

    kind: str  # procedural, robot, asset, picture
    name: str
    grid: ImageGrid

    @property
    def whole(self) -> bool:
        return self.grid.views > 1 and self.grid.frames > 1


def subjects(options: Options, resolution: int) -> Iterator[tuple[str, str, Make]]:
    """(kind, file name, what makes the grid) of everything held out; a few of each kind first, for short runs."""
    seeds = range(options.first, options.first + options.objects)
    yield from procedural_subjects(seeds[:4], resolution)
    if options.real is not None:
        yield from real_subjects(options.real, options.clips, resolution)
    yield from procedural_subjects(seeds[4:], resolution)
    if options.assets is not None:
        shards = open_shards(options.assets)
        for index in (
            np.linspace(0, shards.grids - 1, min(options.asset_grids, shards.grids)).round().astype(int).tolist()
        ):
            yield "asset", f"{index:04}", lambda i=index: (shards.objects[i]["name"], shard_grid(shards, i))


def procedural_subjects(seeds: range, resolution: int) -> Iterator[tuple[str, str, Make]]:
    for seed in seeds:
        yield (
            "procedural",
            f"{seed:04}",
            lambda s=seed: (
                describe(moving_object(s, "test")),
                procedural_grid(s, 8, 8, resolution, split="test"),
            ),
        )


def real_subjects(real: Path, clips: tuple[str, ...], resolution: int) -> Iterator[tuple[str, str, Make]]:
    if (real / "robot.glb").exists():
        for clip in clips:
            yield "robot", clip, lambda c=clip: (c, asset_grid(real / "robot.glb", c, 8, 8, resolution, 5.0))
    for path in (real / "ironman", real / "luigi.png"):
        if path.exists():
            yield "picture", path.stem, lambda p=path: (p.stem, result_of(load(p, 8, resolution)))


# --- the tasks -------------------------------------------------------------------------------------------------------


def with_pictures(grid: ImageGrid, premultiplied: torch.Tensor) -> ImageGrid:
    return replace(grid, rgba=straight(premultiplied.clamp(0, 1)))


def ceiling(grid: ImageGrid, family: Family) -> ImageGrid:
    """The grid through the autoencoder and back: no latent prior can score higher."""
    flat = rearrange(grid.premultiplied, "v f c h w -> (v f) c h w")
    latents = rearrange(family.encode(flat), "(v f) c h w -> v f c h w", v=grid.views)
    return with_pictures(grid, family.decode(latents))


class Nearest:
    """Training objects by the likeness of one of their pictures; thumbnails of all are kept on disk."""

    def __init__(self, options: Options, resolution: int):
        folder = (options.data or default_folder()) / f"train_8x8x{resolution}"
        self.shards: Shards = open_shards(folder, options.training_objects)
        file = options.work / f"thumbnails_{self.shards.grids}_{resolution}.safetensors"
        if not file.exists():
            parts = [thumbnails(torch.from_numpy(np.array(part))) for part in self.shards.pictures]
            save_tensors(file, {"thumbnails": torch.cat(parts)})
        self.thumbnails = load_tensors(file)[0]["thumbnails"]  # (grid, view, frame, 4, 16, 16)

    def orbit(self, picture: torch.Tensor) -> torch.Tensor:
        """All views of the training object whose picture (any view, any frame) is nearest, from where it matches."""
        ours = thumbnails((picture * 255).round().byte()).short()
        distance = torch.stack([(grid.short() - ours).abs().float().mean((-1, -2, -3)) for grid in self.thumbnails])
        grid, view, frame = (int(i) for i in np.unravel_index(int(distance.argmin()), distance.shape))
        return self.shards.premultiplied(grid, slice(None), frame).roll(-view, 0)


def thumbnails(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 (…, 4, H, W) to uint8 (…, 4, 16, 16) by averaging."""
    flat = pictures.flatten(0, -4).float() if pictures.ndim > 3 else pictures[None].float()
    small = torch.nn.functional.adaptive_avg_pool2d(flat, THUMBNAIL).round().byte()
    return small.reshape(*pictures.shape[:-2], THUMBNAIL, THUMBNAIL)


def in_one_step(config: DiffusionSquaredConfig) -> DiffusionSquaredConfig:
    """From pure noise to 0 at once, unguided: the priors' mean of all that they hold possible, too blurred to show. A
    drawn sample is up to 3 dB behind it; what it is behind the truth, the priors do not know."""
    plain = Guidance(1.0, 1.0)
    unguided = {"video_guidance": plain, "row_guidance": None, "multiview_guidance": plain, "column_guidance": plain}
    return replace(config, steps=1, leap=0.0, **unguided)


def orbits(given: ImageGrid, family: Family, config: DiffusionSquaredConfig, nearest: Nearest) -> dict[str, ImageGrid]:
    """What each contender shows of the given picture's object from all sides."""
    weaver, blurred = (Weaver(given, family, each, None) for each in (config, in_one_step(config)))
    picture = given.premultiplied[0, 0]
    blank = ImageGrid(torch.zeros(8, 1, *given.rgba.shape[2:]), weaver.cameras[:, :1], given.times[:1])
    return {
        "multi-view prior": with_pictures(blank, result_of(weaver.column())[:, None]),
        BLURRED: with_pictures(blank, result_of(blurred.column())[:, None]),
        "copying the input": with_pictures(blank, picture.expand(8, 1, -1, -1, -1)),
        "nearest training object": with_pictures(blank, nearest.orbit(picture)[:, None]),
    }


def completions(truth: ImageGrid, family: Family, config: DiffusionSquaredConfig) -> dict[str, ImageGrid]:
    """What each contender makes of the true first row and column."""
    column, row = truth.premultiplied[:, 0], truth.premultiplied[0]
    alone = {"correction": 0.0, "crossings": False}  # each row from its own first picture, each column likewise

    def woven(**changes) -> ImageGrid:
        return result_of(Weaver(truth[:1, :], family, replace(config, **changes), None).grid(column, row))

    told = {
        "video only, told the first row": {"share": Curve("constant", high=0.0), "correction": 0.0},
        "multi-view only, told the first column": {"share": Curve("constant", high=1.0), "correction": 0.0},
    }
    return {
        "composed": woven(),
        BLURRED: result_of(Weaver(truth[:1, :], family, in_one_step(config), None).grid(column, row)),
        "video only": woven(share=Curve("constant", high=0.0), **alone),
        "multi-view only": woven(share=Curve("constant", high=1.0), **alone),
        **{name: woven(**changes) for name, changes in told.items() if family.crossings and config.crossings},
        "copying each view's first frame": with_pictures(truth, column[:, None].expand(-1, truth.frames, -1, -1, -1)),
        "copying each instant's first view": with_pictures(truth, row[None].expand(truth.views, -1, -1, -1, -1)),
    }


def plausibility(clip: torch.Tensor) -> dict[str, float]:
    """Of premultiplied pictures over time: what a clip looks like, whatever it shows.

    motion: mean absolute change from picture to picture; flicker: second differences over first ones (a steady drift
    has 0, noise has √3); sharpness: mean absolute difference of neighbouring pixels. Thousandths of white but flicker.
    """
    pictures = clip[:, :3] + 1 - clip[:, 3:]
    change, bend = pictures.diff(dim=0), pictures.diff(n=2, dim=0)
    edges = (pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean()) / 2
    return {
        "motion": 1e3 * change.abs().mean().item(),
        "flicker": (bend.square().mean().sqrt() / change.square().mean().sqrt().clamp_min(1e-4)).item(),
        "sharpness": 1e3 * edges.item(),
    }


def measured(
    subject: Subject, family: Family, config: DiffusionSquaredConfig, nearest: Nearest, features: Features
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Scores by task and contender, and the pictures of the contact sheets: premultiplied (row, picture, 4, H, W)."""
    grid = subject.grid
    drawn: dict[str, dict[str, ImageGrid]] = {"orbit": orbits(grid[:1, :1], family, config, nearest)}
    weaver = Weaver(grid[:1, :1], family, config, None)
    row = result_of(weaver.row())
    clip = ImageGrid(torch.zeros(1, 8, *grid.rgba.shape[2:]), weaver.cameras[:1], weaver.times)
    drawn["video"] = {"video prior": with_pictures(clip, row[None])}
    scores: dict[str, dict] = {}
    pictures: dict[str, torch.Tensor] = {}
    if subject.whole:
        drawn["orbit"]["autoencoder ceiling"] = ceiling(grid[:, :1], family)
        still = grid.premultiplied[:1, :1].expand(-1, grid.frames, -1, -1, -1)
        drawn["video"] |= {
            "copying the input": with_pictures(clip, still),
            "autoencoder ceiling": ceiling(grid[:1, :], family),
        }
        drawn["completion"] = completions(grid, family, config) | {"autoencoder ceiling": ceiling(grid, family)}
        unseen = torch.ones(grid.views, grid.frames, dtype=torch.bool)
        unseen[0], unseen[:, 0] = False, False
        truths = {"orbit": grid[:, :1], "video": grid[:1, :], "completion": grid}
        cells = {"orbit": torch.arange(8)[:, None] > 0, "video": torch.arange(8)[None] > 0, "completion": unseen}
        for task, results in drawn.items():
            most = foreground_psnr(results["autoencoder ceiling"], truths[task])
            scores[task] = {
                name: compared(ours, truths[task], cells[task], features, most) for name, ours in results.items()
            }
        for name, ours in {"the data": grid[:1, :], **drawn["video"]}.items():
            scores.setdefault("clip", {})[name] = plausibility(ours.premultiplied[0])
    else:
        scores["clip"] = {"video prior": plausibility(row)}
    for task, results in drawn.items():
        ours = next(iter(results.values())).premultiplied
        if task == "completion":  # from behind and from the side, where nothing was given but the first picture
            rows = [grid.premultiplied[2], ours[2], grid.premultiplied[5], ours[5]]
        elif task == "orbit":
            rows = ([grid.premultiplied[:, 0]] if subject.whole else []) + [ours[:, 0]]
        else:
            rows = ([grid.premultiplied[0]] if grid.frames == 8 else []) + [ours[0]]
        pictures[task] = torch.stack(rows)
    return scores, pictures


def compared(
    ours: ImageGrid, truth: ImageGrid, cells: torch.Tensor, features: Features, most: torch.Tensor
) -> dict[str, float]:
    """Foreground PSNR, SSIM, outline IoU and perceptual distance, means over the chosen cells.

    No cell's PSNR counts for more than the autoencoder's there: a motion that comes back to where it began makes a copy
    of the first frame perfect, and a hundred dB in one cell would drown the others.
    """
    with torch.inference_mode():
        distance = perceptual_distance(ours, truth, features)[cells].mean().item()
    psnr = torch.minimum(foreground_psnr(ours, truth), most)[cells].nanmean().item()
    return {**compare(ours, truth, cells), "foreground_psnr": round(psnr, 4), "perceptual": distance}


# --- the run ---------------------------------------------------------------------------------------------------------


def main(options: Options) -> None:
    """Measures what is not measured yet, and writes the table and the sheets after every object."""
    family = DENOISERS["small"](options.priors)
    config = replace(PRESETS[options.preset](), views=8, frames=8)
    config = config if options.steps is None else replace(config, steps=options.steps)
    autoencoder, known = load_autoencoder(options.priors)
    facts = {"prior": load_prior(options.priors)[1], "autoencoder": known}
    digest = "-".join(fact["sha256"][:8] for fact in facts.values())
    folder = options.work / f"{options.preset}_{config.steps}_{digest}"
    nearest = Nearest(options, family.resolution)
    for kind, name, make in subjects(options, family.resolution):
        done = folder / f"{kind}_{name}.json"
        if done.exists():
            continue
        caption, grid = make()
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        scores, pictures = measured(Subject(kind, caption, grid), family, config, nearest, autoencoder.features)
        seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - begun
        as_bytes = {task: (rows.clamp(0, 1) * 255).round().byte() for task, rows in pictures.items()}
        save_tensors(done.with_suffix(".safetensors"), as_bytes, {"caption": caption})
        write_json(done, {"caption": caption, "cpu_seconds": round(seconds, 1), "scores": scores})
        publish(options, folder, facts)
        print(f"{kind} {name}: {caption}, {seconds:.0f} CPU-seconds", flush=True)
    show(publish(options, folder, facts))


def publish(options: Options, folder: Path, facts: dict[str, dict]) -> dict:
    """Everything measured so far: the JSON file, the sheets and the card."""
    results = merged(folder)
    report = {
        "preset": options.preset if options.steps is None else f"{options.preset}, {options.steps} steps",
        "weights": {name: {key: fact[key] for key in ("step", "sha256")} for name, fact in facts.items()},
        "margins": margins(results),
        "results": results,
    }
    write_json(options.results, report)
    sheets = [] if options.out is None else save_sheets(folder, options.out)
    if options.card is not None:
        write_card(options.card, report, sheets)
    return report


if __name__ == "__main__":
    main(tyro.cli(Options))

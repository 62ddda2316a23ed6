"""The recipes: each shipped weight file can be made again by one of these names."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from loom4d.denoisers.autoencoder import Autoencoder, AutoencoderConfig
from loom4d.denoisers.small import SmallConfig, SmallPrior
from loom4d.denoisers.weights import AUTOENCODER, PRIOR, load_autoencoder, load_prior, write_weights
from loom4d.runs import Event, InputError, Work
from loom4d.training.clips import LatentGrids
from loom4d.training.estimates import DecoderTask
from loom4d.training.loop import LoopConfig, train
from loom4d.training.objective import AutoencoderTask, PriorTask
from loom4d.training.shards import (
    ShardConfig,
    Shards,
    credits_digest,
    encode_shards,
    encoder_digest,
    make_shards,
    open_shards,
)


@dataclass(frozen=True)
class DataConfig:
    """Procedural grids, drawn once and kept: `grids` to train on, `held_out` never trained on.

    As many views as frames: clips over time and clips over views then share a batch.
    """

    grids: int = 6400
    held_out: int = 64
    views: int = 8
    frames: int = 8
    resolution: int = 64
    workers: int = 2
    version: int = 1  # of the procedural objects
    device: str = "cpu"  # where grids are drawn; another than the CPU draws them one after another, and needs no cores


@dataclass(frozen=True)
class AutoencoderRecipe:
    data: DataConfig = field(default_factory=DataConfig)
    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(3000, learning_rate=1e-3, decay=600, preview_steps=250))
    batch: int = 48
    noise: float = 0.1
    crop: int = 0  # pixels of the pieces that most steps see; 0: whole pictures only
    anchor: float = 0.0  # how dear it is to leave the latent space of the weights that training starts from
    decoder_only: bool = False  # that latent space stays as it is, so priors trained in it stay right
    estimates: float = 0.0  # share of the decoder's steps on what the prior makes of latents; only with decoder_only

    def __post_init__(self) -> None:
        if self.estimates and (not self.decoder_only or self.crop):
            raise ValueError("estimates are of whole pictures' latents that stay as they are: decoder_only, crop 0")


@dataclass(frozen=True)
class PriorRecipe:
    data: DataConfig = field(default_factory=DataConfig)
    network: SmallConfig = field(default_factory=lambda: SmallConfig(crossings=True))
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(200_000, learning_rate=1e-3, average=0.9995, preview_steps=500)
    )
    batch: int = 8


Recipe = AutoencoderRecipe | PriorRecipe


def tiny(recipe: Recipe) -> Recipe:
    """The same recipe at a size that a test runs in seconds."""
    data = DataConfig(4, 2, views=3, frames=3, resolution=16, workers=1, version=recipe.data.version)
    loop = replace(recipe.loop, steps=6, warmup=2, decay=0, preview_steps=3, compiled=False)
    if isinstance(recipe, AutoencoderRecipe):
        network = AutoencoderConfig(channels=4, width=16, deep_width=16, encoder_blocks=1, decoder_blocks=1)
        return replace(recipe, data=data, network=network, loop=loop, batch=4, crop=min(recipe.crop, 8))
    return replace(recipe, data=data, network=SmallConfig(4, 2, 32, 2, 2, crossings=True), loop=loop, batch=2)


def on_gpu(recipe: Recipe) -> Recipe:
    """The recipe at 128² for one big GPU: wider, larger batches, richer objects, drawn by sixteen cores."""
    data = DataConfig(grids=6000, held_out=64, resolution=128, workers=16, version=2)
    if isinstance(recipe, AutoencoderRecipe):
        loop = replace(recipe.loop, steps=16_000, decay=4_000, preview_steps=2_000, compiled=True)
        return replace(recipe, data=data, loop=loop, batch=192, crop=80)
    loop = replace(recipe.loop, average=0.9995, preview_steps=1_000, compiled=True)
    return replace(
        recipe, data=data, network=SmallConfig(cells=16, width=384, heads=6, crossings=True), loop=loop, batch=128
    )


RECIPES: dict[str, Recipe] = {
    "autoencoder": AutoencoderRecipe(crop=40),
    "prior": PriorRecipe(),
    "decoder": AutoencoderRecipe(
        loop=LoopConfig(3000, learning_rate=5e-4, decay=1000, preview_steps=250), decoder_only=True
    ),
    "decoder-on-estimates": AutoencoderRecipe(
        loop=LoopConfig(2000, learning_rate=4e-4, decay=2000, preview_steps=250), decoder_only=True, estimates=0.5
    ),
    "autoencoder-again": AutoencoderRecipe(
        loop=LoopConfig(4200, learning_rate=7e-4, decay=4200, preview_steps=250), batch=80, crop=40, anchor=0.01
    ),
    "autoencoder-128": on_gpu(AutoencoderRecipe()),
    "prior-128": on_gpu(PriorRecipe()),
}


def shards_of(data: DataConfig, folder: Path) -> Work[tuple[Shards, Shards]]:
    """The recipe's data on disk, drawn where missing: (train, held out)."""
    found, suffix = [], "" if data.version == 1 else f"_v{data.version}"
    for split, grids in (("train", data.grids), ("valid", data.held_out)):
        where = folder / f"{split}_{data.views}x{data.frames}x{data.resolution}{suffix}"
        size = (data.views, data.frames, data.resolution)
        yield from make_shards(ShardConfig(where, grids, split, *size, data.workers, data.device, data.version))
        found.append(open_shards(where, grids))
    return found[0], found[1]


def with_assets(shards: tuple[Shards, Shards], assets: Path) -> Work[tuple[Shards, Shards]]:
    """Curated grids (a folder that `loom4d curate` wrote, or one with several such) beside the procedural ones, each in
    every order of its colours."""
    folders = [assets] if (assets / "train").is_dir() else sorted(f for f in assets.glob("*") if (f / "train").is_dir())
    if not folders:
        raise InputError(f"{assets} holds no curated grids; make them with `loom4d curate`")
    train = shards[0]
    for folder in folders:
        curated = open_shards(folder / "train")
        train = train.and_also(curated).and_also(curated.recoloured())
    told = f"{train.grids - shards[0].grids} grids of real assets in every order of colours beside {shards[0].grids}"
    yield Event("assets", "note", told)
    return train, shards[1]


SHARE_ALIKE = ("CC-BY-SA-3.0", "CC-BY-SA-4.0")


def provenance(recipe: Recipe, shards: Shards) -> dict[str, Any]:
    """What a checkpoint or weight file says of its making; weights trained on share-alike assets are shared alike."""
    name = next((name for name, known in RECIPES.items() if known == recipe), None)
    facts: dict[str, Any] = {
        "made by": name or "a changed recipe",
        "training": {"data": asdict(recipe.data), "loop": asdict(recipe.loop), "batch": recipe.batch},
    }
    if shards.objects:
        licences = sorted({one["licence"] for one in shards.objects})
        alike = [licence for licence in licences if licence in SHARE_ALIKE]
        if len(alike) > 1 or "unknown" in licences:
            raise InputError(f"assets under {', '.join(licences)} cannot be trained on together")
        facts["assets"] = {
            "grids": len(shards.objects),
            "licences": licences,
            "attribution": sorted({one["attribution"] for one in shards.objects}),
        }
        if alike:
            facts["licence"] = alike[0]
    return facts


def run_recipe(
    recipe: Recipe,
    out: Path,
    data: Path,
    minutes: float = math.inf,
    weights: Path | None = None,
    device: str = "cpu",
    assets: Path | None = None,
) -> Work[Path]:
    """Trains one recipe in `out` (resumable) with data in `data`, writes the weight file there and returns its path.

    `weights`: folder of the family's other files (the prior needs the autoencoder) and, where nothing has been trained
    in `out` yet, of weights to start from; the package's own by default. `assets`: curated grids to train on besides.
    """
    shards = yield from shards_of(recipe.data, data)
    if assets is not None:
        shards = yield from with_assets(shards, assets)
    torch.manual_seed(recipe.loop.seed)
    if isinstance(recipe, AutoencoderRecipe):
        return (yield from _autoencoder(recipe, out, shards, data, minutes, weights, device))
    return (yield from _prior(recipe, out, shards, data, minutes, weights, device))


def _autoencoder(
    recipe: AutoencoderRecipe,
    out: Path,
    shards: tuple[Shards, Shards],
    data: Path,
    minutes: float,
    weights: Path | None,
    device: str,
) -> Work[Path]:
    network = Autoencoder(recipe.network)
    given = recipe.decoder_only or recipe.anchor > 0
    if given:
        network.load_state_dict(load_autoencoder(weights)[0].state_dict())
        network.encoder.requires_grad_(not recipe.decoder_only)
    network.to(device)
    if recipe.estimates:
        prior = load_prior(weights)[0].to(device)
        grids = yield from _latent_grids(network, shards, recipe.data, data, device)
        sizes = (recipe.batch, recipe.noise, recipe.estimates)
        task: AutoencoderTask = DecoderTask(network, prior, shards, grids, *sizes)
    else:
        task = AutoencoderTask(network, *shards, recipe.batch, recipe.noise, recipe.crop, recipe.anchor)
    made = provenance(recipe, shards[0])
    trainer = yield from train(task, recipe.loop, out, minutes, {"config": asdict(recipe.network), **made})
    with trainer.averaged():
        if not given:  # else its normalisation is what priors know
            task.finish()
        scores = task.scores()
        facts = {
            **made,
            "recipe": _name(recipe),
            "step": trainer.step,
            "scores": scores,
            "config": asdict(recipe.network),
        }
        path = write_weights(out / AUTOENCODER, task.autoencoder, facts)
    yield Event("train", "done", f"wrote {path}", trainer.step, recipe.loop.steps, scores)
    return path


def _name(recipe: AutoencoderRecipe) -> str:
    if recipe.decoder_only:
        return "decoder-on-estimates" if recipe.estimates else "decoder"
    return "autoencoder-again" if recipe.anchor else "autoencoder"


def _latent_grids(
    autoencoder: Autoencoder, shards: tuple[Shards, Shards], config: DataConfig, data: Path, device: str
) -> Work[tuple[LatentGrids, LatentGrids]]:
    """The grids' latents, encoded where they are not yet in `data`: (train, held out)."""
    grids = []
    for split, part in zip(("train", "valid"), shards, strict=True):
        version = "" if config.version == 1 else f"_v{config.version}"
        name = f"latents_{split}_{part.grids}_{encoder_digest(autoencoder)}{version}{credits_digest(part)}"
        latents = yield from encode_shards(autoencoder, part, data / f"{name}.npy")
        grids.append(LatentGrids(latents, part.elevations_deg).to(torch.device(device)))
    return grids[0], grids[1]


def _prior(
    recipe: PriorRecipe,
    out: Path,
    shards: tuple[Shards, Shards],
    data: Path,
    minutes: float,
    weights: Path | None,
    device: str,
) -> Work[Path]:
    autoencoder, _ = load_autoencoder(weights)
    autoencoder.to(device)
    grids = yield from _latent_grids(autoencoder, shards, recipe.data, data, device)
    network = SmallPrior(recipe.network).to(device)
    if weights is not None and (weights / PRIOR).exists() and not (out / "checkpoint.safetensors").exists():
        grown = network.state_dict() | load_prior(weights)[0].state_dict()  # a crossing's layers start at nothing
        network.load_state_dict(grown)
        yield Event("train", "note", f"starting from {weights / PRIOR}")
    task = PriorTask(network, grids[0], grids[1], autoencoder, recipe.batch)
    made = provenance(recipe, shards[0])
    trainer = yield from train(task, recipe.loop, out, minutes, {"config": asdict(recipe.network), **made})
    with trainer.averaged():
        scores = task.scores()
        known = {**made, "recipe": "prior", "step": trainer.step, "scores": scores, "config": asdict(recipe.network)}
        path = write_weights(out / PRIOR, network, known)
    yield Event("train", "done", f"wrote {path}", trainer.step, recipe.loop.steps, scores)
    return path

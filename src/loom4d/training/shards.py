"""Training grids on disk: pictures made ahead of time, in shards that are written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from bisect import bisect_right
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import turntable
from loom4d.denoisers.autoencoder import Autoencoder
from loom4d.grid import ImageGrid, straight
from loom4d.runs import Event, InputError, Work, write_atomically, write_json
from loom4d.sources.procedural import procedural_grid

GRIDS_PER_SHARD = 32


@dataclass(frozen=True)
class ShardConfig:
    folder: Path
    grids: int
    split: str = "train"
    views: int = 8
    frames: int = 8
    resolution: int = 64
    workers: int = 2
    device: str = "cpu"
    version: int = 1  # of the objects


def write_array(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue())


def as_stored(grid: ImageGrid) -> np.ndarray:
    """Premultiplied RGBA of a grid as uint8 (view, frame, 4, height, width)."""
    return (grid.premultiplied.clamp(0, 1) * 255).round().byte().cpu().numpy()


def _make_shard(config: ShardConfig, shard: int) -> None:
    torch.set_num_threads(1)
    seeds = range(shard * GRIDS_PER_SHARD, min((shard + 1) * GRIDS_PER_SHARD, config.grids))
    grids = [
        procedural_grid(
            seed,
            config.views,
            config.frames,
            config.resolution,
            config.split,
            device=config.device,
            version=config.version,
        )
        for seed in seeds
    ]
    write_array(config.folder / f"pictures_{shard:05}.npy", np.stack([as_stored(grid) for grid in grids]))
    elevations = [grid.cameras.to("cpu").elevations_deg()[0, 0].item() for grid in grids]
    facts = {"elevations_deg": elevations, "seeds": list(seeds)}
    write_json(config.folder / f"facts_{shard:05}.json", facts)


def make_shards(config: ShardConfig) -> Work[None]:
    """Draws what is missing of `config.grids` procedural grids; one event per shard. Safe to kill and call again."""
    shards = -(-config.grids // GRIDS_PER_SHARD)
    missing = [shard for shard in range(shards) if not (config.folder / f"facts_{shard:05}.json").exists()]
    with nullcontext() if config.device != "cpu" else ProcessPoolExecutor(config.workers) as pool:
        over = map if pool is None else pool.map  # a GPU is not to be shared by forked processes
        for count, _ in enumerate(over(_make_shard, [config] * len(missing), missing), shards - len(missing) + 1):
            yield Event("shards", "progress", f"{config.split} shards", count, shards)


@dataclass(frozen=True)
class Shards:
    """Grids of one split, memory-mapped: `pictures[shard][grid, view, frame]` is premultiplied RGBA, uint8."""

    pictures: tuple[np.ndarray, ...]
    elevations_deg: Float[Tensor, " grid"]
    objects: tuple[dict[str, Any], ...] = ()  # of curated grids: name, clip, licence, attribution, source

    @property
    def grids(self) -> int:
        return len(self.elevations_deg)

    def premultiplied(self, grid: int, view, frame) -> Float[Tensor, "*cells 4 height width"]:
        """Pictures of one grid as floats 0..1; `view` and `frame` index as NumPy does."""
        starts = self._starts
        shard = bisect_right(starts, grid) - 1
        array = self.pictures[shard][grid - starts[shard]][view, frame]
        return torch.from_numpy(np.array(array)).float() / 255  # a copy: the map itself is read-only

    @cached_property
    def _starts(self) -> list[int]:
        """Each shard's first grid; only the last shard of a folder may hold fewer than `GRIDS_PER_SHARD`."""
        return [0, *accumulate(len(shard) for shard in self.pictures[:-1])]

    def and_also(self, others: Shards) -> Shards:
        """The grids of both, these first."""
        if self.pictures[0].shape[1:] != others.pictures[0].shape[1:]:
            shapes = " and ".join(str(shards.pictures[0].shape[1:]) for shards in (self, others))
            raise InputError(f"grids of {shapes} (views, frames, 4, height, width) cannot be trained on together")
        elevations = torch.cat([self.elevations_deg, others.elevations_deg])
        return Shards(self.pictures + others.pictures, elevations, self.objects + others.objects)

    def recoloured(self) -> Shards:
        """The same grids in the five other orders of red, green and blue: few objects in many coats."""
        orders = [(*order, 3) for order in permutations(range(3))][1:]
        pictures = tuple(shard[:, :, :, list(order)] for order in orders for shard in self.pictures)
        return Shards(pictures, self.elevations_deg.repeat(len(orders)), self.objects * len(orders))


def open_shards(folder: Path, grids: int | None = None) -> Shards:
    """The shards of a folder, or as many of them as hold `grids` grids."""
    facts = sorted(folder.glob("facts_*.json"))
    facts = facts if grids is None else facts[: -(-grids // GRIDS_PER_SHARD)]
    if not facts:
        raise InputError(f"{folder} holds no training shards; `loom4d train` and `loom4d curate` make them")
    known = [json.loads(file.read_text()) for file in facts]
    elevations = [angle for shard in known for angle in shard["elevations_deg"]]
    pictures = tuple(np.load(folder / f"pictures_{file.stem[6:]}.npy", mmap_mode="r") for file in facts)
    return Shards(pictures, torch.tensor(elevations), tuple(one for shard in known for one in shard.get("objects", [])))


def shard_grid(shards: Shards, index: int) -> ImageGrid:
    """One grid of the shards with its cameras, exact up to the 8 bits of its pictures."""
    pictures = shards.premultiplied(index, slice(None), slice(None))
    views, frames = pictures.shape[:2]
    cameras = turntable(views, frames, shards.elevations_deg[index].item())
    return ImageGrid(straight(pictures), cameras, torch.linspace(0, 1, frames))


def encoder_digest(autoencoder: Autoencoder) -> str:
    """Twelve digits that change with the latent space and with nothing else: not when the decoder alone is trained."""
    digest = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        if not name.startswith("decoder."):
            digest.update((value.half() + 0.0).cpu().numpy().tobytes())  # averaging turns −0 into 0: the same code
    return digest.hexdigest()[:12]


def credits_digest(shards: Shards) -> str:
    """Tells apart sets of curated grids of one size; "" where there are none."""
    told = json.dumps(shards.objects, sort_keys=True).encode()
    return f"_{hashlib.sha256(told).hexdigest()[:8]}" if shards.objects else ""


def encode_shards(autoencoder: Autoencoder, shards: Shards, file: Path) -> Work[Float[Tensor, "grid view frame c h w"]]:
    """Latents (float16, computed in bfloat16) of every picture, kept in `file` so that later runs read them instead."""
    if file.exists():
        return torch.from_numpy(np.load(file))
    parts, device = [], autoencoder.latent_mean.device
    for index, shard in enumerate(shards.pictures):
        grids = []
        for grid in shard:
            flat = torch.from_numpy(rearrange(np.array(grid), "view frame c h w -> (view frame) c h w")).float() / 255
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                latents = autoencoder.encode(flat.to(device)).cpu()
            grids.append(rearrange(latents.half(), "(view frame) c h w -> view frame c h w", view=grid.shape[0]))
        parts.append(torch.stack(grids))
        yield Event("latents", "progress", "encoding pictures", index + 1, len(shards.pictures))
    latents = torch.cat(parts)
    write_array(file, latents.numpy())
    return latents


def default_folder() -> Path:
    """Where training data lives unless told otherwise: `$LOOM4D_DATA`, or a folder in the user's cache."""
    return Path(os.environ.get("LOOM4D_DATA") or Path.home() / ".cache" / "loom4d" / "data")

"""What can be curated: procedural seeds, folders of 3D models, and the unpacked assets of Debian's packages."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loom4d.cameras import cells, turntable
from loom4d.grid import ImageGrid
from loom4d.runs import Event, InputError, Work
from loom4d.sources.assets import drawn, fit, is_asset, read_asset
from loom4d.sources.posing import Asset
from loom4d.sources.procedural import moving_object, procedural_grid
from loom4d.sources.procedural.generate import grid_elevation_deg
from loom4d.sources.procedural.raycast import render
from loom4d.sources.zeroad import animals, read_animal
from loom4d.training.curation import Candidate
from loom4d.training.packages import PACKAGES, unpacked

PAPER_FOV_DEG = 39.6  # of Diffusion4D's renders: an object of size 1 may grow by two fifths before it leaves
HELD_OUT_SHARE = 0.15  # of the objects


@dataclass(frozen=True)
class Seed:
    """A procedural object."""

    seed: int
    split: str = "train"

    @property
    def name(self) -> str:
        return f"{self.split} {self.seed}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"object": self.name, "licence": "Apache-2.0", "attribution": "Loom4D", "source": "procedural"}

    def front(self, frames: int, size: int) -> Float[Tensor, "frame 4 size size"]:
        figure = moving_object(self.seed, self.split)
        return render(figure, cells(turntable(1, frames)), torch.linspace(0, 1, frames), size, size)

    def grid(self, views: int, frames: int, resolution: int) -> ImageGrid:
        return procedural_grid(self.seed, views, frames, resolution, split=self.split)


@dataclass(frozen=True)
class Model:
    """A 3D model and one of its clips."""

    path: Path
    object: str  # what it is: all models and clips of one object are on the same side of the split
    clip: str | None
    credit: dict[str, str] = field(hash=False)  # licence, attribution, source
    title: str = ""  # which of several such objects
    motion: Path | None = None  # the clip's own file, of models of 0 A.D.
    texture: Path | None = None

    @property
    def name(self) -> str:
        return " ".join(word for word in (self.title or self.object, self.clip) if word)

    @property
    def facts(self) -> dict[str, Any]:
        return {"object": self.object, "clip": self.clip, **self.credit}

    def read(self) -> Asset:
        if self.motion is not None:
            return read_animal(self.path, {str(self.clip): self.motion}, self.texture)
        return read_asset(self.path)

    def front(self, frames: int, size: int) -> Float[Tensor, "frame 4 size size"]:
        asset = self.read()
        cameras = turntable(1, frames, fov_deg=PAPER_FOV_DEG)
        return drawn(asset, self.clip, cameras, size, fit(asset, self.clip, whole=False), samples=1).rgba[0]

    def grid(self, views: int, frames: int, resolution: int) -> ImageGrid:
        """From an elevation and at a yaw of its own, as procedural objects are drawn."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        cameras = turntable(views, frames, grid_elevation_deg(rng))
        wide = rng.random() < 0.25
        yaw = rng.uniform(-180, 180) if wide else rng.uniform(-60, 60)
        return drawn(self.read(), self.clip, cameras, resolution, yaw_deg=float(yaw))


def held_out(name: str) -> bool:
    """Whether an object of this name is never trained on: decided by the name alone, for ever."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < HELD_OUT_SHARE * 2**32


def candidates(
    source: str, seeds: int, split: str, packages: Path, package: Path | None, credit: dict[str, str]
) -> Work[Sequence[Candidate]]:
    """What a source offers: "procedural" (so many `seeds`), a name in `PACKAGES`, or a folder of 3D models.

    `split` is train or test; of models, by `held_out`. `packages` is where packages are unpacked, `package` a .deb that
    is at hand, `credit` the licence and attribution of a folder whose files do not say.
    """
    if source == "procedural":
        return [Seed(seed, split) for seed in range(seeds)]
    folder = Path(source)
    if source in PACKAGES:
        folder = yield from unpacked(source, packages, package)
    elif not folder.is_dir():
        raise InputError(f"{source}: no such folder; or choose one of procedural, {', '.join(PACKAGES)}")
    found = zero_ad(folder) if (folder / "art").is_dir() else models(folder, credit)
    if not found:
        raise InputError(f"{source}: holds no 3D models")
    yield Event("curate", "note", f"{len(found)} clips of {len({model.object for model in found})} objects")
    return [model for model in found if held_out(model.object) == (split == "test")]


COATS = 2  # in how many of its coats a mesh shows each of its clips


def zero_ad(folder: Path) -> list[Model]:
    """The animals of 0 A.D. with their clips; all horses are one object, whatever their mesh and coat."""
    credit, shown = noted(folder), Counter[tuple[Path, str]]()
    found = []
    for animal in animals(folder / "art"):
        kind = animal.mesh.name.split(".")[0].removeprefix("animal_").split("_")[0]
        for clip, motion in sorted(animal.clips.items()):
            shown[animal.mesh, clip] += 1
            if shown[animal.mesh, clip] <= COATS:
                found.append(Model(animal.mesh, kind, clip, credit, animal.name, motion, animal.texture))
    return found


def models(folder: Path, credit: dict[str, str]) -> list[Model]:
    """Every model under a folder with every clip; those without motion stand as themselves, and are found static."""
    known = noted(folder) | credit
    found = []
    for path in sorted(path for path in folder.rglob("*") if is_asset(path)):
        mine = {"source": path.name, **known, **said_by_file(path)}
        try:
            clips: Sequence[str | None] = list(read_asset(path).clips) or [None]
        except InputError:
            clips = [None]  # its verdict will say what is wrong with it
        found += [Model(path, path.stem, clip, mine) for clip in clips]
    return found


def noted(folder: Path) -> dict[str, str]:
    """Licence, attribution and source as `licence.json` in the folder says; "unknown" where it is silent."""
    file = folder / "licence.json"
    said = json.loads(file.read_text()) if file.exists() else {}
    return {"licence": "unknown", "attribution": "unknown", **said}


def said_by_file(path: Path) -> dict[str, str]:
    """What a .gltf says of itself: `asset.copyright`, and the author and licence that some exporters add."""
    if path.suffix.lower() != ".gltf":
        return {}
    try:
        asset = json.loads(path.read_text()).get("asset", {})
    except (ValueError, OSError, AttributeError):
        return {}
    extras = asset.get("extras") if isinstance(asset.get("extras"), dict) else {}
    said = {"attribution": extras.get("author") or asset.get("copyright"), "licence": extras.get("license")}
    return {key: str(value) for key, value in said.items() if value}

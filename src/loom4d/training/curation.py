"""Which animated objects are worth training on, as Diffusion4D curates them (2405.16645, §3.1), and shards of those.

The front view at three instants tells: alike at all of them, the object is static; alike at none, it is distorted;
alpha at the picture's border, it leaves the frame. Every rejection is written down with its reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from loom4d.gaussians.losses import ssim, statistics
from loom4d.grid import ImageGrid, to_bytes
from loom4d.runs import Event, InputError, Work, write_atomically, write_json
from loom4d.training.shards import GRIDS_PER_SHARD, as_stored, write_array

VISIBLE = 0.02  # alpha from which a border pixel counts
SHOWN = 48  # objects on a contact sheet


@dataclass(frozen=True)
class CurationConfig:
    """The paper's thresholds; it renders 256² pictures of an object whose longest side is 1."""

    views: int = 8
    frames: int = 8
    resolution: int = 64
    static_above: float = 0.95  # both SSIMs beyond it: nothing moves
    distorted_below: float = 0.4  # either SSIM under it: what is seen is no longer the same thing
    inspected: int = 256  # pixels along a side of the front views
    workers: int = 1


@runtime_checkable
class Candidate(Protocol):
    """An animated object that might be trained on; it is handed to worker processes, so it must pickle."""

    @property
    def name(self) -> str: ...

    @property
    def facts(self) -> dict[str, Any]:
        """Object, clip, licence, attribution and source, as JSON values."""

    def front(self, frames: int, size: int) -> Float[Tensor, "frame 4 size size"]:
        """Straight-alpha front views over the clip, framed by its first instant."""

    def grid(self, views: int, frames: int, resolution: int) -> ImageGrid:
        """What would be trained on, framed by the whole clip."""


@dataclass(frozen=True)
class Verdict:
    reason: str  # "kept", or why not
    scores: dict[str, float]

    @property
    def kept(self) -> bool:
        return self.reason == "kept"


def judged(front: Float[Tensor, "frame 4 height width"], config: CurationConfig) -> Verdict:
    """Of front views over a clip: the SSIM on white of a quarter and half of the clip against its first instant."""
    alpha = front[:, 3]
    border = max(alpha[..., edge].max().item() for edge in (0, -1))
    border = max(border, alpha[:, [0, -1]].max().item())
    seen = front[:, :3] * alpha[:, None] + 1 - alpha[:, None]
    count = len(front)
    quarter, half = ssim(seen[[count // 4, count // 2]], statistics(seen[[0, 0]])).tolist()
    scores = {"ssim_quarter": round(quarter, 4), "ssim_half": round(half, 4), "border": round(border, 3)}
    if alpha.amax((1, 2)).min() <= VISIBLE:
        return Verdict("shows nothing", scores)
    if border > VISIBLE:
        return Verdict("leaves the frame", scores)
    if min(quarter, half) > config.static_above:
        return Verdict("static", scores)
    if min(quarter, half) < config.distorted_below:
        return Verdict("distorted", scores)
    return Verdict("kept", scores)


@dataclass(frozen=True)
class Examined:
    """What a worker sends back."""

    verdict: Verdict
    picture: bytes  # the three instants, side by side
    stored: np.ndarray | None = None
    elevation_deg: float = 0.0


def examined(config: CurationConfig, candidate: Candidate) -> Examined:
    """Judges one candidate and, where it is kept, draws its grid."""
    torch.set_num_threads(1)
    try:
        front = candidate.front(max(config.frames, 4), config.inspected)
        verdict, picture = judged(front, config), _three(front)
        if not verdict.kept:
            return Examined(verdict, picture)
        grid = candidate.grid(config.views, config.frames, config.resolution)
    except InputError as error:
        return Examined(Verdict(f"unreadable: {error}", {}), b"")
    return Examined(verdict, picture, as_stored(grid), grid.cameras.elevations_deg()[0, 0].item())


def _three(front: Float[Tensor, "frame 4 height width"]) -> bytes:
    """First, quarter and half of the clip on white, 72 pixels high, as WebP."""
    count = len(front)
    chosen = front[[0, count // 4, count // 2]]
    small = torch.nn.functional.interpolate(chosen, (72, 72), mode="bilinear", antialias=True)
    seen = small[:, :3] * small[:, 3:] + 1 - small[:, 3:]
    buffer = BytesIO()
    Image.fromarray(to_bytes(torch.cat(list(seen), -1))).save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def curate(candidates: Sequence[Candidate], folder: Path, config: CurationConfig) -> Work[dict[str, int]]:
    """Judges all candidates in order; returns how many came to which end.

    The folder gets shards of the kept ones in training's own format, `verdicts.jsonl` with a line each, `fronts/`,
    `summary.json` and the contact sheets `kept.webp` and `rejected.webp`. Safe to kill and call again: what is in full
    shards stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, config)
    lines = resumed(folder, [candidate.name for candidate in candidates])
    rest = candidates[len(lines) :]
    waiting: list[tuple[Examined, dict[str, Any]]] = []
    shard = len(list(folder.glob("facts_*.json")))
    for candidate, result in zip(rest, _in_order(rest, config), strict=True):
        number = len(lines)
        line = {"name": candidate.name, "reason": result.verdict.reason, **result.verdict.scores}
        if result.stored is not None:
            line |= {"shard": shard, "place": len(waiting)}
            waiting.append((result, {"name": candidate.name, **candidate.facts}))
        if result.picture:
            write_atomically(folder / "fronts" / f"{number:05}.webp", result.picture)
        lines.append(line)
        with open(folder / "verdicts.jsonl", "a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if len(waiting) == GRIDS_PER_SHARD:
            write_shard(folder, shard, waiting)
            shard, waiting = shard + 1, []
        yield Event("curate", "progress", f"{candidate.name}: {line['reason']}", len(lines), len(candidates))
    if waiting:
        write_shard(folder, shard, waiting)
    counts = dict(Counter(line["reason"].split(":")[0] for line in lines).most_common())
    write_json(folder / "summary.json", {"judged": len(lines), **counts})
    for name, chosen in (("kept", True), ("rejected", False)):
        numbers = [index for index, line in enumerate(lines) if (line["reason"] == "kept") == chosen]
        sheet(folder, lines, numbers).save(folder / f"{name}.webp", quality=80)
    yield Event("curate", "done", f"{counts.get('kept', 0)} of {len(lines)} kept, in {folder}", data=counts)
    return counts


def claim(folder: Path, config: CurationConfig) -> None:
    """A folder belongs to one configuration."""
    ours = {key: value for key, value in asdict(config).items() if key != "workers"}
    file = folder / "curation.json"
    if file.exists() and json.loads(file.read_text()) != ours:
        raise InputError(f"{folder} was curated with other settings; choose another --out")
    write_json(file, ours)


def resumed(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """The verdicts up to the last full shard; a shard begun is thrown away and made again."""
    file = folder / "verdicts.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if [line["name"] for line in lines] != names[: len(lines)]:
        raise InputError(f"{folder} holds a curation of other objects; choose another --out")
    if len(lines) == len(names) and (folder / "summary.json").exists():
        return lines
    shards = sorted(folder.glob("facts_*.json"))
    if shards and len(json.loads(shards[-1].read_text())["elevations_deg"]) < GRIDS_PER_SHARD:
        shards.pop().unlink()
    held = max((i + 1 for i, line in enumerate(lines) if line.get("shard", len(shards)) < len(shards)), default=0)
    write_atomically(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[:held]))
    return lines[:held]


def _in_order(candidates: Sequence[Candidate], config: CurationConfig) -> Iterable[Examined]:
    if config.workers <= 1:
        yield from map(partial(examined, config), candidates)
        return
    with ProcessPoolExecutor(config.workers) as pool:
        yield from pool.map(partial(examined, config), candidates)


def write_shard(folder: Path, shard: int, kept: list[tuple[Examined, dict[str, Any]]]) -> None:
    write_array(
        folder / f"pictures_{shard:05}.npy",
        np.stack([result.stored for result, _ in kept if result.stored is not None]),
    )
    facts = {
        "elevations_deg": [result.elevation_deg for result, _ in kept],
        "objects": [facts for _, facts in kept],
    }
    write_json(folder / f"facts_{shard:05}.json", facts)


def sheet(folder: Path, lines: list[dict[str, Any]], numbers: list[int], columns: int = 4) -> Image.Image:
    """Up to `SHOWN` of the numbered candidates, evenly chosen: three instants, name and reason."""
    numbers = [number for number in numbers if (folder / "fronts" / f"{number:05}.webp").exists()]
    step = max(1, len(numbers) / SHOWN)
    chosen = [numbers[int(index * step)] for index in range(min(SHOWN, len(numbers)))]
    wide, high = 3 * 72 + 6, 72 + 26
    rows = max(1, -(-len(chosen) // columns))
    page = Image.new("RGB", (columns * wide, rows * high), "white")
    draw = ImageDraw.Draw(page)
    for index, number in enumerate(chosen):
        left, top = index % columns * wide, index // columns * high
        with Image.open(folder / "fronts" / f"{number:05}.webp") as picture:
            page.paste(picture, (left, top))
        line = lines[number]
        note = line["reason"] if line["reason"] != "kept" else ""
        draw.text((left + 2, top + 72), line["name"][:36], fill=(40, 40, 40))
        draw.text((left + 2, top + 84), f"{line['ssim_quarter']:.2f} {line['ssim_half']:.2f} {note}"[:36], fill="gray")
    return page

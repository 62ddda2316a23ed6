"""What `priors.py` has measured, as a table on the screen, in a document, and as contact sheets."""

from __future__ import annotations

import json
from os.path import relpath
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from loom4d.grid import to_bytes
from loom4d.runs import load_tensors, write_atomically

TASKS = ("orbit", "video", "completion")


def merged(folder: Path) -> dict:
    """Means over the objects that are done, by kind, task and contender, each beside the number of its objects."""
    found: dict[str, dict] = {}
    for file in sorted(folder.glob("*.json")):
        kind, scores = file.stem.split("_", 1)[0], json.loads(file.read_text())["scores"]
        for task, contenders in scores.items():
            for name, values in contenders.items():
                rows = found.setdefault(kind, {}).setdefault(task, {}).setdefault(name, [])
                rows.append(values)
    return {
        kind: {task: {name: averaged(rows) for name, rows in names.items()} for task, names in tasks.items()}
        for kind, tasks in found.items()
    }


def averaged(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means, their standard error for the PSNR, and how many."""
    values = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
    if "foreground_psnr" in values and len(rows) > 1:
        spread = np.std([row["foreground_psnr"] for row in rows], ddof=1)
        values["psnr_error"] = round(float(spread / np.sqrt(len(rows))), 3)
    return {**values, "objects": len(rows)}


def margins(results: dict) -> dict[str, float]:
    """The bars: how far the priors are ahead, in dB of foreground PSNR on procedural objects."""
    tasks = results.get("procedural", {})
    value = {(task, name): v["foreground_psnr"] for task in TASKS for name, v in tasks.get(task, {}).items()}
    if not value:
        return {}
    composed, orbit = value["completion", "composed"], value["orbit", "multi-view prior"]
    copies = [value["completion", name] for name in tasks["completion"] if name.startswith("copying")]
    return {
        "completion over video only (bar 1)": round(composed - value["completion", "video only"], 2),
        "completion over multi-view only (bar 1)": round(composed - value["completion", "multi-view only"], 2),
        "completion over the better copy (bar 4)": round(composed - max(copies), 2),
        "orbit over copying (bar 3)": round(orbit - value["orbit", "copying the input"], 2),
        "orbit over the nearest training object": round(orbit - value["orbit", "nearest training object"], 2),
    }


COLUMNS = {
    "foreground_psnr": "foreground PSNR, dB",
    "psnr_error": "±",
    "ssim": "SSIM",
    "silhouette_iou": "outline IoU",
    "perceptual": "perceptual distance",
    "motion": "motion",
    "flicker": "flicker",
    "sharpness": "sharpness",
}
DIGITS = {"perceptual": 3, "motion": 1, "sharpness": 1}  # after the point; two of all others
TITLES = {
    "orbit": "orbit: one picture → eight views",
    "video": "video: one picture → eight frames",
    "completion": "completion: first row and column → the rest",
    "clip": "the drawn clips beside the data's (motion and sharpness in thousandths of white)",
}
KINDS = {
    "procedural": "Procedural test objects",
    "robot": "Clips of a real robot",
    "asset": "Real assets held out",
    "picture": "Pictures without truth",
}
SHEETS = (
    "Of each object the truth stands above what was drawn, where there is one: orbits from azimuth 0 on; clips; of "
    "completion the rows at 90° and 225°, truth and drawn in turn."
)
BEGIN, END = "<!-- tables of benchmarks/priors.py -->", "<!-- end of tables -->"


def markdown(report: dict) -> str:
    """The report as tables of a document."""
    lines = []
    for kind, tasks in report["results"].items():
        for task, names in tasks.items():
            first = next(iter(names.values()))
            keys = [key for key in COLUMNS if key in first]
            lines += [f"**{KINDS[kind]}** ({first['objects']}), {TITLES[task]}", ""]
            lines += [f"| | {' | '.join(COLUMNS[key] for key in keys)} |", "|---" * (len(keys) + 1) + "|"]
            for name, values in names.items():
                lines.append(
                    f"| {name} | {' | '.join(f'{values[key]:.2f}' if key in values else '' for key in keys)} |"
                )
            lines.append("")
    if report["margins"]:
        lines += ["| bar | dB |", "|---|---|"]
        lines += [f"| {name} | {value:+.2f} |" for name, value in report["margins"].items()] + [""]
    weights = ", ".join(
        f"{name} step {fact['step']} ({fact['sha256'][:8]})" for name, fact in report["weights"].items()
    )
    return "\n".join([f"Preset `{report['preset']}`, {weights}.", "", *lines])


def write_card(card: Path, report: dict, sheets: list[Path]) -> None:
    """Tables and pictures anew between the document's two marks."""
    head, rest = card.read_text().split(BEGIN, 1)
    shown = [f"![{sheet.stem.replace('_', ' ')}]({relpath(sheet, card.parent)})" for sheet in sheets]
    lines = [markdown(report), SHEETS if sheets else "", "", *shown]
    write_atomically(card, f"{head}{BEGIN}\n" + "\n".join(lines).strip() + f"\n{END}{rest.split(END, 1)[1]}")


def show(report: dict) -> None:
    console = Console(width=130)
    for kind, tasks in report["results"].items():
        for task, names in tasks.items():
            columns = [key for key in next(iter(names.values())) if key != "objects"]
            count = next(iter(names.values()))["objects"]
            table = Table("", *columns, title=f"{kind}, {task}: {count} objects", title_justify="left")
            for name, values in names.items():
                table.add_row(name, *(f"{values[key]:.3f}" if key in values else "" for key in columns))
            console.print(table)
    for name, value in report["margins"].items():
        console.print(f"{name}: {value:+.2f} dB")


def sheet(files: list[Path], task: str, columns: int = 2) -> Image.Image | None:
    """Objects in two columns, each a caption above its rows of eight pictures."""
    tiles = []
    for file in files:
        tensors, facts = load_tensors(file)
        if task not in tensors:
            continue
        rows = tensors[task].float() / 255
        flat = rearrange(rows[:, :, :3] + 1 - rows[:, :, 3:], "row picture c h w -> c (row h) (picture w)")
        tile = Image.new("RGB", (flat.shape[2] + 6, flat.shape[1] + 16), "white")
        ImageDraw.Draw(tile).text((3, 2), facts["caption"], fill=(60, 60, 60))
        tile.paste(Image.fromarray(to_bytes(flat)), (3, 16))
        tiles.append(tile)
    if not tiles:
        return None
    lines = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in line) for line in lines]
    page = Image.new("RGB", (columns * tiles[0].width, sum(heights)), "white")
    for index, line in enumerate(lines):
        for place, tile in enumerate(line):
            page.paste(tile, (place * tiles[0].width, sum(heights[:index])))
    return page


def save_sheets(folder: Path, out: Path) -> list[Path]:
    """Sheets of ten held-out procedural objects and of ten real inputs, one for each task, smaller than 200 kB."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.safetensors"))
    real = [file for kind in ("picture", "robot", "asset") for file in files if file.stem.startswith(kind)]
    saved = []
    for name, chosen in (("priors", [file for file in files if file.stem.startswith("procedural")]), ("real", real)):
        for task in TASKS:
            page = sheet(chosen[:10], task)
            if page is not None:
                saved.append(out / f"{name}_{task}.webp")
                page.save(saved[-1], quality=82, method=6)
    return saved

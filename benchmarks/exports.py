"""Every export of a run: bytes and CPU-seconds; and whether three.js shows what we show.

    NODE_PATH=/tmp/node/node_modules python benchmarks/exports.py runs/demo --out benchmarks/results/exports.json

`npm install three gltf-validator` in some folder, whose node_modules NODE_PATH names, and Chromium are needed for the
comparison; without them it is left out. Sizes are those of the default options.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from loom4d.cameras import FOV_DEG, orbit
from loom4d.export import FORMATS, export
from loom4d.gaussians.asset import load_asset
from loom4d.gaussians.motion import DynamicGaussians
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.grid import straight
from loom4d.runs import InputError
from three_page import compared, ours, player, theirs, three_folder

VALIDATE = """
const report = require("gltf-validator").validateBytes(new Uint8Array(require("fs").readFileSync(0)));
report.then((found) => console.log(JSON.stringify(found.issues)));
"""
SIZE = 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exports.json"))
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--picture", type=Path, help="where to put rows of Gaussians, our GLB and three.js")
    options = parser.parse_args()
    asset = load_asset(options.run / "asset.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        formats = {name: written(asset, Path(folder), name) for name in options.formats}
        result: dict = {"gaussians": len(asset.tensors()["means"]), "formats": formats}
        meshes = [name for name in ("glb", "glb-morph") if name in formats and "bytes" in formats[name]]
        if three_folder():
            result["three.js"] = {name: played(asset, Path(folder), name, options.picture) for name in meshes}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def written(asset: DynamicGaussians, folder: Path, name: str) -> dict:
    path = folder / f"{name}{FORMATS[name].suffix}"
    begun = time.process_time()
    try:
        said = export(asset, path, name)
    except InputError as error:
        return {"refused": str(error).split(": ", 1)[-1]}
    seconds = time.process_time() - begun
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    facts = {"bytes": size, "cpu_seconds": round(seconds, 1), **({"said": said} if said else {})}
    if path.suffix == ".glb":
        found = subprocess.run(["node", "-e", VALIDATE], input=path.read_bytes(), capture_output=True)
        if found.returncode == 0:
            issues = json.loads(found.stdout)
            facts["validator"] = {kind: issues[f"num{kind.title()}"] for kind in ("errors", "warnings", "infos")}
    return facts


def played(asset: DynamicGaussians, folder: Path, name: str, picture: Path | None) -> dict:
    """Pictures by three.js against ours of the same file, and against the Gaussians; means and worst."""
    cameras, start, end = orbit(torch.tensor([0.0, 75.0, 150.0, 285.0]), 15.0), *asset.time_range
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        path = Path(place) / "asset.glb"
        path.write_bytes((folder / f"{name}.glb").read_bytes())
        with player(Path(place)) as browser:
            browser.run("three.load('asset.glb')")
            scores, rows = [], []
            for part in (0.0, 0.27, 0.5, 0.81, 1.0):
                seconds = part * (end - start)
                for view in range(4):
                    camera = cameras[view]
                    drawn = theirs(browser, seconds, camera, FOV_DEG, SIZE)
                    mine = ours(path, seconds, camera, SIZE)
                    field = rasterize(asset.at(start + seconds), camera, RasterOptions(SIZE, SIZE)).premultiplied
                    scores.append((*compared(drawn, mine), *compared(mine, straight(field.clamp(0, 1)))))
                    if view in (0, 2) and part in (0.0, 0.5, 1.0):
                        rows.append(torch.cat([straight(field.clamp(0, 1)), mine, drawn], 1))
            revision = browser.run("three.revision")
    if picture and name == "glb":
        sheet = torch.cat(rows, 2)
        over = (sheet[:3] * sheet[3:] + 1 - sheet[3:]).clamp(0, 1).mul(255).round().byte()
        Image.fromarray(over.permute(1, 2, 0).numpy()).save(picture, quality=88)
    psnr, overlap, field_psnr, field_overlap = (torch.tensor(one) for one in zip(*scores, strict=True))
    return {
        "revision": revision,
        "pictures": len(scores),
        "psnr": [round(float(psnr.mean()), 1), round(float(psnr.min()), 1)],
        "silhouette_iou": [round(float(overlap.mean()), 4), round(float(overlap.min()), 4)],
        "mesh_to_gaussians_psnr": [round(float(field_psnr.mean()), 1), round(float(field_psnr.min()), 1)],
        "mesh_to_gaussians_iou": [round(float(field_overlap.mean()), 4), round(float(field_overlap.min()), 4)],
    }


if __name__ == "__main__":
    main()

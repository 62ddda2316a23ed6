"""Checkpoints of the exact architecture with random weights, for trying the whole command where the real files are not.

    python benchmarks/random_checkpoints.py /tmp/random                # 9.4 GB in bfloat16
    loom4d generate photo.png --priors svd-sv3d --checkpoints /tmp/random

Names and shapes are those of the original files, less what nobody reads; `--sizes` takes an architecture.json.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from loom4d.denoisers import full_size, stable, sv3d, svd
from loom4d.denoisers.checkpoints import Origin, TensorFile
from loom4d.denoisers.stable import Kind, Networks, Sizes


class Wanted(TensorFile):
    """Takes the place of a file and notes what is asked of it."""

    def __init__(self) -> None:
        self.shapes = {}

    def claim(self, origin: Origin, name: str, shape: tuple[int, ...]) -> None:
        for stored in (shape, (*shape, 1, 1)):  # convolutions of a single pixel are stored as such
            try:
                fits = not origin.names or origin.make(torch.empty(stored, device="meta")).shape == shape
            except (RuntimeError, TypeError):
                continue
            if fits:
                self.shapes.update(dict.fromkeys(origin.names, stored))
                return
        raise ValueError(f"{origin.names} cannot become {name}")


def layout(kind: Kind, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an original file, as far as they are read."""
    wanted = Wanted()
    networks = Networks.of(kind, sizes, lone=kind.own_encoder)
    for part in stable.original_parts(wanted, kind, sizes, torch.float32, networks):
        part.claim()
    return wanted.shapes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", type=Path, help="folder with an architecture.json; the published sizes without")
    parser.add_argument("--device", default="cpu", help="where numbers are drawn")
    options = parser.parse_args(arguments)
    sizes = stable.read_sizes(options.sizes or options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.sizes:
        shutil.copy(options.sizes / "architecture.json", options.out)
    for kind, names in ((svd.KIND, full_size.SVD_FILES), (sv3d.KIND, full_size.SV3D_FILES)):
        tensors = {
            name: (0.02 * torch.randn(shape, device=options.device)).bfloat16().cpu()
            for name, shape in layout(kind, sizes).items()
        }
        save_file(tensors, options.out / names[0])
        print(f"wrote {options.out / names[0]}, {len(tensors)} tensors")


if __name__ == "__main__":
    main()

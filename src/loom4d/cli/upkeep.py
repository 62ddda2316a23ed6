"""Commands around the making: weights, training and its data, the web app, what the machine has."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from loom4d import native
from loom4d.cli.show import Flat, Show, console
from loom4d.denoisers import catalogue
from loom4d.denoisers.weights import load_autoencoder, load_prior
from loom4d.runs import InputError, result_of
from loom4d.training.candidates import candidates
from loom4d.training.curation import CurationConfig, curate
from loom4d.training.recipes import RECIPES, run_recipe, tiny
from loom4d.training.shards import default_folder


def weights(
    action: Annotated[Literal["list", "check", "get"], tyro.conf.Positional],
    name: Annotated[str | None, tyro.conf.Positional] = None,
    /,
    folder: Path = Path("checkpoints"),
    commercial_only: bool = False,
    checksum: bool = False,
) -> None:
    """List, check or fetch the weight files of the full-size priors.

    Args:
        action: What to do.
        name: Which file; all of them by default.
        folder: Where the files are, or go.
        commercial_only: Refuse what may not be used commercially without further conditions.
        checksum: Read whole files and say their SHA-256.
    """
    names = [name] if name else [one.name for one in catalogue.listed(commercial_only)]
    for one in names:
        entry = catalogue.entry(one)
        if action == "get":
            console.print(f"wrote {catalogue.get(one, folder, commercial_only)}")
        elif action == "check":
            console.print(catalogue.check(one, folder, checksum).message)
        else:
            use = f"commercial use {entry.commercial}" + (f": {entry.note}" if entry.note else "")
            console.print(f"{entry.name}: {entry.title}, {entry.size}, {entry.licence}, {use}. {entry.page}")
    if not names:
        console.print("nothing in the catalogue may be used commercially without conditions")


@dataclass(frozen=True)
class Devices:
    """What trains on which device.

    Attributes:
        device: Where the network is trained.
        draw_on: Where training pictures are drawn that are missing: cpu takes all cores, cuda one after another.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    draw_on: Literal["cpu", "cuda"] = "cpu"


def train(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    out: Path,
    data: Path | None = None,
    minutes: float = float("inf"),
    weights: Path | None = None,
    size: Literal["full", "tiny"] = "full",
    devices: Annotated[Devices, Flat] = Devices(),
    assets: Path | None = None,
) -> None:
    """Train one of the built-in networks by its recipe; calling again goes on from the last checkpoint.

    Args:
        recipe: autoencoder or prior.
        out: Folder for checkpoint, log, loss curve, samples and the weight file.
        data: Folder of training pictures, drawn where missing; the user's cache by default.
        minutes: Stop after so long, with a checkpoint.
        weights: Folder with the family's other weight files, and the weights to start from.
        size: tiny is the whole recipe in seconds, to try it.
        assets: Folder of curated grids to train on besides; weights trained on share-alike assets are shared alike.
    """
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    chosen = tiny(RECIPES[recipe]) if size == "tiny" else RECIPES[recipe]
    chosen = replace(chosen, data=replace(chosen.data, device=devices.draw_on))
    with Show() as show:
        path = result_of(
            run_recipe(chosen, out, data or default_folder(), minutes, weights, devices.device, assets), show
        )
    console.print(f"wrote {path}")


@dataclass(frozen=True)
class Door:
    """Who may ask, and where.

    Attributes:
        host: The address to listen on. Any other than this machine's own asks browsers for a token.
        port: 0 takes a free one.
        allowed_hosts: Names besides this machine's own under which browsers may ask.
        new_token: Print another login link; cookies of the old one end.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    allowed_hosts: tuple[str, ...] = ()
    new_token: bool = False


def serve(
    folder: Path = Path("runs/serve"),
    door: Annotated[Door, Flat] = Door(),
    checkpoints: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    extensions: tuple[str, ...] = (),
    max_megabytes: float = 200.0,
) -> None:
    """Serve the web app: upload, choose, watch, download. Stop it at any time; its runs go on when it starts again.

    Args:
        folder: Where its database, uploads and runs are kept.
        checkpoints: Folder with the files of the full-size priors.
        device: Where full-size priors run.
        extensions: Python modules that are imported first and may register methods, presets or formats.
        max_megabytes: Largest upload.
    """
    for module in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise InputError(f"the web app needs {module}: pip install 'loom4d[serve]'")
    from loom4d.serve.app import serve as serve_app
    from loom4d.serve.settings import Limits, ServeError, Settings

    settings = Settings(
        folder=folder,
        host=door.host,
        port=door.port,
        allowed_hosts=door.allowed_hosts,
        checkpoints=checkpoints,
        device=device,
        extensions=extensions,
        limits=Limits(bytes=int(max_megabytes * 1e6)),
    )
    try:
        serve_app(settings, console.print, door.new_token)
    except ServeError as error:
        raise InputError(str(error)) from error


def curate_command(
    source: Annotated[str, tyro.conf.Positional],
    /,
    out: Path,
    seeds: int = 256,
    package: Path | None = None,
    licence: str | None = None,
    attribution: str | None = None,
    curation: CurationConfig = CurationConfig(),  # noqa: B008
) -> None:
    """Choose the animated objects that are worth training on, each rejection with its reason, and write their shards.

    Args:
        source: A folder of 3D models, 0ad or quaternius (fetched from Debian's archive), or procedural.
        out: Folder for train/ and test/, split by the objects' names; calling again goes on.
        seeds: How many procedural objects.
        package: The .deb of a package, where it is at hand.
        licence: Of a folder whose files do not say it.
        attribution: Of a folder whose files do not say it.
    """
    credit = {key: value for key, value in (("licence", licence), ("attribution", attribution)) if value}
    with Show() as show:
        for split in ("train", "test"):
            chosen = result_of(candidates(source, seeds, split, default_folder() / "packages", package, credit), show)
            result_of(curate(chosen, out / split, curation), show)
    console.print(f"wrote {out / 'train'} and {out / 'test'}; look at kept.webp and rejected.webp there")


def doctor() -> None:
    """Say what this machine has and what is missing, one line each."""
    kernels = "built and loaded" if native.load() else "not available: the slower tensor path runs"
    _, autoencoder = load_autoencoder()
    _, prior = load_prior()
    scores = {name: round(value, 2) for name, value in autoencoder["scores"].items()}
    bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    lines = {
        "python": f"{platform.python_version()} on {platform.machine()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, bfloat16 {'yes' if bf16 else 'no (slower)'}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none (not needed)",
        "compiler": native.compiler() or "none: install g++ or clang++ for the fast kernels",
        "kernels": kernels,
        "autoencoder": f"step {autoencoder['step']}, {scores}",
        "prior": f"step {prior['step']}, {prior['scores']}",
        "gsplat": _extra("gsplat", "gpu"),
        "diffusers": _extra("diffusers", "full-size"),
        "web app": _extra("fastapi", "serve"),
        "browser": shutil.which("chromium") or shutil.which("google-chrome") or "none found for `loom4d view`",
    }
    for name, line in lines.items():
        console.print(f"{name:<12} {line}")


def _extra(module: str, extra: str) -> str:
    found = importlib.util.find_spec(module) is not None
    return "installed" if found else f"missing: pip install 'loom4d[{extra}]'"

"""Every command, and the only module that prints."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import json
import os
import platform
import shutil
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loom4d import native, pipeline
from loom4d.denoisers import catalogue
from loom4d.denoisers.full_size import FullSizeConfig
from loom4d.denoisers.weights import load_autoencoder, load_prior
from loom4d.export import FORMATS
from loom4d.export.video import OrbitOptions
from loom4d.gaussians.asset import load_asset
from loom4d.gaussians.fit import PRESETS as FIT_PRESETS
from loom4d.gaussians.fit import FitConfig
from loom4d.grid import load_grid
from loom4d.methods import METHODS
from loom4d.methods.diffusion_squared import PRESETS, DiffusionSquaredConfig
from loom4d.reconstruct import ReconstructConfig, export_run, reconstruct
from loom4d.runs import Event, InputError, result_of
from loom4d.sources.captures import CaptureConfig
from loom4d.sources.framing import Config as SourceConfig
from loom4d.training.candidates import candidates
from loom4d.training.curation import CurationConfig, curate
from loom4d.training.recipes import RECIPES, run_recipe, tiny
from loom4d.training.shards import default_folder
from loom4d.viewer import disagreement_of, write_page

console = Console(highlight=False, soft_wrap=True)
SCORED = {"given_psnr": "the pictures given", "held_out_psnr": "those held out"}  # of a fit's report


class Show:
    """Prints events: a bar with the remaining time for each stage, a line for each note."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[message]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, event: Event) -> None:
        if event.total:
            if event.stage not in self.tasks:
                self.tasks[event.stage] = self.progress.add_task(event.stage, total=event.total, message="")
            message = event.message if event.kind != "start" else ""
            self.progress.update(self.tasks[event.stage], completed=event.step, total=event.total, message=message[:60])
        elif event.kind in ("note", "done", "start") and (event.message or event.data):
            facts = ", ".join(f"{name} {value}" for name, value in event.data.items())
            shown = ": ".join(part for part in (event.message, facts if event.kind == "done" else "") if part)
            if shown:
                self.progress.console.print(f"{event.stage:<9} {shown}")

    def __enter__(self) -> Show:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def generate(
    input: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    preset: Literal["default", "paper", "released"] = "default",
    quality: Literal["preview", "balanced", "full"] = "balanced",
    seed: int = 0,
    doubt: float = pipeline.GenerateConfig().doubt,
    method: str = "diffusion-squared",
    priors: str = "small",
    checkpoints: Path | None = None,
    max_memory: str | None = None,
    full_size: FullSizeConfig = FullSizeConfig(),  # noqa: B008
    source: SourceConfig = pipeline.GenerateConfig().source,  # noqa: B008 (frozen)
    imagining: DiffusionSquaredConfig = DiffusionSquaredConfig(),  # noqa: B008
    fitting: FitConfig = FitConfig(),  # noqa: B008
    orbit: OrbitOptions = OrbitOptions(),  # noqa: B008
) -> None:
    """Make a moving 3D asset of a picture, a clip, a folder of frames or an orbit of a static object.

    Args:
        input: The picture, video file or folder of frames.
        out: Folder for the results; the same command on an interrupted run goes on with it.
        preset: How the grid is imagined, by default ours with small priors, at the quality asked for, and the paper's
            with svd-sv3d; --imagining.* changes single choices.
        quality: How long the whole may take: preview, balanced (some three times as long) or full (some ten times)
            set both the steps that imagine and those that fit; a named preset keeps its own steps.
        seed: Another seed, another asset; the same seed, the same bytes on this machine.
        doubt: How far the fit distrusts what the priors disagreed about, 0 to 1.
        priors: small, which ships with the package, or svd-sv3d, from your own files.
        checkpoints: Folder with the files of the full-size priors.
        max_memory: What full-size priors may take of the device, as 12GB; default is what is fastest.
    """
    if max_memory is not None:
        full_size = replace(full_size, max_memory_gb=gigabytes(max_memory))
    config = pipeline.GenerateConfig(
        method=method,
        preset=preset,
        priors=priors,
        checkpoints=checkpoints,
        full_size=full_size,
        seed=seed,
        doubt=doubt,
        source=source,
        imagining=replace(imagining, seed=seed),
        fitting=replace(fitting, seed=seed),
        orbit=orbit,
    )
    with Show() as show:
        pipeline.generate(input, out, config, show)
    console.print(f"open {out / 'viewer.html'}")


def gigabytes(text: str) -> float:
    """ "12GB", "12 gb" or "12" as a number of GB (10⁹ bytes)."""
    number = text.strip().lower().removesuffix("gb").strip()
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--max-memory takes an amount such as 12GB, not {text!r}")
    return value


def fit_command(
    input: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    quality: Literal["preview", "balanced", "full"] = "balanced",
    device: Literal["cpu", "cuda"] = "cpu",
    capture: CaptureConfig = CaptureConfig(),  # noqa: B008
    fitting: FitConfig = FitConfig(),  # noqa: B008
) -> None:
    """Fit dynamic Gaussians to posed pictures: a run folder, transforms.json, COLMAP text or cameras.json.

    Args:
        input: Folder of pictures with cameras (docs/conventions.md has the layouts), or a run folder.
        out: Folder for asset.safetensors and viewer.html; the same command on an interrupted fit goes on with it.
        quality: How long the fit takes; --fitting.* changes single choices.
        device: Where the fit works; cuda wants the extra gpu.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here; leave --device out to fit on the processor")
    with Show() as show:
        reconstruct(input, out, ReconstructConfig(capture, fitting, device), show)
    scores = json.loads((out / "report.json").read_text())["stages"]["fit"]
    told = [f"{scores[name]} dB on {what}" for name, what in SCORED.items() if name in scores]
    console.print(f"{', '.join(told)}; open {out / 'viewer.html'}")


def view(run: Annotated[Path, tyro.conf.Positional], /, browser: bool = True) -> None:
    """Open a run's page in the browser; the page is written first where the folder has only the asset.

    Args:
        run: A run folder, or any folder with asset.safetensors.
        browser: Open it, or only say where it is.
    """
    page = run / "viewer.html"
    if not page.exists():
        if not (run / "asset.safetensors").exists():
            raise InputError(f"{run} holds neither viewer.html nor asset.safetensors; give a run folder")
        grid = load_grid(run / "grid") if (run / "grid" / "cameras.json").exists() else None
        asset, disagreement = load_asset(run / "asset.safetensors"), disagreement_of(run) if grid else None
        write_page(asset, page, title=run.name, grid=grid, disagreement=disagreement)
    if browser and not webbrowser.open(page.resolve().as_uri()):
        console.print("no browser could be started here")
    console.print(str(page))


def export_command(
    run: Annotated[Path, tyro.conf.Positional],
    /,
    to: str,
    out: Path | None = None,
    options: Any = None,
) -> None:
    """Write a run's asset in a format that other programs read: mp4, webp, gif, glb, glb-morph, usd, ply, splatv, grid.

    `loom4d export RUN --to FORMAT --help` lists the options of that format.

    Args:
        run: A run folder, or any folder with asset.safetensors.
        to: The format's name.
        out: File or folder to write; by default in the run's folder `export`, named after the format.
        options: Choices of the format.
    """
    if to not in FORMATS:
        known = "\n".join(f"  {name:<10} {one.about}" for name, one in FORMATS.items())
        raise InputError(f"unknown format {to!r}; the formats are\n{known}")
    if not (run / "asset.safetensors").exists():
        raise InputError(f"{run} holds no asset.safetensors; give the folder of a finished run")
    target = out or run / "export" / f"asset{FORMATS[to].suffix or '_' + to}"
    target.parent.mkdir(parents=True, exist_ok=True)
    said = export_run(run, target, to, options)
    console.print(f"wrote {target}" + (f": {said}" if said else ""))


def export_to(name: str) -> Callable[..., None]:
    """The export command with the options of one format, or with none where no format has that name."""

    @functools.wraps(export_command)
    def command(run, /, to, out=None, options=None) -> None:
        export_command(run, to, out, options)

    command.__annotations__ = get_type_hints(export_command, include_extras=True)
    chosen = FORMATS[name].options if name in FORMATS else None
    command.__annotations__["options"] = chosen or tyro.conf.Suppress[None]  # type: ignore[misc]
    signature = inspect.signature(export_command)
    parameters = [
        one.replace(annotation=command.__annotations__[one.name], default=chosen() if chosen else None)
        if one.name == "options"
        else one.replace(annotation=command.__annotations__[one.name])
        for one in signature.parameters.values()
    ]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


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


def train(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    out: Path,
    data: Path | None = None,
    minutes: float = float("inf"),
    weights: Path | None = None,
    size: Literal["full", "tiny"] = "full",
    device: Literal["cpu", "cuda"] = "cpu",
    draw_on: Literal["cpu", "cuda"] = "cpu",
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
        device: Where the network is trained.
        draw_on: Where training pictures are drawn that are missing: cpu takes all cores, cuda one after another.
        assets: Folder of curated grids to train on besides; weights trained on share-alike assets are shared alike.
    """
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    chosen = tiny(RECIPES[recipe]) if size == "tiny" else RECIPES[recipe]
    chosen = replace(chosen, data=replace(chosen.data, device=draw_on))
    with Show() as show:
        path = result_of(run_recipe(chosen, out, data or default_folder(), minutes, weights, device, assets), show)
    console.print(f"wrote {path}")


def serve(
    folder: Path = Path("runs/serve"),
    host: str = "127.0.0.1",
    port: int = 8765,
    allowed_hosts: tuple[str, ...] = (),
    new_token: bool = False,
    checkpoints: Path | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    extensions: tuple[str, ...] = (),
    max_megabytes: float = 200.0,
) -> None:
    """Serve the web app: upload, choose, watch, download. Stop it at any time; its runs go on when it starts again.

    Args:
        folder: Where its database, uploads and runs are kept.
        host: The address to listen on. Any other than this machine's own asks browsers for a token.
        port: 0 takes a free one.
        allowed_hosts: Names besides this machine's own under which browsers may ask.
        new_token: Print another login link; cookies of the old one end.
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
        host=host,
        port=port,
        allowed_hosts=allowed_hosts,
        checkpoints=checkpoints,
        device=device,
        extensions=extensions,
        limits=Limits(bytes=int(max_megabytes * 1e6)),
    )
    try:
        serve_app(settings, console.print, new_token)
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


def commands(arguments: list[str]) -> dict[str, Callable[..., None]]:
    """The commands; nested options default to the presets that the command line itself names."""

    def named(option: str, default: str) -> str:
        given = [value for name, value in itertools.pairwise(arguments) if name == option]
        given += [name.split("=", 1)[1] for name in arguments if name.startswith(f"{option}=")]
        return given[-1] if given else default

    quality = named("--quality", "balanced")
    meant = METHODS["diffusion-squared"].meant(named("--preset", "default"), named("--priors", "small"), quality)
    imagining = PRESETS.get(meant, PRESETS["default"])()
    fitting = FIT_PRESETS.get(quality, FIT_PRESETS["balanced"])()
    return {
        "generate": functools.partial(generate, imagining=imagining, fitting=fitting),
        "fit": functools.partial(fit_command, fitting=fitting),
        "view": view,
        "export": export_to(named("--to", "")),
        "weights": weights,
        "train": train,
        "curate": curate_command,
        "serve": serve,
        "doctor": doctor,
    }


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `loom4d` command; bad input ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands(arguments), args=arguments, description="Pictures into moving 3D assets."
        )
    except InputError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"loom4d: {error}", markup=False)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on from here")
        raise SystemExit(130) from None

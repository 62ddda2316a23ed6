"""Every command; the only package that prints."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable

import tyro
from rich.console import Console

from loom4d import native
from loom4d.cli.making import StageChoice, export_to, fit_command, generate, view
from loom4d.cli.upkeep import curate_command, doctor, serve, train, weights
from loom4d.gaussians.fit_config import PRESETS as FIT_PRESETS
from loom4d.methods import METHODS
from loom4d.methods.diffusion_squared import PRESETS
from loom4d.pipeline import fitting_of
from loom4d.runs import InputError


def commands(arguments: list[str]) -> dict[str, Callable[..., None]]:
    """The commands; nested options default to the presets that the command line itself names."""

    def named(option: str, default: str) -> str:
        given = [value for name, value in itertools.pairwise(arguments) if name == option]
        given += [name.split("=", 1)[1] for name in arguments if name.startswith(f"{option}=")]
        return given[-1] if given else default

    quality = named("--quality", "balanced")
    known = quality if quality in FIT_PRESETS else "balanced"  # another one is refused when it is parsed
    meant = METHODS["diffusion-squared"].meant(named("--preset", "default"), named("--priors", "small"), quality)
    imagining = PRESETS.get(meant, PRESETS["default"])()
    return {
        "generate": functools.partial(generate, stages=StageChoice(imagining=imagining, fitting=fitting_of(known))),
        "fit": functools.partial(fit_command, fitting=FIT_PRESETS[known]()),
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
    if arguments is None:  # a process of our own
        native.keep_memory()
        arguments = sys.argv[1:]
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

"""What a user may choose, read from the registries, and the pipeline's configuration that a choice means."""

from __future__ import annotations

import inspect
import os
import platform
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from loom4d.denoisers import DENOISERS, Family
from loom4d.denoisers.full_size import FullSizeConfig
from loom4d.export import FORMATS, Format
from loom4d.gaussians.fit_config import PRESETS as QUALITIES
from loom4d.gaussians.motion import MOTIONS
from loom4d.methods import METHODS
from loom4d.options import choices_of
from loom4d.pipeline import GenerateConfig, fitting_of
from loom4d.runs import InputError
from loom4d.serve.settings import Settings
from loom4d.sources.framing import KINDS
from loom4d.sources.matting import MATTING

PREVIEWS = 4  # of each stage of imagining; a preview decodes pictures, which is not free
FIT_PREVIEWS = 10
FILM = GenerateConfig().orbit  # of every run
DEFAULTS = {"method": "diffusion-squared", "preset": "default", "quality": "balanced", "priors": "small"}


def found_family(priors: str, settings: Settings) -> tuple[Family, Path | None]:
    """The family and the folder it came from: the given one, or None where its files ship with the package."""
    full_size = FullSizeConfig(device=settings.device)
    if settings.checkpoints is None:
        return DENOISERS[priors](None, full_size), None
    try:
        return DENOISERS[priors](settings.checkpoints, full_size), settings.checkpoints
    except InputError as error:
        try:
            return DENOISERS[priors](None, full_size), None
        except InputError:
            raise error from None


def offer(settings: Settings) -> tuple[dict[str, Any], dict[str, Path | None]]:
    """The form (every registry's names with a line on each, the families' sizes), and where each family's files are."""
    families: dict[str, Any] = {}
    folders: dict[str, Path | None] = {}
    for name in DENOISERS:
        try:
            family, folders[name] = found_family(name, settings)
        except InputError as error:
            families[name] = {"missing": str(error).replace(str(settings.checkpoints), "the checkpoints")}
        else:
            families[name] = {size: getattr(family, size) for size in ("resolution", "views", "frames")}
    return form(families), folders


def form(families: dict[str, Any]) -> dict[str, Any]:
    qualities = {name: preset() for name, preset in QUALITIES.items()}
    return {
        "methods": {
            name: {"about": _method_line(name), "presets": _presets(name), "meant": _meant(name)} for name in METHODS
        },
        "qualities": {name: f"{one.count:,} Gaussians, {one.iterations:,} steps" for name, one in qualities.items()},
        "priors": families,
        "kinds": list(KINDS),
        "matting": ["auto", *MATTING],
        "formats": {name: _format(one) for name, one in FORMATS.items()},
        "defaults": {**DEFAULTS, "seed": 0, "kind": "clip", "matting": "auto"},
        "machine": f"{os.cpu_count()} processors, {platform.machine()}",
    }


def _format(one: Format) -> dict[str, Any]:
    """`refused` says of each motion that the format cannot hold why; `options` is its form."""
    return {
        "about": one.about,
        "suffix": one.suffix or ".zip",
        "folder": not one.suffix,
        "refused": {motion: reason for motion in MOTIONS if (reason := one.refusal(motion))},
        "options": [asdict(choice) for choice in choices_of(one.options())],
    }


def _method_line(name: str) -> str:
    module = inspect.getmodule(METHODS[name].imagine)
    return _first_line(module.__doc__ if module else None)


def _presets(method: str) -> dict[str, str]:
    """A line on each preset: the first of the docstring of the function that makes it, where there is one."""
    module = inspect.getmodule(METHODS[method].imagine)
    makers = getattr(module, "PRESETS", {})
    return {name: _first_line(getattr(makers.get(name), "__doc__", None)) for name in METHODS[method].presets}


def _meant(method: str) -> dict[str, dict[str, str]]:
    """Priors -> quality -> the preset that "default" stands for."""
    meant = METHODS[method].meant
    return {priors: {quality: meant("default", priors, quality) for quality in QUALITIES} for priors in DENOISERS}


def _first_line(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def config_of(choices: dict[str, Any], checkpoints: Path | None, device: str, title: str) -> GenerateConfig:
    """The configuration of a run. It depends on nothing else, so a resumed job claims its own run folder again."""
    config = GenerateConfig(title=title)
    method = METHODS[choices["method"]]
    preset = method.meant(choices["preset"], choices["priors"], choices["quality"])
    imagining = method.presets[preset](choices["seed"])
    fitting = fitting_of(choices["quality"])
    return replace(
        config,
        method=choices["method"],
        preset=choices["preset"],
        priors=choices["priors"],
        checkpoints=checkpoints,
        full_size=FullSizeConfig(device=device),
        seed=choices["seed"],
        source=replace(config.source, kind=choices["kind"], matting=choices["matting"]),
        imagining=with_previews(imagining),
        orbit=FILM,
        fitting=replace(fitting, seed=choices["seed"], preview_every=max(1, fitting.iterations // FIT_PREVIEWS)),
    )


def with_previews(imagining: Any) -> Any:
    """The method's configuration that shows its grid on the way, where the method can."""
    names = {field.name for field in fields(imagining)} if is_dataclass(imagining) else set()
    if not {"preview_every", "steps"} <= names:
        return imagining
    return replace(imagining, preview_every=max(1, round(imagining.steps / PREVIEWS)))

"""A run's asset as one file to take home, within limits: whoever may choose a format's options may choose too much."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loom4d.export import FORMATS, export
from loom4d.export.video import OrbitOptions, as_fitted
from loom4d.gaussians.asset import load_asset
from loom4d.options import with_chosen
from loom4d.runs import InputError
from loom4d.serve.settings import Limits

STATUS = Path("/proc/self/status")  # where Linux says what a process holds


def written(run: Path, folder: Path, name: str, values: dict[str, Any], limits: Limits) -> Path:
    """The run's asset as one file in the format called `name`; what is a folder becomes a ZIP.

    `values` are options of the format by the names of `choices_of`; the others keep their defaults.
    """
    chosen = FORMATS[name]
    options = with_chosen(chosen.options(), values)
    if isinstance(options, OrbitOptions):
        options = as_fitted(options, run)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}{chosen.suffix}"  # two formats may share a suffix
    if not chosen.suffix:
        shutil.rmtree(target, ignore_errors=True)  # what was written with other options
    with within(limits):
        try:
            export(load_asset(run / "asset.safetensors"), target, name, options)
        except InputError as error:
            raise InputError(str(error).replace(f"{target}: ", "")) from error
        return target if chosen.suffix else zipped(target)


class TooLong(Exception):
    """The time is up."""


@contextmanager
def within(limits: Limits) -> Iterator[None]:
    """Ends what runs inside, by an `InputError`, when it has taken too long or wants too much memory.

    Only Linux bounds the memory.
    """

    def over(*_: object) -> None:
        raise TooLong

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, limits.export_seconds)
    try:
        if STATUS.exists():
            held = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmData"))
            resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(held.split()[1]) + limits.export_memory, hard))
        yield
    except TooLong as error:
        minutes = f"{limits.export_seconds / 60:.2g} minutes"
        raise InputError(f"this was not done after {minutes}: choose fewer or smaller pictures") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        gigabytes = f"{limits.export_memory / 1e9:.2g} GB"
        raise InputError(f"this takes more than {gigabytes} of memory: choose fewer or smaller pictures") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def zipped(folder: Path) -> Path:
    """The folder as a ZIP beside it, which appears whole."""
    target, partial = folder.with_suffix(".zip"), folder.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(folder.name) / file.relative_to(folder))
    os.replace(partial, target)
    return target

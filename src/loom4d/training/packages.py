"""Real animated assets for training, out of Debian's packages: fetched, checked, and only the needed files unpacked.

Nothing of it is ever copied into the repository: files lie in a folder of the user's, with their licences beside them.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from loom4d.runs import Event, InputError, Work, write_json

BLOCK = 1 << 20
MIRRORS = (
    "https://deb.debian.org/debian/pool/main",
    "https://snapshot.debian.org/archive/debian/20260301T000000Z/pool/main",
)


@dataclass(frozen=True)
class Package:
    """A package file of Debian's archive and what is wanted of it."""

    name: str
    file: str  # below the archive's pool/main
    size: int  # bytes
    sha256: str
    unpacked: int  # bytes on disk while it is unpacked, about
    licence: str
    attribution: str
    wanted: tuple[str, ...]  # patterns of files
    archive: str = ""  # the zip inside the package that holds them; "": the package itself
    below: tuple[str, ...] = ("",)  # the folders that `wanted` and places here begin from


PACKAGES: dict[str, Package] = {
    "0ad": Package(
        "0ad",
        "0/0ad-data/0ad-data_0.0.26-1_all.deb",
        1_377_557_908,
        "53745ae74d05bccf6783400fa98f3932b21729ab9d2e86151aa2c331c3455178",
        1_800_000_000,
        "CC-BY-SA-3.0",
        "Wildfire Games, 0 A.D. (play0ad.com)",
        (
            "art/LICENSE.txt",
            "art/meshes/skeletal/*.pmd",
            "art/animation/*.psa",
            "art/textures/skins/skeletal/*",
            "art/actors/fauna/*.xml",
            "art/variants/*.xml",
        ),
        archive="./usr/share/games/0ad/mods/public/public.zip",
    ),
    "quaternius": Package(
        "quaternius",
        "c/castle-game-engine/castle-game-engine-doc_7.0~alpha.3+dfsg2-4_all.deb",
        452_883_244,
        "37e6aed491ce5358392a38b78f12b382e1aaeca89ba90d78e6f62ddb20825f58",
        60_000_000,
        "CC0-1.0",
        "Quaternius (quaternius.com)",
        ("quaternius_ultimate_monsters/*", "quaternius_alpaca/Alpaca.*", "quaternius_alpaca/AUTHORS.txt"),
        below=(
            "./usr/share/doc/castle-game-engine-doc/examples/delphi/vcl/data/",
            "./usr/share/doc/castle-game-engine-doc/examples/viewport_and_scenes/shadow_volumes_whole_scene_manifold/data/",
        ),
    ),
}


def unpacked(name: str, folder: Path, given: Path | None = None) -> Work[Path]:
    """The wanted files of a package under `folder / name`, fetched (or read from `given`, a .deb) where missing.

    `licence.json` beside them is written last: where it is, all is.
    """
    if name not in PACKAGES:
        raise InputError(f"unknown package {name!r}; choose one of {', '.join(PACKAGES)}")
    package, target = PACKAGES[name], folder / name
    if (target / "licence.json").exists():
        return target
    room_for(folder, package.unpacked + (0 if given else package.size))
    file = given
    if file is None:
        file = yield from fetched(package, folder)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    digest = checksum(file)
    if digest != package.sha256:
        raise InputError(f"{file}: SHA-256 {digest[:12]}…, expected {package.sha256[:12]}…; delete it and try again")
    yield Event("assets", "note", f"unpacking {file.name}")
    count = 0
    for place, stream in wanted_files(package, file, folder):
        if not (target / place).resolve().is_relative_to(target.resolve()):
            raise InputError(f"{file}: holds {place}, which lies outside of its folder")
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        with open(target / place, "wb") as copy:
            shutil.copyfileobj(stream, copy, BLOCK)
        count += 1
    facts = {"licence": package.licence, "attribution": package.attribution, "source": package.file}
    write_json(target / "licence.json", facts)
    if given is None:
        file.unlink()
    yield Event("assets", "done", f"{count} files of {package.attribution}, {package.licence}, in {target}")
    return target


def room_for(folder: Path, needed: int) -> None:
    """Raises `InputError` where the disk of `folder` has fewer than `needed` bytes and a tenth."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.1 * needed:
        raise InputError(f"{folder}: {free / 1e9:.1f} GB free, {1.1 * needed / 1e9:.1f} GB are needed")


def fetched(package: Package, folder: Path) -> Work[Path]:
    """The package file, downloaded whole or not at all."""
    file = folder / Path(package.file).name
    if file.exists():
        return file
    partial, reasons = file.with_name(file.name + ".partial"), []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(f"{mirror}/{package.file}", timeout=60) as stream, open(partial, "wb") as copy:
                done = 0
                while block := stream.read(BLOCK):
                    done += copy.write(block)
                    if done // BLOCK % 16 == 0:
                        yield Event("assets", "progress", file.name, done // BLOCK, package.size // BLOCK)
            partial.replace(file)
            return file
        except OSError as error:  # URLError is one
            reasons.append(f"{mirror}: {error}")
        finally:
            partial.unlink(missing_ok=True)
    raise InputError(f"{file.name} could not be fetched ({'; '.join(reasons)}); give it with --package")


def checksum(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def wanted_files(package: Package, file: Path, scratch: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(place, content) of each wanted file; an archive inside is put in `scratch` for the time being."""
    if not package.archive:
        for name, stream in tar_members(file):
            if place := wanted_place(package, name):
                yield place, stream
        return
    inner = scratch / f"{package.name}.zip.partial"
    try:
        for name, stream in tar_members(file):
            if name == package.archive:
                with open(inner, "wb") as copy:
                    shutil.copyfileobj(stream, copy, BLOCK)
                break
        else:
            raise InputError(f"{file}: holds no {package.archive}")
        with zipfile.ZipFile(inner) as archive:
            for name in archive.namelist():
                place = wanted_place(package, name)
                if place and not name.endswith("/"):
                    with archive.open(name) as stream:
                        yield place, stream
    finally:
        inner.unlink(missing_ok=True)


def wanted_place(package: Package, name: str) -> str:
    """Where a file of the package goes; "" for one that is not wanted."""
    for folder in package.below:
        place = name.removeprefix(folder)
        if name.startswith(folder) and any(fnmatch(place, pattern) for pattern in package.wanted):
            return place
    return ""


def tar_members(file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(place, content) of the regular files in a Debian package: an `ar` archive with a compressed tar in it."""
    with open(file, "rb") as package:
        if package.read(8) != b"!<arch>\n":
            raise InputError(f"{file}: no Debian package")
        while header := package.read(60):
            name, size = header[:16].decode("ascii", "replace").strip(" /"), int(header[48:58])
            if not name.startswith("data.tar"):
                package.seek(size + size % 2, 1)
                continue
            if name not in ("data.tar.xz", "data.tar"):
                raise InputError(f"{file}: packed as {name}, only xz is read")
            plain = name == "data.tar"
            with (
                nullcontext(package) if plain else lzma.open(package) as stream,
                tarfile.open(fileobj=stream, mode="r|") as tar,
            ):
                for member in tar:
                    content = tar.extractfile(member) if member.isreg() else None
                    if content is not None:
                        yield member.name, content
            return
    raise InputError(f"{file}: a Debian package without data")

"""Weight files that Loom4D does not ship: where to get each, what its licence allows, and whether it is whole."""

from __future__ import annotations

import hashlib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path

from loom4d.denoisers.checkpoints import PICKLES, TensorFile
from loom4d.runs import InputError

STABILITY = "Stability AI Community License"
CONDITIONS = "free below US $1,000,000 of yearly revenue, after registering; the page has the terms"


@dataclass(frozen=True)
class WeightFile:
    """One file, as its makers published it."""

    name: str
    title: str
    repository: str  # on the Hugging Face hub
    file: str
    licence: str
    commercial: str  # "yes", "no", or "conditional"
    bytes: int | None  # None where no exact number is known
    gigabytes: float | None = None  # as their page shows it, where there is no exact number
    tensors: int | None = None
    sha256: str | None = None  # None until someone with the file has reported it
    note: str = ""

    @property
    def page(self) -> str:
        return f"https://huggingface.co/{self.repository}"

    @property
    def size(self) -> str:
        if self.bytes is not None:
            return f"{self.bytes / 1e9:.2f} GB"
        return "size not known" if self.gigabytes is None else f"{self.gigabytes:.2f} GB"


CATALOGUE: dict[str, WeightFile] = {
    one.name: one
    for one in (
        WeightFile(
            "svd_xt",
            "Stable Video Diffusion XT, 25 frames",
            "stabilityai/stable-video-diffusion-img2vid-xt",
            "svd_xt.safetensors",
            STABILITY,
            "conditional",
            9_559_625_980,
            tensors=2446,
            note=CONDITIONS,
        ),
        WeightFile(
            "svd_xt_1_1",
            "Stable Video Diffusion XT 1.1, 25 frames",
            "stabilityai/stable-video-diffusion-img2vid-xt-1-1",
            "svd_xt_1_1.safetensors",
            STABILITY,
            "conditional",
            None,
            note=CONDITIONS,
        ),
        WeightFile(
            "sv3d_p",
            "SV3D with given camera angles, 21 views",
            "stabilityai/sv3d",
            "sv3d_p.safetensors",
            STABILITY,
            "conditional",
            None,
            gigabytes=9.37,
            tensors=2212,
            note=CONDITIONS,
        ),
    )
}


@dataclass(frozen=True)
class Status:
    """What is known about one file in a folder: "absent", "whole", "broken" or "other"."""

    name: str
    state: str
    message: str
    sha256: str | None = None


def listed(commercial_only: bool = False) -> list[WeightFile]:
    """The catalogue, or the files in it that anyone may use commercially."""
    return [one for one in CATALOGUE.values() if not commercial_only or one.commercial == "yes"]


def entry(name: str) -> WeightFile:
    if name not in CATALOGUE:
        raise InputError(f"unknown weights {name!r}; choose one of {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def check(name: str, folder: Path, checksum: bool = False) -> Status:
    """Whether the file is in the folder, whole, and the one that was published.

    Size, header and the number of tensors cost nothing; `checksum` reads the whole file, reports its SHA-256, and
    compares it where the published one is known.
    """
    wanted = entry(name)
    path = folder / wanted.file
    if not path.exists():
        return Status(name, "absent", f"{path}: not there; `loom4d weights get {name}` fetches it from {wanted.page}")
    size = path.stat().st_size
    if wanted.bytes is not None and size < wanted.bytes:
        return Status(
            name, "broken", f"{path}: {size:,} of {wanted.bytes:,} bytes; fetch it again, it goes on from there"
        )
    try:
        file = TensorFile(path)
    except InputError as error:
        return Status(name, "broken", str(error))
    if wanted.tensors is not None and len(file.shapes) != wanted.tensors:
        return Status(name, "other", f"{path}: {len(file.shapes)} tensors, expected {wanted.tensors}; another model?")
    if wanted.bytes is not None and size != wanted.bytes:
        return Status(name, "other", f"{path}: {size:,} bytes, expected {wanted.bytes:,}; another precision?")
    digest = sha256(path) if checksum else None
    if digest is not None and wanted.sha256 not in (None, digest):
        return Status(name, "broken", f"{path}: SHA-256 {digest}, expected {wanted.sha256}; fetch it again", digest)
    known = " and the published checksum" if digest is not None and wanted.sha256 else ""
    return Status(name, "whole", f"{path}: whole, {size:,} bytes, {len(file.shapes)} tensors{known}", digest)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def get(name: str, folder: Path, commercial_only: bool = False) -> Path:
    """Fetches a file into the folder through huggingface_hub; a download that was cut short goes on."""
    wanted = entry(name)
    if commercial_only and wanted.commercial != "yes":
        raise InputError(
            f"{name} is under the {wanted.licence} ({wanted.note or 'no commercial use'}); see {wanted.page}"
        )
    if wanted.file.endswith(PICKLES):
        raise InputError(f"{wanted.file}: pickled weights can run code and are never fetched")
    try:
        hub = importlib.import_module("huggingface_hub")
        errors = importlib.import_module("huggingface_hub.errors")
    except ModuleNotFoundError as error:
        raise InputError("fetching needs the huggingface_hub package: pip install 'loom4d[full-size]'") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(hub.hf_hub_download(wanted.repository, wanted.file, local_dir=os.fspath(folder)))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{name}: its makers ask for your consent; accept the licence on {wanted.page}, make a token in your "
            "account's settings, run `hf auth login`, then try again"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{name}: could not be fetched from {wanted.page} ({_one_line(error)}); try again") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

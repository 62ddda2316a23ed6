"""Animated models of the game 0 A.D.: meshes (.pmd), clips (.psa), and which of them belong together (actors, .xml).

Both binary formats are little-endian: four letters, version and payload size, then tables. Bones lie in the world's
frame, so each is a root; the game's world is left-handed with y up and its animals look down −z: it is mirrored in z on
reading.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loom4d.runs import InputError
from loom4d.sources.pictures import pixels
from loom4d.sources.posing import Asset, Channel, Node, Part, Skin, Surface, rotation_matrix

NO_BONE = 255
DAMAGE = (struct.error, ValueError, IndexError, OverflowError, ElementTree.ParseError)


@dataclass(frozen=True)
class Animal:
    """An actor: its mesh, its skin's picture and its clips by name, all as files."""

    name: str
    mesh: Path
    texture: Path | None
    clips: dict[str, Path]


class _Table:
    """Reads a binary file from its start to its end."""

    def __init__(self, path: Path, magic: bytes, versions: range):
        self.data, self.at = path.read_bytes(), 12
        found, self.version, _ = struct.unpack_from("<4sII", self.data)
        if found != magic or self.version not in versions:
            raise ValueError(f"begins with {found!r} version {self.version}")

    def number(self) -> int:
        self.at += 4
        return struct.unpack_from("<I", self.data, self.at - 4)[0]

    def rows(self, count: int, layout: np.dtype) -> np.ndarray:
        """`count` rows of one layout."""
        size = count * layout.itemsize
        if self.at + size > len(self.data):
            raise ValueError(f"ends after {len(self.data)} bytes, {self.at + size} are needed")
        self.at += size
        return np.frombuffer(self.data, layout, count, self.at - size)


BONE = np.dtype([("place", "<f4", 3), ("turn", "<f4", 4)])  # a quaternion x, y, z, w


def mirrored_bones(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """(translations, rotations) of bones, mirrored in z: a turn about z stays, those about x and y change their way."""
    place = torch.from_numpy(rows["place"].copy()) * torch.tensor([1.0, 1.0, -1.0])
    turn = torch.from_numpy(rows["turn"].copy()) * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    return place, torch.nn.functional.normalize(turn, dim=-1)


def read_mesh(path: Path, surface: Surface) -> Asset:
    """A .pmd file in its bind pose. Raises `InputError` for a damaged one."""
    try:
        return _mesh(_Table(path, b"PSMD", range(1, 5)), surface)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except DAMAGE as error:
        raise InputError(f"{path}: a damaged mesh ({error})") from error


def _mesh(table: _Table, surface: Surface) -> Asset:
    count = table.number()
    sheets = table.number() if table.version >= 4 else 1
    vertex = np.dtype(
        [("place", "<f4", 3), ("normal", "<f4", 3), ("uv", "<f4", (sheets, 2)), ("bone", "u1", 4), ("weight", "<f4", 4)]
    )
    vertices = table.rows(count, vertex)
    faces = torch.from_numpy(table.rows(table.number(), np.dtype(("<u2", 3))).astype(np.int64))
    bones = table.rows(table.number(), BONE)
    if not len(faces) or faces.max() >= count or not len(bones):
        raise ValueError("no faces, no bones, or a face of no vertex")
    flip = torch.tensor([1.0, 1.0, -1.0])
    used = torch.from_numpy(vertices["bone"] != NO_BONE)
    joints = torch.from_numpy(np.where(vertices["bone"] == NO_BONE, 0, vertices["bone"]).astype(np.int64))
    weights = torch.from_numpy(vertices["weight"].copy()) * used
    if joints.max() >= len(bones):
        raise ValueError("a vertex hangs on no bone")
    places, turns = mirrored_bones(bones)
    world_from_bone = torch.eye(4).repeat(len(bones), 1, 1)
    world_from_bone[:, :3, :3] = torch.stack([rotation_matrix(turn) for turn in turns])
    world_from_bone[:, :3, 3] = places
    still = torch.tensor([0.0, 0.0, 0.0, 1.0])
    nodes = [Node(-1, place, turn, torch.ones(3)) for place, turn in zip(places, turns, strict=True)]
    nodes.append(Node(-1, torch.zeros(3), still, torch.ones(3), skin=0))
    part = Part(
        node=len(bones),
        surface=0,
        vertices=torch.from_numpy(vertices["place"].copy()) * flip,
        faces=faces,  # clockwise from outside in the left-handed world, so counter-clockwise in its mirror image
        uv=torch.from_numpy(vertices["uv"][:, 0].copy()) * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0]),
        colours=torch.ones(count, 4),
        normals=torch.from_numpy(vertices["normal"].copy()) * flip,
        joints=joints,
        weights=weights / weights.sum(1, keepdim=True).clamp_min(1e-8),
    )
    skin = Skin(tuple(range(len(bones))), torch.linalg.inv(world_from_bone))
    return Asset(tuple(nodes), (part,), (surface,), (skin,))


def read_clip(path: Path, bones: int) -> tuple[Channel, ...]:
    """A .psa file for a mesh of so many bones: two channels a bone. Raises `InputError` for a damaged one."""
    try:
        table = _Table(path, b"PSSA", range(1, 2))
        table.rows(table.number(), np.dtype("u1"))  # its name
        interval = float(table.rows(1, np.dtype("<f4"))[0]) / 1000
        found, frames = table.number(), table.number()
        if found != bones:
            raise InputError(f"{path}: moves {found} bones, the mesh has {bones}")
        if frames < 2 or not 0 < interval < 10:
            raise ValueError(f"{frames} frames of {interval} s")
        rows = table.rows(frames * bones, BONE)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: a damaged clip ({error})") from error
    places, turns = mirrored_bones(rows)
    times = torch.arange(frames) * interval
    channels = []
    for bone in range(bones):
        for kind, values in (("translation", places), ("rotation", turns)):
            mine = values.reshape(frames, 1, bones, -1)[:, :, bone]  # (key, 1, size)
            channels.append(Channel(bone, kind, "LINEAR", times, mine))
    return tuple(channels)


def read_animal(mesh: Path, clips: dict[str, Path], texture: Path | None) -> Asset:
    """A mesh with its skin and clips, as any other model."""
    picture = None if texture is None else read_texture(texture)
    asset = read_mesh(mesh, Surface((1.0, 1.0, 1.0, 1.0), picture, double_sided=True))
    bones = len(asset.nodes) - 1
    moves = {name: read_clip(path, bones) for name, path in clips.items()}
    return Asset(asset.nodes, asset.parts, asset.surfaces, asset.skins, moves)


def read_texture(path: Path) -> Tensor:
    """A picture (height, width, 4); its alpha says where a player's colour goes, not what is see-through."""
    try:
        with Image.open(path) as picture:
            found = pixels(picture.convert("RGBA"), min(1.0, 1024 / max(picture.size))).permute(1, 2, 0).contiguous()
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: a texture that cannot be read ({error})") from error
    found[..., 3] = 1
    return found


# --- actors ----------------------------------------------------------------------------------------------------------


def animals(art: Path) -> list[Animal]:
    """The animals of an unpacked `art` folder with at least one clip whose files are all there, by name."""
    found = [animal for file in sorted((art / "actors" / "fauna").glob("*.xml")) if (animal := read_actor(art, file))]
    if not found:
        raise InputError(f"{art}: holds no animals of 0 A.D.")
    return found


def read_actor(art: Path, file: Path) -> Animal | None:
    """The first mesh and texture that an actor and the variants it names offer, and all their clips; None without."""
    meshes: list[Path] = []
    textures: list[Path] = []
    clips: dict[str, Path] = {}
    for element in _elements(art, file, set()):
        text = (element.text or "").strip()
        if element.tag == "mesh" and text:
            meshes += _existing(art / "meshes" / text, ".pmd")
        elif element.tag == "texture" and element.get("name", "baseTex") == "baseTex":
            textures += _existing(art / "textures" / "skins" / (element.get("file") or text), ".dds")
        elif element.tag == "animation" and element.get("file"):
            for path in _existing(art / "animation" / str(element.get("file")), ".psa"):
                clips.setdefault(path.name.split(".")[0], path)
    return Animal(file.stem, meshes[0], textures[0] if textures else None, clips) if meshes and clips else None


def _elements(art: Path, file: Path, seen: set[Path]) -> list[ElementTree.Element]:
    """All elements of an actor and of the variant files that it includes, in order."""
    if file in seen or not file.is_file():
        return []
    seen.add(file)
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{file}: a damaged actor ({error})") from error
    found = []
    for element in tree.iter():
        found.append(element)
        if element.tag == "variant" and element.get("file"):
            found += _elements(art, art / "variants" / str(element.get("file")), seen)
    return found


def _existing(path: Path, suffix: str) -> list[Path]:
    """The game's converted file of a source file: beside it, with the suffix, or with `.cached` before it."""
    names = (path.with_suffix(suffix), path.with_name(f"{path.name}.cached{suffix}"))
    return [name for name in names if name.is_file()][:1]

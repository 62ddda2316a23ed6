"""Curation: what each rule rejects, shards that training reads, runs that go on, packages, and the readers of 0 A.D."""

import io
import json
import lzma
import pickle
import tarfile
import zipfile
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
import torch

from loom4d.cameras import turntable
from loom4d.grid import ImageGrid
from loom4d.runs import InputError, result_of
from loom4d.sources.posing import pose
from loom4d.sources.zeroad import read_animal
from loom4d.training import curation, packages
from loom4d.training.candidates import HELD_OUT_SHARE, Model, Seed, candidates, held_out
from loom4d.training.curation import CurationConfig, curate, judged
from loom4d.training.shards import GRIDS_PER_SHARD, Shards, open_shards, shard_grid

SMALL = CurationConfig(views=2, frames=2, resolution=8, inspected=24)


def discs(centres, radius=0.2, size=48):
    """Straight-alpha pictures of a disc at each (x, y), the picture spanning 0..1."""
    y, x = torch.meshgrid((torch.arange(size) + 0.5) / size, (torch.arange(size) + 0.5) / size, indexing="ij")
    pictures = torch.zeros(len(centres), 4, size, size)
    for picture, (left, top) in zip(pictures, centres, strict=True):
        picture[3] = ((x - left) ** 2 + (y - top) ** 2 < radius**2).float()
        picture[0] = 0.8
    return pictures


def test_what_stands_still_is_static_and_what_moves_is_kept():
    still = judged(discs([(0.5, 0.5)] * 8), SMALL)
    assert still.reason == "static" and still.scores["ssim_half"] == pytest.approx(1.0)
    walking = judged(discs([(0.3 + 0.05 * i, 0.5) for i in range(8)]), SMALL)
    assert walking.kept and walking.scores["ssim_half"] < walking.scores["ssim_quarter"] < 0.95
    # moving at one of the two instants is moving
    assert judged(discs([(0.5, 0.5)] * 4 + [(0.4, 0.5)] * 4), SMALL).kept


def test_what_becomes_something_else_is_distorted():
    noise = torch.ones(8, 4, 48, 48)
    noise[:, :3] = torch.rand(8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    noise[..., [0, -1]], noise[:, :, [0, -1]] = 0, 0
    assert judged(noise, SMALL).reason == "distorted"


def test_what_touches_the_border_leaves_the_frame():
    leaving = judged(discs([(0.5 + 0.06 * i, 0.5) for i in range(8)]), SMALL)
    assert leaving.reason == "leaves the frame" and leaving.scores["border"] == 1.0
    for corner in ((0.1, 0.5), (0.5, 0.1), (0.5, 0.9)):
        assert judged(discs([(0.5, 0.5), *[corner] * 7]), SMALL).reason == "leaves the frame"
    assert judged(discs([(0.5, 0.5)] * 7 + [(5.0, 5.0)]), SMALL).reason == "shows nothing"


@dataclass(frozen=True)
class Drawn:
    """A candidate whose pictures are made up: one that moves, stands or cannot be read."""

    name: str
    kind: str = "moving"

    @property
    def facts(self):
        return {"object": self.name, "licence": "CC0-1.0", "attribution": "nobody"}

    def front(self, frames, size):
        if self.kind == "broken":
            raise InputError("a damaged thing")
        step = 0.3 / frames if self.kind == "moving" else 0.0
        return discs([(0.4 + step * i, 0.5) for i in range(frames)], size=size)

    def grid(self, views, frames, resolution):
        rgba = torch.ones(views, frames, 4, resolution, resolution)
        rgba[:, :, 3] = int(self.name) / 255
        return ImageGrid(rgba, turntable(views, frames, float(self.name) / 10), torch.linspace(0, 1, frames))


KINDS = ("moving", "moving", "still", "moving", "broken")


def some(count):
    return [Drawn(str(i), KINDS[i % len(KINDS)]) for i in range(count)]


def contents(folder):
    files = [file for file in folder.iterdir() if file.suffix in (".npy", ".json", ".jsonl")]
    return {file.name: file.read_bytes() for file in files}


def test_shards_hold_the_kept_ones_in_order_with_their_credits(tmp_path):
    counts = result_of(curate(some(70), tmp_path, SMALL))
    assert counts == {"kept": 42, "static": 14, "unreadable": 14}
    shards = open_shards(tmp_path)
    kept = [name for name in range(70) if KINDS[name % 5] == "moving"]
    assert shards.grids == 42 and [one["object"] for one in shards.objects] == [str(name) for name in kept]
    assert {one["licence"] for one in shards.objects} == {"CC0-1.0"}
    for place in (0, GRIDS_PER_SHARD, 41):  # over the border between shards
        assert shards.premultiplied(place, 1, 1)[3, 0, 0].item() == pytest.approx(kept[place] / 255)
        assert shards.elevations_deg[place].item() == pytest.approx(kept[place] / 10, abs=1e-4)
    grid = shard_grid(shards, 40)
    torch.testing.assert_close(grid.cameras.elevations_deg()[0, 0], shards.elevations_deg[40])
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [str(i) for i in range(70)]
    assert lines[4]["reason"] == "unreadable: a damaged thing" and lines[2]["reason"] == "static"
    assert (tmp_path / "kept.webp").exists() and (tmp_path / "rejected.webp").exists()
    again = shards.and_also(shards)
    assert torch.equal(again.premultiplied(42, 0, 0), shards.premultiplied(0, 0, 0)) and len(again.objects) == 84
    with pytest.raises(InputError, match="together"):
        shards.and_also(replace(shards, pictures=(np.zeros((1, 2, 2, 4, 16, 16), np.uint8),)))


def test_every_order_of_red_green_and_blue_is_there_once():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 3, 3, 4, 5, 5), np.uint8)
    coats = Shards((pictures,), torch.tensor([1.0, 2.0]), ({"object": "a"}, {"object": "b"})).recoloured()
    red, green, blue, alpha = torch.from_numpy(pictures[1, 2, 0]).float() / 255
    for index, order in enumerate(list(permutations((red, green, blue)))[1:]):
        assert torch.equal(coats.premultiplied(1 + 2 * index, 2, 0), torch.stack([*order, alpha]))
    assert (
        coats.elevations_deg.tolist() == [1.0, 2.0] * 5 and [one["object"] for one in coats.objects] == ["a", "b"] * 5
    )


def test_a_killed_curation_goes_on_to_the_same_bytes(tmp_path):
    result_of(curate(some(70), tmp_path / "whole", SMALL))
    for kill in (10, 58):
        folder = tmp_path / str(kill)
        work = curate(some(70), folder, SMALL)
        for _ in range(kill):
            next(work)
        work.close()
        judged_again = []
        result_of(curate(some(70), folder, SMALL), lambda event: judged_again.append(event.step))  # noqa: B023
        assert contents(folder) == contents(tmp_path / "whole")
        assert judged_again[0] == (1 if kill == 10 else 53)  # the first full shard ends with the 52nd candidate
    before = contents(tmp_path / "whole")
    result_of(curate(some(70), tmp_path / "whole", SMALL))
    assert contents(tmp_path / "whole") == before
    result_of(curate(some(90), tmp_path / "10", SMALL))  # more objects: the begun shard is filled
    assert open_shards(tmp_path / "10").grids == 54
    with pytest.raises(InputError, match="other objects"):
        result_of(curate(some(90)[1:], tmp_path / "10", SMALL))
    with pytest.raises(InputError, match="other settings"):
        result_of(curate(some(90), tmp_path / "10", replace(SMALL, static_above=0.9)))


def test_workers_do_not_change_the_outcome(tmp_path, monkeypatch):
    """Each candidate goes to a worker as it is, and results come back in order."""
    monkeypatch.setattr(curation, "ProcessPoolExecutor", Inline)
    result_of(curate(some(12), tmp_path / "one", SMALL))
    result_of(curate(some(12), tmp_path / "two", replace(SMALL, workers=2)))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Inline:
    """A pool that pickles what it is given, in this process."""

    def __init__(self, workers):
        assert workers == 2

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, call, items):
        call, items = pickle.loads(pickle.dumps((call, list(items))))
        return [pickle.loads(pickle.dumps(call(item))) for item in items]


def test_procedural_seeds_are_judged_and_drawn_as_they_are_trained_on(tmp_path):
    chosen = result_of(candidates("procedural", 3, "train", tmp_path, None, {}))
    assert chosen == [Seed(0), Seed(1), Seed(2)]
    counts = result_of(curate(chosen, tmp_path, SMALL))
    assert sum(counts.values()) == 3 and counts["kept"] >= 1
    facts = open_shards(tmp_path).objects[0]
    assert facts["licence"] == "Apache-2.0" and facts["source"] == "procedural"


def test_objects_are_split_by_name_alone():
    names = [f"animal {i}" for i in range(2000)]
    share = sum(held_out(name) for name in names) / len(names)
    assert abs(share - HELD_OUT_SHARE) < 0.03
    assert held_out("Alpaca") and not held_out("Alien")  # for ever


# --- models of 0 A.D. ------------------------------------------------------------------------------------------------

HALF = np.sqrt(0.5)


def bones(*rows):
    return b"".join(np.asarray(row, "<f4").tobytes() for row in rows)


def framed(magic, version, payload):
    return magic + np.array([version, len(payload)], "<u4").tobytes() + payload


def mesh_file(path, version=3):
    """A triangle on two bones: the second carries its third corner alone."""
    corners = [((0, 0, 0), 0), ((1, 0, 0), 0), ((0, 1, 0), 1)]
    data = np.array(3, "<u4").tobytes() + (np.array(1, "<u4").tobytes() if version >= 4 else b"")
    for place, bone in corners:
        data += np.array([*place, 0, 0, -1, place[0], place[1]], "<f4").tobytes()
        data += bytes([bone, 255, 255, 255]) + np.array([1, 0, 0, 0], "<f4").tobytes()
    data += np.array(1, "<u4").tobytes() + np.array([0, 1, 2], "<u2").tobytes()
    data += np.array(2, "<u4").tobytes() + bones((0, 0, 0, 0, 0, 0, 1), (0, 1, 0, 0, 0, 0, 1))
    path.write_bytes(framed(b"PSMD", version, data + b"\0\0\0\0"))
    return path


def clip_file(path, count=2):
    """Two frames, 500 ms apart: the second bone rises by 2 and turns a quarter around x."""
    name = b"rise"
    data = np.array(len(name), "<u4").tobytes() + name + np.array(500, "<f4").tobytes()
    data += np.array([count, 2], "<u4").tobytes()
    still, raised = (0, 0, 0, 0, 0, 0, 1), (0, 3, 0, HALF, 0, 0, HALF)
    data += bones(still, (0, 1, 0, 0, 0, 0, 1)) + bones(still, raised)
    path.write_bytes(framed(b"PSSA", 1, data))
    return path


@pytest.mark.parametrize("version", [3, 4])
def test_an_animal_moves_as_its_bones_do(tmp_path, version):

    asset = read_animal(mesh_file(tmp_path / "x.pmd", version), {"rise": clip_file(tmp_path / "x.psa")}, None)
    assert asset.seconds("rise") == pytest.approx(0.5)
    rest = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    for clip, time in ((None, 0.0), ("rise", 0.0)):
        torch.testing.assert_close(pose(asset, clip, time).vertices, rest)
    risen = pose(asset, "rise", 0.5)
    torch.testing.assert_close(risen.vertices, torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 3, 0]]))
    torch.testing.assert_close(pose(asset, "rise", 0.25).vertices[2], torch.tensor([0.0, 2, 0]))
    torch.testing.assert_close(risen.normals[0], torch.tensor([0.0, 0, 1]))  # mirrored in z
    torch.testing.assert_close(risen.uv, torch.tensor([[0.0, 1], [1, 1], [0, 0]]))
    # seen from where its normals point, it is counter-clockwise
    a, b, c = asset.parts[0].vertices[asset.parts[0].faces[0]]
    assert torch.linalg.cross(b - a, c - a)[2] > 0


def test_turns_of_mirrored_bones_are_mirrored(tmp_path):
    """A point beside the turning bone goes where the mirror image of its path does."""

    data = bytearray(mesh_file(tmp_path / "x.pmd").read_bytes())
    deep = 12 + 4 + 2 * 52 + 8  # z of the third vertex of 52 bytes, now at (0, 1, 1): behind its bone
    data[deep : deep + 4] = np.array(1, "<f4").tobytes()
    (tmp_path / "x.pmd").write_bytes(data)
    asset = read_animal(tmp_path / "x.pmd", {"rise": clip_file(tmp_path / "x.psa")}, None)
    # there: the bone at (0, 3, 0), turned a quarter around x, takes (0, 0, 1) to (0, −1, 0), its own mirror image
    torch.testing.assert_close(pose(asset, "rise", 0.5).vertices[2], torch.tensor([0.0, 2.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(pose(asset, "rise", 0.0).vertices[2], torch.tensor([0.0, 1.0, -1.0]))


def test_actors_find_their_files_through_variants(tmp_path):
    art = tmp_path / "art"
    for folder in ("actors/fauna", "variants/quadraped", "meshes/skeletal", "animation/quadraped", "textures/skins"):
        (art / folder).mkdir(parents=True)
    mesh_file(art / "meshes/skeletal/tiger.dae.cached.pmd")
    clip_file(art / "animation/quadraped/walk.psa")
    (art / "actors/fauna/tiger.xml").write_text(
        "<actor><group><variant><mesh>skeletal/tiger.dae</mesh></variant>"
        '<variant file="quadraped/cat.xml"/></group></actor>'
    )
    (art / "variants/quadraped/cat.xml").write_text(
        '<variant file="quadraped/cat.xml"><animations><animation file="quadraped/walk.dae" name="Walk"/>'
        '<animation file="quadraped/gone.psa" name="Run"/></animations></variant>'
    )
    (art / "actors/fauna/stone.xml").write_text("<actor/>")
    (tmp_path / "licence.json").write_text('{"licence": "CC-BY-SA-3.0", "attribution": "someone"}')
    chosen = [
        one for split in ("train", "test") for one in result_of(candidates(str(tmp_path), 0, split, tmp_path, None, {}))
    ]
    assert [(one.name, one.object) for one in chosen] == [("tiger walk", "tiger")]
    assert chosen[0].facts["licence"] == "CC-BY-SA-3.0"
    assert chosen[0].grid(2, 2, 16).rgba[..., 3, :, :].amax() > 0.9
    assert pickle.loads(pickle.dumps(chosen[0])) == chosen[0]


def test_bad_files_of_0_ad_are_one_line(tmp_path):

    mesh, clip = mesh_file(tmp_path / "x.pmd"), clip_file(tmp_path / "x.psa")
    whole = {mesh: mesh.read_bytes(), clip: clip.read_bytes()}
    rng = np.random.default_rng(0)
    for trial in range(120):
        file = (mesh, clip)[trial % 2]
        data = bytearray(whole[file])
        if trial % 3:
            data[rng.integers(len(data))] = rng.integers(256)
        else:
            data = data[: rng.integers(len(data))]
        file.write_bytes(data)
        try:
            Model(mesh, "x", "rise", {}, motion=clip).grid(1, 2, 4)
        except InputError as error:
            assert "\n" not in str(error)
        file.write_bytes(whole[file])
    with pytest.raises(InputError, match=r"moves 5 bones, the mesh has 2"):
        read_animal(mesh, {"rise": clip_file(clip, 5)}, None)
    with pytest.raises(InputError, match="begins with b'PSSA'"):
        read_animal(clip_file(clip), {}, None)


# --- packages --------------------------------------------------------------------------------------------------------


def debian(path, files):
    """A Debian package of these files."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n\n"), ("data.tar.xz", lzma.compress(tar.getvalue()))):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{0:<8}{len(content):<10}`\n"
        data += header.encode() + content + b"\n" * (len(content) % 2)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("inner", [False, True])
def test_a_package_is_checked_and_only_what_is_wanted_unpacked(tmp_path, monkeypatch, inner):
    files = {"art/tiger.pmd": b"tiger", "art/LICENSE.txt": b"CC", "sound/roar.ogg": b"roar" * 1000}
    if inner:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        files = {"./usr/copyright": b"-", "./usr/public.zip": buffer.getvalue()}
    else:
        files = {f"./usr/{name}": content for name, content in files.items()}
    deb = debian(tmp_path / "x.deb", files)
    package = packages.Package(
        "x", "x.deb", 1, packages.checksum(deb), 1, "CC0-1.0", "nobody", ("art/*",),
        *(("./usr/public.zip",) if inner else ("", ("./usr/",))),
    )  # fmt: skip
    monkeypatch.setitem(packages.PACKAGES, "x", package)
    folder = result_of(packages.unpacked("x", tmp_path / "here", deb))
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == {"art/tiger.pmd", "art/LICENSE.txt", "licence.json"} and deb.exists()
    assert list((tmp_path / "here").iterdir()) == [folder]
    assert json.loads((folder / "licence.json").read_text())["attribution"] == "nobody"
    deb.unlink()
    assert result_of(packages.unpacked("x", tmp_path / "here", deb)) == folder  # nothing is needed twice
    debian(deb, {"./usr/art/tiger.pmd": b"another"})
    with pytest.raises(InputError, match="SHA-256"):
        result_of(packages.unpacked("x", tmp_path / "there", deb))
    assert not (tmp_path / "there" / "x").exists()


def test_a_package_that_cannot_be_had_says_what_to_do(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError("no way")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    monkeypatch.setitem(packages.PACKAGES, "x", packages.Package("x", "x.deb", 1, "", 1, "", "", ()))
    with pytest.raises(InputError, match="give it with --package"):
        result_of(packages.unpacked("x", tmp_path, None))
    with pytest.raises(InputError, match="no such file"):
        result_of(packages.unpacked("x", tmp_path, tmp_path / "y.deb"))
    with pytest.raises(InputError, match="are needed"):
        packages.room_for(tmp_path, 10**18)
    (tmp_path / "y.deb").write_bytes(b"hello")
    with pytest.raises(InputError, match="no Debian package"):
        list(packages.tar_members(tmp_path / "y.deb"))
    with pytest.raises(InputError, match="choose one of procedural, 0ad"):
        result_of(candidates(str(tmp_path / "away"), 0, "train", tmp_path, None, {}))

"""The web app's exports: what is offered for an asset, the options of its formats, and what is written."""

from __future__ import annotations

import resource
import signal
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from loom4d.cameras import turntable
from loom4d.export import FORMATS, Format
from loom4d.export.splatv import SplatvOptions
from loom4d.gaussians.asset import render, save_asset
from loom4d.gaussians.motion import MOTIONS
from loom4d.grid import save_grid
from loom4d.runs import InputError
from loom4d.serve import choices
from loom4d.serve.exports import written, zipped
from loom4d.serve.records import Job
from loom4d.serve.settings import Limits
from loom4d.serve.store import BrokenStore, Store
from moving_assets import bending, spacetime_asset
from serving import FAMILIES, OFFER, apps, queued


@pytest.fixture
def app(tmp_path):
    """(settings changes) -> a client of an app with those settings."""
    with apps(tmp_path) as serve:
        yield serve


def test_exports_are_asked_for_once_and_tried_again_when_they_failed(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    queued(store, "job")
    assert [store.ask_export("job", "glb").state for _ in range(2)] == ["queued", "queued"]
    taken = store.take_export()
    assert taken.format == "glb" and store.take_export() is None
    assert store.ask_export("job", "glb").state == "writing" and store.remove_job("job") == "running"
    store.recover(blamed=True)
    assert store.exports("job")[0].state == "failed" and store.ask_export("job", "glb").state == "queued"
    store.end_export(replace(store.take_export(), state="done", file="a.glb", bytes=5))
    assert store.ask_export("job", "glb").state == "done" and store.take_export() is None


def test_an_export_with_other_options_is_made_anew_but_not_while_it_is_written(tmp_path):
    store, small, large = Store(tmp_path / "a.sqlite"), {"size": 64, "fps": 5}, {"size": 512}
    queued(store, "job")
    store.ask_export("job", "gif", small)
    assert store.ask_export("job", "gif", large).options == large  # nobody had begun
    taken = store.take_export()
    assert taken.options == large
    assert store.ask_export("job", "gif", small) == taken
    store.end_export(replace(taken, state="done", file="a.gif", bytes=5))
    assert store.ask_export("job", "gif", dict(large)).state == "done" and store.take_export() is None
    again = store.ask_export("job", "gif", small)
    assert (again.state, again.options, store.ask_export("job", "gif", dict(reversed(small.items())))) == (
        "queued", small, again
    )  # fmt: skip
    told = [(body["state"], body["options"]) for _, body in store.events("job", 0) if body["kind"] == "export"]
    assert told[-2:] == [("queued", small)] * 2 and ("writing", large) in told and ("done", large) in told


def test_a_database_of_the_last_version_is_taken_over(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    queued(store, "job")
    store.ask_export("job", "glb")
    store.connection.execute("ALTER TABLE exports DROP COLUMN options")
    store.connection.execute("PRAGMA user_version = 1")
    store.close()
    for _ in range(2):
        store = Store(tmp_path / "a.sqlite")
        assert (store.exports("job")[0].format, store.exports("job")[0].options) == ("glb", {})
        assert store.ask_export("job", "ply", {"fps": 5.0}).options == {"fps": 5.0}
        store.close()
    other = Store(tmp_path / "b.sqlite")
    other.connection.execute("PRAGMA user_version = 3")
    other.close()
    with pytest.raises(BrokenStore, match="another version"):
        Store(tmp_path / "b.sqlite")


def finished(site: Any, asset: Any) -> str:
    """The path of a run that is done, with its asset."""
    site.store.add_job(Job("a" * 20, "u", "thing", "picture", OFFER["defaults"]))
    site.store.take_job()
    site.store.end_job("a" * 20, "done")
    save_asset(asset, site.settings.run("a" * 20) / "asset.safetensors")
    return f"/api/jobs/{'a' * 20}"


def test_a_format_that_the_asset_cannot_be_written_as_is_not_offered(app):
    site = app()
    job, reason = finished(site, bending(20)), FORMATS["splatv"].refusal("controlled")
    assert site.client.get(job).json()["refused"] == {"splatv": reason} and "controlled" in reason
    answer = site.client.post(f"{job}/exports/splatv")
    assert answer.status_code == 409 and reason in answer.json()["error"]
    assert site.store.exports("a" * 20) == [] and site.client.post(f"{job}/exports/glb").status_code == 202


def test_a_format_is_offered_for_the_motion_that_it_holds(app):
    site = app()
    job = finished(site, spacetime_asset(20))
    assert site.client.get(job).json()["refused"] == {}
    assert site.client.post(f"{job}/exports/splatv").status_code == 202


def test_the_form_of_a_format_says_which_motions_it_refuses_and_why(monkeypatch):
    for name, one in FORMATS.items():
        assert set(OFFER["formats"][name]["refused"]) == {motion for motion in MOTIONS if one.refusal(motion)}
    broken = replace(FORMATS["usd"], missing=lambda: "install it first")
    monkeypatch.setitem(FORMATS, "usd", broken)
    assert choices.form(FAMILIES)["formats"]["usd"]["refused"] == dict.fromkeys(MOTIONS, "install it first")


def test_options_are_taken_from_the_form_alone(app):
    site = app()
    job = finished(site, spacetime_asset(20))
    ask = lambda options: site.client.post(f"{job}/exports/gif", json={"options": options})  # noqa: E731
    for options, says in (
        ({"size": 9999}, "size is 9999; it takes 2 to 4096"),
        ({"size": "12"}, "a whole number"),
        ({"nothing": 1}, "unknown option 'nothing'"),
        ({"motion": "up"}, "pingpong, loop"),
        ({"background": [1, 2, 1]}, "it takes 0 to 1"),
        ({"seconds": None}, "needs a value"),
    ):
        answer = ask(options)
        assert answer.status_code == 422 and says in answer.json()["error"], answer.text
    assert ask([]).status_code == 422 and site.store.exports("a" * 20) == []
    answer = ask({"size": 16, "fps": 24, "background": None, "turns": 1})
    assert answer.status_code == 202 and answer.json()["options"] == {"size": 16, "background": None}  # no defaults
    assert site.client.get(job).json()["exports"][0]["options"] == {"size": 16, "background": None}
    site.store.take_export()
    assert ask({"size": 16, "background": None}).status_code == 202
    answer = ask({"size": 17})
    assert answer.status_code == 409 and "being made with other options" in answer.json()["error"]


def test_what_is_written_has_the_chosen_options_and_nothing_of_the_last_ones(tmp_path):
    save_asset(spacetime_asset(30), tmp_path / "run" / "asset.safetensors")
    save_grid(render(spacetime_asset(30), turntable(1, 1, 0.0), torch.zeros(1), 24, 24), tmp_path / "run" / "grid")
    make = lambda name, **values: written(tmp_path / "run", tmp_path / "out", name, values, Limits())  # noqa: E731
    for frames in (5, 2):
        with zipfile.ZipFile(make("ply", frames=frames)) as archive:
            assert sum(name.endswith(".ply") for name in archive.namelist()) == frames
    with Image.open(make("gif", size=20, seconds=0.3, fps=10)) as film:
        assert film.size == (20, 20) and film.n_frames == 3
    blurred = Image.open(make("webp", size=48, seconds=0.05)).convert("RGB")
    given = Image.open(make("webp", size=48, seconds=0.05, fitted_size=24)).convert("RGB")
    sharp = Image.open(make("webp", size=48, seconds=0.05, fitted_size=48)).convert("RGB")
    assert blurred.tobytes() == given.tobytes() != sharp.tobytes()  # by default as sharp as the grid it was fitted to


def endless(asset: Any, path: Path, options: Any) -> None:
    while True:
        sum(range(1000))


def greedy(asset: Any, path: Path, options: Any) -> None:
    path.write_bytes(torch.zeros(4_000_000_000, dtype=torch.uint8).numpy().tobytes())


@pytest.mark.parametrize(("write", "says"), [(endless, "not done after 0.0033 minutes"), (greedy, "more than 0.5 GB")])
def test_an_export_that_takes_too_much_ends_in_words(tmp_path, monkeypatch, write, says):
    save_asset(spacetime_asset(5), tmp_path / "asset.safetensors")
    monkeypatch.setitem(FORMATS, "huge", Format(write, SplatvOptions, ".huge", ""))
    limits = Limits(export_seconds=0.2, export_memory=500_000_000)
    before = (resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGALRM))
    with pytest.raises(InputError, match=says):
        written(tmp_path, tmp_path / "out", "huge", {}, limits)
    assert (resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and list((tmp_path / "out").iterdir()) == []


def test_a_folder_becomes_a_zip_of_the_same_files(tmp_path):
    (tmp_path / "ply" / "deep").mkdir(parents=True)
    (tmp_path / "ply" / "a.ply").write_bytes(b"1" * 1000)
    (tmp_path / "ply" / "deep" / "b.ply").write_bytes(b"2")
    with zipfile.ZipFile(zipped(tmp_path / "ply")) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    assert files == {"ply/a.ply": b"1" * 1000, "ply/deep/b.ply": b"2"}

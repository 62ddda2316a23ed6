"""The web app's laws: who may ask, what is taken, what is kept, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from loom4d.denoisers import DENOISERS
from loom4d.export import FORMATS
from loom4d.gaussians.fit_config import PRESETS as QUALITIES
from loom4d.gaussians.fit_config import FitConfig
from loom4d.grid import to_bytes
from loom4d.methods import METHODS
from loom4d.pipeline import GenerateConfig
from loom4d.runs import Event, InputError, result_of
from loom4d.serve import choices, jobs, kinds, plans
from loom4d.serve.app import bound, claimed
from loom4d.serve.guard import SESSIONS, Tokens
from loom4d.serve.records import Timing, Upload
from loom4d.serve.settings import Limits, ServeError, Settings, from_json, is_loopback, to_json
from loom4d.serve.site import Hub, shown, title_of
from loom4d.serve.store import BrokenStore, FullDisk, Store
from loom4d.serve.trial import trials
from loom4d.serve.worker import Clock, explained
from loom4d.sources.framing import load
from loom4d.viewer import write_page
from moving_assets import spacetime_asset
from serving import OFFER, apps, picture, queued, write_checkpoints


@pytest.fixture
def app(tmp_path):
    """(settings changes) -> a client of an app with those settings."""
    with apps(tmp_path) as serve:
        yield serve


def upload(client: TestClient, content: bytes, name: str = "thing.png") -> Any:
    return client.post("/api/uploads", params={"name": name}, content=content)


# --- who may ask -----------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_headers(app):
    client = app().client
    answers = [client.get(path) for path in ("/", "/login", "/static/app.js", "/api/jobs", "/nothing", "/api/jobs/x")]
    answers += [client.post("/api/jobs", json={}), client.get("/", headers={"host": "evil.example"})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 404, 422, 422, 421]


@pytest.mark.parametrize(
    ("host", "answered"),
    [("localhost:8765", True), ("127.0.0.1:1", True), ("[::1]:80", True), ("127.9.9.9", True), ("evil.example", False),
     ("localhost.evil.example", False), ("192.168.0.9", False), ("localhost@evil.example", False), ("", False),
     ("localhost:port", False), ("[::1", False)],
)  # fmt: skip
def test_a_name_turned_against_the_loopback_is_refused(app, host, answered):
    assert (app().client.get("/api/health", headers={"host": host}).status_code == 200) == answered


def test_other_names_are_answered_only_where_they_were_allowed(app):
    site = app("http://192.168.0.9:8765", host="0.0.0.0", allowed_hosts=("Loom.example",))
    statuses = {
        host: site.client.get("/api/health", headers={"host": host}).status_code
        for host in ("192.168.0.9", "10.1.2.3:99", "loom.example", "evil.example")
    }
    assert statuses == {"192.168.0.9": 200, "10.1.2.3:99": 200, "loom.example": 200, "evil.example": 421}


def test_pages_of_other_sites_cannot_change_anything(app):
    client = app().client
    foreign = [{"origin": "https://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:1"}]
    foreign += [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}]
    for headers in foreign:
        assert client.post("/api/uploads", content=picture(), headers=headers).status_code == 403
        assert client.delete(f"/api/jobs/{'0' * 20}", headers=headers).status_code == 403
    assert client.post("/api/uploads", content=picture(), headers={"origin": "http://localhost"}).status_code == 201


def test_on_other_addresses_nothing_opens_without_the_token(app, tmp_path):
    site = app("http://192.168.0.9", host="0.0.0.0")
    token = site.tokens.first(anew=False)
    assert site.tokens.first(anew=False) is None  # it is shown once
    client = site.client
    assert client.get("/api/jobs").status_code == 401 and upload(client, picture()).status_code == 401
    page = client.get("/", headers={"accept": "text/html"}, follow_redirects=False)
    assert page.status_code == 303 and page.headers["location"] == "/login"
    for wrong in ("", "x", token[:-1], token + "x"):
        assert client.post("/api/login", json={"token": wrong}).status_code == 401
        assert client.get("/api/jobs", headers={"authorization": f"Bearer {wrong}"}).status_code == 401
    assert client.get("/api/jobs", headers={"authorization": f"Bearer {token}"}).status_code == 200
    answer = client.post("/api/login", json={"token": token})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and token not in cookie
    assert client.get("/api/jobs").status_code == 200
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert token.encode() not in written and client.cookies["loom4d"].encode() not in written

    first = client.cookies["loom4d"]
    for _ in range(SESSIONS):
        site.tokens.session()
    assert client.get("/api/jobs", headers={"cookie": f"loom4d={first}"}).status_code == 401  # the oldest has ended
    client.post("/api/login", json={"token": token})

    again = Tokens(site.store, True)  # the server is started again: cookies hold
    assert again.first(anew=False) is None and again.is_token(token)
    assert again.first(anew=True) != token
    assert not again.is_token(token) and not Tokens(site.store, True).admits(
        Headers(dict(client.get("/login").request.headers))
    )


def test_the_loopback_is_what_only_this_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.org", "")))


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_an_upload_is_looked_at_as_a_run_will_see_it(app, tmp_path):
    site = app()
    answer = upload(site.client, picture()).json()
    assert answer["kind"] == "picture" and answer["name"] == "thing.png"
    folder = f"/api/uploads/{answer['id']}/{answer['look']['pictures_at']}"
    assert site.client.get(f"{folder}/original.png").headers["content-type"] == "image/png"
    seen = np.array(Image.open(io.BytesIO(site.client.get(f"{folder}/seen.png").content)))
    source = site.settings.upload(answer["id"]) / "original.png"
    truth = result_of(load(source, 2, 16, replace(GenerateConfig().source, views=3)))
    assert (seen == to_bytes(truth.rgba[0, 0])).all()
    assert site.client.get(f"/api/uploads/{answer['id']}", params={"matting": "key"}).json()["look"]["crop"]
    refused = site.client.get(f"/api/uploads/{answer['id']}", params={"matting": "magic"})
    assert refused.status_code == 422 and "auto" in refused.json()["error"]
    assert site.client.get(f"{folder}/../../original.png").status_code == 404


def animated(frames: int) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", (8, 8), (index * 7 % 256, 0, 0)) for index in range(frames)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=5000)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 3.6 billion pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0)
    return picture().replace(picture()[12:33], header + struct.pack(">I", zlib.crc32(header)))


def glb(description: Any) -> bytes:
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 4)
    return struct.pack("<4sII", b"glTF", 2, 20 + len(text)) + struct.pack("<I4s", len(text), b"JSON") + text


def zipped_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../a.png", picture())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (b"", 422, "empty"),
        (b"not a picture at all, whatever its name says", 415, "can be taken"),
        (zipped_bytes(), 415, "can be taken"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "can be taken"),
        (picture()[:90], 422, "damaged"),
        (bomb(), 422, "too large"),
        (animated(9), 422, "seconds"),
        (animated(13), 422, "frames"),
        (picture((70, 70)), 422, "megapixels"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(60), 422, "video"),
        (glb({"asset": {"version": "2.0"}, "buffers": [{"uri": "/etc/passwd", "byteLength": 9}]}), 422, "other files"),
        (glb({"asset": {"version": "2.0"}, "images": [{"uri": "../x.png"}]}), 422, "other files"),
        (b"glTF" + bytes(40), 422, "GLB"),
        (glb([1, 2, 3]), 422, "damaged"),
        (b"\x89PNG\r\n\x1a\n" + bytes(120_000), 413, "too large"),
    ],
)  # fmt: skip
def test_what_passes_a_limit_is_refused_in_words_and_leaves_nothing(app, content, status, why):
    limits = Limits(bytes=100_000, pixels=4000, frames=12, seconds=30.0, free_bytes=0)
    site = app(limits=limits)
    for body in (content, iter([content[:7], content[7:]])):  # with its length said first, and without
        answer = site.client.post("/api/uploads", params={"name": "a.png"}, content=body)
        assert answer.status_code == status and why in answer.json()["error"], answer.text
        assert str(site.settings.folder) not in answer.text
    assert list((site.settings.folder / "uploads").glob("*")) == []


@pytest.mark.parametrize("name", ["../../../etc/passwd", "a\0b.png", "<img src=x onerror=alert(1)>.png", "‮gnp.exe",
                                  "C:\\x\\y.png", "", "x" * 900, "..", "\n\r\t", 'a";b=c.png'])  # fmt: skip
def test_names_are_shown_and_never_used(app, name):
    site = app()
    answer = upload(site.client, picture(), name).json()
    assert answer["name"] == shown(name) and answer["file"] == "original.png"
    files = {file.name for file in (site.settings.folder / "uploads").rglob("*") if file.is_file()}
    assert files == {"original.png", "look.json", "cutout.png", "seen.png"}
    job = site.client.post("/api/jobs", json={"upload": answer["id"]}).json()
    assert job["title"] == title_of(answer["name"])


# The first text of a machine waits for hypothesis's table of Unicode.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=300))
def test_a_shown_name_is_one_line_without_folders_and_marks(name):
    line = shown(name)
    assert 0 < len(line) <= 120 and not set(line) & set("/\\\0\n\r‮‏")
    assert shown(line) == line


def test_a_shown_name_hides_nothing():
    """Marks that turn the direction of writing make "exe.png" out of "gnp.exe"."""
    names = {"a\0b\u202egnp.exe": "abgnp.exe", "../../x.png": "x.png", "C:\\y\u200f.png": "y.png", "\u2066": "untitled"}
    assert {name: shown(name) for name in names} == names


@settings(max_examples=40)
@given(st.binary(min_size=0, max_size=32))
def test_what_begins_like_nothing_known_is_nothing_known(head):
    suffix = kinds.suffix_of(head)
    assert suffix is None or kinds.TESTS[suffix](head)


def test_too_much_at_once_is_refused(app):
    site = app(limits=Limits(free_bytes=0, queued=2))
    record = upload(site.client, picture()).json()
    statuses = [site.client.post("/api/jobs", json={"upload": record["id"]}).status_code for _ in range(3)]
    assert statuses == [201, 201, 503]
    site.site.arriving = site.settings.limits.uploads
    assert upload(site.client, picture()).status_code == 503


def test_uploads_that_nothing_uses_go_after_a_while(app):
    site = app(limits=Limits(free_bytes=0, idle_uploads=2))
    used = upload(site.client, picture()).json()["id"]
    site.client.post("/api/jobs", json={"upload": used})
    idle = [upload(site.client, picture()).json()["id"] for _ in range(4)]
    kept = {folder.name for folder in (site.settings.folder / "uploads").iterdir()}
    assert kept == {used, *idle[-2:]}
    assert site.client.delete(f"/api/uploads/{used}").status_code == 409
    assert site.client.delete(f"/api/uploads/{idle[-1]}").status_code == 204


# --- choices ---------------------------------------------------------------------------------------------------------


def test_the_form_offers_every_entry_of_every_registry():
    assert set(OFFER["methods"]) == set(METHODS) and set(OFFER["qualities"]) == set(QUALITIES)
    assert set(OFFER["formats"]) == set(FORMATS)
    for name, method in METHODS.items():
        assert set(OFFER["methods"][name]["presets"]) == set(method.presets)
    form, folders = choices.offer(Settings(folder=Path("unused"), checkpoints=Path("/nowhere")))
    assert set(form["priors"]) == set(DENOISERS) and folders == {"small": None}
    assert "missing" in form["priors"]["svd-sv3d"]
    assert not plans.checked(form["defaults"], form)


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"preset": "magic"}, {"quality": "magic"}, {"priors": "magic"},
                                   {"kind": "magic"}, {"matting": "magic"}])  # fmt: skip
def test_unknown_choices_are_answered_with_the_known_ones(app, wrong):
    site = app()
    record = upload(site.client, picture()).json()
    answer = site.client.post("/api/jobs", json={"upload": record["id"], **wrong})
    assert answer.status_code == 422 and "magic" in answer.json()["error"] and "default" not in answer.json()
    assert site.client.get("/api/jobs").json()["jobs"] == []


def test_orders_are_checked_field_by_field(app):
    client = app().client
    known = upload(client, picture()).json()["id"]
    for wrong in (
        {"seed": -1},
        {"seed": 2**40},
        {"out": "/etc"},
        {"upload": "../x"},
        {"method": ""},
        {"priors": "big"},
    ):
        assert client.post("/api/jobs", json={"upload": known, **wrong}).status_code == 422, wrong
    assert client.post("/api/jobs", json={"upload": "0" * 20}).status_code == 404
    assert client.post("/api/jobs", content=b"[" * 60_000).status_code in (400, 422)
    assert client.post("/api/jobs", content=b"[" * 100_000).status_code == 413
    assert client.post("/api/jobs", content=iter([b"{}"])).status_code == 413


def test_a_job_means_the_same_configuration_every_time():
    chosen = OFFER["defaults"] | {"seed": 3}
    one, two = (choices.config_of(dict(chosen), None, "cpu", "t") for _ in range(2))
    assert one == two and one.imagining.seed == one.fitting.seed == 3 and one.imagining.preview_every > 0
    settings = Settings(folder=Path("a"), checkpoints=Path("b"), allowed_hosts=("c",), limits=Limits(bytes=5))
    assert from_json(to_json(settings)) == settings


def test_the_time_is_known_from_earlier_runs_else_from_a_trial():
    chosen = OFFER["defaults"]
    keys = plans.keys(chosen, "picture", OFFER)
    parts = {"imagine": {"grid": 10.0}, "fit": {"fit": 5.0}, "rest": {"sources": 1.0, "orbit": 2.0}}
    trial = [Timing(part, keys[part], "trial", seconds) for part, seconds in parts.items()]
    assert plans.estimate(chosen, "picture", [], OFFER)["seconds"] is None
    assert plans.estimate(chosen, "picture", trial[:2], OFFER)["seconds"] is None
    known = plans.estimate(chosen, "picture", trial, OFFER)
    assert known["seconds"] == 18 and "trial" in known["line"]
    assert list(known["stages"]) == ["sources", "grid", "fit", "orbit"]
    assert plans.estimate(chosen, "clip", trial, OFFER)["seconds"] == 18  # borrowed from the other kind
    ran = [Timing("imagine", keys["imagine"], "job", {"grid": seconds}) for seconds in (20.0, 40.0, 30.0)]
    refined = plans.estimate(chosen, "picture", [*ran, *trial], OFFER)
    assert refined["seconds"] == 38 and "earlier runs and a trial" in refined["line"]
    every = [
        Timing(part, keys[part], "job", {stage: 4.0})
        for part, stage in (("imagine", "grid"), ("fit", "fit"), ("rest", "orbit"))
    ]
    assert plans.estimate(chosen, "picture", every, OFFER) | {"stages": {}} == {
        "seconds": 12.0, "stages": {}, "how": dict.fromkeys(keys, "1 jobs"), "line": "from your last run of this kind"
    }  # fmt: skip


def test_a_trial_measures_every_preset_and_quality_once(tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "FILM", replace(choices.FILM, size=32))
    monkeypatch.setattr(
        "loom4d.serve.trial.QUALITIES", {"preview": lambda: FitConfig(count=60, iterations=10, hull_resolution=12)}
    )
    method = METHODS["diffusion-squared"]
    presets = {name: method.presets[name] for name in ("default", "preview")}
    monkeypatch.setattr("loom4d.serve.trial.METHODS", {"diffusion-squared": replace(method, presets=presets)})
    folders = {"small": write_checkpoints(tmp_path)}
    settings, store = Settings(folder=tmp_path, checkpoints=tmp_path), Store(tmp_path / "a.sqlite")
    assert sum(1 for _ in trials(OFFER, folders, settings, store)) > 20  # others may work in between
    for preset in presets:
        chosen = {**OFFER["defaults"], "preset": preset, "quality": "preview"}
        known = plans.estimate(chosen, "picture", store.timings(), OFFER)
        assert known["seconds"] > 0 and "trial" in known["line"]
        assert set(known["stages"]) >= {"sources", "column", "row", "grid", "fit", "orbit", "viewer"}
    assert list(trials(OFFER, folders, settings, store)) == []  # all is known


def test_pauses_cost_no_time():
    clock = Clock()
    clock.start()
    clock.last -= 3.0  # three seconds ago
    clock.tick(Event("grid", "progress"))
    with clock.pause():
        clock.last -= 100.0 - 100.0
    clock.tick(Event("grid", "progress"))
    assert 3.0 <= clock.seconds["grid"] < 4.0


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_is_fair_and_a_job_is_taken_once(tmp_path):
    store, other = Store(tmp_path / "a.sqlite"), Store(tmp_path / "a.sqlite")
    queued(store, "one", "two", "three")
    assert [store.take_job().id, other.take_job().id] == ["one", "two"]
    assert store.recover(blamed=False) == ["one", "two"]  # the worker has gone: they are the first again
    assert [other.take_job().id for _ in range(3)] == ["one", "two", "three"] and store.take_job() is None
    store.close()
    other.close()
    assert [job.state for job in Store(tmp_path / "a.sqlite").jobs()] == ["running"] * 3


def test_a_job_that_kills_its_worker_thrice_is_given_up_and_can_be_tried_again(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    queued(store, "heavy")
    for _ in range(5):  # the server's own deaths are nobody's fault
        assert store.take_job() is not None
        store.recover(blamed=False)
    states = []
    while store.take_job() is not None:
        store.recover(blamed=True)
        states.append(store.job("heavy").state)
    assert states == ["queued", "queued", "failed"] and "memory" in store.job("heavy").error
    assert store.again("heavy") and store.take_job().deaths == 0
    assert not store.again("heavy") and not store.again("nothing")


def test_cancelling_and_deleting(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    queued(store, "running", "waiting")
    store.take_job()
    assert store.cancel("nothing") is None
    assert store.cancel("waiting") == "queued" and store.job("waiting").state == "cancelled"
    assert store.cancel("running") == "running" and store.job("running").cancel
    assert store.remove_job("running") == "running" and store.job("running") is not None
    store.recover(blamed=False)  # cancelled while the worker died
    assert store.job("running").state == "cancelled" and not store.job("running").cancel
    assert store.remove_job("running") == "cancelled" and store.job("running") is None
    assert store.events("running", 0) == [] and store.remove_job("running") is None


def test_a_stream_tells_everything_once_and_goes_on_from_any_event(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    queued(store, "job", "other")
    for step in range(500):
        store.say("job", {"kind": "progress", "step": step})
        store.say("other", {"kind": "progress"})
    site, hub = SimpleNamespace(store=store, hub=Hub()), None
    hub = site.hub

    async def heard(after: int, count: int) -> list[tuple[int, dict[str, Any]]]:
        lines, stream = [], jobs.told(site, "job", after)
        async for text in stream:
            for event in text.split("\n\n"):
                if event.startswith("id: "):
                    number, data = event.split("\n")
                    lines.append((int(number[4:]), json.loads(data[6:])))
            if len(lines) >= count:
                break
            if len(lines) == 501 and len(hub.waiting["job"]) == 1:  # all of the past is told: now something new
                asyncio.get_running_loop().call_later(0.05, news)
        await stream.aclose()
        return lines

    def news() -> None:
        store.say("job", {"kind": "progress", "step": 500})
        hub.poke("job")

    whole = asyncio.run(heard(0, 502))
    assert [body.get("step") for _, body in whole] == [None, *range(501)]
    assert [number for number, _ in whole] == sorted({number for number, _ in whole})
    for place in (0, 199, 200, 300, 500):
        assert asyncio.run(heard(whole[place][0], 501 - place)) == whole[place + 1 :]
    assert hub.streams == 0

    async def ends() -> list[str]:
        return [text async for text in jobs.told(SimpleNamespace(store=store, hub=Hub()), "deleted", 0)]

    assert "gone" in asyncio.run(ends())[-1]


# --- when something is wrong -----------------------------------------------------------------------------------------


def test_a_broken_database_is_said_in_one_line(tmp_path):
    (tmp_path / "loom4d.sqlite").write_bytes(b"this was a database once" * 1000)
    with pytest.raises(BrokenStore, match=r"loom4d\.sqlite: the database cannot be used .* move it away"):
        Store(tmp_path / "loom4d.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(ServeError, match="cannot write there"):
        Store(tmp_path / "file" / "loom4d.sqlite")


def test_a_full_disk_is_said_and_nothing_is_half_written(app):
    site = app()
    record = upload(site.client, picture()).json()
    pages = site.store.connection.execute("PRAGMA page_count").fetchone()[0]
    site.store.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(FullDisk, match="free some space"):
        site.store.say("job", {"message": "x" * 100_000})
    answers = [site.client.post("/api/jobs", json={"upload": record["id"], "title": "x" * 80}) for _ in range(60)]
    assert answers[-1].status_code == 507 and "full" in answers[-1].json()["error"]
    made = sum(answer.status_code == 201 for answer in answers)
    assert len(site.client.get("/api/jobs?limit=100").json()["jobs"]) == made
    crowded = app(limits=Limits(free_bytes=10**18)).client
    assert upload(crowded, picture()).status_code == 507


def test_a_folder_or_port_that_is_taken_is_said_in_one_line(tmp_path):
    settings = Settings(folder=tmp_path, port=0)
    with claimed(settings), pytest.raises(ServeError, match="another server uses this folder"):
        claimed(settings)
    with bound(settings) as taken, pytest.raises(ServeError, match="choose another --port"):
        bound(replace(settings, port=taken.getsockname()[1]))


def test_errors_name_the_users_file_and_no_path_of_the_machine():
    names = {Path("/data/uploads/abc/original.png"): "cat.png", Path("/data/runs/def"): "this run"}
    path = next(iter(names))
    assert explained(InputError(f"{path}: no good"), names) == "cat.png: no good"
    assert explained(InputError("/data/runs/def is not empty"), names) == "this run is not empty"
    assert "another version" in explained(InputError("/data/runs/def holds another run (different a)"), names)
    assert "free some space" in explained(OSError(28, "No space left on device"), names)
    assert explained(OSError(5, "Input/output error", str(path)), names) == "cat.png: Input/output error"


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_the_viewer_comes_with_its_own_policy_and_no_origin(app):
    site = app()
    queued(site.store, "a" * 20)
    page = site.settings.run("a" * 20) / "viewer.html"
    write_page(spacetime_asset(20), page, title='"><script>alert(1)</script>')
    answer = site.client.get(f"/api/jobs/{'a' * 20}/viewer")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'sha256-")
    assert "frame-ancestors 'self'" in policy and "allow-same-origin" not in policy and "unsafe" not in policy
    download = site.client.get(f"/api/jobs/{'a' * 20}/viewer?download=true")
    assert download.headers["content-disposition"].startswith("attachment")
    page.write_text("<html><script>alert(1)</script>")
    assert site.client.get(f"/api/jobs/{'a' * 20}/viewer").status_code == 500


def test_only_files_of_a_run_leave_it(app):
    site = app()
    queued(site.store, "a" * 20)
    run = site.settings.run("a" * 20)
    run.mkdir(parents=True)
    for name in ("config.json", "grid.png"):
        (run / name).write_text("{}")
    ask = lambda path: site.client.get(f"/api/jobs/{'a' * 20}/{path}").status_code  # noqa: E731
    assert ask("files/grid.png") == 200
    for path in (
        "files/config.json",
        "files/..%2f..%2floom4d.sqlite",
        "live/..%2fx.png",
        "live/0000.png",
        "exports/glb",
    ):
        assert ask(path) == 404, path
    assert site.client.get("/static/..%2fapp.py").status_code == 404
    assert site.client.post(f"/api/jobs/{'a' * 20}/exports/glb").status_code == 409  # it is not done
    assert site.client.post(f"/api/jobs/{'a' * 20}/exports/obj").status_code == 404


def test_an_idle_upload_is_remembered(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    record = Upload("u", "n", "f", "clip", 3, {"a": [1]}, 5.0)
    store.add_upload(record)
    assert store.upload("u") == record and store.idle_uploads() == [("u", 5.0)]
    queued(store, "job")
    assert not store.idle_uploads() and not store.remove_upload("u")

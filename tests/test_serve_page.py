"""The web app in a real browser: a file goes in, the run is watched, the asset is played and taken home."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from browser import Browser, chromium
from serving import Served, picture

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")

HOSTILE = "<img src=x onerror=alert(1)>\u202e.png"
UNNAMED = """[...document.querySelectorAll("button, a, input, select, iframe, progress, canvas, img")]
    .filter((one) => !(one.getAttribute("aria-label") || one.title || one.textContent).trim() && !one.labels?.length
        && one.getAttribute("alt") === null).map((one) => one.outerHTML)"""
FAULTS = ("Content Security Policy", "exception", "Refused to", "violates")


@pytest.fixture(scope="module")
def browser(served):
    with Browser(1100, 800) as browser:
        still = [{"name": "prefers-reduced-motion", "value": "reduce"}]  # drawing films in software takes its time
        browser.call("Emulation.setEmulatedMedia", features=still)
        yield browser
        assert [line for line in browser.console if any(fault in line for fault in FAULTS)] == []
        others = [url for url in browser.requests if not url.startswith((served.address, "data:", "blob:", "about:"))]
        assert others == []


def choose(browser: Browser, quality: str = "tiny", preset: str = "quick") -> None:
    for group, value in (("method", "tiny"), ("preset", preset), ("quality", quality)):
        browser.run(f"document.querySelector('input[name={group}][value={value}]').click()")


def weave(browser: Browser) -> str:
    browser.wait("!document.querySelector('.go button').disabled")
    browser.run("document.querySelector('.go button').click()")
    browser.wait("location.pathname.startsWith('/jobs/') && document.querySelector('.badge')")
    return str(browser.run("location.pathname.split('/')[2]"))


def give(browser: Browser, served: Served, file: Path) -> None:
    browser.visit(served.address)
    browser.wait("document.querySelector('#file')")
    browser.choose_file("#file", file)


def badge(browser: Browser, text: str) -> None:
    browser.wait(f"document.querySelector('.badge')?.textContent === {json.dumps(text)}", 120)


def made_with_other_options(served: Served, browser: Browser, job: str) -> None:
    """What the asset cannot be written as is not offered, with the reason; a form holds the options of the others."""

    def row(name: str) -> str:
        rows = "[...document.querySelectorAll('.files li')]"
        return f"{rows}.find((one) => one.querySelector('b').textContent === '{name}')"

    assert browser.run(f"{row('splatv')}.querySelectorAll('button, details').length") == 0
    assert "spacetime motion only" in browser.run(f"{row('splatv')}.textContent")
    form = f"{row('gif')}.querySelector('details')"
    browser.run(f"{form}.open = true")
    put = lambda name, value: browser.run(f"document.getElementById('gif-{name}').value = '{value}'")  # noqa: E731
    make = "document.querySelector('[aria-label=\"Make gif with these options\"]').click()"
    put("size", 5000)
    browser.run(make)
    assert browser.run(f"{form}.querySelector('form').checkValidity()") is False  # the browser itself knows the range
    for size in (24, 32):
        put("size", size)
        put("seconds", 0.3)
        put("fps", 10)
        browser.run(make)
        done = f"{row('gif')}.querySelector('a[download]')"
        browser.wait(f"{row('gif')}.textContent.includes('size {size}') && {done}")
        with Image.open(served.settings.exports(job) / "gif.gif") as film:
            assert film.size == (size, size) and film.n_frames == 3
    kept = {one["format"]: one["options"] for one in served.ask("GET", f"/api/jobs/{job}")["exports"]}
    assert kept == {"gif": {"fps": 10, "seconds": 0.3, "size": 32}, "ply": {}}
    browser.visit(browser.run("location.href"))  # the form remembers what the file was made with
    browser.wait("document.querySelector('[aria-label=\"Download gif\"]')")
    assert browser.run("document.getElementById('gif-size').value") == "32"
    browser.run(f"{row('gif')}.querySelector('details').open = true")
    browser.run(f"{row('glb')}.querySelectorAll('details').forEach((one) => {{ one.open = true; }})")
    assert browser.run(UNNAMED) == []


def test_a_file_becomes_an_asset_that_plays_and_can_be_taken_home(served, browser, tmp_path):
    wrong = tmp_path / "wrong.png"
    wrong.write_text("<svg onload='alert(1)'/> this is no picture")
    give(browser, served, wrong)
    browser.wait("document.querySelector('.drop .wrong').textContent.includes('can be taken')")

    file = tmp_path / HOSTILE
    file.write_bytes(picture((60, 60)))
    browser.choose_file("#file", file)
    browser.wait("document.querySelector('.seen .film') && !document.querySelector('.seen[aria-busy]')")
    assert browser.run("document.querySelector('.bench h2').textContent") == HOSTILE.replace("\u202e", "")
    assert browser.run("document.querySelectorAll('img[onerror]').length") == 0
    assert browser.run("document.querySelectorAll('.seen img').length") == 2 and browser.run(UNNAMED) == []
    address = browser.run("location.href")
    browser.visit(address)  # the tab was closed and opened again
    browser.wait("document.querySelector('.seen .film')")

    choose(browser)
    job = weave(browser)
    browser.wait("document.querySelector('iframe.viewer')", 120)
    assert browser.run(UNNAMED) == []
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "downloads"))
    browser.run("document.querySelector('[aria-label=\"Make ply\"]').click()")
    browser.wait("document.querySelector('[aria-label=\"Download ply\"]')", 120)
    browser.run("document.querySelector('[aria-label=\"Download ply\"]').click()")
    served.until(lambda: list((tmp_path / "downloads").glob("*.zip")), 60)
    written = served.settings.exports(job) / "ply.zip"
    taken = next((tmp_path / "downloads").glob("*.zip"))
    served.until(lambda: taken.exists() and taken.read_bytes() == written.read_bytes(), 30)

    made_with_other_options(served, browser, job)
    for width in (390, 1100):
        browser.resize(width, 844, phone=width < 500)
        assert browser.run("document.documentElement.scrollWidth") == width
    # The run's own page plays, and may neither ask this server nor read its cookies.
    browser.visit(f"{served.address}api/jobs/{job}/viewer")
    browser.run("loom4d.ready.then(() => 1)")
    assert browser.run("loom4d.render({azimuth: 30, elevation: 10, time: 0, size: 32})").startswith("data:image/png")
    assert browser.run("origin") == "null"
    assert browser.run("fetch('/api/jobs').then(() => 'read', () => 'refused')") == "refused"
    browser.console.clear()  # the refusal was said there


def test_two_runs_at_once_are_stopped_continued_and_deleted(served, browser, tmp_path):
    (tmp_path / "thing.png").write_bytes(picture())
    give(browser, served, tmp_path / "thing.png")
    browser.wait("document.querySelector('.seen .film')")
    choose(browser, quality="long")
    first = weave(browser)
    upload = served.ask("GET", f"/api/jobs/{first}")["upload"]
    body = {"upload": upload, "method": "tiny", "preset": "quick", "quality": "tiny"}
    second = served.ask("POST", "/api/jobs", body)["id"]
    browser.wait("document.querySelector('.rail .now')?.textContent.includes('Fit')", 120)
    assert served.state(second) == "queued"
    browser.visit(browser.run("location.href"))  # reloaded: the past is told again
    browser.wait("document.querySelector('.rail .now progress')?.value > 0")
    assert browser.run("document.querySelectorAll('.rail .past').length") >= 2
    browser.run("[...document.querySelectorAll('header button')].find((one) => one.textContent === 'Stop').click()")
    badge(browser, "stopped")
    served.until(lambda: served.state(second) == "done")
    browser.run("[...document.querySelectorAll('header button')].find((one) => one.textContent === 'Go on').click()")
    badge(browser, "under way")
    served.ask("POST", f"/api/jobs/{first}/cancel")
    badge(browser, "stopped")

    browser.resize(390, 844, phone=True)
    browser.visit(served.address)
    browser.wait("document.querySelectorAll('.run').length >= 2")
    assert browser.run("document.documentElement.scrollWidth") == 390
    delete = f"document.querySelector('a[href=\"/jobs/{first}\"]').parentElement.querySelector('button')"
    browser.run(f"{delete}.click()")
    assert browser.run(f"{delete}.textContent") == "Delete for good?"
    browser.run(f"{delete}.click()")
    browser.wait(f"!document.querySelector('a[href=\"/jobs/{first}\"]')")
    assert served.reply("GET", f"/api/jobs/{first}")[0] == 404
    browser.resize(1100, 800)


def test_a_page_outlives_its_server(served, browser, tmp_path):
    (tmp_path / "thing.png").write_bytes(picture())
    give(browser, served, tmp_path / "thing.png")
    browser.wait("document.querySelector('.seen .film')")
    choose(browser, preset="slower")
    weave(browser)
    browser.wait("document.querySelector('.rail .now')", 120)
    children = served.children()
    served.kill()
    browser.wait("document.querySelector('main').textContent.includes('The server is not there')")
    served.until(lambda: not set(children) & set(served.children()), 60)
    served.start()
    browser.wait("document.querySelector('iframe.viewer')", 240)
    badge(browser, "done")
    assert not browser.run("document.querySelector('main').textContent.includes('The server is not there')")


def test_what_is_chosen_with_the_keyboard(served, browser):
    browser.visit(served.address)
    browser.wait("document.querySelector('#file')")
    seen = []
    for _ in range(4):
        browser.press("Tab")
        seen.append(browser.run("document.activeElement.id || document.activeElement.className"))
    assert "file" in seen, seen
    assert browser.run("getComputedStyle(document.querySelector('.drop'))?.borderRadius") != "0px"

"""The page draws what the rasteriser draws, asks for nothing from outside and says nothing in the console."""

import base64
import json
import re
from dataclasses import replace
from io import BytesIO

import av
import numpy as np
import pytest
import torch
from PIL import Image

from browser import Browser, chromium
from loom4d.cameras import orbit, turntable
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.grid import ImageGrid, straight
from loom4d.viewer.page import on_gaussians, write_page
from moving_assets import Swinging, bending, spacetime_asset

SETTLED = "new Promise((done) => requestAnimationFrame(done)).then(() => loom4d.viewer.settled())"
needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")


def grid_of(asset, views: int, frames: int, size: int) -> ImageGrid:
    cameras, times = turntable(views, frames), torch.linspace(*asset.time_range, frames)
    columns = [
        straight(rasterize(asset.at(time), cameras[:, frame], RasterOptions(size, size)).premultiplied.clamp(0, 1))
        for frame, time in enumerate(times.tolist())
    ]
    return ImageGrid(torch.stack(columns, 1), cameras, times)


def test_a_page_is_one_file_that_names_no_other(tmp_path):
    asset = spacetime_asset(100)
    size = write_page(asset, tmp_path / "viewer.html", title='<b>"x" & </script>', grid=grid_of(asset, 2, 3, 32))
    page = (tmp_path / "viewer.html").read_text()
    assert size.page == len(page.encode()) and size.gaussians <= 100 and size.motion == "spacetime"
    assert size.code < 80_000
    assert not re.search(r"(?:https?:)?//[\w.-]+\.\w+/", page.split('id="data"')[0])
    assert "<b>" not in page and page.count("</script>") == 4
    header = json.loads(re.search(r'id="header">(.*?)</script>', page).group(1))
    assert header["title"] == '<b>"x" & </script>' and len(header["grid"]["azimuths"]) == 2
    assert "default-src 'none'" in page and "unsafe-inline" not in page


def test_the_same_asset_gives_the_same_page(tmp_path):
    pages = []
    for name in ("one", "two"):
        write_page(spacetime_asset(50), tmp_path / name)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


@needs_browser
@pytest.mark.parametrize(
    "asset",
    [spacetime_asset(), spacetime_asset(200, harmonics=3, degree=3), bending(), Swinging()],
    ids=["spacetime", "spacetime with time harmonics", "controlled", "baked"],
)
def test_the_picture_is_the_rasterisers(asset, tmp_path):
    write_page(asset, tmp_path / "viewer.html", grid=grid_of(asset, 2, 2, 48))
    start, end = asset.time_range
    with Browser(400, 300) as browser:
        browser.open(tmp_path / "viewer.html")
        browser.run("loom4d.ready.then(() => 1)")
        for azimuth, elevation, part, size, background in [
            (30, 10, 0.0, 96, [1, 1, 1]),
            (200, -35, 0.37, 160, [0.2, 0.4, 0.1]),
            (75, 70, 1.0, 128, [0, 0, 0]),
        ]:
            time = start + part * (end - start)
            options = RasterOptions(size, size)
            state = {"azimuth": azimuth, "elevation": elevation, "time": time, "size": size, "blur": options.blur}
            uri = browser.run(f"loom4d.render({json.dumps({**state, 'background': background})})")
            drawn = pixels(Image.open(BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))
            camera = orbit(torch.tensor(float(azimuth)), float(elevation))
            truth = rasterize(asset.at(time), camera, options)
            truth = truth.on(torch.tensor(background).float()).clamp(0, 1)
            assert psnr(drawn, truth) > 50
            shot = browser.screenshot(x=0, y=0, width=size, height=size)
            assert psnr(pixels(shot), truth) > 50
        assert psnr(drawn, torch.full_like(drawn, drawn.mean())) < 30  # there is something to see
    assert browser.console == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:", "about:", "blob:"))] == []


@needs_browser
def test_hands_keys_and_buttons_move_the_view(tmp_path):
    asset = spacetime_asset(150)
    write_page(asset, tmp_path / "viewer.html", grid=grid_of(asset, 4, 3, 32), source=grid_of(asset, 1, 3, 32))
    with Browser(900, 640) as browser:
        browser.open(tmp_path / "viewer.html", "#time=1.0&azimuth=40")
        browser.run("loom4d.ready.then(() => 1)")
        state = lambda: browser.run("({...loom4d.viewer.camera, time: loom4d.viewer.time, on: loom4d.viewer.playing})")  # noqa: E731
        frame = SETTLED
        first = state()
        assert first["azimuth"] == 40 and first["time"] == 1.0 and not first["on"]
        browser.press("ArrowRight")
        browser.press("+", "Equal")
        turned = state()
        assert turned["azimuth"] == 45 and turned["radius"] < first["radius"]
        browser.drag((200, 200), (120, 230))
        dragged = state()
        assert dragged["azimuth"] > 45 and dragged["elevation"] > turned["elevation"]
        browser.press(" ", "Space")
        browser.run(frame)
        assert state()["on"] and browser.run("play.getAttribute('aria-label')") == "Pause"
        browser.press(" ", "Space")
        browser.press("0")
        assert state()["radius"] == first["radius"] and not state()["on"]
        browser.press(".")
        assert state()["time"] > 1.0
        browser.press("b")
        assert browser.run("loom4d.viewer.background") == "white"
        browser.press("m")
        browser.run(frame)
        assert browser.run("loom4d.viewer.mode") == "depth" and not browser.run("legend.hidden")
        browser.press("m")
        browser.run(frame)
        assert browser.run("loom4d.viewer.shown.frame.largest") > 0.01
        browser.press("]")
        browser.press("p")
        assert browser.run("[loom4d.viewer.speed, loom4d.viewer.pingpong]") == [2, False]
        browser.press("s")
        browser.wait("spoken.textContent == 'Picture saved'", seconds=20)
        first = state()
        touch = lambda kind, *at: browser.call(  # noqa: E731
            "Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y, "id": int(x > 250)} for x, y in at]
        )
        touch("touchStart", (200, 200), (300, 200))
        touch("touchMove", (180, 260), (340, 260))
        touch("touchEnd")
        pinched = state()
        assert pinched["radius"] < 0.8 * first["radius"]  # apart: nearer
        assert pinched["target"] != first["target"] and pinched["azimuth"] == first["azimuth"]  # together: moved
        # the third row, last column of the grid: seen from azimuth 180 at the end
        browser.run("""(() => { const box = sheet.getBoundingClientRect(), button = sheet.querySelector("button");
            const at = {clientX: box.left + 0.9 * box.width, clientY: box.top + 0.6 * box.height, bubbles: true};
            button.dispatchEvent(new MouseEvent("click", at)); })()""")
        assert abs(state()["azimuth"] - 180) < 1e-3 and state()["time"] == 2.5
        unlabelled = browser.run("""[...document.querySelectorAll("button, input, select, canvas")]
            .filter((one) => !one.getAttribute("aria-label")).map((one) => one.id)""")
        assert unlabelled == []
        browser.resize(390, 844, phone=True)
        browser.run(frame)
        assert browser.run("document.documentElement.scrollWidth") == 390
        assert browser.run("view.clientWidth") == 390 and browser.run("view.clientHeight") >= 300
    assert browser.console == []


@needs_browser
def test_every_picture_is_of_one_moment_and_sorted_for_it(tmp_path):
    """While a worker moves and sorts, what is on the page is the picture that this thread draws for the same state."""
    asset = bending()
    write_page(asset, tmp_path / "viewer.html", grid=grid_of(asset, 2, 2, 48))
    with Browser(760, 300) as browser:
        browser.open(tmp_path / "viewer.html", "#time=0.5&azimuth=40")
        browser.run("loom4d.ready.then(() => 1)")
        assert browser.run("loom4d.viewer.worker !== null")
        for azimuth, time in ((40, 0.5), (130, 0.9), (250, 1.4)):
            browser.run(f"""(Object.assign(loom4d.viewer, {{time: {time}, dirty: true}}),
                Object.assign(loom4d.viewer.camera, {{azimuth: {azimuth}}}), 1)""")
            browser.run(SETTLED)
            assert browser.run("loom4d.viewer.filled === loom4d.viewer.worker")
            size = browser.run("[view.width, view.height]")
            shot = pixels(browser.screenshot(x=0, y=0, width=size[0], height=size[1]))
            browser.run("loom4d.viewer.draw()")
            drawn = pixels(browser.screenshot(x=0, y=0, width=size[0], height=size[1]))
            browser.run("loom4d.viewer.dirty = true, loom4d.viewer.settled()")
            assert psnr(shot, drawn) > 60 and psnr(shot, torch.full_like(shot, shot.mean())) < 30
        browser.run("""(loom4d.viewer.worker.onerror(new Event("error", {cancelable: true})), 1)""")
        browser.run(SETTLED)
        assert browser.run("loom4d.viewer.filled === loom4d.viewer.scene")  # without its worker the page goes on
    assert browser.console == []


@needs_browser
def test_where_priors_disagree_is_laid_over_the_grid_and_the_asset(tmp_path):
    asset = bending()
    grid, field = grid_of(asset, 4, 3, 48), torch.zeros(4, 3, 6, 6)
    field[:, :, :3] = 1.0  # in the upper half of every picture
    write_page(asset, tmp_path / "viewer.html", grid=grid, disagreement=field)
    spot = on_gaussians(asset, grid, field)
    assert spot[asset.means[:, 1] > 0.2].mean() > 0.8 > 0.2 > spot[asset.means[:, 1] < -0.2].mean()
    with Browser(900, 640) as browser:
        browser.open(tmp_path / "viewer.html", "#time=0.5")
        browser.run("loom4d.ready.then(() => 1)")
        assert browser.run("[heating.hidden, heat.hidden, heat.naturalWidth, heat.naturalHeight]") == [
            False,
            True,
            18,
            24,
        ]
        browser.run("heated.click()")
        assert browser.run("heat.clientHeight === grid.clientHeight && heat.clientWidth === grid.clientWidth")
        assert "disagreement" in browser.run("[...mode.options].map((one) => one.value)")
    with pytest.raises(ValueError, match="does not belong"):
        write_page(asset, tmp_path / "other.html", grid=grid, disagreement=field[:2])
    write_page(asset, tmp_path / "without.html", grid=grid)
    assert '"heat":null' in (tmp_path / "without.html").read_text()


@needs_browser
def test_a_turn_becomes_a_video(tmp_path):
    write_page(bending(100), tmp_path / "viewer.html")
    with Browser(320, 240) as browser:
        browser.open(tmp_path / "viewer.html", "#time=0.5")
        browser.run("loom4d.ready.then(() => 1)")
        before = browser.run("loom4d.viewer.camera.azimuth")
        data = browser.run("""recorded(loom4d.viewer, "a", 0.3).then(async ([blob, title, suffix]) => [
            title, suffix, blob.type, btoa(String.fromCharCode(...new Uint8Array(await blob.arrayBuffer())))])""")
        assert data[:2] == ["a turntable", "webm"]
        (tmp_path / "turn.webm").write_bytes(base64.b64decode(data[3]))
        assert browser.run("loom4d.viewer.camera.azimuth") == before and not browser.run("loom4d.viewer.recording")
    with av.open(str(tmp_path / "turn.webm")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) >= 5 and pictures[-1].shape[1] >= 200 and pictures[-1].std() > 5
    assert np.abs(pictures[0].astype(float) - pictures[len(pictures) // 2]).mean() > 1  # it turned meanwhile
    assert browser.console == []


@needs_browser
def test_other_modes_show_what_they_name(tmp_path):
    asset = Swinging()
    write_page(asset, tmp_path / "viewer.html", values={"height": asset.means[:, 1] - asset.means[:, 1].min()})
    with Browser(400, 300) as browser:
        browser.open(tmp_path / "viewer.html", "#time=0")
        browser.run("loom4d.ready.then(() => 1)")
        assert browser.run("[...mode.options].map((one) => one.value)") == ["colour", "depth", "speed", "height"]
        place = lambda mode: f"loom4d.render({{azimuth: 0, elevation: 0, time: 0, size: 64, mode: '{mode}'}})"  # noqa: E731
        pictures = {
            mode: pixels(Image.open(BytesIO(base64.b64decode(browser.run(place(mode)).split(",")[1]))).convert("RGB"))
            for mode in ("depth", "speed", "height")
        }
        # red and green grow along the scale, from dark blue to yellow
        level = {mode: picture[:2].sum(0) for mode, picture in pictures.items()}
        middle, rim = (slice(30, 34), slice(30, 34)), (slice(30, 34), slice(13, 15))
        assert level["depth"][middle].mean() > level["depth"][rim].mean() + 0.1  # a ball is nearest in the middle
        # turning about y, the front moves across the view and the rim along it: both fast, the poles only up
        assert level["speed"][middle].mean() > level["speed"][18:20, 31:33].mean()
        upper, lower = level["height"][18:22, 30:34].mean(), level["height"][42:46, 30:34].mean()
        assert upper > lower + 0.5
        assert browser.run("loom4d.viewer.shown.frame.largest") > 0
        lose = "(window.x = loom4d.viewer.painter.gl.getExtension('WEBGL_lose_context')).loseContext()"
        frames = "new Promise((done) => setTimeout(done, 300))"
        before = browser.run(place("colour"))
        browser.run(f"{lose}; {frames}")
        browser.run(f"x.restoreContext(); {frames}")
        assert browser.run(place("colour")) == before
    assert browser.console == []


@needs_browser
def test_a_single_instant_has_no_timeline(tmp_path):
    write_page(replace(spacetime_asset(50), end=0.5), tmp_path / "viewer.html")
    with Browser(400, 300) as browser:
        browser.open(tmp_path / "viewer.html")
        browser.run("loom4d.ready.then(() => 1)")
        assert browser.run("timeline.hidden && !loom4d.viewer.playing && loom4d.viewer.end === 0.5")
    assert browser.console == []


@needs_browser
def test_without_webgl2_the_page_says_so(tmp_path):
    write_page(spacetime_asset(20), tmp_path / "viewer.html")
    with Browser(400, 300, flags=("--disable-3d-apis",)) as browser:
        browser.open(tmp_path / "viewer.html")
        browser.run("loom4d.ready.catch(() => 1)")
        assert "needs WebGL2" in browser.run("message.textContent") and not browser.run("message.hidden")


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def psnr(ours: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * torch.log10(((ours - truth) ** 2).mean()))

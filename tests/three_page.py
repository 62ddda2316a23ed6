"""three.js in Chromium as an independent player of GLB files: pictures of a file at a time from a camera."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from browser import Browser, chromium
from loom4d.cameras import Cameras
from loom4d.sources.assets import read_asset
from loom4d.sources.posing import pose
from loom4d.sources.render import render

SAMPLES = 4  # along a pixel's side, in both renderers
PAGE = """<!doctype html><link rel="icon" href="data:,"><body style="margin:0"><script type="importmap">
{"imports": {"three": "/three/build/three.module.js", "three/addons/": "/three/examples/jsm/"}}</script>
<script type="module">
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer({ alpha: true, antialias: false, preserveDrawingBuffer: true });
renderer.setPixelRatio(1);
const scene = new THREE.Scene(), camera = new THREE.PerspectiveCamera();
camera.matrixAutoUpdate = false;
let mixer = null, action = null;
const load = async (name) => {
  const file = await new GLTFLoader().loadAsync(name);
  scene.clear();
  scene.add(file.scene);
  mixer = new THREE.AnimationMixer(file.scene);
  action = file.animations.length ? mixer.clipAction(file.animations[0]).play() : null;
  return { clips: file.animations.length, seconds: file.animations[0]?.duration ?? 0 };
};
const picture = (time, cameraFromWorld, fov, size) => {
  if (action) action.time = time;
  mixer.update(0);
  Object.assign(camera, { fov, aspect: 1, near: 0.01, far: 100 });
  camera.matrix.fromArray(cameraFromWorld).invert();
  camera.updateProjectionMatrix();
  camera.updateMatrixWorld(true);
  renderer.setSize(size, size);
  renderer.render(scene, camera);
  return renderer.domElement.toDataURL("image/png");
};
window.three = { load, picture, revision: THREE.REVISION };
</script>"""


def three_folder() -> Path | None:
    """The npm package `three`, where node would find it (NODE_PATH), if Chromium is there as well."""
    places = [Path(place) for place in os.environ.get("NODE_PATH", "").split(os.pathsep) if place]
    found = [place / "three" for place in places if (place / "three" / "build" / "three.module.js").exists()]
    return found[0] if found and chromium() else None


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def player(folder: Path) -> Iterator[Browser]:
    """A browser on a page with three.js that can load the GLB files in `folder`."""
    three = three_folder()
    assert three is not None
    (folder / "three").symlink_to(three)
    (folder / "index.html").write_text(PAGE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Browser(200, 200) as browser:
            browser.visit(f"http://127.0.0.1:{server.server_port}/index.html")
            yield browser
            assert browser.console == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def theirs(browser: Browser, time: float, camera: Cameras, fov_deg: float, size: int) -> Float[Tensor, "4 size size"]:
    """Straight-alpha RGBA of the loaded file as three.js draws it."""
    matrix = camera.camera_from_world.T.flatten().tolist()
    uri = browser.run(f"three.picture({time}, {json.dumps(matrix)}, {fov_deg}, {size * SAMPLES})")
    with Image.open(BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        fine = torch.from_numpy(np.array(image.convert("RGBA"))).permute(2, 0, 1) / 255
    premultiplied = torch.cat([fine[:3] * fine[3:], fine[3:]])
    mean = torch.nn.functional.avg_pool2d(premultiplied, SAMPLES)
    return torch.cat([mean[:3] / mean[3:].clamp_min(1e-6), mean[3:]])


def ours(path: Path, time: float, camera: Cameras, size: int) -> Float[Tensor, "4 size size"]:
    """The same by our own reader and renderer of 3D models."""
    asset = read_asset(path)
    clip = next(iter(asset.clips), None)
    return render(pose(asset, clip, time), camera[None], size, size, SAMPLES)[0][0]


def compared(one: Float[Tensor, "4 h w"], other: Float[Tensor, "4 h w"]) -> tuple[float, float]:
    """PSNR over white in dB, and the overlap of the silhouettes."""
    over = [rgba[:3] * rgba[3:] + 1 - rgba[3:] for rgba in (one, other)]
    solid = [rgba[3] > 0.5 for rgba in (one, other)]
    psnr = -10 * torch.log10(((over[0] - over[1]) ** 2).mean().clamp_min(1e-10))
    return float(psnr), float((solid[0] & solid[1]).sum() / (solid[0] | solid[1]).sum().clamp_min(1))

"""three.js, which shares no code with us, plays our GLB files: the same pictures at every time, from every side."""

import pytest
import torch

from loom4d.cameras import FOV_DEG, orbit
from loom4d.export.glb import morphing_glb, skinned_glb, texture_of
from loom4d.export.mesh import MeshOptions, canonical_mesh, moving_mesh
from loom4d.export.skin import skinned_mesh
from loom4d.export.surface import SurfaceOptions
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from moving_assets import bending
from three_page import compared, ours, player, theirs, three_folder

SIZE = 96


@pytest.mark.skipif(three_folder() is None, reason="no three in node's path, or no Chromium")
def test_three_js_shows_the_same_motion(tmp_path):
    asset = bending(700)
    options = MeshOptions(frames=9, most_faces=800, surface=SurfaceOptions(resolution=40, views=20, picture=112))
    one = canonical_mesh(asset, options)
    texture = texture_of(one, 256)
    files = {
        "skinned": skinned_glb(skinned_mesh(asset, options, taken=one), texture),
        "eight": skinned_glb(skinned_mesh(asset, options, 8, one)),
        "morph": morphing_glb(moving_mesh(asset, options, one), texture),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.glb").write_bytes(content)
    cameras = orbit(torch.tensor([20.0, 140.0]), 10.0)
    with player(tmp_path) as browser:
        for name in files:
            assert browser.run(f"three.load('{name}.glb')") == {"clips": 1, "seconds": 1}
            for time, view in ((0.0, 0), (0.31, 1), (0.8, 0), (1.0, 1)):
                picture = theirs(browser, time, cameras[view], FOV_DEG, SIZE)
                psnr, overlap = compared(picture, ours(tmp_path / f"{name}.glb", time, cameras[view], SIZE))
                assert psnr > 32 and overlap > 0.985, (name, time, psnr, overlap)
                seen = rasterize(asset.at(0.5 + time), cameras[view], RasterOptions(SIZE, SIZE)).premultiplied
                assert compared(picture, torch.cat([seen[:3] / seen[3:].clamp_min(1e-6), seen[3:]]))[1] > 0.88

"""The kernels give the same numbers on processors without this one's vector units: baseline x86-64 and AArch64."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loom4d import native
from loom4d.cameras import Cameras, orbit
from loom4d.gaussians.gaussians import Ellipsoids, Gaussians, rgb_of
from loom4d.gaussians.rasterize import RasterOptions, rasterize
from loom4d.gaussians.rasterize.pictures import opencv_pose, pixel_intrinsics
from loom4d.native.build import FLAGS, FOLDER, compiler

OPTIONS = RasterOptions(24, 40)
DRIVER = Path(__file__).parent / "native" / "run_rasterizer.cpp"
X86 = platform.machine() == "x86_64"
# how it is compiled, and what runs it: nothing, or an emulator of a processor without AVX, or of an ARM one
PROCESSORS = {
    "baseline": (compiler(), [shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64"), "-cpu", "Nehalem"]),
    "aarch64": (
        shutil.which("aarch64-linux-gnu-g++"),
        [shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")],
    ),
}


def scene() -> tuple[Ellipsoids, Cameras]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    gaussians = Gaussians(
        draw(120, 3) * 0.3, draw(120, 4), draw(120, 3) * 0.5 - 2.8, torch.sigmoid(2 * draw(120)), draw(120, 1, 3) * 0.5
    )
    shape = Ellipsoids(gaussians.means, gaussians.covariances, gaussians.opacities, gaussians.colours)
    return shape, orbit(torch.tensor([0.0, 100.0]), 20.0)


def here() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Input of the driver, and what it should write, from the plain-tensor specification."""
    shape, cameras = scene()
    rgb = rgb_of(shape.colours, shape.means, cameras.positions)
    colours = ((rgb - 0.5) / 0.28209479177387814)[:, None]
    leaves = [part.clone().requires_grad_() for part in (shape.means, shape.covariances, shape.opacities, colours)]
    rendering = rasterize(Ellipsoids(*leaves), cameras, OPTIONS, "reference")
    blended = torch.cat([rendering.rgb, rendering.weighted_depth], 1)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator) for part in (blended, rendering.alpha)]
    ((blended * weights[0]).sum() + (rendering.alpha * weights[1]).sum()).backward()
    rotation, translation = opencv_pose(cameras)
    packed = torch.cat([rotation.flatten(1), translation, pixel_intrinsics(cameras, OPTIONS)], 1)
    gradients = [leaf.grad for leaf in leaves]
    gradients[3] = gradients[3] / 0.28209479177387814  # of the colour itself
    pictures = [blended, rendering.alpha, rendering.median_depth]
    return [shape.means, shape.covariances, shape.opacities, rgb, packed, *weights], [*pictures, *gradients]


def built(name: str, folder: Path) -> list[str]:
    """The command that runs the driver on a processor, compiled with the package's own flags."""
    found, run = PROCESSORS[name]
    if found is None or run[0] is None or (name == "baseline" and not X86):
        pytest.skip(f"no compiler for {name}, or no qemu-user to run it")
    program = folder / f"driver_{name}"
    flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
    subprocess.run([found, *flags, "-static", f"-I{FOLDER}", str(DRIVER), "-o", str(program)], check=True)
    return [*run, str(program)]


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_numbers_are_the_same_everywhere(name, tmp_path):
    command = built(name, tmp_path)
    given, expected = here()
    header = np.array([2, 120, OPTIONS.height, OPTIONS.width], np.int64).tobytes()
    content = header + b"".join(part.detach().contiguous().float().numpy().tobytes() for part in given)
    result = subprocess.run(command, input=content, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    values = torch.from_numpy(np.frombuffer(result.stdout, np.float32).copy())
    assert len(values) == sum(part.numel() for part in expected)
    for part in expected:
        found, values = values[: part.numel()].reshape(part.shape), values[part.numel() :]
        if part.shape[-2:] == (3, 3):  # of a symmetric matrix: how its gradient is split over both halves is free
            found, part = found + found.mT, part + part.mT
        assert (found - part).abs().max() < 2e-5 * part.abs().max().clamp_min(1), name


@pytest.mark.skipif(native.load() is None or not X86, reason="needs the kernels on x86-64")
def test_one_library_holds_the_code_of_three_processors():
    """The dispatcher chooses at load time, so all three must be there; a compiler that lacks it builds the baseline."""
    if "clang" in Path(compiler() or "clang").resolve().name:
        pytest.skip("clang builds the baseline only")
    names = Path(native.load()._name).read_bytes()
    for clone in (b"arch_x86_64_v4", b"arch_x86_64_v3", b"default"):
        assert clone in names or clone.replace(b"x86_64", b"x86-64") in names, clone


FAULTS = """
import resource, torch
from loom4d import native
kept = {kept} and native.keep_memory()
for _ in range(20):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to keep memory")
def test_memory_that_is_kept_costs_no_page_faults():
    """A tensor of 40 MB has 9 766 pages of 4 kB."""

    def faults(kept: bool) -> tuple[str, int]:
        script = FAULTS.format(kept=kept)
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
        return said[0], int(said[1])

    assert faults(True) == ("True", pytest.approx(0, abs=1000))
    assert faults(False)[1] > 10_000

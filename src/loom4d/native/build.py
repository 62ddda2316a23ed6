"""Compiling the C++ kernels. Imports nothing outside the standard library: the package's own build runs it too."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"]
# -ffast-math would link a start-up file that flushes denormals in the whole process; these parts of it are safe.
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffinite-math-only", "-fno-signed-zeros", "-fassociative-math"]


def compiler() -> str | None:
    """Path of a C++ compiler: `$CXX` if set, else the first of c++, g++ and clang++ that exists."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def library_name() -> str:
    """File name that changes with the sources, the flags and the machine's architecture."""
    text = "".join(path.read_text() for path in sorted(FOLDER.glob("*.cpp"))) + " ".join(FLAGS) + platform.machine()
    return f"loom4d_{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"


def build(target: Path) -> None:
    """Compiles every kernel here into one shared library at `target`; atomic, so two processes may race."""
    path = compiler()
    if path is None:
        raise RuntimeError("no C++ compiler found: install g++ or clang++, or set CXX")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        partial = Path(folder) / target.name
        sources = [str(source) for source in sorted(FOLDER.glob("*.cpp"))]
        result = subprocess.run([path, *FLAGS, *sources, "-o", str(partial)], capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{path} could not build the native kernels:\n{result.stderr}")
        os.replace(partial, target)

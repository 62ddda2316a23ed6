"""Builds the native kernels with the package; without a compiler the package installs all the same and says so."""

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithKernels(build_py):
    def run(self):
        super().run()
        if self.editable_mode:
            return  # an editable install compiles at first use, so that edited sources are never stale
        source = Path(__file__).parent / "src" / "loom4d" / "native" / "build.py"
        spec = importlib.util.spec_from_file_location("loom4d_native_build", source)
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        target = Path(self.build_lib) / "loom4d" / "native" / native.library_name()
        if native.compiler() is None:
            self.warn("no C++ compiler: the slower tensor path will be used until one is installed")
        else:
            native.build(target)


setup(cmdclass={"build_py": BuildWithKernels})

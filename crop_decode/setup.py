"""Build the C library as part of the package. Everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_library import BuildError, build_library  # noqa: E402


class BuildLibrary(build_ext):
    """A plain shared library for ctypes, not an extension module."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            build_library(library)
        except BuildError as error:
            raise SystemExit(f"error: {error}") from None


class AnyPython(bdist_wheel):
    """One wheel serves every Python 3: the library does not use Python's C API."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("crop_decode.libcrop_decode", ["csrc/core.c", "csrc/dispatch.c"])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython},
)

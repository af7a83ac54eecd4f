"""Build the native module with CMake; everything else is declared in pyproject.toml."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """Run CMake where setuptools would have run the compiler itself.

    CMAKE_ARGS adds options, for example ``CMAKE_ARGS=-DPEGASUS_CUDA=OFF``.
    """

    def build_extension(self, ext: Extension) -> None:
        """Configure and build the whole module."""
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": destination,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        configure = ["cmake", "--fresh", "-S", Path(__file__).parent, "-B", build, "-G", "Ninja"]
        configure += [f"-D{name}={value}" for name, value in options.items()]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        # An isolated build has cmake and ninja on PATH; an editable one may have them only beside its interpreter.
        path = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
        environment = {**os.environ, "PATH": path}
        for command in (configure, ["cmake", "--build", build]):
            subprocess.run([str(word) for word in command], check=True, env=environment)


setup(ext_modules=[Extension("pegasus_batch._native", sources=[])], cmdclass={"build_ext": CMakeBuild})

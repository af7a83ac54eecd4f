"""The extension with its CUDA kernels compiled as C++, so that they run on a machine without a GPU.

``python -m tests.emulated_cuda DIRECTORY`` builds it; with ``PEGASUS_EMULATED_CUDA`` naming the file that it prints, pytest
runs the CUDA kernels wherever it would have run the CPU's.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = "PEGASUS_EMULATED_CUDA"
# What runs on the CUDA kernels, emulated or on a GPU, as it does on the CPU's.
TESTS = tuple(
    f"tests/kernels/test_{name}.py"
    for name in (
        "attention",
        "cached_attention",
        "source_attention",
        "beam_step",
        "greedy_step",
        "plan_edits",
        "extend_beams",
        "add_norm",
    )
)


def build(directory: Path) -> Path:
    """Compile the extension in ``directory`` and return its file; CalledProcessError with the compiler's words otherwise."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "cmake"
    options = ["-DPEGASUS_CUDA=EMULATED", "-DCMAKE_BUILD_TYPE=Release", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    options += [f"-DPython_EXECUTABLE={sys.executable}"]
    for command in ([cmake, "-S", ROOT, "-B", directory, *options], [cmake, "--build", directory, "--parallel", "2"]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return next(directory.glob("_native*"))


def asked_for() -> str | None:
    """Return the module that the environment names, if it does."""
    return os.environ.get(VARIABLE)


def install() -> None:
    """Put the module that the environment names in the place of the installed one; before anything imports that."""
    if path := asked_for():
        spec = importlib.util.spec_from_file_location("pegasus_batch._native", path)
        assert spec is not None and spec.loader is not None, path
        module = importlib.util.module_from_spec(spec)
        sys.modules["pegasus_batch._native"] = module
        spec.loader.exec_module(module)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))

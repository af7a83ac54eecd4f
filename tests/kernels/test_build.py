"""What the compiled module may contain and need."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pegasus_batch import _native

ROOT = Path(__file__).resolve().parents[2]
MODULE = Path(_native.__file__)


def tool(name: str) -> str:
    # pip puts cmake and ninja beside the interpreter, which need not be on PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def python(code: str, **environment: str) -> str:
    result = run(sys.executable, "-c", code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def configure(build: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    return run(
        tool("cmake"), "-G", "Ninja", ninja, "-S", ROOT, "-B", build, "-DPEGASUS_PYTHON=OFF", *options, **environment
    )


def test_the_module_needs_only_system_libraries():
    """No torch, so one wheel serves every version; no libcudart and no libcuda, so it imports without a GPU."""
    listing = run(tool("readelf"), "-d", MODULE).stdout
    needed = set(re.findall(r"NEEDED.*\[(.+?)\]", listing))
    assert needed
    assert {re.sub(r"(\.so|-).*", "", name) for name in needed} <= {
        "libgomp",
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "ld",
        "ld-linux",
        "libpthread",
        "libdl",
        "librt",
    }
    # Vendored copies carry a hash in their names: libgomp-a34b3233.so.1.0.0.
    assert not any(re.search(r"libgomp-[0-9a-f]+", name) for name in needed)


@pytest.mark.parametrize("first", ["torch", "pegasus_batch._native"])
def test_one_openmp_runtime(first):
    """Torch and the kernels in two runtimes would mean two thread pools, ours deaf to torch.set_num_threads."""
    code = f"""
import {first}
import torch
from pegasus_batch.kernels import native
torch.set_num_threads(2)
query = torch.randn(80, 2, 16)
begin, count = torch.tensor([0, 80], dtype=torch.int32), torch.tensor([80], dtype=torch.int32)
native.attention(query, query, query, begin, begin[:1], count, 0.25)
torch.randn(500, 500) @ torch.randn(500, 500)
print(*{{line.split()[-1] for line in open("/proc/self/maps") if "omp" in line}}, sep="\\n")
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc/self/maps")
    # The sentencepiece wheel brings a renamed copy of its own and enters no parallel region while it tokenizes.
    loaded = {line for line in python(code).split() if "sentencepiece.libs" not in line}
    runtimes = {path for path in loaded if re.match(r"lib(gomp|omp|iomp5)\b", Path(path).name)}
    assert len(runtimes) == 1, loaded


def test_the_module_imports_without_a_driver():
    code = "from pegasus_batch.kernels import native; print(native.isa())"
    assert python(code, CUDA_VISIBLE_DEVICES="").strip()


def test_without_the_extension_the_reference_runs():
    """Importing must not fail; demanding the native ops must, with the remedy."""
    code = """
import sys
sys.modules["pegasus_batch._native"] = None
from pegasus_batch import kernels
print(kernels.backend())
try:
    with kernels.use("native"):
        pass
except ImportError as error:
    print(error)
"""
    lines = python(code).splitlines()
    assert lines[0] == "reference"
    assert "pip install -e . --no-build-isolation" in lines[1]


@pytest.mark.slow
def test_isa_objects_export_no_weak_symbols(tmp_path):
    """An inline function compiled for AVX-512 as a weak symbol may be the copy that the linker keeps for everyone."""
    assert configure(tmp_path, "-DPEGASUS_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release").returncode == 0
    isas = ["baseline"] + (["avx2", "avx512", "avx512vnni", "avx512bf16"] if "x86" in os.uname().machine else [])
    built = run(tool("cmake"), "--build", tmp_path, "--target", *(f"pegasus_cpu_{isa}" for isa in isas))
    assert built.returncode == 0, built.stdout
    objects = sorted(tmp_path.glob("CMakeFiles/pegasus_cpu_*.dir/**/*.o"))
    assert len(objects) == 5 * len(isas)
    for path in objects:
        symbols = [line.split()[-2:] for line in run(tool("nm"), "-C", "--defined-only", path).stdout.splitlines()]
        assert not [name for kind, name in symbols if kind in "uvVwW"], path
        isa = re.search(r"pegasus_cpu_(\w+)\.dir", str(path))[1]
        exported = run(tool("nm"), "-C", "--defined-only", "--extern-only", path).stdout
        names = re.findall(r" [A-Z] (.+)", exported)
        assert names and all(name.startswith(f"pegasus::cpu::{isa}::") for name in names), names


@pytest.mark.parametrize("choice", ["ON", "AUTO"])
def test_cuda_is_found_or_refused(choice, tmp_path):
    """Without nvcc, AUTO says what it leaves out and ON stops the build."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "bin").mkdir()
    for name in ("as", "ld", "ar", "ranlib", "nm", "uname", "sh"):
        found = shutil.which(name)
        if found:
            (tmp_path / "bin" / name).symlink_to(found)
    # CMake also looks below CUDA_PATH and beside nvcc on PATH; an unusable CUDACXX outranks both.
    result = configure(
        tmp_path / "build",
        f"-DPEGASUS_CUDA={choice}",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        PATH=str(tmp_path / "bin"),
        CUDACXX=str(tmp_path / "no-nvcc"),
    )
    if choice == "ON":
        assert result.returncode != 0
        assert "PEGASUS_CUDA=ON but no CUDA compiler was found" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert "CUDA kernels: no (PEGASUS_CUDA=AUTO)" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ids=lambda path: path.stem)
def test_cuda_kernels_compile_without_spilling(source, tmp_path):
    nvcc = tool("nvcc")
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in (80, 90)]
    command = [nvcc, "-std=c++17", *targets, "--threads=2", "-Xptxas=-v", f"-I{ROOT / 'csrc'}", "-c"]
    result = run(*command, source, "-o", tmp_path / "kernels.o")
    assert result.returncode == 0, result.stderr
    spills = re.findall(r"(\d+) bytes spill", result.stderr)
    assert spills and set(spills) == {"0"}
    assert _native.with_cuda or os.environ.get("CMAKE_ARGS"), (
        "nvcc is here, but the installed module was built without it"
    )

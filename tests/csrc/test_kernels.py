"""The C++ tests: CUDA kernels under the block emulator, right and with mistakes planted; the emulator; CPU kernels sanitized."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNEL = ROOT / "csrc" / "cuda" / "attention.cuh"

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator switches stacks in x86-64 assembly"),
]


def build(source: str, output: Path, *includes: Path, strict: bool = True) -> Path:
    directories = [*includes, ROOT / "csrc", ROOT / "tests" / "csrc"]
    warnings = ["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"] if strict else ["-O0", "-w"]
    command = ["g++", "-std=c++17", *warnings, "-DPEGASUS_BLOCK_EMULATOR"]
    command += [f"-I{directory}" for directory in directories]
    subprocess.run([*command, str(ROOT / "tests" / "csrc" / source), "-o", str(output)], check=True)
    return output


def test_attention_kernel(tmp_path):
    program = build("test_attention_kernel.cpp", tmp_path / "program")
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


MISTAKES = {
    "keys beyond the last one are not hidden": (
        "t < n_keys ? score[half][e] * scale : kHidden",
        "score[half][e] * scale",
    ),
    "keys beyond the last one are read": ("if (t >= n_keys) t = n_keys - 1;", ""),
    "one copy too few is waited for": ("copy_wait<kStages - 2>();", "copy_wait<kStages - 1>();"),
    "keys are read where they were not stored": ("step * 2 + (matrix & 1)))", "step * 2 + (matrix >> 1)))"),
    "values are not transposed": ("load_matrices_transposed(b, value_tile", "load_matrices(b, value_tile"),
    "sums are not rescaled when the maximum grows": ("out[i][e] *= shrink[e >> 1]", "out[i][e] *= 1.f"),
    "denominators are not rescaled": ("sum[r] *= shrink[r];", ""),
    "the maximum is not shared by a row's lanes": (
        "for (int x = 1; x < 4; x <<= 1) {  // the four lanes of a row",
        "for (int x = 1; x < 2; x <<= 1) {",
    ),
    "warps merge before all have written": (
        "__syncthreads();\n    for (int i = threadIdx.x;",
        "for (int i = threadIdx.x;",
    ),
    "the next pass overwrites the meeting place": ("__syncthreads();  // the next pass reuses the stages", ""),
    "the second half of the rows is taken from the first": ("(r0 + (e >> 1) * 8) * kRecord", "r0 * kRecord"),
    "a document without keys divides by zero": ("n_keys > 0 ? 1.f / total : 0.f", "1.f / total"),
    "the ancestry is ignored": ("task.ancestry[document * task.ancestry_stride + t]", "document"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_caught(mistake, tmp_path):
    """A test that cannot fail proves nothing: each line here breaks the kernel in one place."""
    right, wrong = MISTAKES[mistake]
    text = KERNEL.read_text()
    assert text.count(right) == 1, "the kernel has changed: plant this mistake elsewhere"
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / KERNEL.name).write_text(text.replace(right, wrong))
    program = build("test_attention_kernel.cpp", tmp_path / "program", tmp_path, strict=False)
    assert subprocess.run([program], capture_output=True).returncode != 0


def test_emulator_reports_synchronisation_mistakes(tmp_path):
    program = build("test_block_emulator.cpp", tmp_path / "program")
    reports = [subprocess.run([program, str(n)], capture_output=True, text=True) for n in range(5)]
    assert [r.returncode for r in reports] == [0, 1, 1, 1, 1]
    assert "nan" in reports[1].stdout  # no barrier before reading
    assert "64 threads at __syncthreads, 0 at a warp collective, 64 have returned" in reports[2].stdout
    assert "64 at a warp collective" in reports[3].stdout  # half a warp calls with the full mask
    assert "got" in reports[4].stdout  # overwritten while others still read


@pytest.mark.slow
def test_the_sanitizers_find_nothing(tmp_path):
    """The CPU kernels of every instruction set of this host, with addresses and undefined behaviour watched."""
    settings = ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DPEGASUS_CUDA=OFF", "-DPEGASUS_PYTHON=OFF"]
    settings += ["-DPEGASUS_TESTS=ON", "-DPEGASUS_SANITIZE=ON"]
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    configure = [cmake, "-S", str(ROOT), "-B", str(tmp_path), *settings]
    for command in (configure, [cmake, "--build", str(tmp_path), "--target", "test_cpu_kernels", "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    result = subprocess.run([tmp_path / "test_cpu_kernels"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

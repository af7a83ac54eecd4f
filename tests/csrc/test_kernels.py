"""The C++ tests: CUDA kernels under the block emulator, right and with mistakes planted; the emulator; CPU kernels sanitized."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.csrc import mistakes_attention, mistakes_state, mistakes_step

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(path.name for path in Path(__file__).parent.glob("test_*_kernel.cpp"))
MISTAKES = {**mistakes_attention.MISTAKES, **mistakes_state.MISTAKES, **mistakes_step.MISTAKES}

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


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernel(name, tmp_path):
    program = build(name, tmp_path / "program")
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistakes_are_caught(name, tmp_path):
    """A test that cannot fail proves nothing: each mistake breaks a kernel in one place."""

    def is_caught(file: str, mistake: str, directory: Path) -> bool:
        right, wrong = MISTAKES[name][file][mistake]
        text = (ROOT / "csrc" / "cuda" / file).read_text()
        assert text.count(right) == 1, f"{file} has changed: plant this elsewhere: {mistake}"
        (directory / "cuda").mkdir(parents=True)
        (directory / "cuda" / file).write_text(text.replace(right, wrong))
        program = build(name, directory / "program", directory, strict=False)
        return subprocess.run([program], capture_output=True, timeout=300).returncode != 0

    planted = [(file, mistake) for file, mistakes in MISTAKES[name].items() for mistake in mistakes]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        caught = pool.map(lambda at: is_caught(*planted[at], tmp_path / str(at)), range(len(planted)))
        assert [place for place, one in zip(planted, caught, strict=True) if not one] == []


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

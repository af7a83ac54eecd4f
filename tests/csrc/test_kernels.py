"""The C++ tests: CUDA kernels under the block emulator, right and with mistakes planted; the emulator; CPU kernels sanitized."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cuda"

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


@pytest.mark.parametrize("source", ["test_attention_kernel.cpp", "test_step_kernels.cpp"])
def test_kernels_agree_with_float64(source, tmp_path):
    program = build(source, tmp_path / "program")
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


# What runs a kernel's file, and in it: the mistake, what is there, what is put in its place.
MISTAKES: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("test_attention_kernel.cpp", "attention.cuh"): {
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
    },
    ("test_step_kernels.cpp", "row_scan.cuh"): {
        "touched tokens are in the maxima": ("x[e] = touched >> e & 1 ? kLowest : x[e]", "x[e] = x[e]"),
        "marks are set before they are zero": (
            "marks[threadIdx.x] = 0;\n    __syncthreads();",
            "marks[threadIdx.x] = 0;",
        ),
        "marks are read before they are set": (
            "threadIdx.x, kScanThreads);\n    __syncthreads();",
            "threadIdx.x, kScanThreads);",
        ),
        "logits beyond the last one count": ("x[e] = offset < left ?", "x[e] = offset < kChunk ?"),
        "the last chunk is read as if it were whole": ("task.aligned && left >= kChunk", "task.aligned"),
        "keys are sorted without waiting": ("      __syncthreads();\n      for (int pair", "      for (int pair"),
        "a merge does not mirror": ("step == size / 2 ?", "step == size ?"),
        "sorting does not stop at the end": ("if (high >= n || keys", "if (keys"),
        "edits overwrite keys": ("    __syncthreads();  // writing the i-th", "    // writing the i-th"),
        "every edit counts as a token": (
            "i == begin || task.touches[i - 1].token != task.touches[i].token",
            "i >= begin",
        ),
        "penalties always multiply": ("score < 0 ? product(score, value) : score / value", "product(score, value)"),
        "-inf may be raised": ("if (score == static_cast<Real>(kLowest)) return score;", ""),
        "NaN is lost": ("broken |= x[e] != x[e];", ""),
        "NaN is kept": ("x[e] = fmaxf(x[e], kLowest);", "x[e] = x[e];"),
        "infinite maxima have a sum": ("!wants_sum || fabsf(most) == INFINITY", "!wants_sum"),
        "the sum of the rest is left out": ("summarise(x, task.wants_rest_sum)", "summarise(x, false)"),
    },
    ("test_step_kernels.cpp", "beam_rank.cuh"): {
        "negative values order backwards": ("bits >> 63 ? ~bits", "bits >> 63 ? bits"),
        "ties go to the higher token": (
            "value == other.value && place < other.place",
            "value == other.value && place > other.place",
        ),
        "touched tokens are found twice": ("reaching &= ~lane_marks<T>(marks, lane);", ""),
        "counts are read before they are written": ("= of_warp;\n    __syncthreads();", "= of_warp;"),
        "a forced token that is edited counts twice": (
            "row.forced_apart = !__any_sync(~0u, among);",
            "row.forced_apart = true;",
        ),
        "a forced row still has its other tokens": ("      row.dead = true;\n", ""),
        "a row without a distribution lives": ("row.dead = !is_finite(row.log_sum);", ""),
        "chunks that only just reach the bound are left out": (
            "keys[first + lane] >= bound);\n      for",
            "keys[first + lane] > bound);\n      for",
        ),
        "every warp reads every chunk": ("if (nth % kRankWarps == warp) ", ""),
        "the number found is reset too early": (
            "__syncthreads();  // the number that was found before",
            "// the number that was found before",
        ),
        "candidates beyond the room are written": ("reaching && at < capacity;", "reaching;"),
        "ties are taken from chunks alone": (
            "if (keys[index] < key && !has_touches) continue;",
            "if (keys[index] < key) continue;",
        ),
        "ties of the warps overwrite each other": (
            "for (int w = 0; w < warp; ++w) at +=",
            "for (int w = 0; w < 0; ++w) at +=",
        ),
        "touched ties are taken at their logits": ("return row.total(touched(row, low));", "{}"),
    },
    ("test_step_kernels.cpp", "beam_step.cuh"): {
        "ends beyond the best beams enter the pool": ("if (!ends || i >= k) value", "if (!ends) value"),
        "equal values change places": ("other == mine && j < i", "other == mine && j > i"),
        "the candidates are read before they are ranked": (
            "ranker.rank(n_found);\n  __syncthreads();",
            "ranker.rank(n_found);",
        ),
        "ends are read before they are known": ("  __syncthreads();\n\n  const auto running", "  const auto running"),
        "the pool is read before it is written": (
            "  __syncthreads();\n\n  if (warp != 0) return;",
            "  if (warp != 0) return;",
        ),
        "a closed document takes hypotheses": ("if (!open) value += kBanished;", ""),
        "a full pool takes hypotheses": ("if (scratch->full && task.early_stopping == 1) value += kBanished;", ""),
        "the length limit is ignored": ("bool ends = n_new >= max_new;", "bool ends = false;"),
        "only the first end token ends": ("e < task.n_eos; ++e", "e < (task.n_eos > 0); ++e"),
        "beams that end go on": ("best[i].value + (hit[i] ? kBanished : 0.0)", "best[i].value + (hit[i] ? 0.0 : 0.0)"),
        "the future is as long as the present": (
            "hopeful ? pow(static_cast<double>(max_new), task.length_penalty) :",
            "",
        ),
        "open documents are done": ("!(open && improvable) || (task.early_stopping == 1 && all_finished)", "true"),
        "documents that are complete go on": ("(task.early_stopping == 1 && all_finished) || ", ""),
        "documents in which all have ended go on": ("|| scratch->all_hit != 0;", ";"),
    },
    ("test_step_kernels.cpp", "greedy_step.cuh"): {
        "the last chunk wins": (
            "int chunk = n_chunks - 1 - lane; chunk >= 0; chunk -= 32",
            "int chunk = lane; chunk < n_chunks; chunk += 32",
        ),
        "touched tokens win at their logits": ("!(touched >> e & 1) && ", ""),
        "NaN is no maximum": ("nan = nan || x != x;", ""),
        "a row of -inf has no first token": ("!nan && most == kLowest", "false"),
        "a row without a distribution has a best token": ("task.renormalize ? !finite :", ""),
        "log-probabilities are not rounded": ("(x - most) - rounded_log_sum == -rounded_log_sum", "x == most"),
        "every lane has its own token": ("  first = warp_least(first);", ""),
        "a forced row has its chunks": (
            "forced < 0 ? static_cast<int>(scan.n_chunks) : 0",
            "static_cast<int>(scan.n_chunks)",
        ),
        "the forced token is lost": ("&& lane == 0) f(forced, 0.f);", "&& lane == 0) {}"),
        "touched tokens are left out of the sum": (
            "sum += exp(static_cast<double>(score) - most);",
            "static_cast<void>(score);",
        ),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "kernel", "mistake"), [(*place, mistake) for place, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_planted_mistakes_are_caught(source, kernel, mistake, tmp_path):
    """A test that cannot fail proves nothing: each line above breaks a kernel in one place."""
    right, wrong = MISTAKES[source, kernel][mistake]
    text = (KERNELS / kernel).read_text()
    assert text.count(right) == 1, "the kernel has changed: plant this mistake elsewhere"
    (tmp_path / "cuda").mkdir()
    # All of them: a file that is not here would include its neighbours from where it lies.
    for path in KERNELS.iterdir():
        (tmp_path / "cuda" / path.name).write_text(path.read_text())
    (tmp_path / "cuda" / kernel).write_text(text.replace(right, wrong))
    program = build(source, tmp_path / "program", tmp_path, strict=False)
    assert subprocess.run([program], capture_output=True, timeout=60).returncode != 0


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

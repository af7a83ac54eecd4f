"""The CUDA kernels and the engine around them, on a machine without a GPU: the same kernels, compiled as C++."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests import emulated_cuda
from tests.engine.emulated_search import make_model, search

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulator switches stacks in x86-64 assembly"),
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds the CUDA kernels in place of the CPU's."""
    module = emulated_cuda.build(tmp_path_factory.mktemp("emulated"))
    return {**os.environ, emulated_cuda.VARIABLE: str(module)}


def run(environment: dict[str, str], *command: str) -> str:
    result = subprocess.run(
        [sys.executable, *command], cwd=emulated_cuda.ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_tests_of_the_cpu(environment: dict[str, str]) -> None:
    run(environment, "-m", "pytest", "-q", "-x", "-m", "not slow", *emulated_cuda.TESTS)


def emulated(environment: dict[str, str], *arguments: object) -> Any:
    """Return what an engine finds by the CUDA kernels; arguments as those of ``emulated_search``."""
    return json.loads(run(environment, "-m", "tests.engine.emulated_search", *map(str, arguments)))


@pytest.mark.parametrize(("family", "beams"), [("pegasus", 4), ("bart", 1)])
def test_fifty_documents_as_on_the_cpu(family: str, beams: int, environment: dict[str, str]) -> None:
    """float32: the same tokens as this process finds with the CPU's engine, kernels and search."""
    found = emulated(environment, family, "float32", beams, 1)
    expected = search(make_model(family), torch.float32, beams)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert len({tuple(tokens) for tokens, _ in expected}) > 25


@pytest.mark.parametrize(("dtype", "loudness"), [("bfloat16", 1), ("float16", 1), ("float16", 100_000)])
def test_half_precision_is_near(dtype: str, loudness: float, environment: dict[str, str]) -> None:
    """Through the tensor cores' kernels: most documents get the very same summary, and each a score like float32's.

    Also where the residual stream goes beyond float16's 65,504, as that of released models does.
    """
    model = make_model("pegasus", loudness)
    ids = torch.arange(3, 43)[None]
    states = model.model.encode(ids, output_hidden_states=True).hidden_states
    assert (states[-2].abs().max() > torch.finfo(torch.float16).max) == (loudness > 1)
    found = emulated(environment, "pegasus", dtype, 4, loudness)
    expected = search(model, torch.float32, 4)
    same = [(one[1], other[1]) for one, other in zip(found, expected, strict=True) if one[0] == other[0]]
    assert len(same) >= (45 if dtype == "float16" else 35)
    assert max(abs(one - other) for one, other in same) < (0.02 if dtype == "float16" else 0.15)

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pegasus_batch import kernels
from pegasus_batch.kernels import native


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_best_is_the_default():
    result = run_python("from pegasus_batch import kernels; print(kernels.backend())", PEGASUS_ISA="")
    assert result.stdout.strip() == f"native:{native.available_isas()[-1]}", result.stderr


def test_baseline_is_always_there():
    assert native.available_isas()[0] == "baseline"


def test_environment_overrides():
    result = run_python("from pegasus_batch import kernels; print(kernels.backend())", PEGASUS_ISA="baseline")
    assert result.stdout.strip() == "native:baseline", result.stderr


def test_an_unknown_name_is_refused():
    result = run_python("from pegasus_batch import kernels; kernels.backend()", PEGASUS_ISA="avx1024")
    assert result.returncode != 0
    assert "PEGASUS_ISA=avx1024 is unknown; choose one of baseline" in result.stderr


def test_an_isa_that_the_host_lacks_is_refused():
    lacking = {"baseline", "avx2", "avx512", "avx512vnni", "avx512bf16"} - set(native.available_isas())
    if not lacking:
        pytest.skip("this host has every instruction set")
    for name in lacking:
        with pytest.raises(RuntimeError, match=f"PEGASUS_ISA={name} is (not supported by this host|unknown)"):
            native.select_isa(name)


def test_a_refused_choice_changes_nothing():
    before = native.isa()
    with pytest.raises(RuntimeError, match="unknown"):
        native.select_isa("sse9")
    assert native.isa() == before


def test_selection_reaches_the_kernels(isa):
    """Instruction sets differ in the order of additions, so some low bits of a large case differ between them."""
    assert kernels.backend() == f"native:{isa}"
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 40, 2, 64)
    begin, count = torch.tensor([0, 40], dtype=torch.int32), torch.tensor([40], dtype=torch.int32)

    def attend() -> torch.Tensor:
        return native.attention(query, key, value, begin, begin[:1], count, 0.125)

    chosen = attend()
    native.select_isa("baseline")
    plain = attend()
    torch.testing.assert_close(chosen, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(chosen, plain) == (isa == "baseline")

"""Fixtures of the kernel tests: every instruction set of this host, and the one rule for tolerances."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pegasus_batch.kernels import native


# Where the CUDA kernels are emulated, no other ones run.
@pytest.fixture(params=native.available_isas()[-1:] if native.emulated else native.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set of this host."""
    before = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def assert_accurate() -> Callable[[Tensor, Tensor, Tensor], None]:
    """Return a check that ``got`` errs from float64 at most twice as much as plain PyTorch does, plus 1 ulp."""

    def check(got: Tensor, plain: Tensor, exact: Tensor) -> None:
        assert exact.dtype == torch.float64
        assert got.dtype == plain.dtype
        assert got.isfinite().all()
        ulp = torch.finfo(got.dtype).eps * exact.abs().max().item()
        allowed = 2 * (plain.double() - exact).abs().max().item() + ulp
        error = (got.double() - exact).abs().max().item()
        assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"

    return check


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

"""Fixtures of the kernel tests: every instruction set of this host, and the one rule for tolerances."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pegasus_batch.kernels import native

EMULATED = native.emulated
on_the_cpu = pytest.mark.skipif(EMULATED, reason="on CUDA nobody reads what lies in device memory to check it")


@pytest.fixture(params=native.available_isas()[-1 if EMULATED else 0 :])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set of this host."""
    before = native.isa()
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16, *[torch.float16] * EMULATED], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Run the test on each device for which there is a kernel or, on the CPU, at least the specification."""
    if request.param == "cuda" and not (torch.cuda.is_available() and native.on_cuda(torch.empty(0, device="cuda"))):
        pytest.skip("no CUDA device, or an extension without CUDA kernels")
    return torch.device(request.param)


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

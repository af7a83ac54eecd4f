"""Where a model runs, in which type, and what the errors of a device mean."""

from __future__ import annotations

import torch

from pegasus_batch.checkpoints.huggingface import parse_dtype


def choose_device(device: str) -> torch.device:
    """Return the device that a name stands for; ValueError for an unknown one or a GPU that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: this torch sees no GPU; use cpu, or install a CUDA build of torch")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a name stands for; "auto" is float32 on the CPU and bfloat16 elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return parse_dtype(dtype)


def is_lack_of_memory(error: Exception) -> bool:
    """Tell whether an error means that a smaller batch may do. All but the first two kinds are plain RuntimeErrors."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # Of torch's CPU allocator, the CUDA runtime and cuBLAS.
    signs = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return any(sign in str(error) for sign in signs)


def is_lost(device: torch.device, error: Exception) -> bool:
    """Tell whether the device is beyond use after an error that is no lack of memory.

    torch raises AcceleratorError for what the CUDA runtime reports, a RuntimeError that begins "CUDA error" for what
    its libraries do. Other kernels word their errors as they like, but no context that broke can be synchronized.
    """
    if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
        return True
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False

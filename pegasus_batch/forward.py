"""One forward pass for every window of token ids: what the models with other heads than the one for words need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from pegasus_batch.config import Seq2SeqConfig, load_config
from pegasus_batch.device import choose_device, choose_dtype, is_lack_of_memory, is_lost
from pegasus_batch.documents import DeviceLost
from pegasus_batch.models.pretrained import PretrainedModel

BATCH_TOKENS = 32768  # of a GPU's batch, where nobody says how many

Model = TypeVar("Model", bound=PretrainedModel)


class Failure(str):
    """Why a window has no result."""


def load_model(directory: Path, classes: Sequence[type[Model]], device: str, dtype: str) -> Model:
    """Load a checkpoint as that of ``classes`` which takes its config."""
    kinds = {kind.config_class: kind for kind in classes}
    where = choose_device(device)
    return kinds[type(load_config(directory))].from_pretrained(directory, choose_dtype(dtype, where), where)


def run_windows(
    windows: Sequence[Sequence[int]],
    forward: Callable[[Tensor, Tensor], Tensor],
    config: Seq2SeqConfig,
    device: torch.device,
    batch_tokens: int,
) -> list[Tensor | Failure]:
    """Return what ``forward`` makes of every window, float32 on the CPU, or why it could not, in order.

    ``forward`` takes ids and mask [B, S], padded on the right, and returns a tensor [B, ...], of which a window gets its
    row. A GPU takes windows of similar length together, at most ``batch_tokens`` ids of padded batch, and halves the
    batches that fail. A CPU takes one at a time, which costs it little, so that no bit of a result depends on the others.
    Raises DeviceLost where the GPU fails for good.
    """
    results: dict[int, Tensor | Failure] = {}
    order = sorted(range(len(windows)), key=lambda index: len(windows[index]), reverse=True)
    todo = list(_cut(order, windows, batch_tokens if device.type == "cuda" else 0))
    while todo:
        batch = todo.pop()
        reason = None
        try:
            longest = len(windows[batch[0]])
            rows = [[*windows[index], *[config.pad_token_id] * (longest - len(windows[index]))] for index in batch]
            ids = torch.tensor(rows, device=device)
            lengths = torch.tensor([len(windows[index]) for index in batch], device=device)
            mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
            with torch.inference_mode():
                found = forward(ids, mask).float().cpu()
            results.update(
                (index, row if bool(row.isfinite().all()) else Failure("the model's output is not finite"))
                for index, row in zip(batch, found, strict=True)
            )
        except (MemoryError, RuntimeError, ValueError, IndexError) as error:
            reason = Failure(f"{type(error).__name__}: {error}")
            if not is_lack_of_memory(error) and is_lost(device, error):
                raise DeviceLost(f"{device} is unusable: {reason}") from error
        if reason is not None and len(batch) == 1:
            results[batch[0]] = reason
        elif reason is not None:
            todo += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    return [results[index] for index in range(len(windows))]


def _cut(order: Sequence[int], windows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield batches of windows, which come longest first."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(windows[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

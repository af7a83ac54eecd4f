"""What a tokenizer call returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


class BatchEncoding(dict[str, Any]):
    """The fields of an encoded batch (``input_ids``, ``attention_mask``, ...), also readable as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field {name!r} in this encoding; it has {sorted(self)}") from None

    def to(self, device: str | torch.device) -> BatchEncoding:
        """Move every tensor to a device, in place, and return self; lists and arrays stay as they are."""
        for name, value in self.items():
            if not isinstance(value, (list, np.ndarray)):
                self[name] = value.to(device)
        return self

    def as_tensors(self, kind: str | None) -> BatchEncoding:
        """Turn every field, a list of B rows, into an int64 tensor ("pt") or array ("np") [B, S]; None leaves lists.

        Raises ValueError for another kind, and where the rows have unequal lengths.
        """
        if kind not in ("pt", "np", None):
            raise ValueError(
                f"return_tensors must be 'pt', 'np' or None, got {kind!r}; other frameworks take the NumPy arrays"
            )
        if kind is None:
            return self
        for name, rows in self.items():
            self[name] = _rectangle(name, rows)
        if kind == "pt":
            import torch  # tokenizing alone needs none of it

            for name, array in self.items():
                self[name] = torch.from_numpy(array)
        return self


def _rectangle(name: str, rows: list[Any]) -> np.ndarray:
    lengths = {len(row) for row in rows if isinstance(row, list)}
    if len(lengths) > 1:
        raise ValueError(
            f"{name} has rows of {min(lengths)} to {max(lengths)} tokens and cannot be one tensor; pass padding=True "
            "(and truncation=True where texts are too long)"
        )
    return np.asarray(rows, dtype=np.int64) if rows else np.zeros((0, 0), dtype=np.int64)

"""What a tokenizer call returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding


class Span(NamedTuple):
    """A range of characters or tokens; ``end`` is the first one behind it."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """The fields of an encoded batch (``input_ids``, ``attention_mask``, ...), also readable as attributes.

    What a fast tokenizer returns also knows where its tokens come from. A sequence of the batch is named by its number;
    where there is one sequence, a position alone will do. Positions without an answer give None.
    """

    def __init__(self, fields: Mapping[str, Any], encodings: Sequence[Encoding] | None = None) -> None:
        super().__init__(fields)
        self.encodings = None if encodings is None else list(encodings)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field {name!r} in this encoding; it has {sorted(self)}") from None

    @property
    def is_fast(self) -> bool:
        """Whether a fast tokenizer made this."""
        return self.encodings is not None

    def _encoding(self, batch_index: int) -> Encoding:
        if self.encodings is None:
            raise ValueError("a tokenizer that works step by step keeps no positions; use one whose name ends in Fast")
        return self.encodings[batch_index]

    def _locate(self, first: int, second: int | None) -> tuple[Encoding, int]:
        return (self._encoding(0), first) if second is None else (self._encoding(first), second)

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a sequence."""
        return self._encoding(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The word that each token of a sequence belongs to; None for special tokens."""
        return self._encoding(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for the tokens of a text, 1 for those of its pair, None for special tokens."""
        return self._encoding(batch_index).sequence_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 for a token of the text, 1 for one of its pair."""
        encoding, at = self._locate(batch_or_token_index, token_index)
        return encoding.token_to_sequence(at)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The word that a token belongs to."""
        encoding, at = self._locate(batch_or_token_index, token_index)
        return encoding.token_to_word(at)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> Span | None:
        """The characters of the text (or word) that a token stands for."""
        encoding, at = self._locate(batch_or_token_index, token_index)
        return _span(encoding.token_to_chars(at))

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """The tokens that a word became; ``sequence_index`` 1 asks for a word of the pair."""
        encoding, at = self._locate(batch_or_word_index, word_index)
        return _span(encoding.word_to_tokens(at, sequence_index))

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """The characters of a word."""
        encoding, at = self._locate(batch_or_word_index, word_index)
        return _span(encoding.word_to_chars(at, sequence_index))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that a character of the text became part of."""
        encoding, at = self._locate(batch_or_char_index, char_index)
        return encoding.char_to_token(at, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that a character of the text is part of."""
        encoding, at = self._locate(batch_or_char_index, char_index)
        return encoding.char_to_word(at, sequence_index)

    def to(self, device: str | torch.device) -> BatchEncoding:
        """Move every tensor to a device, in place, and return self; lists and arrays stay as they are."""
        for name, value in self.items():
            if hasattr(value, "to"):
                self[name] = value.to(device)
        return self

    def as_tensors(self, kind: str | None) -> BatchEncoding:
        """Turn every field, a list of B rows, into an int64 tensor ("pt") or array ("np") [B, S]; None leaves lists.

        Offsets are [B, S, 2]. Raises ValueError for another kind, and where the rows have unequal lengths.
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


def _span(ends: tuple[int, int] | None) -> Span | None:
    return None if ends is None else Span(*ends)


def _rectangle(name: str, rows: list[Any]) -> np.ndarray:
    lengths = {len(row) for row in rows if isinstance(row, list)}
    if len(lengths) > 1:
        raise ValueError(
            f"{name} has rows of {min(lengths)} to {max(lengths)} tokens and cannot be one tensor; pass padding=True "
            "(and truncation=True where texts are too long)"
        )
    return np.asarray(rows, dtype=np.int64) if rows else np.zeros((0, 0), dtype=np.int64)

"""How long an encoded sequence may and must be: truncation and padding."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What transformers writes as model_max_length where there is none; anything above MANY counts as no limit.
NO_LIMIT = int(1e30)
_MANY = int(1e20)

_PADDINGS = {True: "longest", False: "do_not_pad"}
_TRUNCATIONS = {True: "longest_first", False: "do_not_truncate"}


@dataclass(frozen=True)
class LengthPolicy:
    """The lengths that one call asks for, defaults filled in and contradictions refused."""

    padding: str
    truncation: str
    max_length: int | None
    multiple: int | None = None
    stride: int = 0
    padding_side: str = "right"
    truncation_side: str = "right"

    @classmethod
    def choose(
        cls,
        model_max_length: int,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        multiple: int | None = None,
        stride: int = 0,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> "LengthPolicy":
        """Read a call's arguments; ``max_length`` alone means truncation, as in transformers.

        Raises ValueError for an unknown strategy or a length that cannot be used.
        """
        padding_name = _strategy("padding", padding, _PADDINGS, ("longest", "max_length", "do_not_pad"))
        if truncation is None:
            truncation = max_length is not None and padding is False
            if max_length is not None and padding_name == "longest":
                warnings.warn(
                    f"max_length={max_length} has no effect with padding to the longest and no truncation; "
                    "pass truncation=True or padding='max_length'",
                    stacklevel=4,
                )
        truncation_name = _strategy(
            "truncation", truncation, _TRUNCATIONS, ("longest_first", "only_first", "only_second", "do_not_truncate")
        )
        if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int)):
            raise ValueError(f"max_length must be an integer or None, got {max_length!r}")
        if multiple is not None and multiple < 1:
            raise ValueError(f"pad_to_multiple_of must be at least 1, got {multiple}")
        if stride < 0:
            raise ValueError(f"stride must not be negative, got {stride}")
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            require_side(name, side)
        if max_length is None:
            max_length = None if model_max_length > _MANY else model_max_length
        if max_length is None:
            if padding_name == "max_length":
                raise ValueError("padding='max_length' needs max_length: this tokenizer has no model_max_length")
            truncation_name = "do_not_truncate"
        truncates = truncation_name != "do_not_truncate"
        if truncates and padding_name != "do_not_pad" and multiple and max_length is not None and max_length % multiple:
            raise ValueError(f"max_length={max_length} is no multiple of pad_to_multiple_of={multiple}")
        return cls(padding_name, truncation_name, max_length, multiple, stride, padding_side, truncation_side)

    @property
    def truncates(self) -> bool:
        """Whether a sequence that is too long is cut."""
        return self.truncation != "do_not_truncate"

    @property
    def pads(self) -> bool:
        """Whether a sequence that is too short is filled up."""
        return self.padding != "do_not_pad"

    def room(self, n_special: int) -> int | None:
        """Tokens that fit beside the special ones; None for no limit. Raises ValueError where there is no room."""
        if not self.truncates or self.max_length is None:
            return None
        room = self.max_length - n_special
        if room <= 0:
            raise ValueError(
                f"max_length={self.max_length} leaves no room beside {n_special} special tokens; "
                f"it must be at least {n_special + 1}"
            )
        return room

    def padded_length(self, lengths: list[int]) -> int:
        """The length that shorter rows are padded to, given the rows' own lengths."""
        target = max(lengths, default=0) if self.padding == "longest" else self.max_length or 0
        return -(-target // self.multiple) * self.multiple if self.multiple else target


def require_side(name: str, side: str) -> None:
    """Raise ValueError for anything but left and right."""
    if side not in ("left", "right"):
        raise ValueError(f"{name} must be 'left' or 'right', got {side!r}")


def _strategy(name: str, value: bool | str, by_bool: dict[bool, str], allowed: tuple[str, ...]) -> str:
    chosen = by_bool[value] if isinstance(value, bool) else value
    if chosen not in allowed:
        raise ValueError(f"{name} must be True, False or one of {', '.join(allowed)}; got {value!r}")
    return chosen


def truncate(
    first: list[int], second: list[int] | None, policy: LengthPolicy, n_special: int
) -> tuple[list[int], list[int] | None, list[int]]:
    """Shorten a sequence, or a pair, so that it and its special tokens fit; the third list is what was cut off.

    The longer of a pair loses tokens until both are equally long, then they take turns; what was cut off is then not told.
    It begins (ends, on the left) with ``policy.stride`` tokens that were kept. Raises ValueError where nothing but special
    tokens would remain, or where the one sequence that may be shortened is too short.
    """
    room = policy.room(n_special)
    n_second = len(second or ())
    excess = 0 if room is None else len(first) + n_second - room
    if excess <= 0:
        return first, second, []
    if second is not None and policy.truncation == "longest_first":
        levelling = min(abs(len(first) - n_second), excess)
        shared = excess - levelling
        if len(first) > n_second:
            cuts = levelling + shared // 2, shared - shared // 2
        else:
            cuts = shared // 2, levelling + shared - shared // 2
        return _cut(first, cuts[0], policy.truncation_side), _cut(second, cuts[1], policy.truncation_side), []
    target = (second or []) if policy.truncation == "only_second" else first
    if excess >= len(target):
        raise ValueError(
            f"truncation={policy.truncation!r} must remove {excess} tokens from a sequence of {len(target)}; "
            "use truncation='longest_first' or a longer max_length"
        )
    overflow = _ends(target, excess + policy.stride, policy.truncation_side)
    kept = _cut(target, excess, policy.truncation_side)
    return (first, kept, overflow) if policy.truncation == "only_second" else (kept, second, overflow)


def _cut(ids: list[int], n: int, side: str) -> list[int]:
    return ids[n:] if side == "left" else ids[: len(ids) - n]


def _ends(ids: list[int], n: int, side: str) -> list[int]:
    return ids[:n] if side == "left" else ids[-n:]


def pad_rows(fields: Mapping[str, list[Any]], policy: LengthPolicy, pad_id: int) -> dict[str, list[Any]]:
    """Pad the rows of every per-token field; longer rows, and fields of other names, stay as they are."""
    length = policy.padded_length([len(row) for row in fields["input_ids"]])
    values = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}

    def padded(row: list[int], value: int) -> list[int]:
        padding = [value] * (length - len(row))
        return padding + row if policy.padding_side == "left" else row + padding

    return {
        name: [padded(row, values[name]) for row in rows] if name in values else rows for name, rows in fields.items()
    }

"""What one call of a tokenizer asks for, and how its arguments are told apart."""

from dataclasses import dataclass
from typing import Any

from pegasus_batch.tokenization.lengths import LengthPolicy


@dataclass(frozen=True)
class Request:
    """One call's wishes: lengths, how to read the texts, and the fields wanted for every text."""

    lengths: LengthPolicy
    fields: tuple[str, ...]
    is_batch: bool
    add_special_tokens: bool
    is_split_into_words: bool
    split_special_tokens: bool
    overflow: bool


def as_batch(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[list[Any], list[Any], bool]:
    """Texts and their pairs (None for none) as lists of equal length, and whether the caller gave a batch.

    A list of words is one text. In a batch without ``text_pair``, two texts together are a pair. Raises ValueError where
    texts and pairs cannot be matched.
    """
    if not (_is_list(text) and (not is_split_into_words or not text or _is_list(text[0]))):
        return [text], [text_pair], False
    if text_pair is None:
        pairs = [_unpack_pair(one, is_split_into_words) for one in text]
        return [first for first, _ in pairs], [second for _, second in pairs], True
    if not _is_list(text_pair) or len(text_pair) != len(text):
        n_pairs = len(text_pair) if _is_list(text_pair) else "is no list"
        raise ValueError(f"text has {len(text)} entries and text_pair {n_pairs}; each text needs its pair")
    return list(text), list(text_pair), True


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _unpack_pair(text: Any, is_split_into_words: bool) -> tuple[Any, Any]:
    kinds = (list, tuple) if is_split_into_words else str
    is_pair = _is_list(text) and len(text) == 2 and all(isinstance(one, kinds) for one in text)
    return (text[0], text[1]) if is_pair else (text, None)


def require_encodable(text: str) -> None:
    """Raise ValueError for a lone surrogate, which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate, {text[error.start]!r} at character {error.start}, and is not valid "
            "Unicode; repair it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error


def text_error(text: Any) -> ValueError:
    """The error for something that cannot be read as a text."""
    hint = "; give pairs as text and text_pair, words with is_split_into_words=True" if _is_list(text) else ""
    return ValueError(f"a text must be a string, got {type(text).__name__} {text!r:.80}{hint}")

"""Tokens matched in the raw text, before the subword model sees it: special tokens and tokens that a user added."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tokenizers import AddedToken as LibraryToken


@dataclass(frozen=True)
class AddedToken:
    """A literal string with an id of its own, and how it treats the text around it.

    ``lstrip`` and ``rstrip`` eat the white space on that side; ``single_word`` matches only between spaces;
    ``special`` tokens are dropped by ``decode(skip_special_tokens=True)``. ``normalized`` is carried for other readers
    of the files; nothing here normalizes before matching.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    @classmethod
    def from_json(cls, value: "str | Mapping[str, Any] | AddedToken | LibraryToken") -> "AddedToken":
        """Read a token as the tokenizer JSON files spell it, a string or an object with any of the fields, or another's."""
        if isinstance(value, AddedToken):
            return value
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, LibraryToken):
            return cls(**{name: getattr(value, name) for name in cls.__dataclass_fields__})
        if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
            raise ValueError(f"a token must be a string or an object with a string 'content', got {value!r}")
        fields = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        return cls(**fields)

    def to_library(self) -> LibraryToken:
        """The same token for the tokenizers library."""
        return LibraryToken(**asdict(self))

    def to_json(self) -> dict[str, Any]:
        """The object that ``from_json`` reads."""
        return asdict(self)


class AddedVocabulary:
    """The added tokens by id, and the splitter that finds them in a text."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self.tokens = dict(tokens)
        self.ids = {token.content: index for index, token in self.tokens.items()}
        self._pattern: re.Pattern[str] | None = None

    def put(self, index: int, token: AddedToken) -> None:
        """Give a token this id, in place of the one that had it."""
        self.tokens[index] = token
        self.ids[token.content] = index
        self._pattern = None

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Cut a text at its added tokens: (piece, whether it is an added token), nothing empty.

        Leftmost match first, and the longest of those that start there. Linear in the text.
        """
        if not self.ids:
            return [(text, False)] if text else []
        if self._pattern is None:
            by_length = sorted((content for content in self.ids if content), key=len, reverse=True)
            self._pattern = re.compile("(" + "|".join(map(re.escape, by_length)) + ")")
        pieces = [piece for piece in self._pattern.split(text) if piece]
        for i, piece in enumerate(pieces):
            if piece in self.ids:
                self._apply_edges(pieces, i, piece)
        # Looked up again because an edge rule may have joined a token to its neighbour, which makes it plain text.
        return [(piece, piece in self.ids) for piece in pieces if piece]

    def _apply_edges(self, pieces: list[str], i: int, piece: str) -> None:
        token = self.tokens[self.ids[piece]]
        left = pieces[i - 1] if i > 0 else ""
        right = pieces[i + 1] if i + 1 < len(pieces) else ""
        if token.rstrip and right:
            pieces[i + 1] = right.lstrip()
        if token.lstrip and left:
            pieces[i - 1] = left.rstrip()
        if token.single_word and left and left[-1] != " ":
            pieces[i - 1] += piece
            pieces[i] = ""
        elif token.single_word and right and right[0] != " ":
            pieces[i + 1] = piece + pieces[i + 1]
            pieces[i] = ""

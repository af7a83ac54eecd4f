"""Tokens and their ids: a subword model's own, the special ones, and those added later."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pegasus_batch.tokenization.added_tokens import AddedToken, AddedVocabulary

# In the order in which missing ones receive ids, so that ids agree with those of transformers.
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Vocabulary(ABC):
    """Every token with its id; a subclass brings the subwords.

    Attributes: for each special token its string (``pad_token``) and its id (``pad_token_id``), None where the
    vocabulary has no such token; ``all_special_tokens`` and ``all_special_ids``; ``additional_special_tokens``.
    """

    pad_token: str
    eos_token: str
    unk_token: str
    mask_token: str | None
    bos_token: str | None
    sep_token: str | None
    cls_token: str | None
    pad_token_id: int
    eos_token_id: int
    unk_token_id: int
    mask_token_id: int | None
    bos_token_id: int | None
    sep_token_id: int | None
    cls_token_id: int | None

    def __init__(
        self,
        special_tokens: Mapping[str, str | AddedToken | None],
        additional_special_tokens: Sequence[str | AddedToken],
        reserved: Mapping[int, AddedToken],
    ) -> None:
        """The subclass has its subwords ready; ``reserved`` are the added tokens whose ids are already fixed.

        Pad, eos and unk are not None: ``require_tokens`` saw to it.
        """
        self._added = AddedVocabulary(reserved)
        given = {name: special_tokens.get(name) for name in SPECIAL_NAMES}
        self._special = {name: AddedToken.from_json(value) for name, value in given.items() if value is not None}
        self.additional_special_tokens = [AddedToken.from_json(value).content for value in additional_special_tokens]
        # A bare string says nothing about white space, so it must not override the flags of a reserved token.
        self._add(
            [
                AddedToken.from_json(value)
                for value in (*given.values(), *additional_special_tokens)
                if value is not None and not (isinstance(value, str) and value in self._added.ids)
            ],
            special=True,
            first_new=len(self.get_vocab()),
        )

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Subwords and reserved ids; ``len()`` also counts the tokens added after them."""

    @abstractmethod
    def _subword_ids(self) -> dict[str, int]:
        """Every subword with its id."""

    @abstractmethod
    def _subword(self, index: int) -> str | None:
        """The subword with this id, or None."""

    @abstractmethod
    def _unknown_id(self) -> int:
        """The id of a token that is no subword."""

    def __len__(self) -> int:
        return self._n_tokens

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added tokens included."""
        # An added token hides the subword that has the same id.
        visible = {token: i for token, i in self._subword_ids().items() if i not in self._added.tokens}
        return {**visible, **self._added.ids}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens matched in the raw text, by id."""
        return dict(sorted(self._added.tokens.items()))

    def add_tokens(self, tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Give new tokens ids after the last one and return how many are new; the model's embeddings must grow too."""
        fresh = []
        for token in [tokens] if isinstance(tokens, (str, AddedToken)) else tokens:
            if isinstance(token, AddedToken):
                fresh.append(token)
            elif token not in self._added.ids:
                special = special_tokens or token in self._special_set
                fresh.append(AddedToken(token, normalized=not special, special=special))
        return self._add(fresh, special_tokens, first_new=1 + max(self.get_vocab().values()))

    def _add(self, tokens: list[AddedToken], special: bool, first_new: int) -> int:
        # At construction new ids start at the number of different tokens, as in transformers: that hides the last
        # subword where a reserved token repeats one, but a literal <unk> must have the id it was trained with.
        known = self.get_vocab()
        n_new = 0
        for token in tokens:
            if not token.content:
                continue
            if special and not token.special:
                token = AddedToken(**{**token.to_json(), "special": True})
            if token.content not in known:
                known[token.content] = first_new + n_new
                n_new += 1
            self._added.put(known[token.content], token)
            if token.special and token.content not in self._special_contents():
                self.additional_special_tokens.append(token.content)
        self._index()
        return n_new

    def _special_contents(self) -> list[str]:
        named = [token.content for token in self._special.values()]
        return list(dict.fromkeys(named + self.additional_special_tokens))

    def _index(self) -> None:
        """Recompute whatever depends on the added tokens."""
        self._ids = {**self._subword_ids(), **self._added.ids}
        self._n_tokens = len(self.get_vocab())
        for name in SPECIAL_NAMES:
            token = self._special.get(name)
            setattr(self, name, None if token is None else token.content)
            setattr(self, f"{name}_id", None if token is None else self._id(token.content))
        self.all_special_tokens = self._special_contents()
        self.all_special_ids = [self._id(content) for content in self.all_special_tokens]
        self.additional_special_tokens_ids = [self._id(content) for content in self.additional_special_tokens]
        self._special_set = frozenset(self.all_special_tokens)
        self._special_id_set = frozenset(self.all_special_ids)

    def _id(self, token: str) -> int:
        return self._ids.get(token, self._unknown_id())

    def _token(self, index: int) -> str | None:
        added = self._added.tokens.get(index)
        return self._subword(index) if added is None else added.content

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """One id for a token, a list of ids for a list; a token outside the vocabulary gets the unknown id."""
        if isinstance(tokens, str):
            return self._id(tokens)
        ids, unknown = self._ids, self._unknown_id()
        return [ids.get(token, unknown) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """One token for an id, a list of tokens for a list, array or tensor of ids.

        Raises ValueError for an id outside the vocabulary.
        """
        values = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(values, int):
            return self._known_token(values)
        skipped: frozenset[int] = self._special_id_set if skip_special_tokens else frozenset()
        return [self._known_token(index) for index in map(int, values) if index not in skipped]

    def _known_token(self, index: int) -> str:
        token = self._token(index)
        if token is None:
            raise ValueError(
                f"id {index} is outside the vocabulary of {self.vocab_size} tokens; "
                "replace ignored labels (-100) by pad_token_id before decoding"
            )
        return token


def require_tokens(special_tokens: Mapping[str, str | AddedToken | None], names: Sequence[str]) -> None:
    """Raise ValueError where one of these special tokens is None."""
    for name in names:
        if special_tokens[name] is None:
            raise ValueError(f"{name} must be a string, got None: sequences cannot be built without it")

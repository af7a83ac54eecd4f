"""Tokens and their ids: a subword model's own, the special ones, and those added later."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

from tokenizers import AddedToken as LibraryToken

from pegasus_batch.tokenization.added_tokens import AddedToken, AddedVocabulary

# In the order in which missing ones receive ids, so that ids agree with those of transformers.
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADDITIONAL = "additional_special_tokens"
Token: TypeAlias = str | AddedToken | LibraryToken


class Vocabulary(ABC):
    """Every token with its id; a subclass brings the tokens.

    Attributes: for each special token its string (``pad_token``) and its id (``pad_token_id``), None where the
    vocabulary has no such token; ``all_special_tokens`` and ``all_special_ids``; ``additional_special_tokens``.
    Assigning a special token, or its id, makes another token of the vocabulary take its part; ``add_special_tokens`` also
    adds it.
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
    additional_special_tokens: list[str]
    all_special_tokens: list[str]
    all_special_ids: list[int]
    additional_special_tokens_ids: list[int]

    required_tokens: ClassVar[tuple[str, ...]]  # without them no sequence can be built

    def __init__(
        self,
        special_tokens: Mapping[str, str | AddedToken | None],
        additional_special_tokens: Sequence[str | AddedToken],
    ) -> None:
        """The subclass adds these tokens to the vocabulary, and then calls ``_index``."""
        given = {name: special_tokens.get(name) for name in SPECIAL_NAMES}
        self._special = {name: AddedToken.from_json(value) for name, value in given.items() if value is not None}
        self.__dict__[ADDITIONAL] = [AddedToken.from_json(value).content for value in additional_special_tokens]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SPECIAL_NAMES:
            require_tokens({name: value}, {name}.intersection(self.required_tokens))
            self._special.pop(name, None)
            if value is not None:
                self._special[name] = AddedToken.from_json(value)
            self._index()
        elif name.removesuffix("_id") in SPECIAL_NAMES:
            setattr(self, name.removesuffix("_id"), None if value is None else self._known_token(value))
        elif name == ADDITIONAL:
            self.__dict__[name] = [AddedToken.from_json(token).content for token in value]
            self._index()
        else:
            super().__setattr__(name, value)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Subwords and reserved ids; ``len()`` also counts the tokens added after them."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added tokens included."""

    @property
    @abstractmethod
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens matched in the raw text, by id."""

    @abstractmethod
    def _add(self, tokens: list[Token], special: bool) -> int:
        """Add what is new, take over the flags of what is not, and return how many were new."""

    @abstractmethod
    def _ids_of(self, tokens: Iterable[str]) -> list[int]:
        """The ids of tokens; the unknown id for one outside the vocabulary."""

    @abstractmethod
    def _token(self, index: int) -> str | None:
        """The token with this id, or None."""

    @property
    def vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self.get_vocab()

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The id of every token matched in the raw text."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """The id of every token matched in the raw text."""
        return self.added_tokens_encoder

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """The special tokens by the names under which they are assigned."""
        named: dict[str, str | list[str]] = {name: token.content for name, token in self._special.items()}
        return {**named, ADDITIONAL: self.additional_special_tokens} if self.additional_special_tokens else named

    def add_tokens(self, tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Give new tokens ids after the last one and return how many are new; the model's embeddings must grow too."""
        given: Sequence[Token] = [tokens] if isinstance(tokens, Token) else tokens
        return self._add(list(given), special_tokens)

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Token | Sequence[Token]],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Assign special tokens by name (``pad_token``, ..., ``additional_special_tokens``); return how many are new.

        A list of additional ones replaces the present list, whose tokens stay in the vocabulary as ordinary added ones,
        or extends it. Raises ValueError for another name.
        """
        tokens: list[Token] = []
        for name, value in special_tokens_dict.items():
            if name == ADDITIONAL:
                new = [_special_token(token) for token in require_list(value)]
                if not replace_additional_special_tokens:
                    new = [token for token in new if token.content not in self.additional_special_tokens]
                    setattr(self, name, [*self.additional_special_tokens, *new])
                elif new:
                    setattr(self, name, new)
                tokens += new
            elif name in SPECIAL_NAMES:
                token = _special_token(value)
                setattr(self, name, token)
                tokens.append(token)
            else:
                raise ValueError(f"{name!r} is no special token; there are {', '.join((*SPECIAL_NAMES, ADDITIONAL))}")
        return self._add(tokens, special=True)

    def _special_contents(self) -> list[str]:
        named = [token.content for token in self._special.values()]
        return list(dict.fromkeys(named + self.additional_special_tokens))

    def _index(self) -> None:
        """Recompute whatever depends on the special tokens."""
        values = self.__dict__
        self._special = {name: self._special[name] for name in SPECIAL_NAMES if name in self._special}
        for name in SPECIAL_NAMES:
            token = self._special.get(name)
            values[name] = None if token is None else token.content
            values[f"{name}_id"] = None if token is None else self._id(token.content)
        self.all_special_tokens = self._special_contents()
        self.all_special_ids = self._ids_of(self.all_special_tokens)
        self.additional_special_tokens_ids = self._ids_of(self.additional_special_tokens)
        self._special_set = frozenset(self.all_special_tokens)
        self._special_id_set = frozenset(self.all_special_ids)

    def _id(self, token: str) -> int:
        return self._ids_of((token,))[0]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """One id for a token, a list of ids for a list; a token outside the vocabulary gets the unknown id."""
        return self._id(tokens) if isinstance(tokens, str) else self._ids_of(tokens)

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
        token = self._token(index) if index >= 0 else None
        if token is None:
            raise ValueError(
                f"id {index} is outside the vocabulary of {self.vocab_size} tokens; "
                "replace ignored labels (-100) by pad_token_id before decoding"
            )
        return token


class SubwordVocabulary(Vocabulary):
    """Subwords of a subclass, and added tokens found in the raw text before it sees it."""

    def __init__(
        self,
        special_tokens: Mapping[str, str | AddedToken | None],
        additional_special_tokens: Sequence[str | AddedToken],
        reserved: Mapping[int, AddedToken],
    ) -> None:
        """The subclass has its subwords ready; ``reserved`` are the added tokens whose ids are already fixed."""
        super().__init__(special_tokens, additional_special_tokens)
        self._added = AddedVocabulary(reserved)
        # A bare string says nothing about white space, so it must not override the flags of a reserved token. New ids
        # start at the number of different tokens, as in transformers: that hides the last subword where a reserved token
        # repeats one, but a literal <unk> must have the id it was trained with.
        named = (special_tokens.get(name) for name in SPECIAL_NAMES)
        self._put(
            [
                AddedToken.from_json(_special_token(value))
                for value in (*named, *additional_special_tokens)
                if value is not None and not (isinstance(value, str) and value in self._added.ids)
            ],
            special=True,
            first_new=len(self.get_vocab()),
        )

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

    def _add(self, tokens: list[Token], special: bool) -> int:
        fresh = []
        for token in tokens:
            if not isinstance(token, str):
                fresh.append(AddedToken.from_json(token))
            elif token not in self._added.ids:
                is_special = special or token in self._special_set
                fresh.append(AddedToken(token, normalized=not is_special, special=is_special))
        return self._put(fresh, special, first_new=1 + max(self.get_vocab().values()))

    def _put(self, tokens: list[AddedToken], special: bool, first_new: int) -> int:
        known = self.get_vocab()
        n_new = 0
        for token in tokens:
            if not token.content:
                continue
            if special and not token.special:
                token = replace(token, special=True)
            if token.content not in known:
                known[token.content] = first_new + n_new
                n_new += 1
            self._added.put(known[token.content], token)
            if token.special and token.content not in self._special_contents():
                self.additional_special_tokens.append(token.content)
        self._index()
        return n_new

    def _index(self) -> None:
        self._ids = {**self._subword_ids(), **self._added.ids}
        self._n_tokens = len(self.get_vocab())
        super()._index()

    def _ids_of(self, tokens: Iterable[str]) -> list[int]:
        ids, unknown = self._ids, self._unknown_id()
        return [ids.get(token, unknown) for token in tokens]

    def _token(self, index: int) -> str | None:
        added = self._added.tokens.get(index)
        return self._subword(index) if added is None else added.content


def _special_token(value: Any) -> AddedToken | LibraryToken:
    return AddedToken(value, normalized=False, special=True) if isinstance(value, str) else value


def require_list(tokens: Any) -> list[str | AddedToken]:
    """The tokens as a list; raises ValueError for a string, whose letters would be taken for tokens."""
    if isinstance(tokens, str) or not isinstance(tokens, Sequence):
        raise ValueError(f"{ADDITIONAL} must be a list of tokens, got {tokens!r}")
    return list(tokens)


def require_tokens(special_tokens: Mapping[str, str | AddedToken | None], names: Iterable[str]) -> None:
    """Raise ValueError where one of these special tokens is None."""
    for name in names:
        if special_tokens[name] is None:
            raise ValueError(f"{name} must be a string, got None: sequences cannot be built without it")

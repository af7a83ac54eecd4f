"""The contract that every tokenizer shares: calls, truncation, padding, decoding, files."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.encoding import BatchEncoding
from pegasus_batch.tokenization.files import COMMON_SETTINGS, PLAIN_SETTINGS, read_settings, write_settings
from pegasus_batch.tokenization.lengths import NO_LIMIT, LengthPolicy, pad_rows, truncate
from pegasus_batch.tokenization.vocabulary import Vocabulary

# English spacing habits of old tokenized corpora, undone in this order.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Tokenizer(Vocabulary):
    """Text to ids and back; a subclass brings the subword model and the layout of special tokens.

    Ids are those of transformers 4.57.6's tokenizers written in Python ("slow"). Instances pickle. Special tokens
    spelled out in a text become their ids unless ``split_special_tokens`` is set.
    """

    def __init__(
        self,
        special_tokens: Mapping[str, str | AddedToken | None],
        additional_special_tokens: Sequence[str | AddedToken],
        reserved: Mapping[int, AddedToken],
        *,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
    ) -> None:
        """``model_max_length`` counts special tokens and is what a call truncates to by default; None for no limit."""
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("left", "right"):
                raise ValueError(f"{name} must be 'left' or 'right', got {side!r}")
        self.model_max_length = NO_LIMIT if model_max_length is None else int(model_max_length)
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.split_special_tokens = split_special_tokens
        super().__init__(special_tokens, additional_special_tokens, reserved)

    own_settings: ClassVar[tuple[str, ...]]  # the options in tokenizer_config.json that only this class has

    @classmethod
    @abstractmethod
    def _load(cls, directory: Path, options: dict[str, Any]) -> Self:
        """Construct from the directory's vocabulary files, with these constructor options."""

    @abstractmethod
    def _save_vocabulary(self, directory: Path) -> None:
        """Write the vocabulary files."""

    @abstractmethod
    def _split_subwords(self, text: str) -> list[str]:
        """Subwords of a text that is free of added tokens; linear in the text."""

    @abstractmethod
    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text."""

    @abstractmethod
    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put the special tokens around one sequence, or a pair."""

    @abstractmethod
    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for a special token and 0 for any other, over the sequence with its special tokens."""

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens ``build_inputs_with_special_tokens`` adds."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """A zero for every token of the built sequence: these models have no token types."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    @classmethod
    def from_pretrained(cls, directory: str | Path, **overrides: Any) -> Self:
        """Load from a local directory, saved here or by transformers; ``overrides`` replace what its files say."""
        path = Path(directory)
        if not path.is_dir():
            raise FileNotFoundError(f"{directory} is not a directory; download the checkpoint and pass where it lies")
        names = {*COMMON_SETTINGS, *cls.own_settings}
        if unknown := overrides.keys() - names:
            raise ValueError(f"{cls.__name__} has no option {sorted(unknown)}; it has {sorted(names)}")
        settings = {**read_settings(path), **overrides}
        return cls._load(path, {name: value for name, value in settings.items() if name in names})

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the files that ``from_pretrained``, here and in transformers, loads again."""
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        self._save_vocabulary(path)
        settings = {
            **{name: getattr(self, name) for name in (*PLAIN_SETTINGS, *self.own_settings)},
            "tokenizer_class": type(self).__name__,
        }
        n_base = self.vocab_size
        write_settings(path, settings, self._special, self.additional_special_tokens, self.added_tokens_decoder, n_base)

    # Text to ids.

    def _prepare_text(self, text: str, is_split_into_words: bool) -> str:
        return text

    def tokenize(
        self, text: str, *, is_split_into_words: bool = False, split_special_tokens: bool | None = None, **options: Any
    ) -> list[str]:
        """Cut a text into tokens, without adding any.

        ``split_special_tokens`` treats spelled-out special tokens as plain text. Raises ValueError for a text that is
        not valid Unicode.
        """
        text = self._prepare_text(text, is_split_into_words, **options)
        _require_encodable(text)
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            return self._split_subwords(text) if text else []
        tokens: list[str] = []
        for piece, is_added in self._added.split(text):
            if is_added:
                tokens.append(piece)
            else:
                tokens.extend(self._split_subwords(piece))
        return tokens

    def _plain_ids(self, text: Any, is_split_into_words: bool, options: dict[str, Any]) -> list[int]:
        """Ids, without special tokens, of a text or of its words."""
        if isinstance(text, str):
            return self.convert_tokens_to_ids(self.tokenize(text, **options))
        is_list = isinstance(text, (list, tuple))
        if is_list and is_split_into_words and all(isinstance(word, str) for word in text):
            words = (self.tokenize(word, is_split_into_words=True, **options) for word in text)
            return self.convert_tokens_to_ids([token for word in words for token in word])
        hint = "; give pairs as text and text_pair, words with is_split_into_words=True" if is_list else ""
        raise ValueError(f"a text must be a string, got {type(text).__name__} {text!r:.80}{hint}")

    def _ids_of(self, text: Any, is_split_into_words: bool, options: dict[str, Any]) -> list[int]:
        """As ``_plain_ids``, and also of a list of tokens, or of ids, which stay as they are."""
        if isinstance(text, (list, tuple)) and not is_split_into_words:
            if all(isinstance(token, str) for token in text):
                return self.convert_tokens_to_ids(text)
            if all(isinstance(index, int) for index in text):
                return list(text)
        return self._plain_ids(text, is_split_into_words, options)

    def encode(
        self,
        text: str | list[str] | list[int],
        text_pair: str | list[str] | list[int] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        is_split_into_words: bool = False,
        **options: Any,
    ) -> Any:
        """Ids of one text (or of its tokens): a list, or a tensor [1, S]; the arguments are those of a call."""
        policy = LengthPolicy.choose(self.model_max_length, padding, truncation, max_length)
        first = self._ids_of(text, is_split_into_words, options)
        second = None if text_pair is None else self._ids_of(text_pair, is_split_into_words, options)
        row = self._with_special_tokens(first, second, policy, add_special_tokens)
        batch = self._padded({"input_ids": [row["input_ids"]]}, policy).as_tensors(return_tensors)
        return batch.input_ids if return_tensors else batch.input_ids[0]

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        text_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        is_split_into_words: bool = False,
        return_attention_mask: bool = True,
        return_token_type_ids: bool = False,
        return_special_tokens_mask: bool = False,
        return_length: bool = False,
        **options: Any,
    ) -> BatchEncoding:
        """Encode one text, or a list of them, as ``input_ids`` and ``attention_mask`` (1 token, 0 padding).

        padding: True or "longest", "max_length", or False. truncation: True or "longest_first" (token by token from
        the longer of a pair), "only_first", "only_second", or False; special tokens always stay. ``max_length`` counts
        special tokens and defaults to ``model_max_length``; given alone it truncates. ``return_tensors``: "pt" or "np"
        for int64 [B, S], None for lists. ``text_target`` adds the targets' ids as ``labels``. With
        ``is_split_into_words`` a text is a list of words. ``options`` go to ``tokenize``. Raises ValueError, naming the
        text's position, for what cannot be encoded.
        """
        policy = LengthPolicy.choose(self.model_max_length, padding, truncation, max_length, pad_to_multiple_of)
        texts, is_batch = _as_batch(text, is_split_into_words)
        pairs = [None] * len(texts) if text_pair is None else _as_batch(text_pair, is_split_into_words)[0]
        if len(pairs) != len(texts):
            raise ValueError(f"text has {len(texts)} entries and text_pair {len(pairs)}; each text needs its pair")
        wanted = {
            "attention_mask": return_attention_mask,
            "token_type_ids": return_token_type_ids,
            "special_tokens_mask": return_special_tokens_mask,
        }
        fields: dict[str, list[Any]] = {name: [] for name in ("input_ids", *wanted) if wanted.get(name, True)}
        for i, (first, second) in enumerate(zip(texts, pairs, strict=True)):
            try:
                ids = self._plain_ids(first, is_split_into_words, options)
                pair_ids = None if second is None else self._plain_ids(second, is_split_into_words, options)
            except ValueError as error:
                raise ValueError(f"text {i}: {error}" if is_batch else str(error)) from error
            row = self._with_special_tokens(ids, pair_ids, policy, add_special_tokens)
            for name in fields:
                fields[name].append(row[name])
        encoding = self._padded(fields, policy)
        if return_length:
            encoding["length"] = [len(row) for row in encoding.input_ids]
        if text_target is not None:
            encoding["labels"] = self(
                text_target,
                add_special_tokens=add_special_tokens,
                padding=padding,
                truncation=truncation,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                is_split_into_words=is_split_into_words,
                **options,
            ).input_ids
            if not is_batch:
                encoding["labels"] = [encoding.labels]
        if return_tensors is None and not is_batch:
            return BatchEncoding({name: rows[0] for name, rows in encoding.items()})
        return encoding.as_tensors(return_tensors)

    def _with_special_tokens(
        self, first: list[int], second: list[int] | None, policy: LengthPolicy, add_special_tokens: bool
    ) -> dict[str, list[int]]:
        """Truncate and complete one sequence or pair; every per-token field of it, unpadded."""
        n_special = self.num_special_tokens_to_add(second is not None) if add_special_tokens else 0
        first, second = truncate(first, second, policy, n_special, self.truncation_side)
        if add_special_tokens:
            ids = self.build_inputs_with_special_tokens(first, second)
            special = self.get_special_tokens_mask(first, second)
        else:
            ids = first + (second or [])
            special = [0] * len(ids)
        zeros, ones = [0] * len(ids), [1] * len(ids)
        return {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros, "special_tokens_mask": special}

    def _padded(self, fields: Mapping[str, list[Any]], policy: LengthPolicy) -> BatchEncoding:
        length = policy.padded_length([len(row) for row in fields["input_ids"]])
        if length is None:
            return BatchEncoding(fields)
        return BatchEncoding(pad_rows(fields, length, self.pad_token_id, self.padding_side))

    def pad(
        self,
        encodings: Mapping[str, list[Any]] | Sequence[Mapping[str, Any]],
        *,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pad sequences encoded earlier: a dictionary of rows, or a list of single encodings, as a collator gets them.

        A missing ``attention_mask`` is made. Raises ValueError where ``input_ids`` are missing.
        """
        if not isinstance(encodings, Mapping):
            names = list(encodings[0]) if encodings else ["input_ids"]
            encodings = {name: [one[name] for one in encodings] for name in names}
        if "input_ids" not in encodings:
            raise ValueError(f"pad() needs input_ids; the encodings have {sorted(encodings)}")
        fields = {name: [_as_list(row) for row in rows] for name, rows in encodings.items()}
        fields.setdefault("attention_mask", [[1] * len(row) for row in fields["input_ids"]])
        policy = LengthPolicy.choose(self.model_max_length, padding, False, max_length, pad_to_multiple_of)
        return self._padded(fields, policy).as_tensors(return_tensors)

    # Ids to text.

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Text of an id, or of a list, array or tensor [T] of ids.

        ``skip_special_tokens`` drops every special token, the unknown one included. ``clean_up_tokenization_spaces``
        removes spaces before English punctuation. Raises ValueError for an id outside the vocabulary.
        """
        tokens = self.convert_ids_to_tokens(token_ids, skip_special_tokens)
        tokens = [tokens] if isinstance(tokens, str) else tokens
        if skip_special_tokens:
            tokens = [token for token in tokens if token not in self._special_set]
        parts: list[str] = []
        run: list[str] = []
        for token in tokens:
            if token in self._detached:
                if run:
                    # Only here does an empty text vanish; at the end it still counts as a part.
                    parts.extend(filter(None, [self.convert_tokens_to_string(run)]))
                    run = []
                parts.append(token)
            else:
                run.append(token)
        if run:
            parts.append(self.convert_tokens_to_string(run))
        text = " ".join(parts)
        if self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces:
            for spaced, joined in _CLEAN_UP:
                text = text.replace(spaced, joined)
        return text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Texts of B sequences of ids: a list of lists, or a tensor or array [B, T]; see ``decode``."""
        rows = sequences.tolist() if hasattr(sequences, "tolist") else sequences
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in rows]

    def _index(self) -> None:
        super()._index()
        # Added tokens that are no business of the subword model: decode() joins them to the text by spaces.
        later = {token for token in self.additional_special_tokens if self._id(token) >= self.vocab_size}
        self._detached = (self._added.ids.keys() - self._special_set) | later


def _as_batch(text: Any, is_split_into_words: bool) -> tuple[list[Any], bool]:
    """The texts as a list, and whether the caller gave a list; a list of words is one text."""
    is_list = isinstance(text, (list, tuple))
    if is_list and is_split_into_words:
        is_list = not text or isinstance(text[0], (list, tuple))
    return (list(text), True) if is_list else ([text], False)


def _as_list(row: Any) -> Any:
    return row.tolist() if hasattr(row, "tolist") else row


def _require_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate, {text[error.start]!r} at character {error.start}, and is not valid "
            "Unicode; repair it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from error

"""Tokenizers that work step by step in Python, as transformers' slow ones do: subwords, ids, lengths, special tokens."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.calls import Request, require_encodable, text_error
from pegasus_batch.tokenization.encoding import BatchEncoding
from pegasus_batch.tokenization.lengths import pad_rows, truncate
from pegasus_batch.tokenization.vocabulary import SubwordVocabulary


class SlowTokenizer(Tokenizer, SubwordVocabulary):
    """Text to ids and back through a subword model; a subclass brings the model.

    Ids are those of transformers 4.57.6's tokenizers written in Python. Instances pickle.
    """

    is_fast = False

    def __init__(
        self,
        special_tokens: Mapping[str, str | AddedToken | None],
        additional_special_tokens: Sequence[str | AddedToken],
        reserved: Mapping[int, AddedToken],
        **common: Any,
    ) -> None:
        """``reserved`` are the added tokens whose ids are already fixed; ``common`` are the options of ``Tokenizer``."""
        self._set_options(**common)
        super().__init__(special_tokens, additional_special_tokens, reserved)

    @abstractmethod
    def _split_subwords(self, text: str) -> list[str]:
        """Subwords of a text that is free of added tokens; linear in the text."""

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
        require_encodable(text)
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            return self._split_subwords(text) if text else []
        tokens: list[str] = []
        for piece, is_added in self._added.split(text):
            if is_added:
                tokens.append(piece)
            else:
                tokens.extend(self._split_subwords(piece))
        return tokens

    def _ids_of_text(self, text: Any, request: Request, options: dict[str, Any]) -> list[int]:
        """Ids, without special tokens, of a text, of its words or tokens, or ids as they are."""
        if isinstance(text, str):
            return self._ids_of(self.tokenize(text, split_special_tokens=request.split_special_tokens, **options))
        if isinstance(text, (list, tuple)):
            if all(isinstance(word, str) for word in text):
                if request.is_split_into_words:
                    options = {**options, "split_special_tokens": request.split_special_tokens}
                    words = (self.tokenize(word, is_split_into_words=True, **options) for word in text)
                    return self._ids_of(token for word in words for token in word)
                if not request.is_batch:
                    return self._ids_of(text)
            elif not request.is_split_into_words and all(isinstance(index, int) for index in text):
                return list(text)
        raise text_error(text)

    def _encode(self, texts: list[Any], pairs: list[Any], request: Request, **options: Any) -> BatchEncoding:
        wanted = request.fields
        if "offset_mapping" in wanted:
            raise NotImplementedError(
                f"{type(self).__name__} knows no offsets; use {type(self).__name__}Fast for return_offsets_mapping=True"
            )
        names = [name for name in wanted if name != "length"]
        if request.overflow:
            names += ["overflowing_tokens", "num_truncated_tokens"]
        fields: dict[str, list[Any]] = {name: [] for name in names}
        for i, (first, second) in enumerate(zip(texts, pairs, strict=True)):
            try:
                ids = self._ids_of_text(first, request, options)
                pair_ids = None if second is None else self._ids_of_text(second, request, options)
            except ValueError as error:
                raise ValueError(f"text {i}: {error}" if request.is_batch else str(error)) from error
            row = self._row(ids, pair_ids, request)
            for name in names:
                fields[name].append(row[name])
        lengths = [len(row) for row in fields["input_ids"]]
        if request.lengths.pads:
            fields = pad_rows(fields, request.lengths, self.pad_token_id)
        if "length" in wanted:
            # As in transformers, padding counts for a single text and not in a batch.
            fields["length"] = lengths if request.is_batch else [len(row) for row in fields["input_ids"]]
        return BatchEncoding(fields)

    def prepare_for_model(self, ids: list[int], pair_ids: list[int] | None = None, **options: Any) -> BatchEncoding:
        """Truncate, complete and pad ids that are there already; the options are those of ``encode_texts``."""
        return self.encode_plus(ids, pair_ids, **options)

    def _row(self, first: list[int], second: list[int] | None, request: Request) -> dict[str, Any]:
        """Truncate and complete one sequence or pair; the fields of it that are wanted, unpadded."""
        n_special = self.num_special_tokens_to_add(second is not None) if request.add_special_tokens else 0
        n_all = len(first) + len(second or ()) + n_special
        first, second, cut_off = truncate(first, second, request.lengths, n_special)
        complete = request.add_special_tokens
        ids = self.build_inputs_with_special_tokens(first, second) if complete else first + (second or [])
        row: dict[str, Any] = {"input_ids": ids}
        if "attention_mask" in request.fields:
            row["attention_mask"] = [1] * len(ids)
        if "token_type_ids" in request.fields:
            row["token_type_ids"] = [0] * len(ids)
        if "special_tokens_mask" in request.fields:
            row["special_tokens_mask"] = self.get_special_tokens_mask(first, second) if complete else [0] * len(ids)
        if request.overflow:
            if request.lengths.max_length is None:
                raise ValueError(
                    "return_overflowing_tokens=True needs max_length: this tokenizer has no model_max_length"
                )
            if second is not None and request.lengths.truncation == "longest_first":
                raise ValueError(
                    "return_overflowing_tokens=True with a pair needs truncation='only_first' or 'only_second': "
                    "'longest_first' cuts both texts"
                )
            row["overflowing_tokens"] = cut_off
            row["num_truncated_tokens"] = n_all - request.lengths.max_length
        return row

    def _single(self, encoding: BatchEncoding, request: Request) -> BatchEncoding:
        return BatchEncoding({name: rows[0] for name, rows in encoding.items()})

    # Ids to text.

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Text of an id, or of a list, array or tensor [T] of ids.

        ``skip_special_tokens`` drops every special token, the unknown one included. ``clean_up_tokenization_spaces``
        removes spaces before English punctuation; ``spaces_between_special_tokens`` sets added tokens apart from the text
        around them. Raises ValueError for an id outside the vocabulary.
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
        text = (" " if spaces_between_special_tokens else "").join(parts)
        return self._cleaned_up(text, clean_up_tokenization_spaces)

    def _index(self) -> None:
        super()._index()
        # Added tokens that are no business of the subword model: decode() joins them to the text by spaces.
        later = {token for token in self.additional_special_tokens if self._id(token) >= self.vocab_size}
        self._detached = (self._added.ids.keys() - self._special_set) | later

"""Tokenizers that leave a whole call to the tokenizers library, as transformers' fast ones do: they know offsets."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Encoding, decoders
from tokenizers import Tokenizer as Pipeline

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.calls import Request, require_encodable, text_error
from pegasus_batch.tokenization.encoding import BatchEncoding
from pegasus_batch.tokenization.files import FULL_TOKENIZER
from pegasus_batch.tokenization.vocabulary import SPECIAL_NAMES, Token

_FIELDS = {
    "input_ids": "ids",
    "token_type_ids": "type_ids",
    "attention_mask": "attention_mask",
    "special_tokens_mask": "special_tokens_mask",
    "offset_mapping": "offsets",
}


class FastTokenizer(Tokenizer):
    """Text to ids and back through one pipeline of the tokenizers library; a subclass builds the pipeline.

    Ids, offsets and texts are those of transformers 4.57.6's tokenizer of the same name. Instances pickle.
    One thread at a time: a call sets the pipeline's truncation and padding.
    """

    is_fast = True

    def __init__(
        self,
        pipeline: Pipeline,
        special_tokens: Mapping[str, str | AddedToken | None],
        additional_special_tokens: Sequence[str | AddedToken],
        added_tokens_decoder: Mapping[int, AddedToken],
        **common: Any,
    ) -> None:
        """``added_tokens_decoder`` are tokens to add, lowest id first; ``common`` are the options of ``Tokenizer``."""
        for stage, side in ((pipeline.truncation, "truncation_side"), (pipeline.padding, "padding_side")):
            if stage is not None:
                common.setdefault(side, stage["direction"])
        self._set_options(**common)
        super().__init__(special_tokens, additional_special_tokens)
        self._pipeline = pipeline
        named = [special_tokens.get(name) for name in SPECIAL_NAMES]
        special = [token for token in (*named, *additional_special_tokens) if token is not None]
        self._add_missing([token for _, token in sorted(added_tokens_decoder.items())], special)

    def _add_missing(self, added: list[AddedToken], special: list[str | AddedToken]) -> None:
        known = self.added_tokens_decoder.values()
        fresh = [token for token in added if token not in known]
        contents = {token.content for token in (*known, *fresh)}
        for token in special:
            as_token = AddedToken(token, normalized=False) if isinstance(token, str) else token
            if as_token.content not in contents:
                contents.add(as_token.content)
                fresh.append(as_token)
        all_special = set(self._special_contents())
        flagged = [replace(token, special=token.special or token.content in all_special) for token in fresh]
        self._add([*flagged], special=False)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write tokenizer.json beside the files that ``Tokenizer`` writes; see there."""
        super().save_pretrained(directory)
        # What the last call asked for is no property of the tokenizer.
        self._pipeline.no_truncation()
        self._pipeline.no_padding()
        self._pipeline.save(str(Path(directory) / FULL_TOKENIZER))

    @property
    def backend_tokenizer(self) -> Pipeline:
        """The pipeline; a call sets its truncation and padding."""
        return self._pipeline

    # Tokens and ids.

    @property
    def vocab_size(self) -> int:
        """Tokens of the model; ``len()`` also counts the tokens added after them."""
        return int(self._pipeline.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self._pipeline.get_vocab_size(with_added_tokens=True))

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added tokens included."""
        return dict(self._pipeline.get_vocab(with_added_tokens=True))

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens matched in the raw text, by id."""
        return {i: AddedToken.from_json(token) for i, token in self._pipeline.get_added_tokens_decoder().items()}

    def _add(self, tokens: list[Token], special: bool) -> int:
        add = self._pipeline.add_special_tokens if special else self._pipeline.add_tokens
        n_new = add([token.to_library() if isinstance(token, AddedToken) else token for token in tokens])
        self._index()
        return int(n_new)

    def _ids_of(self, tokens: Iterable[str]) -> list[int]:
        ids = [self._pipeline.token_to_id(token) for token in tokens]
        if None in ids:
            unknown = self._pipeline.token_to_id(self._special["unk_token"].content)
            ids = [unknown if index is None else index for index in ids]
        return ids

    def _token(self, index: int) -> str | None:
        token = self._pipeline.id_to_token(index)
        return None if token is None else str(token)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens a call adds to one text, or to a pair."""
        return int(self._pipeline.num_special_tokens_to_add(pair))

    # Text to ids.

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """Cut a text, or a pair, into tokens; the options are those of ``encode_texts``."""
        return self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def _encode(self, texts: list[Any], pairs: list[Any], request: Request, **options: Any) -> BatchEncoding:
        if options:
            raise TypeError(f"{type(self).__name__} takes no {', '.join(sorted(options))} in a call")
        if not request.is_batch and not pairs[0]:
            pairs = [None]  # an empty pair of a single text is no pair, unlike in a batch
        inputs = []
        for i, (first, second) in enumerate(zip(texts, pairs, strict=True)):
            try:
                self._check(first, request)
                if second is not None:
                    self._check(second, request)
            except ValueError as error:
                raise ValueError(f"text {i}: {error}" if request.is_batch else str(error)) from error
            inputs.append(first if second is None else (first, second))
        self._set_lengths(request, any(second is not None for second in pairs), any(second is None for second in pairs))
        self._pipeline.encode_special_tokens = request.split_special_tokens
        try:
            encodings = self._pipeline.encode_batch(
                inputs, is_pretokenized=request.is_split_into_words, add_special_tokens=request.add_special_tokens
            )
        except BaseException as error:
            # The library raises a bare Exception for a sequence that is too short to be cut, and its panics, for a stride
            # that is too long for what is left of one text of a pair, are not even that.
            if type(error) is not Exception and type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                f"a text cannot be cut: {error}; use another truncation, a longer max_length or a smaller stride"
            ) from error
        return self._fields(encodings, request)

    def _check(self, text: Any, request: Request) -> None:
        for word in text if request.is_split_into_words and isinstance(text, (list, tuple)) else [text]:
            if not isinstance(word, str):
                raise text_error(text)
            require_encodable(word)

    def _set_lengths(self, request: Request, has_pairs: bool, has_singles: bool) -> None:
        policy = request.lengths
        if policy.truncates:
            for pair, occurs in ((True, has_pairs), (False, has_singles)):
                if occurs:
                    n_special = self.num_special_tokens_to_add(pair) if request.add_special_tokens else 0
                    room = policy.room(n_special)
                    if request.overflow and room is not None and policy.stride >= room:
                        raise ValueError(
                            f"stride={policy.stride} must be less than the {room} tokens that "
                            f"max_length={policy.max_length} leaves beside the special tokens"
                        )
            self._pipeline.enable_truncation(
                policy.max_length,
                stride=policy.stride if request.overflow else 0,
                strategy=policy.truncation,
                direction=policy.truncation_side,
            )
        else:
            self._pipeline.no_truncation()
        if policy.pads:
            self._pipeline.enable_padding(
                direction=policy.padding_side,
                pad_id=self.pad_token_id,
                pad_token=self.pad_token,
                length=policy.max_length if policy.padding == "max_length" else None,
                pad_to_multiple_of=policy.multiple,
            )
        else:
            self._pipeline.no_padding()

    def _fields(self, encodings: list[Encoding], request: Request) -> BatchEncoding:
        samples = list(range(len(encodings)))
        if request.overflow:
            rows = [[encoding, *encoding.overflowing] for encoding in encodings]
            samples = [i for i, row in enumerate(rows) for _ in row]
            encodings = [encoding for row in rows for encoding in row]
        fields: dict[str, list[Any]] = {
            name: [getattr(encoding, attribute) for encoding in encodings]
            for name, attribute in _FIELDS.items()
            if name in request.fields
        }
        if "length" in request.fields:
            fields["length"] = [len(row) for row in fields["input_ids"]]
        if request.overflow:
            fields["overflow_to_sample_mapping"] = samples
        return BatchEncoding(fields, encodings)

    def _single(self, encoding: BatchEncoding, request: Request) -> BatchEncoding:
        if request.overflow:  # one text may have become several sequences
            return encoding
        # A length stays in a list, as in transformers.
        fields = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in encoding.items()}
        return BatchEncoding(fields, encoding.encodings)

    # Ids to text.

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text as decoding does."""
        return str(self._pipeline.decoder.decode(tokens))

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Text of an id, or of a list, array or tensor [T] of ids.

        ``skip_special_tokens`` drops every added token that is special. ``clean_up_tokenization_spaces`` removes spaces
        before English punctuation. Raises ValueError for an id outside the vocabulary.
        """
        values = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [values] if isinstance(values, int) else [int(index) for index in values]
        for index in (min(ids, default=0), max(ids, default=0)):
            self._known_token(index)
        text = self._pipeline.decode(ids, skip_special_tokens=skip_special_tokens)
        return self._cleaned_up(str(text), clean_up_tokenization_spaces)


def read_pipeline(path: Path, decoder: type[decoders.Decoder]) -> Pipeline:
    """Load a tokenizer.json; raises ValueError where its decoder shows it to be another family's."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; pass the {FULL_TOKENIZER} of a checkpoint")
    try:
        pipeline = Pipeline.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path} cannot be read by the tokenizers library: {error}") from error
    if not isinstance(pipeline.decoder, decoder):
        raise ValueError(
            f"{path} decodes by {type(pipeline.decoder).__name__} where {decoder.__name__} belongs: it is another family's"
        )
    return pipeline

"""The contract that every tokenizer shares: calls, truncation, padding, decoding, files."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from pegasus_batch.tokenization.calls import Request, as_batch
from pegasus_batch.tokenization.encoding import BatchEncoding
from pegasus_batch.tokenization.files import COMMON_SETTINGS, PLAIN_SETTINGS, read_settings, write_settings
from pegasus_batch.tokenization.lengths import NO_LIMIT, LengthPolicy, pad_rows, require_side
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
    """Text to ids and back, as transformers 4.57.6's tokenizer of the same name.

    Options of every constructor: ``model_max_length`` counts special tokens and is what a call truncates to by default,
    None for no limit; ``padding_side`` and ``truncation_side``; ``clean_up_tokenization_spaces`` is what ``decode`` does by
    default. Special tokens spelled out in a text become their ids unless ``split_special_tokens`` is set.
    """

    own_settings: ClassVar[tuple[str, ...]]  # the options in tokenizer_config.json that only this class has
    model_input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    is_fast: ClassVar[bool]

    def _set_options(
        self,
        *,
        model_max_length: int | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
    ) -> None:
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            require_side(name, side)
        self.model_max_length = NO_LIMIT if model_max_length is None else int(model_max_length)
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.split_special_tokens = split_special_tokens

    @classmethod
    @abstractmethod
    def _load(cls, directory: Path, options: dict[str, Any]) -> Self:
        """Construct from the directory's vocabulary files, with these constructor options."""

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether ``save_vocabulary`` has the files to write."""
        return True

    @abstractmethod
    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary files into a directory and return their paths; ``prefix-`` goes before their names."""

    @abstractmethod
    def _encode(self, texts: list[Any], pairs: list[Any], request: Request, **options: Any) -> BatchEncoding:
        """Encode texts, each with its pair or None; every field is a list with one entry for each sequence."""

    @abstractmethod
    def _single(self, encoding: BatchEncoding, request: Request) -> BatchEncoding:
        """The encoding of the one text that was given without a batch around it."""

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
        if self.can_save_slow_tokenizer:
            self.save_vocabulary(path)
        settings = {
            **{name: getattr(self, name) for name in (*PLAIN_SETTINGS, *self.own_settings)},
            # Without "Fast", as in transformers: either class loads the directory.
            "tokenizer_class": type(self).__name__.removesuffix("Fast"),
        }
        n_base = self.vocab_size
        write_settings(path, settings, self._special, self.additional_special_tokens, self.added_tokens_decoder, n_base)

    # Text to ids.

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode one text, or a list of them, as ``input_ids`` and ``attention_mask`` (1 token, 0 padding).

        ``text_target`` adds the targets' ids as ``labels``, or is encoded alone where there is no text. ``options`` are
        those of ``encode_texts``. Raises ValueError, naming the text's position, for what cannot be encoded.
        """
        if text is None and text_target is None:
            raise ValueError("a call needs text, text_target or both, and got neither")
        split = bool(options.get("is_split_into_words"))
        if text is None:
            return self.encode_texts(*as_batch(text_target, text_pair_target, split), **options)
        encoding = self.encode_texts(*as_batch(text, text_pair, split), **options)
        if text_target is not None:
            targets = self.encode_texts(*as_batch(text_target, text_pair_target, split), **options)
            encoding["labels"] = targets.input_ids
        return encoding

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """Ids of one text: a list, or a tensor [1, S]; the options are those of ``encode_texts``.

        Step-by-step tokenizers also take a list of tokens, or of ids, which stay as they are.
        """
        return self.encode_texts([text], [text_pair], False, **{"return_attention_mask": False, **options}).input_ids

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """Every field of one text; see ``encode``."""
        return self.encode_texts([text], [text_pair], False, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **options: Any) -> BatchEncoding:
        """Every field of texts, or of pairs of texts; see ``encode_texts``."""
        return self(list(batch_text_or_text_pairs), **options)

    def encode_texts(
        self,
        texts: list[Any],
        pairs: list[Any],
        is_batch: bool,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Encode texts, each with its pair or None; what every other way of calling comes down to.

        padding: True or "longest", "max_length", or False. truncation: True or "longest_first" (token by token from
        the longer of a pair), "only_first", "only_second", or False; special tokens always stay. ``max_length`` counts
        special tokens and defaults to ``model_max_length``; given alone it truncates. ``return_overflowing_tokens`` tells
        what was cut off, overlapping with what was kept by ``stride`` tokens. ``return_tensors``: "pt" or "np" for int64
        [B, S], None for lists. With ``is_split_into_words`` a text is a list of words. ``options`` go to ``tokenize``.
        """
        policy = LengthPolicy.choose(
            self.model_max_length,
            padding,
            truncation,
            max_length,
            pad_to_multiple_of,
            stride,
            self.padding_side if padding_side is None else padding_side,
            self.truncation_side,
        )
        wanted = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask is not False,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        request = Request(
            policy,
            tuple(name for name, is_wanted in wanted.items() if is_wanted),
            is_batch,
            add_special_tokens,
            is_split_into_words,
            self.split_special_tokens if split_special_tokens is None else split_special_tokens,
            return_overflowing_tokens,
        )
        encoding = self._encode(texts, pairs, request, **options)
        if return_tensors is None and not is_batch:
            return self._single(encoding, request)
        return encoding.as_tensors(return_tensors)

    @contextmanager
    def as_target_tokenizer(self) -> Iterator[None]:
        """Do nothing: these models' targets are encoded as their sources are."""
        yield

    def pad(
        self,
        encodings: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pad sequences encoded earlier: one encoding, a dictionary of rows, or a list of encodings, as a collator gets.

        A missing ``attention_mask`` is made. Raises ValueError where ``input_ids`` are missing.
        """
        if not isinstance(encodings, Mapping):
            names = list(encodings[0]) if encodings else ["input_ids"]
            encodings = {name: [one[name] for one in encodings] for name in names}
        if "input_ids" not in encodings:
            raise ValueError(f"pad() needs input_ids; the encodings have {sorted(encodings)}")
        fields = {name: _as_list(values) for name, values in encodings.items()}
        is_single = bool(fields["input_ids"]) and isinstance(fields["input_ids"][0], int)
        if is_single:
            fields = {name: [row] for name, row in fields.items()}
        if return_attention_mask is not False:
            fields.setdefault("attention_mask", [[1] * len(row) for row in fields["input_ids"]])
        side = self.padding_side if padding_side is None else padding_side
        policy = LengthPolicy.choose(
            self.model_max_length, padding, False, max_length, pad_to_multiple_of, padding_side=side
        )
        if policy.pads:
            fields = pad_rows(fields, policy, self.pad_token_id)
        if is_single and return_tensors is None:
            return BatchEncoding({name: rows[0] for name, rows in fields.items()})
        return BatchEncoding(fields).as_tensors(return_tensors)

    # Ids to text.

    @abstractmethod
    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Text of an id, or of a list, array or tensor [T] of ids."""

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """Texts of B sequences of ids: a list of lists, or a tensor or array [B, T]; see ``decode``."""
        rows = sequences.tolist() if hasattr(sequences, "tolist") else sequences
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **options) for row in rows]

    def _cleaned_up(self, text: str, clean_up: bool | None) -> str:
        if self.clean_up_tokenization_spaces if clean_up is None else clean_up:
            for spaced, joined in _CLEAN_UP:
                text = text.replace(spaced, joined)
        return text


def _as_list(values: Any) -> Any:
    if hasattr(values, "tolist"):
        return values.tolist()
    return [_as_list(value) for value in values] if isinstance(values, (list, tuple)) else values

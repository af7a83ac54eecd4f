"""The BART tokenizer: byte-level byte-pair encoding, as in GPT-2 and RoBERTa."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from pegasus_batch.config import read_json
from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.files import FULL_TOKENIZER, prefixed
from pegasus_batch.tokenization.slow import SlowTokenizer
from pegasus_batch.tokenization.vocabulary import require_tokens

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"


class BartLayout(Tokenizer):
    """``<s> X </s>`` for a text and ``<s> A </s></s> B </s>`` for a pair."""

    required_tokens: ClassVar[tuple[str, ...]] = ("eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
    ends: ClassVar[tuple[str, str]] = ("cls_token", "sep_token")  # what a sequence begins and ends with

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """``<s> X </s>``, or ``<s> A </s></s> B </s>`` for a pair."""
        begin, end = (getattr(self, f"{name}_id") for name in self.ends)
        pair = [] if token_ids_1 is None else [end, *token_ids_1, end]
        return [begin, *token_ids_0, end, *pair]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for a token that building the sequence adds, or for every special one in a built sequence."""
        if already_has_special_tokens:
            return [int(index in self._special_id_set) for index in token_ids_0]
        pair = [] if token_ids_1 is None else [1, *[0] * len(token_ids_1), 1]
        return [1, *[0] * len(token_ids_0), 1, *pair]


class BartTokenizer(BartLayout, SlowTokenizer):
    """Byte-level subwords whose spaces belong to them, so a word encodes differently at the start of a text.

    A sequence is ``<s> X </s>``, a pair ``<s> A </s></s> B </s>``. ``<mask>`` in a text takes the white space to its
    left. Letters and digits are those of Unicode 16.
    """

    own_settings = ("errors", "add_prefix_space")

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        merges_file: str | Path | None = None,
        *,
        tokenizer_file: str | Path | None = None,
        errors: str = "replace",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        sep_token: str | AddedToken = "</s>",
        cls_token: str | AddedToken = "<s>",
        unk_token: str | AddedToken = "<unk>",
        pad_token: str | AddedToken = "<pad>",
        mask_token: str | AddedToken | None = "<mask>",
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        add_prefix_space: bool = False,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        **common: Any,
    ) -> None:
        """Load vocab.json and merges.txt, or the tokenizer.json that holds both.

        ``errors`` says what decoding does with bytes that are not UTF-8, as in ``bytes.decode``; ``add_prefix_space``
        treats the first word of a text as one inside it; ``added_tokens_decoder`` are tokens with fixed ids;
        ``common`` are the options of ``Tokenizer``. Raises FileNotFoundError or ValueError for files that are missing
        or do not fit together.
        """
        if vocab_file is not None and merges_file is not None:
            subwords = ByteSubwords.from_files(Path(vocab_file), Path(merges_file))
        elif tokenizer_file is not None:
            subwords = ByteSubwords.from_tokenizer_json(Path(tokenizer_file))
        else:
            raise ValueError(
                f"pass both vocab_file and merges_file, or tokenizer_file; got {vocab_file!r}, {merges_file!r} and "
                f"{tokenizer_file!r}"
            )
        self.errors = errors
        self.add_prefix_space = add_prefix_space
        self._subwords = subwords
        self._tokens_by_id = {index: token for token, index in subwords.ids.items()}
        if isinstance(mask_token, str):
            # It stands for a word, so it takes the space before it as a word does.
            mask_token = AddedToken(mask_token, lstrip=True)
        special: dict[str, str | AddedToken | None] = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        require_tokens(special, self.required_tokens)
        # The unknown token may be missing from the file, and without one the library drops such bytes silently.
        self._pipeline = Pipeline(subwords.model(AddedToken.from_json(unk_token).content))
        self._pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
        flagged = {name: AddedToken.from_json(token) for name, token in special.items() if token is not None}
        super().__init__(flagged, additional_special_tokens or (), added_tokens_decoder or {}, **common)

    @classmethod
    def _load(cls, directory: Path, options: dict[str, Any]) -> Self:
        if (directory / VOCAB_FILE).is_file() or not (directory / FULL_TOKENIZER).is_file():
            return cls(directory / VOCAB_FILE, directory / MERGES_FILE, **options)
        return cls(tokenizer_file=directory / FULL_TOKENIZER, **options)

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt; see ``Tokenizer``."""
        vocabulary, merges = (prefixed(save_directory, name, filename_prefix) for name in (VOCAB_FILE, MERGES_FILE))
        vocabulary.write_text(json.dumps(self._subwords.ids, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self._subwords.merges)]
        merges.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(vocabulary), str(merges)

    @property
    def vocab_size(self) -> int:
        """Subwords, which in BART include the special tokens; ``len()`` also counts the tokens added after them."""
        return len(self._subwords.ids)

    def _subword_ids(self) -> dict[str, int]:
        return self._subwords.ids

    def _subword(self, index: int) -> str | None:
        return self._tokens_by_id.get(index)

    def _unknown_id(self) -> int:
        return self._ids[self._special["unk_token"].content]

    def _prepare_text(self, text: str, is_split_into_words: bool, add_prefix_space: bool | None = None) -> str:
        prefix = self.add_prefix_space if add_prefix_space is None else add_prefix_space
        return f" {text}" if (prefix or is_split_into_words) and text and not text[0].isspace() else text

    def _split_subwords(self, text: str) -> list[str]:
        return self._pipeline.encode(text, add_special_tokens=False).tokens

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join subwords to text, nothing stripped; bytes that are not UTF-8 are treated as ``errors`` says."""
        raw = b"".join(_BYTES.get(char) or char.encode("utf-8") for char in "".join(tokens))
        return raw.decode("utf-8", errors=self.errors)


@dataclass(frozen=True)
class ByteSubwords:
    """Byte-level subwords with their ids, and the merges, best first, that make them."""

    source: str
    ids: dict[str, int]
    merges: list[tuple[str, str]]

    @classmethod
    def from_files(cls, vocab_path: Path, merges_path: Path) -> "ByteSubwords":
        """Read the same out of tokenizer.json; raises ValueError for one of another family."""
        """Read vocab.json and merges.txt; raises FileNotFoundError where one is missing."""
        for path in (vocab_path, merges_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: BART needs {VOCAB_FILE} and {MERGES_FILE}")
        # The first line is a version comment, whatever it says, and what follows the last new line is no merge.
        lines = merges_path.read_text(encoding="utf-8").split("\n")[1:-1]
        return cls(str(merges_path), read_json(vocab_path, missing_ok=True), _ranked(lines))

    @classmethod
    def from_tokenizer_json(cls, path: Path) -> "ByteSubwords":
        """Read the same out of tokenizer.json; raises ValueError for one of another family."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; pass the tokenizer.json of a BART checkpoint")
        content = read_json(path, missing_ok=True)
        model = content.get("model") or {}
        pre_tokenizer = content.get("pre_tokenizer") or {}
        kinds = (model.get("type", "BPE"), pre_tokenizer.get("type"), pre_tokenizer.get("use_regex", True))
        if kinds != ("BPE", "ByteLevel", True):
            raise ValueError(
                f"{path} is not a BART tokenizer: it has model {kinds[0]!r} and pre-tokenizer {kinds[1]!r}, "
                "where BART has 'BPE' and 'ByteLevel' with its regular expression"
            )
        return cls(str(path), dict(model["vocab"]), _ranked(model["merges"]))

    def model(self, unknown: str | None) -> BPE:
        """The merges; a byte without a subword comes out as ``unknown``, or not at all where that is None."""
        ids = self.ids
        if unknown is not None and unknown not in ids:
            ids = {**ids, unknown: max(ids.values(), default=-1) + 1}
        for left, right in self.merges:
            for subword in (left, right, left + right):
                if subword not in ids:
                    raise ValueError(
                        f"{self.source} merges {left!r} and {right!r}, but {subword!r} is not in the vocabulary; "
                        "take vocabulary and merges from the same checkpoint"
                    )
        return BPE(vocab=ids, merges=self.merges, unk_token=unknown)


def _ranked(lines: Sequence[str | Sequence[str]]) -> list[tuple[str, str]]:
    """Merges best first; lines that are no pair are skipped, and of a pair's repetitions the last one ranks it."""
    pairs = [tuple(line.split()) if isinstance(line, str) else tuple(line) for line in lines]
    ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs) if len(pair) == 2}
    return sorted(ranks, key=ranks.__getitem__)


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's printable character for every byte: itself where it is visible, else the next from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    characters = [*map(chr, visible), *(chr(256 + i) for i in range(len(hidden)))]
    return {char: bytes([byte]) for char, byte in zip(characters, [*visible, *hidden], strict=True)}


_BYTES = _byte_alphabet()

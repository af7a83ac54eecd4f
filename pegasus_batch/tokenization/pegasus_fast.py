"""The Pegasus tokenizer with offsets: SentencePiece's model run by the tokenizers library."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Pipeline

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.fast import FastTokenizer, read_pipeline
from pegasus_batch.tokenization.files import FULL_TOKENIZER, prefixed
from pegasus_batch.tokenization.pegasus import (
    VOCAB_FILE,
    PegasusLayout,
    additional_tokens,
    read_model,
    require_layout,
    start_model,
)
from pegasus_batch.tokenization.sentencepiece_file import PieceKind, SentencePieceFile
from pegasus_batch.tokenization.vocabulary import require_tokens

_SPACE = "▁"


class PegasusTokenizerFast(PegasusLayout, FastTokenizer):
    """SentencePiece pieces behind reserved ids, as in ``PegasusTokenizer``, whose ids it gives for nearly every text.

    The library segments otherwise around ``<n>`` and unusual white space, and has no byte pieces: where ids matter more
    than offsets, take ``PegasusTokenizer``.
    """

    own_settings = ("offset", "mask_token_sent")

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        *,
        pad_token: str | AddedToken = "<pad>",
        eos_token: str | AddedToken = "</s>",
        unk_token: str | AddedToken = "<unk>",
        mask_token: str | AddedToken | None = "<mask_2>",
        mask_token_sent: str | None = "<mask_1>",
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        offset: int = 103,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        bos_token: str | AddedToken | None = None,
        sep_token: str | AddedToken | None = None,
        cls_token: str | AddedToken | None = None,
        **common: Any,
    ) -> None:
        """Load tokenizer.json, or else build the same from a SentencePiece model; the others as in ``PegasusTokenizer``.

        ``added_tokens_decoder`` is not needed beside tokenizer.json and adds nothing without it; that is said in a warning.
        """
        require_layout(offset, mask_token, mask_token_sent)
        special = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": mask_token,
        }
        require_tokens(special, self.required_tokens)
        self.offset = offset
        self.mask_token_sent = mask_token_sent
        self._model_bytes = None if vocab_file is None else read_model(Path(vocab_file))
        pipeline = None if tokenizer_file is None else read_pipeline(Path(tokenizer_file), decoders.Metaspace)
        named = [AddedToken.from_json(token).content for token in (pad_token, eos_token, unk_token)]
        if pipeline is None or any(pipeline.token_to_id(token) is None for token in named):
            # The reserved ids move with these tokens, so adding them at the end would not do.
            if self._model_bytes is None:
                raise ValueError(
                    f"pass vocab_file, or a tokenizer_file that has the tokens {', '.join(named)}; got {vocab_file!r} and "
                    f"{tokenizer_file!r}"
                )
            start_model(self._model_bytes, str(vocab_file), {})  # the file reader below trusts what it reads
            mask = None if mask_token is None else AddedToken.from_json(mask_token).content
            reserved = _reserved_tokens(named[0], named[1], mask, mask_token_sent, offset)
            pipeline = _build_pipeline(SentencePieceFile.parse(self._model_bytes), reserved, offset)
        additional = additional_tokens(additional_special_tokens, mask_token_sent, offset)
        super().__init__(pipeline, special, additional, {}, **common)
        added = (token.content for token in (added_tokens_decoder or {}).values())
        if lost := [token for token in added if pipeline.token_to_id(token) is None]:
            warnings.warn(
                f"PegasusTokenizerFast takes added tokens from {FULL_TOKENIZER} alone, as transformers does, and knows "
                f"nothing of {lost}; load them with PegasusTokenizer, or add them again",
                stacklevel=2,
            )

    @classmethod
    def _load(cls, directory: Path, options: dict[str, Any]) -> Self:
        model, full = directory / VOCAB_FILE, directory / FULL_TOKENIZER
        if not full.is_file():
            return cls(model, **options)
        return cls(model if model.is_file() else None, full, **options)

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether there was a spiece.model to begin with."""
        return self._model_bytes is not None

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write spiece.model; see ``Tokenizer``. Raises ValueError where the tokenizer came from tokenizer.json alone."""
        if self._model_bytes is None:
            raise ValueError(f"{VOCAB_FILE} cannot be made from {FULL_TOKENIZER}; load the tokenizer with vocab_file")
        path = prefixed(save_directory, VOCAB_FILE, filename_prefix)
        path.write_bytes(self._model_bytes)
        return (str(path),)


def _reserved_tokens(
    pad: str, eos: str, mask: str | None, mask_sent: str | None, offset: int
) -> list[tuple[str, float]]:
    """The tokens before the model's own pieces, with the scores that transformers gives them."""
    tokens = [(pad, 0.0), (eos, 0.0)]
    if mask_sent is not None:
        tokens.append((mask_sent, 0.0))
        if mask is not None and offset > 3:
            tokens.append((mask, 0.0))
    return tokens + [(f"<unk_{i}>", -100.0) for i in range(2, offset)]


def _build_pipeline(file: SentencePieceFile, reserved: list[tuple[str, float]], offset: int) -> Pipeline:
    """The pipeline that transformers makes of the same model; the first two pieces give way to the reserved tokens."""
    if file.byte_fallback:
        warnings.warn(
            "this SentencePiece model spells unknown characters in bytes, which the fast tokenizer does not: they become "
            "unknown tokens; PegasusTokenizer reads it in full",
            stacklevel=3,
        )
    pieces = reserved + [(text, score) for text, score, _ in file.pieces[2:]]
    model: models.Model
    if file.algorithm == 1:
        model = models.Unigram(pieces, unk_id=file.unknown_id + offset, byte_fallback=False)
    elif file.algorithm == 2:
        ids = {text: i for i, (text, _) in enumerate(pieces)}
        known = {text: i for i, (text, _, _) in enumerate(file.pieces)}
        model = models.BPE(ids, list(_merges(pieces, known)), unk_token=file.unknown_piece, fuse_unk=True)
    else:
        raise ValueError(
            f"the SentencePiece model is of type {file.algorithm}; Pegasus has 1 (unigram) or 2 (byte-pair encoding)"
        )
    pipeline = Pipeline(model)
    kept_whole = [piece for piece in file.pieces if piece[2] in (PieceKind.CONTROL, PieceKind.USER_DEFINED)]
    pipeline.add_tokens(
        [
            AddedToken(text, normalized=False, special=kind == PieceKind.CONTROL).to_library()
            for text, _, kind in kept_whole
        ]
    )
    mapped = [normalizers.Precompiled(file.character_map)] if file.character_map else []
    pipeline.normalizer = normalizers.Sequence(
        [*mapped, normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), _SPACE)]
    )
    metaspace = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    pipeline.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    pipeline.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    end = reserved[1][0]
    pipeline.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", "$B", end], special_tokens=[(end, 1)]
    )
    return pipeline


def _merges(pieces: list[tuple[str, float]], known: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every way to join two known pieces to a third, in the order in which transformers ranks them."""
    joins = []
    for text, score in dict(pieces).items():
        halves = [(text[:at], text[at:]) for at in range(1, len(text))]
        halves = [(left, right) for left, right in halves if left in known and right in known]
        halves.sort(key=lambda pair: (known[pair[0]], known[pair[1]]))
        joins += [(score, len(left), len(right), left, right) for left, right in halves]
    joins.sort(key=lambda join: join[:3], reverse=True)
    return ((left, right) for *_, left, right in joins)

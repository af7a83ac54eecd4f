"""The BART tokenizer with offsets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, pre_tokenizers, processors

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.bart import MERGES_FILE, VOCAB_FILE, BartLayout, ByteSubwords
from pegasus_batch.tokenization.calls import Request
from pegasus_batch.tokenization.encoding import BatchEncoding
from pegasus_batch.tokenization.fast import FastTokenizer, read_pipeline
from pegasus_batch.tokenization.files import FULL_TOKENIZER, prefixed
from pegasus_batch.tokenization.vocabulary import require_tokens


class BartTokenizerFast(BartLayout, FastTokenizer):
    """Byte-level subwords, as ``BartTokenizer``; bytes without a subword are dropped, and undecodable ones become U+FFFD.

    Words (``is_split_into_words``) need ``add_prefix_space=True``.
    """

    own_settings = ("errors", "add_prefix_space", "trim_offsets")
    required_tokens = (*BartLayout.required_tokens, "bos_token")
    ends = ("bos_token", "eos_token")

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        merges_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        *,
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
        trim_offsets: bool = True,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        **common: Any,
    ) -> None:
        """Load tokenizer.json, or else vocab.json and merges.txt.

        ``trim_offsets`` leaves the space before a word out of its offsets. ``errors`` is kept for the files alone: this
        tokenizer always replaces. The others are those of ``BartTokenizer``.
        """
        special = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "unk_token": unk_token,
            "sep_token": sep_token,
            "pad_token": pad_token,
            "cls_token": cls_token,
            "mask_token": AddedToken(mask_token, lstrip=True) if isinstance(mask_token, str) else mask_token,
        }
        require_tokens(special, self.required_tokens)
        flagged = {name: AddedToken.from_json(token) for name, token in special.items() if token is not None}
        self.errors = errors
        self.add_prefix_space = add_prefix_space
        self.trim_offsets = trim_offsets
        if tokenizer_file is not None:
            pipeline = read_pipeline(Path(tokenizer_file), decoders.ByteLevel)
        elif vocab_file is not None and merges_file is not None:
            pipeline = Pipeline(ByteSubwords.from_files(Path(vocab_file), Path(merges_file)).model(unknown=None))
            pipeline.pre_tokenizer = pre_tokenizers.ByteLevel()
            pipeline.decoder = decoders.ByteLevel()
        else:
            raise ValueError(
                f"pass both vocab_file and merges_file, or tokenizer_file; got {vocab_file!r}, {merges_file!r} and "
                f"{tokenizer_file!r}"
            )
        super().__init__(pipeline, flagged, additional_special_tokens or (), added_tokens_decoder or {}, **common)
        if pipeline.post_processor is None:
            sep, cls = (
                (token, self._id(token)) for token in (flagged["sep_token"].content, flagged["cls_token"].content)
            )
            pipeline.post_processor = processors.RobertaProcessing(sep=sep, cls=cls)
        _set_spaces(pipeline, add_prefix_space, trim_offsets)

    @classmethod
    def _load(cls, directory: Path, options: dict[str, Any]) -> Self:
        full = directory / FULL_TOKENIZER
        return cls(directory / VOCAB_FILE, directory / MERGES_FILE, full if full.is_file() else None, **options)

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt; see ``Tokenizer``."""
        prefixed(save_directory, VOCAB_FILE, filename_prefix)
        return tuple(self._pipeline.model.save(str(save_directory), filename_prefix))

    def _encode(self, texts: list[Any], pairs: list[Any], request: Request, **options: Any) -> BatchEncoding:
        if request.is_split_into_words and not self.add_prefix_space:
            raise ValueError(
                "words need their spaces: load the tokenizer with add_prefix_space=True for is_split_into_words=True"
            )
        return super()._encode(texts, pairs, request, **options)


def _set_spaces(pipeline: Pipeline, add_prefix_space: bool, trim_offsets: bool) -> None:
    """Make a pipeline, which may have been saved with other settings, treat spaces as these settings say."""
    if isinstance(pipeline.pre_tokenizer, pre_tokenizers.ByteLevel):
        pipeline.pre_tokenizer.add_prefix_space = add_prefix_space
    if isinstance(pipeline.post_processor, processors.RobertaProcessing):
        state = json.loads(pipeline.post_processor.__getstate__())
        sep, cls = tuple(state["sep"]), tuple(state["cls"])
        pipeline.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets, add_prefix_space)

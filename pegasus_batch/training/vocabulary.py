"""Train a SentencePiece vocabulary that the Pegasus tokenizer can use."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

RESERVED_IDS = 103  # the Pegasus ids 2..104 (masks, unk_2..unk_102) that stand before the first learned piece


def train_vocabulary(texts: Iterable[str], path: str | Path, vocab_size: int, *, seed: int = 0) -> None:
    """Train a unigram model on ``texts`` and write it to ``path``.

    ``vocab_size`` counts the model's ids as Pegasus sees them: the pieces of the file are 103 fewer. In the file <pad>,
    </s> and <unk> are 0, 1 and 2 and there is no beginning of sentence, so that the tokenizer's fixed offset (piece i
    >= 2 becomes id i + 103) holds. Newlines become spaces, as they do in the released vocabularies.

    Raises ValueError when the texts cannot fill so large a vocabulary, or ``vocab_size`` leaves no room for pieces.
    """
    n_pieces = vocab_size - RESERVED_IDS
    if n_pieces < 8:
        raise ValueError(
            f"vocab_size {vocab_size} leaves {n_pieces} pieces after the {RESERVED_IDS} reserved ids: raise it"
        )
    sentencepiece.set_random_generator_seed(seed)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=n_pieces,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=0.9995,
            max_sentence_length=1 << 20,  # bytes; longer texts would be left out silently
            num_threads=1,  # the expectation sums, and so the pieces, depend on how threads split the texts
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"the texts do not support vocab_size {vocab_size}: lower it ({error})") from error
    Path(path).write_bytes(model.getvalue())

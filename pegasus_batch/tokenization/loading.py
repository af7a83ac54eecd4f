"""The right tokenizer for a checkpoint directory."""

from pathlib import Path
from typing import Any

from pegasus_batch.config import read_json
from pegasus_batch.tokenization import bart, pegasus
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.files import FULL_TOKENIZER


def load_tokenizer(directory: str | Path, **overrides: Any) -> Tokenizer:
    """Load the tokenizer whose vocabulary files a local directory holds; ``overrides`` replace its settings.

    spiece.model means Pegasus; vocab.json with merges.txt, or tokenizer.json alone, means BART. Raises
    FileNotFoundError saying what is missing.
    """
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"{directory} is not a directory; download the checkpoint and pass where it lies")
    if (path / pegasus.VOCAB_FILE).is_file():
        return pegasus.PegasusTokenizer.from_pretrained(path, **overrides)
    if (path / bart.VOCAB_FILE).is_file():
        return bart.BartTokenizer.from_pretrained(path, **overrides)
    if (path / FULL_TOKENIZER).is_file():
        model = read_json(path / FULL_TOKENIZER, missing_ok=True).get("model") or {}
        if model.get("type") == "Unigram":
            raise FileNotFoundError(
                f"{path} has a {FULL_TOKENIZER} with a Unigram model, which is the fast form of Pegasus, but no "
                f"{pegasus.VOCAB_FILE}. Its ids differ from SentencePiece's on some texts, so it is not read: copy "
                f"{pegasus.VOCAB_FILE} from the checkpoint that this one was made from, or save it there with "
                "transformers' PegasusTokenizer (use_fast=False). PegasusTokenizerFast reads it as it is"
            )
        return bart.BartTokenizer.from_pretrained(path, **overrides)
    found = sorted(entry.name for entry in path.iterdir())
    raise FileNotFoundError(
        f"{path} has no tokenizer: expected {pegasus.VOCAB_FILE} (Pegasus), {bart.VOCAB_FILE} with {bart.MERGES_FILE} "
        f"or {FULL_TOKENIZER} (BART); found {', '.join(found) or 'nothing'}"
    )

"""Text to token ids and back, with the ids that the released Pegasus and BART checkpoints were trained on."""

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.bart import BartTokenizer
from pegasus_batch.tokenization.bart_fast import BartTokenizerFast
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.encoding import BatchEncoding
from pegasus_batch.tokenization.loading import load_tokenizer
from pegasus_batch.tokenization.pegasus import PegasusTokenizer
from pegasus_batch.tokenization.pegasus_fast import PegasusTokenizerFast

__all__ = [
    "AddedToken",
    "BartTokenizer",
    "BartTokenizerFast",
    "BatchEncoding",
    "PegasusTokenizer",
    "PegasusTokenizerFast",
    "Tokenizer",
    "load_tokenizer",
]

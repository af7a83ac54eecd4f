"""Text to token ids and back, with the ids that the released Pegasus and BART checkpoints were trained on."""

from pegasus_batch.tokenization.added_tokens import AddedToken
from pegasus_batch.tokenization.bart import BartTokenizer
from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.tokenization.encoding import BatchEncoding
from pegasus_batch.tokenization.loading import load_tokenizer
from pegasus_batch.tokenization.pegasus import PegasusTokenizer

__all__ = ["AddedToken", "BartTokenizer", "BatchEncoding", "PegasusTokenizer", "Tokenizer", "load_tokenizer"]

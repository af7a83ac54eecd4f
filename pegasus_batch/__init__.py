"""Summarize whole corpora with Pegasus and BART: the same summaries as Hugging Face's, through Ray Data and native kernels."""

from pegasus_batch.config import BartConfig, GenerationConfig, PegasusConfig
from pegasus_batch.models.seq2seq import (
    BartForConditionalGeneration,
    BartModel,
    PegasusForConditionalGeneration,
    PegasusModel,
)
from pegasus_batch.summarizer import Summarizer, Summary
from pegasus_batch.tokenization import BartTokenizer, PegasusTokenizer

__version__ = "0.1.0"

__all__ = [
    "BartConfig",
    "BartForConditionalGeneration",
    "BartModel",
    "BartTokenizer",
    "GenerationConfig",
    "PegasusConfig",
    "PegasusForConditionalGeneration",
    "PegasusModel",
    "PegasusTokenizer",
    "Summarizer",
    "Summary",
]

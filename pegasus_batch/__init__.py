"""Summarize whole corpora with Pegasus and BART: the same summaries as Hugging Face's, through Ray Data and native kernels."""

from typing import TYPE_CHECKING, Any

from pegasus_batch.config import BartConfig, GenerationConfig, PegasusConfig
from pegasus_batch.models.seq2seq import (
    BartForConditionalGeneration,
    BartModel,
    PegasusForConditionalGeneration,
    PegasusModel,
)
from pegasus_batch.summarizer import Summarizer, Summary
from pegasus_batch.tokenization import BartTokenizer, PegasusTokenizer

if TYPE_CHECKING:
    from pegasus_batch.pipeline import read_summaries

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
    "read_summaries",
]


def __getattr__(name: str) -> Any:
    if name == "read_summaries":  # only the job needs Ray and Arrow
        from pegasus_batch.pipeline import read_summaries

        return read_summaries
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

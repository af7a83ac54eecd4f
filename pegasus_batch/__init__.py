"""Summarize whole corpora with Pegasus and BART: the same summaries as Hugging Face's, through Ray Data and native kernels."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegasus_batch.config import BartConfig, GenerationConfig, PegasusConfig
    from pegasus_batch.documents import Summary
    from pegasus_batch.models.seq2seq import (
        BartForConditionalGeneration,
        BartModel,
        PegasusForConditionalGeneration,
        PegasusModel,
    )
    from pegasus_batch.pipeline import read_summaries
    from pegasus_batch.summarizer import Summarizer
    from pegasus_batch.tokenization import BartTokenizer, PegasusTokenizer

__version__ = "0.1.0"

# Where each public name is. They load at first use: most processes of a job need no torch, and most models no Ray.
_HOMES = {
    "BartConfig": "config",
    "BartForConditionalGeneration": "models.seq2seq",
    "BartModel": "models.seq2seq",
    "BartTokenizer": "tokenization",
    "GenerationConfig": "config",
    "PegasusConfig": "config",
    "PegasusForConditionalGeneration": "models.seq2seq",
    "PegasusModel": "models.seq2seq",
    "PegasusTokenizer": "tokenization",
    "Summarizer": "summarizer",
    "Summary": "documents",
    "read_summaries": "pipeline",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

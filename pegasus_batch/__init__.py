"""Summarize whole corpora with Pegasus and BART: the same summaries as Hugging Face's, through Ray Data and native kernels."""

from typing import TYPE_CHECKING

from pegasus_batch._lazy import attach

if TYPE_CHECKING:
    from pegasus_batch.answerer import Answerer
    from pegasus_batch.answering import Answer
    from pegasus_batch.classification import Classification
    from pegasus_batch.classifier import Classifier
    from pegasus_batch.config import BartConfig, GenerationConfig, PegasusConfig
    from pegasus_batch.documents import Summary
    from pegasus_batch.fill_mask import Filling, FillMask
    from pegasus_batch.models.causal import BartForCausalLM, PegasusForCausalLM
    from pegasus_batch.models.heads import (
        BartForQuestionAnswering,
        BartForSequenceClassification,
        PegasusForQuestionAnswering,
        PegasusForSequenceClassification,
    )
    from pegasus_batch.models.seq2seq import (
        BartForConditionalGeneration,
        BartModel,
        PegasusForConditionalGeneration,
        PegasusModel,
    )
    from pegasus_batch.pipeline import read_summaries
    from pegasus_batch.summarizer import Summarizer
    from pegasus_batch.tokenization import BartTokenizer, BartTokenizerFast, PegasusTokenizer, PegasusTokenizerFast

__version__ = "0.1.0"

_HOMES = {
    "Answer": "answering",
    "Answerer": "answerer",
    "BartConfig": "config",
    "BartForCausalLM": "models.causal",
    "BartForConditionalGeneration": "models.seq2seq",
    "BartForQuestionAnswering": "models.heads",
    "BartForSequenceClassification": "models.heads",
    "BartModel": "models.seq2seq",
    "BartTokenizer": "tokenization",
    "BartTokenizerFast": "tokenization",
    "Classification": "classification",
    "Classifier": "classifier",
    "FillMask": "fill_mask",
    "Filling": "fill_mask",
    "GenerationConfig": "config",
    "PegasusConfig": "config",
    "PegasusForCausalLM": "models.causal",
    "PegasusForConditionalGeneration": "models.seq2seq",
    "PegasusForQuestionAnswering": "models.heads",
    "PegasusForSequenceClassification": "models.heads",
    "PegasusModel": "models.seq2seq",
    "PegasusTokenizer": "tokenization",
    "PegasusTokenizerFast": "tokenization",
    "Summarizer": "summarizer",
    "Summary": "documents",
    "read_summaries": "pipeline",
}

__all__ = [
    "Answer",
    "Answerer",
    "BartConfig",
    "BartForCausalLM",
    "BartForConditionalGeneration",
    "BartForQuestionAnswering",
    "BartForSequenceClassification",
    "BartModel",
    "BartTokenizer",
    "BartTokenizerFast",
    "Classification",
    "Classifier",
    "FillMask",
    "Filling",
    "GenerationConfig",
    "PegasusConfig",
    "PegasusForCausalLM",
    "PegasusForConditionalGeneration",
    "PegasusForQuestionAnswering",
    "PegasusForSequenceClassification",
    "PegasusModel",
    "PegasusTokenizer",
    "PegasusTokenizerFast",
    "Summarizer",
    "Summary",
    "read_summaries",
]
__getattr__, __dir__ = attach(__name__, _HOMES)

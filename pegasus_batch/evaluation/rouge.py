"""ROUGE as papers report it: stemmed F1 times 100, by Google's rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rouge_score import rouge_scorer

from pegasus_batch.evaluation.estimates import Estimate, average
from pegasus_batch.sentences import split_lines, split_sentences

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def first_sentence(text: str) -> str:
    """Return the first sentence, the classic baseline; empty for a blank text."""
    sentences = split_sentences(text)
    return sentences[0] if sentences else ""


def one_sentence_a_line(text: str) -> str:
    """Lay a summary out as ROUGE-Lsum reads it: its own lines where it has several, otherwise its sentences.

    Lines are separated by a newline or ``<n>``. Where neither stands between words, sentences are found by
    ``split_sentences``. No ``<n>`` is left, which the other ROUGE types would count as the word "n".
    """
    lines = split_lines(text)
    return "\n".join(lines if len(lines) > 1 else split_sentences(text))


def score_summaries(predictions: Sequence[str | None], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Return F1 x 100 of every pair by ROUGE type, float64 [B] each.

    A missing prediction (None) scores 0, so that failed rows lower the mean instead of leaving it. Line ends, ``<n>`` and
    sentences are read as ``one_sentence_a_line`` says. Raises ValueError when the lists differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: they must pair up")
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    table = np.zeros((len(ROUGE_TYPES), len(references)))
    for column, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if prediction is None:
            continue
        scores = scorer.score(one_sentence_a_line(reference), one_sentence_a_line(prediction))
        table[:, column] = [100.0 * scores[name].fmeasure for name in ROUGE_TYPES]
    return dict(zip(ROUGE_TYPES, table, strict=True))


def rouge(predictions: Sequence[str | None], references: Sequence[str], *, n_resamples: int = 0) -> dict[str, Estimate]:
    """Score predictions against references: ROUGE-1, 2, L and Lsum, mean stemmed F1 x 100."""
    return average(score_summaries(predictions, references), n_resamples=n_resamples)

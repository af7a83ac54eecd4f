"""ROUGE as papers report it: stemmed F1 times 100, by Google's rouge-score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rouge_score import rouge_scorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z])")


@dataclass(frozen=True)
class RougeScore:
    """Mean F1 x 100 of one ROUGE type and, if asked for, the bounds of its 95 % bootstrap interval."""

    mean: float
    low: float | None = None
    high: float | None = None


def split_sentences(text: str) -> list[str]:
    """Split at line ends and after . ! ? before anything but a small letter: enough for baselines and ROUGE-Lsum."""
    return [
        sentence.strip() for line in text.splitlines() for sentence in _SENTENCE_END.split(line) if sentence.strip()
    ]


def first_sentence(text: str) -> str:
    """Return the first sentence, the classic baseline; empty for a blank text."""
    sentences = split_sentences(text)
    return sentences[0] if sentences else ""


def score_summaries(predictions: Sequence[str | None], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Return F1 x 100 of every pair by ROUGE type, float64 [B] each.

    A missing prediction (None) scores 0, so that failed rows lower the mean instead of leaving it. ROUGE-Lsum sees one
    sentence a line. Raises ValueError when the lists differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references: they must pair up")
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    table = np.zeros((len(ROUGE_TYPES), len(references)))
    for column, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if prediction is None:
            continue
        scores = scorer.score("\n".join(split_sentences(reference)), "\n".join(split_sentences(prediction)))
        table[:, column] = [100.0 * scores[name].fmeasure for name in ROUGE_TYPES]
    return dict(zip(ROUGE_TYPES, table, strict=True))


def summarize_scores(scores: Mapping[str, np.ndarray], *, n_resamples: int = 0, seed: int = 0) -> dict[str, RougeScore]:
    """Average the scores of ``score_summaries``; ``n_resamples`` > 0 adds the 95 % interval of a paired bootstrap."""
    if not n_resamples:
        return {name: RougeScore(float(values.mean())) for name, values in scores.items()}
    n_rows = len(next(iter(scores.values())))
    random = np.random.default_rng(seed)
    # Every type is averaged over the same drawn rows, one resample at a time: [n_resamples, B] would not fit for large
    # B.
    draws = [random.integers(0, n_rows, n_rows) for _ in range(n_resamples)]
    result = {}
    for name, values in scores.items():
        means = np.array([values[draw].mean() for draw in draws])
        low, high = np.percentile(means, [2.5, 97.5])
        result[name] = RougeScore(float(values.mean()), float(low), float(high))
    return result


def rouge(
    predictions: Sequence[str | None], references: Sequence[str], *, n_resamples: int = 0
) -> dict[str, RougeScore]:
    """Score predictions against references: ROUGE-1, 2, L and Lsum, mean stemmed F1 x 100."""
    return summarize_scores(score_summaries(predictions, references), n_resamples=n_resamples)

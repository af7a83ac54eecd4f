from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rouge_score import rouge_scorer

from pegasus_batch.evaluation.rouge import (
    ROUGE_TYPES,
    first_sentence,
    one_sentence_a_line,
    rouge,
    score_summaries,
)
from pegasus_batch.evaluation.tables import read_columns
from pegasus_batch.sentences import split_sentences

REFERENCES = ["library for reading maps", "game of stars and numbers", "editors for text"]
PREDICTIONS = ["reading maps with a library", "game of stars and numbers", "an editor of pictures"]


def test_known_values() -> None:
    """Worked by hand: 3 of 5 and 3 of 4 unigrams, 1 of 4 and 1 of 3 bigrams, and a common subsequence of 2."""
    scores = score_summaries(PREDICTIONS[:1], REFERENCES[:1])
    assert scores["rouge1"][0] == pytest.approx(100 * 2 * 3 / (5 + 4))
    assert scores["rouge2"][0] == pytest.approx(100 * 2 * 1 / (4 + 3))
    assert scores["rougeL"][0] == pytest.approx(100 * 2 * 2 / (5 + 4))


def test_equal_texts_score_a_hundred_and_words_are_stemmed() -> None:
    scores = score_summaries(PREDICTIONS, REFERENCES)
    assert [scores[name][1] for name in scores] == pytest.approx([100.0] * 4)
    assert scores["rouge1"][2] > 0  # editor against editors


def test_agrees_with_the_library_row_by_row() -> None:
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = score_summaries(PREDICTIONS, REFERENCES)
    for name in ("rouge1", "rouge2", "rougeL"):
        expected = [
            100 * scorer.score(reference, prediction)[name].fmeasure
            for prediction, reference in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert scores[name].tolist() == pytest.approx(expected)


def test_the_summary_level_score_compares_sentence_by_sentence() -> None:
    """With the sentences swapped the longest common subsequence shrinks, the sum over sentences does not."""
    scores = rouge(["It reads maps. It draws stars."], ["It draws stars. It reads maps."])
    assert scores["rougeLsum"].mean == pytest.approx(100.0)
    assert scores["rougeL"].mean < 60


def test_a_missing_prediction_scores_zero() -> None:
    assert rouge([None, PREDICTIONS[1]], REFERENCES[:2])["rouge1"].mean == pytest.approx(50.0)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions for 3 references"):
        rouge(PREDICTIONS[:2], REFERENCES)


def test_the_interval_repeats() -> None:
    assert rouge(PREDICTIONS, REFERENCES, n_resamples=20) == rouge(PREDICTIONS, REFERENCES, n_resamples=20)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One is here. Two is there.", "One is here."),
        ("Works with e.g. maps and more. Then stops.", "Works with e.g. maps and more."),
        ("A line\nAnother line", "A line"),
        ("\n  \nLate start", "Late start"),
        ("Version 2.0 is out! 3 more follow.", "Version 2.0 is out!"),
        ("  ", ""),
    ],
)
def test_first_sentence(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def first_two(text: str) -> str:
    return "<n>".join(split_sentences(text)[:2])


@pytest.mark.parametrize("predict", [first_sentence, first_two])
def test_every_type_agrees_with_the_library_on_real_texts(predict: Callable[[str], str]) -> None:
    """200 synopses, and 200 documents themselves, whose lines and sentences are many; the library splits at newlines alone."""
    data = Path(__file__).parents[2] / "data" / "debian_synopses" / "test.parquet"
    documents, synopses = (values[:200] for values in read_columns(data, ["document", "summary"]))
    predictions = [predict(document) for document in documents]
    scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    for references in (synopses, documents):
        ours = score_summaries(predictions, references)
        for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            lines = reference.splitlines() if "\n" in reference else split_sentences(reference)
            theirs = scorer.score("\n".join(lines), prediction.replace("<n>", "\n"))
            assert [ours[name][i] for name in ROUGE_TYPES] == [100 * theirs[name].fmeasure for name in ROUGE_TYPES]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("It reads. It writes.<n>It draws.", ["It reads. It writes.", "It draws."]),
        ("It reads. It writes.\nIt draws.", ["It reads. It writes.", "It draws."]),
        ("It reads.<n>  <n>It draws. ", ["It reads.", "It draws."]),
        ("It reads. It draws.", ["It reads.", "It draws."]),
        ("It reads. It draws.<n>", ["It reads.", "It draws."]),  # nothing behind it: it separates no lines
        ("<n>", []),
    ],
)
def test_own_lines_come_before_sentences(text: str, lines: list[str]) -> None:
    assert one_sentence_a_line(text).split("\n") == (lines or [""])


def test_the_newline_of_pegasus_is_no_word() -> None:
    """Left in, "<n>" counted as the word n and glued no sentences apart for ROUGE-Lsum."""
    scores = rouge(["It reads maps.<n>It draws stars."], ["It draws stars.\nIt reads maps."])
    assert scores["rouge1"].mean == scores["rougeLsum"].mean == pytest.approx(100.0)
    assert scores["rouge2"].mean < 100

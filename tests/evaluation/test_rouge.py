from __future__ import annotations

import numpy as np
import pytest
from rouge_score import rouge_scorer

from pegasus_batch.evaluation.report import compare, render
from pegasus_batch.evaluation.rouge import first_sentence, rouge, score_summaries, split_sentences, summarize_scores

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


def test_the_interval_surrounds_the_mean_and_narrows_with_rows() -> None:
    random = np.random.default_rng(3)
    widths = []
    for n_rows in (50, 5000):
        values = random.uniform(0, 100, n_rows)
        score = summarize_scores({"rouge1": values}, n_resamples=200)["rouge1"]
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.mean < score.high
        widths.append(score.high - score.low)
    assert widths[1] < widths[0] / 5


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


def test_sentences_keep_all_words() -> None:
    text = "One. Two is\nthree? Four!"
    assert " ".join(split_sentences(text)).split() == text.split()


def test_the_table_shows_every_system() -> None:
    scores = compare({"first": REFERENCES, "model": PREDICTIONS}, REFERENCES, n_resamples=10)
    table = render(scores, "3 rows")
    assert [column.header for column in table.columns] == ["system", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"]
    assert list(table.columns[0].cells) == ["first", "model"]
    assert next(iter(table.columns[1].cells)) == "100.00 [100.0, 100.0]"

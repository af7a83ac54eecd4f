"""Questions and contexts in, answers out: against transformers' question-answering pipeline."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pegasus_batch import Answerer, PegasusTokenizer
from pegasus_batch.answering import PassageTokenizer, locate_words
from pegasus_batch.documents import Document
from tests.heads import pipeline, save_head
from tests.tokenization.vocabularies import WORDS, corpus

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

KIND = transformers.BartForQuestionAnswering
QUESTIONS = ["Who said it?", "What is the price?", "Where?"]
CONTEXTS = [
    "The mayor, who can't swim, said  it twice.\n\nNobody\theard: it's late!",
    "naïve café owners at Köln pay 3.14 € — 東京は日本の首都です。 🙂 they don't",
    " leading space and trailing \n",
]


@pytest.fixture(scope="module")
def make(bart_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return what writes another random finder of answers at each call."""

    def write() -> Path:
        return save_head(KIND, bart_dir, tmp_path_factory.mktemp("qa") / "model")

    return write


def contexts() -> list[str]:
    """Return hard contexts, and some that need several windows."""
    rng = random.Random(5)
    sentences = corpus(300)
    return [*CONTEXTS, *(" ".join(rng.choices(sentences, k=k)) for k in (3, 8, 15)), " ".join(rng.choices(WORDS, k=90))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"allow_impossible": True}, {"max_answer_tokens": 3}])
def test_answers_scores_and_offsets(make: Callable[[], Path], seed: int, options: dict[str, Any]) -> None:
    torch.manual_seed(seed)
    directory = make()
    oracle = pipeline("question-answering", KIND, directory)
    theirs_options = {
        "handle_impossible_answer": options.get("allow_impossible", False),
        "max_answer_len": options.get("max_answer_tokens", 15),
    }
    texts = contexts()
    questions = [QUESTIONS[index % 3] for index in range(len(texts))]
    answerer = Answerer(directory, device="cpu", **options)
    several = 0
    for question, context, ours in zip(questions, texts, answerer.answer(questions, texts), strict=True):
        theirs = oracle(question=question, context=context, **theirs_options)
        assert (ours.text, ours.start, ours.end) == (theirs["answer"], theirs["start"], theirs["end"]), context
        assert ours.score == pytest.approx(theirs["score"], rel=1e-3, abs=1e-7)
        assert (ours.status, ours.truncated) == ("ok", False)
        several += ours.chunks > 1
    assert several >= 3


def test_windows_are_those_of_transformers(bart_dir: Path) -> None:
    tokenizer = transformers.BartTokenizerFast.from_pretrained(bart_dir)
    for limit, overlap in ((64, None), (30, 4), (25, 0)):
        documents = PassageTokenizer(bart_dir, limit, overlap)
        stride = 32 if overlap is None else overlap
        for context, document in zip(contexts(), documents.tokenize(["Who is it?"] * 7, contexts()), strict=True):
            expected = tokenizer(
                "Who is it?", context, truncation="only_second", max_length=limit, stride=stride,
                return_overflowing_tokens=True,
            )["input_ids"]  # fmt: skip
            assert document.windows == expected
            assert [len(notes) for notes in document.notes] == [
                1 + 2 * (len(ids) - notes[0] - 1) for ids, notes in zip(expected, document.notes, strict=True)
            ]


def test_words_of_pegasus_stand_between_white_space(vocabulary_file: Path) -> None:
    tokenizer = PegasusTokenizer(vocabulary_file)
    text = " quick\xa0brown  fox.\n"
    words = list(locate_words(tokenizer, text))
    assert [text[begin:end] for _, begin, end in words] == ["quick", "brown", "fox."]
    ids = [token for word, _, _ in words for token in tokenizer.encode(word, add_special_tokens=False)]
    assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_a_quoted_special_token_is_a_word(make: Callable[[], Path]) -> None:
    """As a token it would end the sequence, and the answer could not be told from the frame around it."""
    answerer = Answerer(make(), device="cpu")
    (document,) = answerer.documents.tokenize(["Who?"], ["the </s> tag <s>"])
    special = [token for token in document.token_ids if token in answerer.documents.tokenizer.all_special_ids]
    assert special == [0, 2, 2, 2]
    (found,) = answerer.answer_documents([document])
    assert found.text is not None and found.text == "the </s> tag <s>"[found.start : found.end]


def test_what_cannot_be_answered_gets_a_status(make: Callable[[], Path]) -> None:
    answerer = Answerer(make(), device="cpu")
    questions = ["Who?", None, "Who?", "Who? " * 60, "bad \ud800", "Where?"]
    texts = ["The mayor.", "The mayor.", " ", "The mayor. " * 20, "The mayor.", "A river."]
    found = answerer.answer(questions, texts)
    assert [each.status for each in found] == ["ok", *["invalid"] * 4, "ok"]
    assert [found[0], found[5]] == answerer.answer(["Who?", "Where?"], ["The mayor.", "A river."])
    assert (found[1].error, found[2].error) == ("the question is null", "the context is blank")
    assert "leaves 0 in a window of 64" in str(found[3].error)
    broken = Document([0, 10**6, 2], 3, False, notes=[[1]], text="x")
    assert answerer.answer_documents([broken])[0].status == "failed"


def test_a_checkpoint_that_cannot_is_refused(make: Callable[[], Path], bart_dir: Path, model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a checkpoint for QuestionAnswering"):
        Answerer(bart_dir, device="cpu")
    with pytest.raises(ValueError, match="overlap=64: a window of 64 tokens"):
        PassageTokenizer(bart_dir, 64, 64)
    with pytest.raises(ValueError, match="puts no token before the question"):
        PassageTokenizer(model_dir).check_impossible(True)
    with pytest.raises(ValueError, match="max_answer_tokens=0"):
        Answerer(make(), device="cpu", max_answer_tokens=0)

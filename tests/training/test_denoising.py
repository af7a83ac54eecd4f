"""BART's corruptions against what each promises, whatever the text, and in any composition."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegasus_batch.tokenization.bart import BartTokenizer
from pegasus_batch.tokenization.pegasus import PegasusTokenizer
from pegasus_batch.training.denoising import (
    CORRUPTIONS,
    Corruption,
    Denoising,
    DocumentRotation,
    SentencePermutation,
    TextInfilling,
    TokenDeletion,
    TokenMasking,
    Tokens,
    corrupt,
    read_corruption,
    tokenize_sentences,
)
from tests.tokenization.vocabularies import train_byte_level

MASK, BOS, EOS = 1, 2, 3
repeatable = settings(derandomize=True, database=None, deadline=None)
shares = st.floats(0, 1)
seeds = st.integers(0, 1000)


@st.composite
def texts(draw: st.DrawFn) -> Tokens:
    """Sentences of different tokens, so that each token's way can be followed."""
    lengths = draw(st.lists(st.integers(1, 6), max_size=6))
    n = sum(lengths)
    return Tokens(np.arange(10, 10 + n), np.repeat(np.arange(len(lengths)), lengths))


def apply(corruption: Corruption, tokens: Tokens, seed: int = 0) -> Tokens:
    before = tokens.ids.tolist(), tokens.sentences.tolist()
    result = corruption(tokens, MASK, np.random.default_rng(seed))
    assert (tokens.ids.tolist(), tokens.sentences.tolist()) == before  # not changed in place
    assert result.ids.shape == result.sentences.shape
    own = dict(zip(*before, strict=True))
    for token, sentence in zip(result.ids.tolist(), result.sentences.tolist(), strict=True):
        assert own.get(token, sentence) == sentence  # tokens take the number of their sentence along
    return result


@repeatable
@given(texts(), shares, seeds)
def test_masking_hides_the_share_in_its_place(tokens: Tokens, share: float, seed: int) -> None:
    ids = apply(TokenMasking(share), tokens, seed).ids
    assert all(new in (old, MASK) for new, old in zip(ids, tokens.ids, strict=True))
    assert (ids == MASK).sum() == int(share * len(tokens) + 0.5)


@repeatable
@given(texts(), shares, seeds)
def test_deletion_keeps_the_order_and_never_deletes_all(tokens: Tokens, share: float, seed: int) -> None:
    ids = apply(TokenDeletion(share), tokens, seed).ids.tolist()
    assert ids == sorted(set(ids)) and set(ids) <= set(tokens.ids.tolist())
    assert len(ids) == max(min(1, len(tokens)), len(tokens) - int(share * len(tokens) + 0.5))


@repeatable
@given(texts(), shares, st.floats(0.1, 8), seeds)
def test_infilling_hides_exactly_the_share_behind_masks(tokens: Tokens, share: float, mean: float, seed: int) -> None:
    ids = apply(TextInfilling(share, mean), tokens, seed).ids
    kept = ids[ids != MASK]
    assert np.array_equal(kept, np.sort(kept)) and np.isin(kept, tokens.ids).all()
    assert len(tokens) - len(kept) == int(share * len(tokens) + 0.5)
    # Every run of hidden tokens has a mask where it was.
    assert all(ids[i + 1] == MASK for i in np.flatnonzero(ids[:-1] != MASK) if ids[i + 1] != ids[i] + 1)


def test_infilling_draws_poisson_spans() -> None:
    """Over many texts the masks stand for 0, 1, 2, ... tokens as often as Poisson(3) says, the cut last span aside."""
    spans = np.concatenate([TextInfilling(1.0)._draw_spans(3000, np.random.default_rng(seed)) for seed in range(20)])
    assert spans.sum() == 60_000
    expected = {0: 0.0498, 1: 0.1494, 2: 0.2240, 3: 0.2240, 4: 0.1680}
    counts = Counter(spans.tolist())
    for length, probability in expected.items():
        assert counts[length] / len(spans) == pytest.approx(probability, abs=0.01)


def test_an_empty_span_inserts_a_mask() -> None:
    tokens = Tokens(np.arange(10, 40), np.zeros(30, dtype=int))
    lengths = [len(apply(TextInfilling(0.1, 0.1), tokens, seed)) for seed in range(20)]
    assert max(lengths) > 30
    ends = {int(apply(TextInfilling(0.1, 0.1), tokens, seed).ids[-1]) for seed in range(100)}
    assert ends == {MASK, 39}  # also behind the last token


def test_spans_may_lie_anywhere() -> None:
    tokens = Tokens(np.arange(10, 20), np.zeros(10, dtype=int))
    hidden = Counter(
        token
        for seed in range(2000)
        for token in set(range(10, 20)) - set(apply(TextInfilling(0.3), tokens, seed).ids.tolist())
    )
    assert set(hidden) == set(range(10, 20))
    assert min(hidden.values()) > 250  # of 600 on average; the ends lie in fewer spans


@repeatable
@given(texts(), seeds)
def test_permutation_moves_whole_sentences(tokens: Tokens, seed: int) -> None:
    result = apply(SentencePermutation(), tokens, seed)
    order = list(dict.fromkeys(result.sentences.tolist()))
    assert sorted(order) == list(dict.fromkeys(tokens.sentences.tolist()))
    expected = [token for i in order for token in tokens.ids[tokens.sentences == i]]
    assert result.ids.tolist() == expected


def test_all_orders_are_equally_likely() -> None:
    tokens = Tokens(np.array([10, 11, 12, 13]), np.array([0, 1, 1, 2]))
    counts = Counter(tuple(apply(SentencePermutation(), tokens, seed).ids.tolist()) for seed in range(1200))
    assert len(counts) == 6 and min(counts.values()) > 140  # 200 expected


@repeatable
@given(texts(), seeds)
def test_rotation_begins_at_one_of_the_tokens(tokens: Tokens, seed: int) -> None:
    ids = apply(DocumentRotation(), tokens, seed).ids.tolist()
    k = ids[0] - 10 if ids else 0
    old = tokens.ids.tolist()
    assert ids == old[k:] + old[:k]


@repeatable
@given(
    texts(),
    st.lists(st.sampled_from(sorted(CORRUPTIONS)), max_size=5),
    st.booleans(),
    st.integers(0, 2),
    seeds,
)
def test_any_composition_leaves_the_special_tokens_at_the_ends(
    tokens: Tokens, names: list[str], with_bos: bool, n_eos: int, seed: int
) -> None:
    front, back = [BOS] * with_bos, [EOS] * n_eos
    ids = np.array([*front, *tokens.ids, *back], dtype=np.int64)
    sentences = np.array([0] * len(front) + tokens.sentences.tolist() + [99] * n_eos, dtype=np.int64)
    corruptions = [read_corruption(name) for name in names]

    def run() -> list[int]:
        random = np.random.default_rng(seed)
        options = {"mask_token_id": MASK, "special_ids": {BOS, EOS}, "random": random}
        return corrupt(ids, sentences, corruptions, **options).tolist()  # type: ignore[arg-type]

    result = run()
    assert result == run()
    assert result[: len(front)] == front and result[len(result) - n_eos :] == back
    middle = result[len(front) : len(result) - n_eos]
    assert set(middle) <= {MASK, *tokens.ids.tolist()}
    assert bool(middle) == bool(len(tokens))
    if not names:
        assert result == ids.tolist()


def test_what_cannot_be_is_refused() -> None:
    for bad in ("no-such", "token-masking:1.5", "token-masking:x", "document-rotation:0.1", "token-masking:nan"):
        with pytest.raises(ValueError, match=bad.split(":")[0]):
            read_corruption(bad)
    with pytest.raises(ValueError, match="too short"):
        TextInfilling(0.3, 0.0)
    with pytest.raises(ValueError, match="give each token one"):
        corrupt(np.arange(3), np.arange(2), [], mask_token_id=MASK, special_ids=(), random=np.random.default_rng(0))
    assert read_corruption("text-infilling:0.2") == TextInfilling(0.2)


TEXT = "The quick fox. A lazy dog sleeps!\nIs it über? Yes, 12 times."


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_byte_level(tmp_path_factory.mktemp("bart"))


def test_sentences_have_the_tokens_of_the_whole_text(bart: Path, vocabulary_file: Path) -> None:
    """But for the space that stands before the first one."""
    for tokenizer in (BartTokenizer.from_pretrained(bart), PegasusTokenizer(vocabulary_file)):
        ids, sentences, end = tokenize_sentences(TEXT, tokenizer, 1000)
        assert ids.tolist() == tokenizer.encode(" " + TEXT, add_special_tokens=False)
        assert end == len(TEXT) and sorted(set(sentences.tolist())) == [0, 1, 2, 3]
        n_two = int((sentences < 2).sum())
        for limit in (n_two, n_two + 1):
            cut = tokenize_sentences(TEXT, tokenizer, limit)
            assert len(cut[0]) == n_two and TEXT[: cut[2]].endswith("sleeps!")
        assert not len(tokenize_sentences(TEXT, tokenizer, 1)[0])


def test_permuted_text_is_the_sentences_in_another_order(bart: Path) -> None:
    make = Denoising(str(bart), (SentencePermutation(),))
    documents = set()
    for seed in range(40):
        example = make(TEXT, seed)
        assert example is not None and example.summary == TEXT and not example.cut
        documents.add(example.document)
        parts = ["The quick fox.", "A lazy dog sleeps!", "Is it über?", "Yes, 12 times."]
        assert all(part in example.document for part in parts)
        assert example.document.split().__len__() == len(TEXT.split())
    assert len(documents) > 12  # of 24


def test_masks_survive_the_way_through_text(bart: Path) -> None:
    """What the fine-tuning job reads has a mask wherever a span was hidden."""
    tokenizer = BartTokenizer.from_pretrained(bart)
    for seed in range(20):
        example = Denoising(str(bart), (TextInfilling(),))(TEXT, seed)
        assert example is not None
        ids = tokenizer.encode(example.document)
        assert ids.count(tokenizer.mask_token_id) == example.document.count("<mask>") > 0


def test_texts_that_do_not_fit_are_cut_to_whole_sentences_or_left_out(bart: Path) -> None:
    n_tokens = len(BartTokenizer.from_pretrained(bart).encode(" The quick fox.", add_special_tokens=False))
    example = Denoising(str(bart), (), max_tokens=n_tokens)(TEXT, 0)
    assert example is not None
    assert (example.document, example.summary, example.cut) == ("The quick fox.", "The quick fox.", True)
    assert Denoising(str(bart), (), max_tokens=n_tokens - 1)(TEXT, 0) is None
    assert Denoising(str(bart))("  \n", 0) is None

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegasus_batch.tokenization.pegasus import PegasusTokenizer
from pegasus_batch.training.masked_tokens import mask_tokens, ordinary_ids
from pegasus_batch.training.pairs import IGNORED

MASK = 3
ORDINARY = np.arange(106, 400)
repeatable = settings(derandomize=True, database=None, deadline=None)


@repeatable
@given(st.lists(st.integers(0, 399), max_size=80), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_chosen_tokens_are_labelled_and_all_others_untouched(
    ids: list[int], share: float, mask_share: float, random_share: float, seed: int
) -> None:
    random_share *= 1 - mask_share
    given_ids = np.array(ids, dtype=np.int64)
    corrupted, labels = mask_tokens(
        given_ids,
        ORDINARY,
        MASK,
        np.random.default_rng(seed),
        share=share,
        mask_share=mask_share,
        random_share=random_share,
    )
    assert given_ids.tolist() == ids  # not changed in place
    chosen = labels != IGNORED
    assert corrupted.shape == labels.shape == given_ids.shape
    assert np.array_equal(labels[chosen], given_ids[chosen])
    assert np.array_equal(corrupted[~chosen], given_ids[~chosen])
    assert np.isin(given_ids[chosen], ORDINARY).all()
    assert np.isin(corrupted[chosen], [MASK, *ORDINARY]).all()
    assert chosen.sum() == int(share * np.isin(given_ids, ORDINARY).sum() + 0.5)


def test_shares_are_those_of_bert() -> None:
    ids = np.arange(106, 400).repeat(200)
    corrupted, labels = mask_tokens(ids, ORDINARY, MASK, np.random.default_rng(0))
    chosen = labels != IGNORED
    assert chosen.mean() == pytest.approx(0.15, abs=1e-4)
    masked, same = corrupted[chosen] == MASK, corrupted[chosen] == ids[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert same.mean() == pytest.approx(0.1, abs=0.015)
    strangers = corrupted[chosen][~masked & ~same]
    assert len(np.unique(strangers)) > 250 and strangers.min() >= 106 and strangers.max() < 400


def test_ordinary_ids_of_pegasus_are_its_pieces(vocabulary_file: Path) -> None:
    tokenizer = PegasusTokenizer(vocabulary_file)
    assert tokenizer.mask_token_id == MASK
    assert np.array_equal(ordinary_ids(tokenizer), np.arange(106, len(tokenizer)))


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share 1\.5"):
        mask_tokens(ORDINARY, ORDINARY, MASK, np.random.default_rng(0), share=1.5)
    with pytest.raises(ValueError, match=r"mask_share 0\.8, random_share 0\.3"):
        mask_tokens(ORDINARY, ORDINARY, MASK, np.random.default_rng(0), random_share=0.3)

"""Masked language modelling: tokens of the source are hidden, and the encoder predicts them.

The second objective of PEGASUS (arXiv 1912.08777, section 3.2; BERT, arXiv 1810.04805, section 3.1).
"""

from __future__ import annotations

import numpy as np

from pegasus_batch.tokenization.base import Tokenizer
from pegasus_batch.training.pairs import IGNORED


def ordinary_ids(tokenizer: Tokenizer) -> np.ndarray:
    """Return the ids, int64 ascending, that stand for text: all but the special tokens."""
    return np.setdiff1d(np.arange(len(tokenizer)), np.asarray(tokenizer.all_special_ids))


def mask_tokens(
    token_ids: np.ndarray,
    ordinary: np.ndarray,
    mask_token_id: int,
    random: np.random.Generator,
    *,
    share: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide a share of a text's tokens; return the corrupted ids and the labels, both int [S].

    token_ids int [S]; ``ordinary`` are the ids, ascending, that may be hidden and from which random tokens are drawn
    (``ordinary_ids``); ``mask_token_id`` is Pegasus' ``<mask_2>``. Of the chosen tokens each becomes the mask with
    probability ``mask_share``, a random token with ``random_share``, and else stays. Labels hold the chosen tokens and
    -100 everywhere else. Raises ValueError for shares outside of 0 to 1.
    """
    if not (0 <= share <= 1 and min(mask_share, random_share) >= 0 and mask_share + random_share <= 1):
        raise ValueError(f"share {share}, mask_share {mask_share}, random_share {random_share}: shares lie in 0 to 1")
    token_ids = np.asarray(token_ids)
    maskable = np.flatnonzero(np.isin(token_ids, ordinary))
    chosen = random.permutation(maskable)[: int(share * len(maskable) + 0.5)]
    labels = np.full_like(token_ids, IGNORED)
    labels[chosen] = token_ids[chosen]
    draws = random.random(len(chosen))
    strangers = random.choice(ordinary, len(chosen)) if len(chosen) else chosen
    corrupted = token_ids.copy()
    corrupted[chosen] = np.where(
        draws < mask_share,
        mask_token_id,
        np.where(draws < mask_share + random_share, strangers, token_ids[chosen]),
    )
    return corrupted, labels

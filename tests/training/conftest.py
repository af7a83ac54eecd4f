"""A corpus of made-up packages, large enough to train a vocabulary of a hundred pieces and to learn from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

KINDS = ["library", "editor", "browser", "player", "server", "compiler", "viewer", "game"]
THEMES = ["music", "images", "maps", "letters", "numbers", "pictures", "stars", "words"]


def make_rows(n: int, seed: int) -> tuple[list[str], list[str]]:
    random = np.random.default_rng(seed)
    documents, summaries = [], []
    for _ in range(n):
        kind, theme = random.choice(KINDS), random.choice(THEMES)
        filler = " ".join(random.choice(THEMES + KINDS, int(random.integers(2, 9))))
        documents.append(f"This package is a {kind} for {theme}.\nIt also knows {filler}.")
        summaries.append(f"{kind} for {theme}")
    return documents, summaries


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with train.parquet, validation.parquet and config.json of a tiny Pegasus."""
    directory = tmp_path_factory.mktemp("corpus")
    for name, n, seed in (("train", 160, 1), ("validation", 24, 2)):
        documents, summaries = make_rows(n, seed)
        table = pa.table({"id": [str(i) for i in range(n)], "document": documents, "summary": summaries})
        pq.write_table(table, directory / f"{name}.parquet")
    config = {
        "model_type": "pegasus",
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "activation_function": "relu",
        "scale_embedding": True,
        "dropout": 0.1,
        "init_std": 0.05,
        "max_position_embeddings": 64,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory

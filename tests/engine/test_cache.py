"""The memories of decoding, driven at random: nothing that is held is ever written over, and nothing leaks."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.engine.cache import DecoderCache, SourceCache

CPU = torch.device("cpu")


def read_source(cache: SourceCache, layer: int, document: int) -> Tensor:
    """Return the sum of a document's values as attention sees them: with keys of zero, its mean times its length."""
    keys, values = cache.layer(layer)
    place = slice(document, document + 1)
    rows = torch.tensor([0, 1], dtype=torch.int32)
    query = torch.zeros(1, 1, 1)
    mean = kernels.source_attention(query, keys, values, rows, cache.begin[place], cache.length[place], 1.0)
    return mean.squeeze()


@given(st.data())
def test_sources_keep_their_place(data: st.DataObject) -> None:
    """Documents of any length come and go; each reads its own values, and gaps are used again."""
    cache = SourceCache(2, 1, 1, torch.float32, CPU)
    held: list[tuple[int, int]] = []  # (what the rows hold, how many)
    written = most = 0
    for _ in range(data.draw(st.integers(1, 12))):
        lengths = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=4))
        first = cache.admit(lengths)
        assert first == len(held)
        values, begins = [], []
        for length in lengths:
            written += 1
            held.append((written, length))
            begins.append(len(values))
            values += [float(written)] * length
        rows = torch.tensor(values).view(-1, 1, 1)
        for layer in range(2):
            cache.write(layer, 0 * rows, rows + layer, torch.tensor(begins, dtype=torch.int32), first)
        most = max(most, sum(-(-length // kernels.PANEL) for _, length in held))
        kept = data.draw(st.lists(st.sampled_from(range(len(held))), unique=True).map(sorted))
        cache.keep(kept)
        held = [held[index] for index in kept]
        assert cache.length.tolist() == [length for _, length in held]
        for index, (value, _) in enumerate(held):
            for layer in range(2):
                assert read_source(cache, layer, index).item() == pytest.approx(value + layer)
    cache.keep([])
    capacity = len(cache.layer(0)[0])
    assert most <= capacity
    cache.admit([capacity * kernels.PANEL])
    assert len(cache.layer(0)[0]) == capacity, "the gaps have grown together again"


def test_equal_documents_need_no_more_room() -> None:
    cache = SourceCache(1, 1, 1, torch.float32, CPU)
    cache.admit([97] * 10)
    for _ in range(20):
        cache.keep([0, 2, 3, 5, 6, 9])
        cache.admit([97, 81, 112, 1])
    assert len(cache.layer(0)[0]) == 70


@given(st.data())
def test_every_row_finds_its_past(data: st.DataObject) -> None:
    """Any comings, goings and reorderings: what the ancestry leads to is the sequence of tokens that each row was fed."""
    n_beams = data.draw(st.integers(1, 3))
    cache = DecoderCache(1, n_beams, 1, 1, torch.float32, CPU)
    pasts: list[list[list[float]]] = []  # of every document, of every row
    token = 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        joining = data.draw(st.integers(0 if pasts else 1, 2))
        if joining:
            cache.admit(joining)
            pasts += [[[]] for _ in range(joining)]
        begins = [sum(len(rows) for rows in pasts[:index]) for index in range(len(pasts))]
        widths, parents, fed, new = [], [], [], []
        for rows, begin in zip(pasts, begins, strict=True):
            widths.append(n_beams if rows[0] else 1)
            chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=widths[-1], max_size=widths[-1]))
            parents += [begin + row for row in chosen]
            new.append([])
            for row in chosen:
                token += 1
                fed.append(token)
                new[-1].append([*rows[row], token])
        pasts = new
        cache.advance(torch.tensor(parents), widths)
        newest = torch.tensor(fed).view(-1, 1, 1)
        rows_begin = torch.tensor([0, *accumulate(widths)], dtype=torch.int32)
        keys, values = cache.layer(0)
        kernels.cached_attention(newest, newest, -newest, keys, values, rows_begin, cache.ancestry, cache.lengths, 1.0)
        flat = [row for rows in pasts for row in rows]
        assert cache.lengths.tolist() == [len(row) for row in flat]
        assert cache.positions.tolist() == [len(row) - 1 for row in flat]
        for row, ancestors in zip(flat, cache.ancestry, strict=True):
            slots = ancestors[: len(row)].long()
            assert keys[slots].flatten().tolist() == row
            assert values[slots].flatten().tolist() == [-x for x in row]
        kept = data.draw(st.lists(st.sampled_from(range(len(pasts))), unique=True).map(sorted))
        cache.keep(kept)
        pasts = [pasts[index] for index in kept]

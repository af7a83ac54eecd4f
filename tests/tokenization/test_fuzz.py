"""Strings of every kind, in thousands: ids, masks, offsets and decoded texts equal to transformers', seeded."""

import unicodedata
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from tests.tokenization.fuzz import make_texts
from tests.tokenization.twins import Pair, bart_pair, first_difference, pegasus_pair

SEED = 20191218


@pytest.fixture(
    params=["unigram", "unigram-fast", "bpe", "bpe-fast", "bart", "bart-fast", "bart-prefix", "bart-prefix-fast"],
    scope="module",
)
def pair(request: pytest.FixtureRequest, spiece_files: dict[str, Path], bart_directory: Path) -> Pair:
    name, fast = request.param.removesuffix("-fast"), request.param.endswith("-fast")
    if name in spiece_files:
        return pegasus_pair(spiece_files[name], fast=fast)
    untrimmed = {"trim_offsets": False} if fast else {}
    return bart_pair(bart_directory, fast=fast, **({"add_prefix_space": True, **untrimmed} if "prefix" in name else {}))


def check(pair: Pair, texts: list[str]) -> None:
    differing = []
    n_surrogates = 0
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            # No tokenizer reads one: theirs raise TypeError, RuntimeError or UnicodeEncodeError, ours say where it is.
            n_surrogates += 1
            with pytest.raises(ValueError, match="lone surrogate"):
                pair[0](text)
            with pytest.raises((TypeError, RuntimeError, UnicodeEncodeError)):
                pair[1](text)
        else:
            difference = first_difference(*pair, text)
            differing += [difference] if difference else []
    assert 0 < n_surrogates < len(texts) / 20
    assert not differing, f"{len(differing)} of {len(texts)} differ, such as {differing[0]!a:.700}"


def test_hundreds_of_strings(pair: Pair) -> None:
    check(pair, make_texts(300, SEED))


@pytest.mark.slow
def test_ten_thousand_strings(pair: Pair) -> None:
    check(pair, make_texts(10_000, SEED))


def test_the_strings_are_of_every_kind() -> None:
    texts = make_texts(10_000, SEED)
    characters = set("".join(texts))
    assert {ord(char) >> 16 for char in characters} == set(range(17)), "a plane is missing"
    categories = {unicodedata.category(char) for char in characters}
    assert categories >= {"Cc", "Cf", "Cn", "Co", "Cs", "Lo", "Mn", "Nd", "So", "Zl", "Zp", "Zs"}
    assert max(map(len, texts)) > 4000
    assert "" in texts
    for part in ("</s>", " <mask> ", "a<pad>a", "<mask_1>\n", "\u200d", "\ufe0f"):
        assert sum(part in text for text in texts) > 10, part


def test_letters_differ_only_where_unicode_grew() -> None:
    """BART splits at letters and digits, and no two libraries know the same ones.

    The tokenizers library, which we and transformers' fast class use, has the tables of Unicode 16. The regex package of
    transformers' step-by-step class has those of its own version. Characters assigned in between, unassigned to Python,
    may therefore be split otherwise; no other character may.
    """
    regex = pytest.importorskip("regex", reason="what transformers' step-by-step BART splits with")
    pattern = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")
    splitter = ByteLevel(add_prefix_space=False)
    assigned = [char for char in map(chr, range(0x110000)) if unicodedata.category(char) not in ("Cn", "Co", "Cs")]
    assert len(assigned) > 140_000
    for at in range(0, len(assigned), 4096):
        text = "".join(f"a{char}1 {char}\n" for char in assigned[at : at + 4096])
        ours = [text[begin:end] for _, (begin, end) in splitter.pre_tokenize_str(text)]
        assert ours == pattern.findall(text), f"from U+{ord(assigned[at]):04X} on"

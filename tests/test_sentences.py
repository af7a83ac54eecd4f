from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pegasus_batch.sentences import locate_sentences, split_sentences

pieces = ["One fox.", "Two dogs!", "and more", "Is it?", "\n", " ", "  ", "\u2028", "1.", "É a.", "\x1c", "<n>"]


def test_sentences_keep_all_words() -> None:
    text = "One. Two is\nthree? Four!"
    assert " ".join(split_sentences(text)).split() == text.split()


@settings(max_examples=150)
@given(st.lists(st.sampled_from(pieces), max_size=25))
def test_sentences_are_located_where_they_stand(drawn: list[str]) -> None:
    text = "".join(drawn)
    spans = locate_sentences(text)
    assert [text[begin:end] for begin, end in spans] == split_sentences(text)
    outside = "".join(
        text[end:begin] for (_, end), (begin, _) in zip([(0, 0), *spans], [*spans, (None, 0)], strict=True)
    )
    assert not outside.replace("<n>", "").strip()

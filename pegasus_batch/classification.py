"""What a classifier reads and says, and the half of it that needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import Seq2SeqConfig
from pegasus_batch.documents import Document, Status, choose_max_tokens, find_fault
from pegasus_batch.tokenization import load_tokenizer

HYPOTHESIS = "This example is {}."


@dataclass(frozen=True)
class ZeroShot:
    """Labels that the checkpoint does not know: each makes a hypothesis, which the text entails or not.

    The labels compete, unless ``multi_label``, which judges each alone: its entailment against its contradiction.
    """

    labels: tuple[str, ...]
    hypothesis: str = HYPOTHESIS
    multi_label: bool = False

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)}: name at least one, and each once")
        if "{}" not in self.hypothesis:
            raise ValueError(f"hypothesis {self.hypothesis!r} has no {{}}, which is where a label goes")

    @property
    def hypotheses(self) -> list[str]:
        """A sentence for each label."""
        return [self.hypothesis.replace("{}", label) for label in self.labels]


@dataclass(frozen=True)
class Classification:
    """What became of one text: the best label with its score, and all of them, best first.

    Status "invalid" means that there is nothing to classify, "failed" that the model could not do it; ``error`` says why
    and the rest is empty. ``n_source_tokens`` counts the text with its pair, or its longest hypothesis, before
    truncation.
    """

    label: str | None
    score: float | None
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    n_source_tokens: int
    truncated: bool
    status: Status = "ok"
    error: str | None = None

    @classmethod
    def missing(cls, document: Document, status: Status, error: str | None) -> Self:
        """Return what stands for the classification of a document that got none."""
        return cls(None, None, (), (), document.n_source_tokens, document.truncated, status, error)


class PairTokenizer:
    """Turns texts, or pairs of them, into what a classifier reads: a window for each, or one for each hypothesis."""

    def __init__(
        self, model_dir: str | Path, max_source_tokens: int | None = None, zero_shot: ZeroShot | None = None
    ) -> None:
        """Load the tokenizer of a model directory; pairs are cut to ``max_source_tokens``, by default all that it reads."""
        path = resolve(model_dir)
        self.tokenizer = load_tokenizer(path)
        self.max_source_tokens = choose_max_tokens(path, self.tokenizer, max_source_tokens)
        hypotheses = zero_shot.hypotheses if zero_shot else []
        self._hypotheses = [self._encode(hypothesis) for hypothesis in hypotheses]

    def tokenize(self, texts: Sequence[object], pairs: Sequence[object] | None = None) -> list[Document]:
        """Turn every text, with its pair if there are any, into a Document; what is no text makes an invalid one.

        Too long a pair loses tokens of the longer text first, and a text with hypotheses its own.
        """
        if pairs is None:
            return [self._tokenize(text) for text in texts]
        if self._hypotheses:
            raise ValueError("pairs and labels exclude each other: with labels, the hypotheses are the second texts")
        return [self._tokenize(text, pair) for text, pair in zip(texts, pairs, strict=True)]

    def _tokenize(self, text: object, *pair: object) -> Document:
        for what, each in zip(("text", "pair"), (text, *pair), strict=False):
            if fault := find_fault(each, what):
                return Document([], 0, False, fault)
        try:
            first = self._encode(str(text))
            if self._hypotheses:
                return self._document([(first, hypothesis) for hypothesis in self._hypotheses], "only_first")
            second = self._encode(str(pair[0])) if pair else None
            return self._document([(first, second)], "longest_first")
        except ValueError as error:
            return Document([], 0, False, f"the text cannot be tokenized: {error}")

    def _document(self, pairs: Sequence[tuple[list[int], list[int] | None]], truncation: str) -> Document:
        longest = self.max_source_tokens
        full = [self.tokenizer.build_inputs_with_special_tokens(first, second) for first, second in pairs]
        windows = [
            ids if len(ids) <= longest else self.tokenizer.encode(*pair, truncation=truncation, max_length=longest)
            for ids, pair in zip(full, pairs, strict=True)
        ]
        n_tokens = max(map(len, full))
        return Document(windows[0], n_tokens, n_tokens > longest, further=windows[1:])

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def label_names(config: Seq2SeqConfig) -> list[str]:
    """Return the names of a checkpoint's labels, by id."""
    named = {int(index): str(name) for index, name in (config.extra.get("id2label") or {}).items()}
    return [named.get(index, f"LABEL_{index}") for index in range(config.num_labels)]


def find_entailment(config: Seq2SeqConfig) -> int:
    """Return the id of the label that means entailment. Raises ValueError where none does."""
    names = label_names(config)
    for index, name in enumerate(names):
        if name.lower().startswith("entail"):
            return index
    raise ValueError(
        f"the checkpoint's labels are {', '.join(names)}: none begins with 'entail', so it cannot judge labels of yours; "
        "take a checkpoint trained on entailment (MNLI), or name its labels under id2label in config.json"
    )

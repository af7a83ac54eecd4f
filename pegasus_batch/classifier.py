"""Texts in, labels out: one device's share of the corpus, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.classification import (
    HYPOTHESIS,
    Classification,
    PairTokenizer,
    ZeroShot,
    find_entailment,
    label_names,
)
from pegasus_batch.documents import Document, check_head
from pegasus_batch.forward import BATCH_TOKENS, Failure, load_model, run_windows
from pegasus_batch.models.heads import BartForSequenceClassification, PegasusForSequenceClassification


class Classifier:
    """A checkpoint for sequence classification with its tokenizer, ready on one device.

    Scores are those of transformers' text-classification and zero-shot-classification pipelines.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        labels: Sequence[str] | None = None,
        hypothesis: str = HYPOTHESIS,
        multi_label: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        max_source_tokens: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Load ``model_dir``.

        With ``labels`` a checkpoint for entailment judges these instead of its own, see ``ZeroShot``. device, dtype and
        max_source_tokens are those of ``Summarizer``, without int8; batch_tokens counts the ids of a GPU's batch. Raises
        ValueError for a checkpoint with another head, and for labels without an entailment label among its own.
        """
        path = resolve(model_dir)
        config = check_head(path, "SequenceClassification")
        self.zero_shot = ZeroShot(tuple(labels), hypothesis, multi_label) if labels is not None else None
        self._entailment = find_entailment(config) if self.zero_shot else None
        self.labels = self.zero_shot.labels if self.zero_shot else tuple(label_names(config))
        self.documents = PairTokenizer(path, max_source_tokens, self.zero_shot)
        self.batch_tokens = batch_tokens or BATCH_TOKENS
        self._model = load_model(path, (PegasusForSequenceClassification, BartForSequenceClassification), device, dtype)

    def classify(self, texts: Sequence[object], pairs: Sequence[object] | None = None) -> list[Classification]:
        """Classify texts, or pairs of texts; one Classification for each, in order."""
        return self.classify_documents(self.documents.tokenize(texts, pairs))

    def classify_documents(self, documents: Sequence[Document]) -> list[Classification]:
        """Classify tokenized texts; one Classification for each, in order. Raises DeviceLost where the GPU fails for good."""
        windows = [window for document in documents if document.error is None for window in document.windows]
        model = self._model
        logits = iter(run_windows(windows, self._forward, model.config, model.device, self.batch_tokens))
        return [
            Classification.missing(document, "invalid", document.error)
            if document.error is not None
            else self._judge(document, [next(logits) for _ in document.windows])
            for document in documents
        ]

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        output = self._model(ids, mask, use_cache=False, return_dict=True)
        assert not isinstance(output, tuple) and output.logits is not None
        return output.logits

    def _judge(self, document: Document, found: Sequence[Tensor | Failure]) -> Classification:
        failures = [each for each in found if isinstance(each, Failure)]
        if failures:
            return Classification.missing(document, "failed", str(failures[0]))
        scores = self._scores(torch.stack([each for each in found if isinstance(each, Tensor)]))
        order = scores.argsort(descending=True, stable=True).tolist()
        labels, values = tuple(self.labels[index] for index in order), tuple(scores[order].tolist())
        return Classification(labels[0], values[0], labels, values, document.n_source_tokens, document.truncated)

    def _scores(self, logits: Tensor) -> Tensor:
        """Return a score for every label, from logits [1, C], or [L, C] of one row for each hypothesis."""
        if self.zero_shot is not None:
            entailment = self._entailment
            if not self.zero_shot.multi_label and len(logits) > 1:
                return logits[:, entailment].softmax(0)
            contradiction = -1 if entailment == 0 else 0
            return logits[:, [contradiction, entailment]].softmax(1)[:, 1]
        problem = self._model.config.problem_type
        if problem == "regression":
            return logits[0]
        several = problem == "multi_label_classification" or logits.shape[1] == 1
        return logits[0].sigmoid() if several else logits[0].softmax(0)

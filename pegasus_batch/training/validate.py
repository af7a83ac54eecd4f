"""What validation measures: the loss on reference summaries and the ROUGE of the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pegasus_batch.evaluation.rouge import rouge
from pegasus_batch.training.loss import smoothed_cross_entropy
from pegasus_batch.training.pairs import IGNORED, EncodedPairs, TextPairs, iterate_batches


class Decodes(Protocol):
    """The part of the package's tokenizers that validation uses."""

    @property
    def vocab_size(self) -> int:
        """How many ids can be decoded."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Return the text of some ids."""


@dataclass(frozen=True)
class Validation:
    """Mean negative log-likelihood per target token in nats, and mean ROUGE F1 x 100 of greedy summaries."""

    loss: float
    rouge1: float
    rouge2: float
    rougeL: float

    def score(self, select_by: str) -> float:
        """Return what to maximise: the mean of the three ROUGE values, or the negative loss."""
        return -self.loss if select_by == "loss" else (self.rouge1 + self.rouge2 + self.rougeL) / 3


@torch.no_grad()
def validate(
    model: Any,
    tokenizer: Decodes,
    texts: TextPairs,
    pairs: EncodedPairs,
    *,
    batch_tokens: int,
    n_summaries: int,
    max_new_tokens: int,
) -> Validation:
    """Measure the model, in evaluation mode, on all ``pairs``; summaries are searched greedily for the first
    ``n_summaries``.

    Leaves the model's mode and the random state as they were.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    config = model.config
    total, n_tokens = 0.0, 0
    predictions: dict[int, str] = {}
    batches = iterate_batches(
        pairs, batch_tokens, pad_token_id=config.pad_token_id, decoder_start_token_id=config.decoder_start_token_id
    )
    for indices, batch in batches:
        moved = batch.to(device)
        logits = model(
            input_ids=moved.input_ids, attention_mask=moved.attention_mask, decoder_input_ids=moved.decoder_input_ids
        ).logits
        active = int((batch.labels != IGNORED).sum())
        total += float(smoothed_cross_entropy(logits, moved.labels, 0.0)[1]) * active
        n_tokens += active
        wanted = [row for row, index in enumerate(indices) if index < n_summaries]
        if wanted:
            generated = model.generate(
                moved.input_ids[wanted],
                attention_mask=moved.attention_mask[wanted],
                num_beams=1,
                max_new_tokens=max_new_tokens,
            )
            for row, ids in zip(wanted, generated.tolist(), strict=True):
                known = [token for token in ids if token < tokenizer.vocab_size]  # a padded vocabulary has more
                predictions[int(indices[row])] = tokenizer.decode(known, skip_special_tokens=True)
    model.train(was_training)
    scores = rouge([predictions[i] for i in sorted(predictions)], [texts.summaries[i] for i in sorted(predictions)])
    return Validation(total / n_tokens, *(scores[name].mean for name in ("rouge1", "rouge2", "rougeL")))

"""What the models return: named fields that also read as a tuple or a mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

LayerCache = tuple[Tensor, ...]  # self key, self value [B, H, past, D], then cross key, cross value [B, H, S, D]
Cache = tuple[LayerCache, ...]  # one entry per decoder layer


@dataclass(eq=False)
class ModelOutput(Mapping[str, Any]):
    """A record whose unset fields disappear when it is read as a tuple or a mapping."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are set, in order."""
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in iter(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)  # list() would ask for the length


@dataclass(eq=False)
class _States(ModelOutput):
    last_hidden_state: Tensor


@dataclass(eq=False)
class _Scores(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None


@dataclass(eq=False)
class _Decoded(ModelOutput):
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class _EncodedAndDecoded(ModelOutput):
    past_key_values: Cache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor | None, ...] | None = None


# A dataclass takes its fields from its last base to its first: what a head adds comes before what the network returns.


@dataclass(eq=False)
class BaseModelOutput(_States):
    """An encoder's result: last_hidden_state [B, S, D] and, on request, every layer's states and attentions."""

    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None


@dataclass(eq=False)
class DecoderOutput(_Decoded, _States):
    """A decoder's result: last_hidden_state [B, T, D], the cache and, on request, states and attentions."""


@dataclass(eq=False)
class Seq2SeqModelOutput(_EncodedAndDecoded, _States):
    """What PegasusModel and BartModel return; last_hidden_state is the decoder's, [B, T, D]."""


@dataclass(eq=False)
class Seq2SeqLMOutput(_EncodedAndDecoded, _Scores):
    """What the conditional-generation models return: loss (0-d, with labels) and logits [B, T, V] before softmax."""


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(_Decoded, _Scores):
    """What a decoder alone returns: loss (0-d, with labels), logits [B, T, V] before softmax, the cache, every layer's."""


@dataclass(eq=False)
class Seq2SeqSequenceClassifierOutput(_EncodedAndDecoded, _Scores):
    """What the classifiers return: loss (0-d, with labels) and logits [B, C] before softmax."""


@dataclass(eq=False)
class _SpanScores(ModelOutput):
    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None


@dataclass(eq=False)
class Seq2SeqQuestionAnsweringModelOutput(_EncodedAndDecoded, _SpanScores):
    """What the answer finders return: loss (0-d, with positions) and the scores [B, T] of beginnings and of ends."""


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """What generate(return_dict_in_generate=True) returns; B documents, n of ``num_return_sequences``, K rows a document.

    sequences [B*n, L]; with output_scores sequences_scores [B*n] and ``scores``, one [B*K, V] a step, after all processors;
    with output_logits ``logits``, the same before them; beam_indices [B*n, generated], -1 behind the end, of beam search. With
    output_attentions and output_hidden_states what the network says, a tuple of layers for each step; a decoder alone calls
    them attentions and hidden_states. Steps after a document's last are 0 in its rows.
    """

    sequences: Tensor
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    encoder_attentions: tuple[Tensor | None, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    cross_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    decoder_hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None

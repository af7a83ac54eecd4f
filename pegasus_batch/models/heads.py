"""Encoder-decoders with a head for classification or for spans of the text, instead of the one for words."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_batch.config import BartConfig, PegasusConfig, Seq2SeqConfig
from pegasus_batch.models.outputs import Seq2SeqQuestionAnsweringModelOutput, Seq2SeqSequenceClassifierOutput
from pegasus_batch.models.pretrained import PretrainedModel
from pegasus_batch.models.seq2seq import BartModel, Encoded, PegasusModel, Seq2SeqModel


class _HeadModel(PretrainedModel):
    """The bare model, and what reads the states of its decoder, which sees the source shifted by one."""

    prefix = "model."
    model_class: ClassVar[type[Seq2SeqModel]]

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.model.shifts_source = True


class ClassificationHead(nn.Module):
    """Two layers with a tanh between them: states [B, D] to logits [B, C]."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.d_model, config.num_labels)

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits."""
        result: Tensor = self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(states)))))
        return result


class SequenceClassification(_HeadModel):
    """One decision, or number, for a text (or for two, as the tokenizer joins them)."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.classification_head = ClassificationHead(config)
        self._initialize(self.classification_head)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Encoded | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqSequenceClassifierOutput | tuple[Any, ...]:
        """Return logits [B, C] from the decoder's state at the last end token of input_ids [B, S], and a loss.

        labels [B] are classes (int), or numbers where C is 1, or [B, C] zeros and ones where several may hold; the config's
        ``problem_type`` says which, else their type does. Raises ValueError for a row without an end token.
        """
        if input_ids is None:
            raise ValueError("classification needs input_ids: it reads the state at their end token")
        decoded = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            head_mask,
            decoder_head_mask,
            cross_attn_head_mask,
            encoder_outputs,
            None,
            inputs_embeds,
            decoder_inputs_embeds,
            False if labels is not None else use_cache,
            output_attentions,
            output_hidden_states,
            True,
        )
        logits = self.classification_head(_at_last(decoded.last_hidden_state, input_ids, self.config.eos_token_id))
        loss = None if labels is None else self._loss(logits, labels)
        return self._with_scores(Seq2SeqSequenceClassifierOutput, decoded, return_dict, loss=loss, logits=logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the config's kind; where it names none, the labels decide, for later calls too."""
        classes = self.config.num_labels
        if self.config.problem_type is None:
            self._reconfigure(problem_type=_infer_problem(classes, labels))
        match self.config.problem_type:
            case "regression":
                labels = labels.to(logits.dtype)
                return F.mse_loss(logits.squeeze(), labels.squeeze()) if classes == 1 else F.mse_loss(logits, labels)
            case "multi_label_classification":
                return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels.flatten().long())


class QuestionAnswering(_HeadModel):
    """Where in a text the answer begins and where it ends."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(dataclasses.replace(config, num_labels=2))
        self.qa_outputs = nn.Linear(config.d_model, 2)
        self._initialize(self.qa_outputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Encoded | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqQuestionAnsweringModelOutput | tuple[Any, ...]:
        """Return scores [B, T] of every position as beginning and as end, and their mean loss where both are given.

        Positions [B] outside the sequence do not count.
        """
        trains = start_positions is not None and end_positions is not None
        decoded = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            head_mask,
            decoder_head_mask,
            cross_attn_head_mask,
            encoder_outputs,
            None,
            inputs_embeds,
            decoder_inputs_embeds,
            False if trains else use_cache,
            output_attentions,
            output_hidden_states,
            True,
        )
        start, end = self.qa_outputs(decoded.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            outside = start.shape[1]
            losses = [
                F.cross_entropy(scores, positions.flatten().clamp(0, outside), ignore_index=outside)
                for scores, positions in ((start, start_positions), (end, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        kind = Seq2SeqQuestionAnsweringModelOutput
        return self._with_scores(kind, decoded, return_dict, loss=loss, start_logits=start, end_logits=end)


def _at_last(states: Tensor, ids: Tensor, token: int) -> Tensor:
    """Return each row's state [B, D] of states [B, S, D] at the last place of a token in ids [B, S].

    Raises ValueError where rows hold it different numbers of times: a literal end token in one text, most likely.
    """
    found = ids == token
    counts = found.sum(1).tolist()
    if 0 in counts:
        raise ValueError(f"row {counts.index(0)} of input_ids has no end token {token}, whose state is classified")
    if len(set(counts)) > 1:
        raise ValueError(f"rows of input_ids have different numbers of the end token {token}: {counts[:8]}")
    places = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(found, places, -1).amax(1)
    return states[torch.arange(len(ids), device=ids.device), last]


def _infer_problem(n_labels: int, labels: Tensor) -> str:
    if n_labels == 1:
        return "regression"
    whole = labels.dtype in (torch.int64, torch.int32)
    return "single_label_classification" if whole else "multi_label_classification"


class PegasusForSequenceClassification(SequenceClassification):
    """Pegasus as a classifier."""

    config_class = PegasusConfig
    model_class = PegasusModel


class BartForSequenceClassification(SequenceClassification):
    """BART as a classifier."""

    config_class = BartConfig
    model_class = BartModel


class PegasusForQuestionAnswering(QuestionAnswering):
    """Pegasus that finds answers."""

    config_class = PegasusConfig
    model_class = PegasusModel


class BartForQuestionAnswering(QuestionAnswering):
    """BART that finds answers."""

    config_class = BartConfig
    model_class = BartModel

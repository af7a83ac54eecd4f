"""The decoder on its own, as a language model; it may still attend to states that somebody else encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_batch.checkpoints import huggingface
from pegasus_batch.config import BartConfig, PegasusConfig, Seq2SeqConfig
from pegasus_batch.models.layers import Decoder
from pegasus_batch.models.outputs import Cache, CausalLMOutputWithCrossAttentions
from pegasus_batch.models.seq2seq import PretrainedModel, embed_tokens, returned, scale_given_embeddings


class _DecoderOnly(nn.Module):
    """Holds what the checkpoint's names put below ``model.``."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_token_id)
        self.decoder = Decoder(config)


class CausalLM(PretrainedModel):
    """Token ids in, the next token's logits out. A checkpoint's encoder, if it has one, is left out."""

    prefix = "model."
    left_out: ClassVar[tuple[str, ...]] = ("encoder.",)

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.model = _DecoderOnly(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self._initialize()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.model.shared

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Return logits [B, T, V] after ids [B, T] (the newest only, with past_key_values), and a loss.

        encoder_hidden_states [B, S, D] with their mask [B, S] are attended to where given. labels [B, T]: what each
        position should say, so callers shift them; -100 does not count. Raises ValueError on missing or doubled inputs.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            embeds = embed_tokens(self.model.shared, input_ids, self.config)
        else:
            assert inputs_embeds is not None
            embeds = scale_given_embeddings(inputs_embeds, self.config)
        config = self.config
        decoded = self.model.decoder(
            embeds,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            head_mask,
            cross_attn_head_mask,
            past_key_values,
            config.use_cache if use_cache is None else use_cache,
            config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            config.output_attentions if output_attentions is None else output_attentions,
        )
        head = self.model.shared.weight if config.tie_word_embeddings else self.lm_head.weight
        logits = F.linear(decoded.last_hidden_state, head)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        output = CausalLMOutputWithCrossAttentions(
            loss, logits, decoded.past_key_values, decoded.hidden_states, decoded.attentions, decoded.cross_attentions
        )
        return returned(output, return_dict, config)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that Hugging Face's causal class reads: there the embedding is the decoder's own."""
        tensors = self.state_dict()
        tensors["model.decoder.embed_tokens.weight"] = tensors.pop("model.shared.weight")
        huggingface.write(directory, tensors, self.config, None, type(self).__name__)


class PegasusForCausalLM(CausalLM):
    """Pegasus' decoder as a language model."""

    config_class = PegasusConfig


class BartForCausalLM(CausalLM):
    """BART's decoder as a language model."""

    config_class = BartConfig

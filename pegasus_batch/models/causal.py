"""The decoder on its own, as a language model; it may still attend to states that somebody else encoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_batch.checkpoints import huggingface
from pegasus_batch.config import BartConfig, GenerationConfig, PegasusConfig, Seq2SeqConfig
from pegasus_batch.models.decoding import ModuleDecoder, default_mask, evaluating, requested, search, source_rows
from pegasus_batch.models.layers import Decoder
from pegasus_batch.models.outputs import Cache, CausalLMOutputWithCrossAttentions, GenerateOutput, ModelOutput
from pegasus_batch.models.pretrained import LanguageModel


class _DecoderOnly(nn.Module):
    """Holds what the checkpoint's names put below ``model.``."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_token_id)
        self.decoder = Decoder(config)


class CausalLM(LanguageModel):
    """Token ids in, the next token's logits out. A checkpoint's encoder, if it has one, is left out."""

    left_out: ClassVar[tuple[str, ...]] = ("encoder.",)

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(dataclasses.replace(config, is_decoder=True, is_encoder_decoder=False))
        self.model = _DecoderOnly(self.config)
        self._initialize()
        self._add_head()

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
        weights, states = self._requested(output_attentions, output_hidden_states)
        decoded = self.model.decoder(
            self._embed(input_ids, inputs_embeds, "decoder"),
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            head_mask,
            cross_attn_head_mask,
            past_key_values,
            self.config.use_cache if use_cache is None else use_cache,
            states,
            weights,
        )
        logits = F.linear(decoded.last_hidden_state, self._head())
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return self._with_scores(CausalLMOutputWithCrossAttentions, decoded, return_dict, loss=loss, logits=logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Tensor | GenerateOutput:
        """Generate continuations of prompts [B, P], as Hugging Face's generate does: docs/generation.md lists all options.

        Shorter prompts are padded on the left, with attention_mask [B, P] (by default everything but the padding); as at
        Hugging Face, padding counts as positions. Options and results are those of the encoder-decoders' generate. The network
        decodes in the form that trains, one prompt after the other.
        """
        settings, callbacks = requested(generation_config or self.generation_config, options)
        if attention_mask is None:
            attention_mask = default_mask(input_ids, settings)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask {list(attention_mask.shape)} is not of input_ids' {list(input_ids.shape)}"
            )
        hidden = (attention_mask[:, -1] == 0).nonzero()[:, 0].tolist()
        if hidden:
            raise ValueError(f"prompts {hidden[:8]} end in padding: pad on the left (padding_side='left')")
        mask = attention_mask.to(self.device)

        def forward(document: int, ids: Tensor, past: Cache | None) -> ModelOutput:
            length = ids.shape[1] + (past[0][0].shape[2] if past else 0)
            seen = F.pad(mask[document], (0, length - mask.shape[1]), value=1)
            output: ModelOutput = self(
                ids,
                seen.expand(len(ids), -1),
                past_key_values=past,
                use_cache=True,
                output_attentions=settings.return_dict_in_generate and settings.output_attentions,
                output_hidden_states=settings.return_dict_in_generate and settings.output_hidden_states,
                return_dict=True,
            )
            return output

        decoder = ModuleDecoder(forward, self.config, self.device, input_ids.shape[1])
        sources = source_rows(input_ids, attention_mask, len(input_ids))
        with evaluating(self):
            return search(decoder, settings, callbacks, sources, input_ids.to(self.device), decoder.max_positions)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that Hugging Face's causal class reads: there the embedding is the decoder's own."""
        tensors = self.state_dict()
        tensors["model.decoder.embed_tokens.weight"] = tensors.pop("model.shared.weight")
        huggingface.write(directory, tensors, self.config, self.generation_config, type(self).__name__)


class PegasusForCausalLM(CausalLM):
    """Pegasus' decoder as a language model."""

    config_class = PegasusConfig


class BartForCausalLM(CausalLM):
    """BART's decoder as a language model."""

    config_class = BartConfig

"""Pegasus and BART encoder-decoders: one code path, steered by the config's class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_batch.config import BartConfig, GenerationConfig, PegasusConfig, Seq2SeqConfig
from pegasus_batch.engine.engine import Engine
from pegasus_batch.engine.slots import make_engine
from pegasus_batch.models.decoding import (
    default_mask,
    encode_each,
    evaluating,
    requested,
    search,
    search_openly,
    source_rows,
    wants_intermediates,
)
from pegasus_batch.models.layers import Attention, Decoder, Encoder
from pegasus_batch.models.outputs import (
    BaseModelOutput,
    Cache,
    GenerateOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from pegasus_batch.models.pretrained import IGNORED_LABEL, LanguageModel, PretrainedModel, shift_right

Encoded = BaseModelOutput | Sequence[Any]  # of an encoder: its output, or (states, hidden_states, attentions)


class Seq2SeqModel(PretrainedModel):
    """The bare encoder-decoder: token ids in, decoder states out."""

    prefix = ""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_token_id)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.shifts_source = config.shifts_source  # absent decoder ids are the source's
        self._initialize()

    def get_encoder(self) -> EncoderView:
        """Return the encoder as a callable on token ids."""
        return EncoderView(self)

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutput:
        """Run the encoder on ids [B, S] or embeddings [B, S, D] under a 0/1 mask [B, S]."""
        embeds = self._embed(input_ids, inputs_embeds, "encoder")
        weights, states = self._requested(output_attentions, output_hidden_states)
        return self.encoder(embeds, attention_mask, head_mask, states, weights)

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
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Encode the source and decode the target once.

        input_ids, attention_mask [B, S]; decoder_input_ids [B, T] (the newest only, with past_key_values);
        encoder_outputs skips the encoder; head masks [layers, H]; embeddings [B, S, D] and [B, T, D] may stand for ids. BART
        makes absent decoder ids by shifting the source right. Raises ValueError on missing or doubled inputs and on
        positions or ids out of range.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None and self.shifts_source:
            if input_ids is None:
                raise ValueError("pass decoder_input_ids: they can be made from input_ids only, and those are missing")
            mask = attention_mask if self.config.positions_from_mask else None
            decoder_input_ids = shift_right(input_ids, self.config, mask)
            decoder_attention_mask = mask if decoder_attention_mask is None else decoder_attention_mask
        weights, states = self._requested(output_attentions, output_hidden_states)
        if encoder_outputs is None:
            encoded = self.encode(
                input_ids, attention_mask, head_mask, inputs_embeds, output_attentions, output_hidden_states
            )
        elif isinstance(encoder_outputs, list | tuple):
            encoded = BaseModelOutput(*encoder_outputs[:3])
        else:
            encoded = cast(BaseModelOutput, encoder_outputs)  # or transformers' class of that name
        use_cache = self.config.use_cache if use_cache is None else use_cache
        embeds = self._embed(decoder_input_ids, decoder_inputs_embeds, "decoder", "decoder_")
        decoded = self.decoder(
            embeds,
            decoder_attention_mask,
            encoded.last_hidden_state,
            attention_mask,
            decoder_head_mask,
            cross_attn_head_mask,
            past_key_values,
            use_cache,
            states,
            weights,
        )
        output = Seq2SeqModelOutput(
            decoded.last_hidden_state,
            decoded.past_key_values,
            decoded.hidden_states,
            decoded.attentions,
            decoded.cross_attentions,
            encoded.last_hidden_state,
            encoded.hidden_states,
            encoded.attentions,
        )
        return self._returned(output, return_dict)


class EncoderView:
    """The encoder of a model, called on token ids like a module of its own."""

    def __init__(self, model: Seq2SeqModel) -> None:
        self._model = model

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode ids [B, S]; options are those of ``Seq2SeqModel.encode``."""
        return self._model._returned(self._model.encode(input_ids, attention_mask, **options), return_dict)


class ConditionalGeneration(LanguageModel):
    """The encoder-decoder with its language-model head: a loss to train by, logits, and ``generate``."""

    model_class: ClassVar[type[Seq2SeqModel]]
    final_logits_bias: Tensor

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.register_buffer("final_logits_bias", torch.zeros(1, config.vocab_size))
        self._add_head()
        self.quantized = False  # generate() computes with 8-bit weights
        self._engine: tuple[tuple[tuple[int, int], ...], Engine] | None = None

    def _take_settings(self, path: Path, quantized: bool, settings: Mapping[str, Any]) -> None:
        super()._take_settings(path, False, settings)
        self.quantized = quantized

    def get_encoder(self) -> EncoderView:
        """Return the encoder as a callable on token ids."""
        return self.model.get_encoder()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Grow or cut the vocabulary and the bias of its logits, which is 0 for a new token."""
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        bias = self.final_logits_bias
        self.final_logits_bias = F.pad(bias, (0, table.num_embeddings - bias.shape[1]))  # a negative padding cuts
        return table

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
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """As the bare model's forward, with logits [B, T, V] and, given labels [B, T], the mean cross-entropy.

        Labels of -100 do not count. Without decoder inputs the labels, shifted right, are the decoder ids.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = shift_right(labels, self.config)
        decoded = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            head_mask,
            decoder_head_mask,
            cross_attn_head_mask,
            encoder_outputs,
            past_key_values,
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            True,
        )
        logits = F.linear(decoded.last_hidden_state, self._head()) + self.final_logits_bias.to(decoded[0].dtype)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
        return self._with_scores(Seq2SeqLMOutput, decoded, return_dict, loss=loss, logits=logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> Tensor | GenerateOutput:
        """Generate continuations of every document, as Hugging Face's generate does: docs/generation.md lists all options.

        input_ids [B, S] with attention_mask [B, S] (by default, where the batch is padded on the right, everything but the
        padding), or encoder_outputs with the mask of its states. decoder_input_ids [B, P] replaces the start token. Other
        options are GenerationConfig's and Callbacks'; an unknown or contradictory one raises ValueError. Returns ids
        [B * num_return_sequences, L], prompt first, padded, or a GenerateOutput with return_dict_in_generate.
        The engine decodes, whatever the options, except where output_attentions or output_hidden_states ask for what it
        does not keep. Greedy and beam search choose by kernels, everything else in PyTorch.
        """
        settings, callbacks = requested(generation_config or self.generation_config, options)
        if input_ids is None and encoder_outputs is None:
            raise ValueError("generate needs input_ids or encoder_outputs")
        if attention_mask is None and input_ids is not None:
            attention_mask = default_mask(input_ids, settings)
        given = input_ids if encoder_outputs is None else encoder_outputs.last_hidden_state
        assert given is not None
        documents = len(given)
        sources = source_rows(input_ids, attention_mask, documents)
        if decoder_input_ids is None:
            decoder_input_ids = torch.full((documents, 1), settings.start_token, device=self.device)
        elif decoder_input_ids.shape[0] != documents:
            raise ValueError(f"decoder_input_ids has {decoder_input_ids.shape[0]} rows for {documents} documents")
        decoder_input_ids = decoder_input_ids.to(self.device)
        if wants_intermediates(settings):
            if self.quantized:
                raise ValueError("attentions and hidden states are not computed in int8: load the model in float32")
            with evaluating(self):
                if encoder_outputs is None:
                    encoder_outputs = encode_each(self.model, given, attention_mask, settings)
                return search_openly(
                    self, encoder_outputs, attention_mask, decoder_input_ids, sources, settings, callbacks
                )
        engine = self._current_engine()
        if encoder_outputs is not None:
            engine.load_states(encoder_outputs.last_hidden_state, attention_mask)
        else:
            engine.load_padded(given, attention_mask)
            if self.config.positions_from_mask:
                engine.load(sources)
        return search(engine, settings, callbacks, sources, decoder_input_ids, engine.max_positions)

    def engine_weights(self) -> dict[str, Tensor]:
        """Return the tensors that the engine computes with, by Hugging Face's names less the leading ``model.``."""
        tensors = {name.removeprefix("model."): tensor for name, tensor in self.state_dict().items()}
        for block in self.config.pruned_heads:  # the engine's layers have equal numbers of heads
            attention = self.model.get_submodule(block)
            assert isinstance(attention, Attention)
            tensors |= {f"{block}.{name}": tensor for name, tensor in attention.whole().items()}
        return {**tensors, "lm_head.weight": self._head().detach()}

    def _current_engine(self) -> Engine:
        """Return an engine over the present weights; training steps and moves make a new one."""
        tensors = [*self.parameters(), *self.buffers()]
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if self._engine is None or self._engine[0] != state:
            self._engine = (state, make_engine(self.config, self.engine_weights(), quantized=self.quantized))
        return self._engine[1]


class PegasusModel(Seq2SeqModel):
    """Pegasus without a head (Zhang et al. 2019, arXiv 1912.08777)."""

    config_class = PegasusConfig


class BartModel(Seq2SeqModel):
    """BART without a head (Lewis et al. 2019, arXiv 1910.13461)."""

    config_class = BartConfig


class PegasusForConditionalGeneration(ConditionalGeneration):
    """Pegasus for summarization."""

    config_class = PegasusConfig
    model_class = PegasusModel


class BartForConditionalGeneration(ConditionalGeneration):
    """BART for summarization and other conditional generation."""

    config_class = BartConfig
    model_class = BartModel


_FAMILIES: Mapping[str, type[ConditionalGeneration]] = {
    family.config_class.model_type: family for family in (PegasusForConditionalGeneration, BartForConditionalGeneration)
}


def model_class_of(config: Seq2SeqConfig) -> type[ConditionalGeneration]:
    """Return the conditional-generation class that runs ``config``."""
    return _FAMILIES[config.model_type]

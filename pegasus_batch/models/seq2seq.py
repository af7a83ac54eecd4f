"""Pegasus and BART encoder-decoders: one code path, steered by the config's class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_batch.checkpoints import huggingface
from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.config import BartConfig, GenerationConfig, PegasusConfig, Seq2SeqConfig
from pegasus_batch.engine.engine import Engine
from pegasus_batch.engine.weights import embedding_scale, sinusoids
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
from pegasus_batch.models.layers import Decoder, Encoder, PositionEmbedding
from pegasus_batch.models.outputs import (
    BaseModelOutput,
    Cache,
    GenerateOutput,
    ModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)

IGNORED_LABEL = -100
Output = TypeVar("Output", bound=ModelOutput)


class PretrainedModel(nn.Module):
    """Construction from a config, and reading and writing Hugging Face directories."""

    config_class: ClassVar[type[Seq2SeqConfig]]
    prefix: ClassVar[str]  # of the bare network's tensors in a checkpoint file, relative to this class
    generation_config: GenerationConfig  # of the classes that generate
    left_out: ClassVar[tuple[str, ...]] = ()  # beginnings of the names of a checkpoint's tensors that are not wanted

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            raise TypeError(f"{type(self).__name__} takes a {self.config_class.__name__}, got {type(config).__name__}")
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' type."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str = "cpu",
        *,
        new_head: bool = False,
    ) -> Self:
        """Load a Hugging Face directory (or hub id, where huggingface_hub is installed and online), ready to infer.

        ``dtype`` is a torch dtype or its name; "auto" keeps the one that the checkpoint states. With "int8", generate()
        computes with 8-bit weights on the CPU, and everything else with float32 ones. ``new_head`` draws what the
        checkpoint lacks beside the bare network, to be trained. Raises FileNotFoundError for a missing file and
        ValueError naming every tensor that is missing, extra or misshapen.
        """
        path = resolve(directory)
        config = cls.config_class.from_pretrained(path)
        with torch.device("meta"):
            model = cls(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        defaults = {name: _buffer(name, tuple(buffer.shape)) for name, buffer in model.named_buffers()}
        if new_head:
            head = {name: shape for name, shape in expected.items() if not name.startswith(cls.prefix)}
            drawn = {name: torch.zeros(shape) for name, shape in head.items()}
            for name, tensor in drawn.items():
                if name.endswith("weight"):
                    nn.init.normal_(tensor, std=config.init_std)
            defaults = {**drawn, **defaults}
        tensors = huggingface.fit(huggingface.read(path), expected, defaults, config, cls.prefix, cls.left_out)
        target = huggingface.parse_dtype(dtype, config)
        if target == torch.int8:
            if not isinstance(model, ConditionalGeneration):
                raise ValueError(f"dtype int8 is for generate() in the engine, which {cls.__name__} does not use")
            model.quantized, target = True, torch.float32
        # One at a time, so that a tensor of another type is not held in both.
        model.load_state_dict({name: tensors.pop(name).to(target) for name in list(tensors)}, assign=True)
        if hasattr(model, "generation_config"):
            model.generation_config = GenerationConfig.from_pretrained(path)
        return model.to(device).eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, generation_config.json where there is one, and model.safetensors, as Hugging Face lays them out."""
        generation = getattr(self, "generation_config", None)
        huggingface.write(directory, self.state_dict(), self.config, generation, type(self).__name__)

    def _initialize(self, part: nn.Module | None = None) -> None:
        """Draw weights, of a part or all of them, from N(0, init_std); biases and the padding embedding are zero."""
        for module in (part or self).modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx].zero_()
            elif isinstance(module, PositionEmbedding) and isinstance(module.weight, nn.Parameter):
                nn.init.normal_(module.weight, std=self.config.init_std)


class Seq2SeqModel(PretrainedModel):
    """The bare encoder-decoder: token ids in, decoder states out."""

    prefix = ""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model, padding_idx=config.pad_token_id)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self._initialize()

    def get_encoder(self) -> EncoderView:
        """Return the encoder as a callable on token ids."""
        return EncoderView(self)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the shared token embedding."""
        return self.shared

    def embed(self, ids: Tensor) -> Tensor:
        """Return scaled token embeddings [B, T, D] of ids [B, T]; ValueError for an id outside the vocabulary."""
        return embed_tokens(self.shared, ids, self.config)

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
        embeds = self._one_input(input_ids, inputs_embeds, "input_ids", "inputs_embeds")
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
        encoder_outputs: BaseModelOutput | Sequence[Any] | None = None,
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
        if decoder_input_ids is None and decoder_inputs_embeds is None and self.config.shifts_source:
            if input_ids is None:
                raise ValueError("pass decoder_input_ids: they can be made from input_ids only, and those are missing")
            decoder_input_ids = shift_right(input_ids, self.config)
        weights, states = self._requested(output_attentions, output_hidden_states)
        if encoder_outputs is None:
            encoded = self.encode(
                input_ids, attention_mask, head_mask, inputs_embeds, output_attentions, output_hidden_states
            )
        elif isinstance(encoder_outputs, BaseModelOutput):
            encoded = encoder_outputs
        else:
            encoded = BaseModelOutput(*tuple(encoder_outputs)[:3])
        use_cache = self.config.use_cache if use_cache is None else use_cache
        embeds = self._one_input(decoder_input_ids, decoder_inputs_embeds, "decoder_input_ids", "decoder_inputs_embeds")
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
        return returned(output, return_dict, self.config)

    def _one_input(self, ids: Tensor | None, embeds: Tensor | None, ids_name: str, embeds_name: str) -> Tensor:
        if (ids is None) == (embeds is None):
            raise ValueError(f"pass exactly one of {ids_name} and {embeds_name}")
        if ids is not None:
            return self.embed(ids)
        assert embeds is not None
        return scale_given_embeddings(embeds, self.config) if ids_name == "decoder_input_ids" else embeds

    def _requested(self, attentions: bool | None, hidden_states: bool | None) -> tuple[bool, bool]:
        return (
            self.config.output_attentions if attentions is None else attentions,
            self.config.output_hidden_states if hidden_states is None else hidden_states,
        )


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
        return returned(self._model.encode(input_ids, attention_mask, **options), return_dict, self._model.config)


class ConditionalGeneration(PretrainedModel):
    """The encoder-decoder with its language-model head: a loss to train by, logits, and ``generate``."""

    prefix = "model."
    model_class: ClassVar[type[Seq2SeqModel]]
    final_logits_bias: Tensor

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.register_buffer("final_logits_bias", torch.zeros(1, config.vocab_size))
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=config.init_std)
        self.generation_config = GenerationConfig.from_dict(config.to_dict())
        self.quantized = False  # generate() computes with 8-bit weights
        self._engine: tuple[tuple[tuple[int, int], ...], Engine] | None = None

    def get_encoder(self) -> EncoderView:
        """Return the encoder as a callable on token ids."""
        return self.model.get_encoder()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the shared token embedding."""
        return self.model.shared

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | Sequence[Any] | None = None,
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
        fields = {name: value for name, value in decoded.items() if name != "last_hidden_state"}
        return returned(Seq2SeqLMOutput(loss=loss, logits=logits, **fields), return_dict, self.config)

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
        return search(engine, settings, callbacks, sources, decoder_input_ids, engine.max_positions)

    def engine_weights(self) -> dict[str, Tensor]:
        """Return the tensors that the engine computes with, by Hugging Face's names less the leading ``model.``."""
        tensors = {name.removeprefix("model."): tensor for name, tensor in self.state_dict().items()}
        return {**tensors, "lm_head.weight": self._head().detach()}

    def _head(self) -> Tensor:
        return self.model.shared.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def _current_engine(self) -> Engine:
        """Return an engine over the present weights; training steps and moves make a new one."""
        tensors = [*self.parameters(), *self.buffers()]
        state = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if self._engine is None or self._engine[0] != state:
            self._engine = (state, Engine(self.config, self.engine_weights(), quantized=self.quantized))
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


def embed_tokens(table: nn.Embedding, ids: Tensor, config: Seq2SeqConfig) -> Tensor:
    """Return scaled token embeddings [B, T, D] of ids [B, T]; ValueError for an id outside the vocabulary."""
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
        raise ValueError(
            f"token ids must lie in [0, {config.vocab_size}), got {int(ids.min())} to {int(ids.max())}: does the "
            "tokenizer belong to this model?"
        )
    return F.embedding(ids, table.weight, table.padding_idx) * embedding_scale(config)


def scale_given_embeddings(embeds: Tensor, config: Seq2SeqConfig) -> Tensor:
    """Scale embeddings that a caller gave a decoder: Pegasus' does, and so did the code that its checkpoints come from."""
    return embeds if config.learned_positions else embeds * embedding_scale(config)


def shift_right(ids: Tensor, config: Seq2SeqConfig) -> Tensor:
    """Put the decoder's start token before ids [B, T] and drop the last; -100, which marks no label, becomes padding."""
    shifted = torch.cat((torch.full_like(ids[:, :1], config.decoder_start_token_id), ids[:, :-1]), dim=1)
    return shifted.masked_fill(shifted == IGNORED_LABEL, config.pad_token_id)


def _buffer(name: str, shape: tuple[int, ...]) -> Tensor:
    """Make a buffer that a checkpoint file leaves out: it follows from the config."""
    return sinusoids(*shape) if name.endswith("embed_positions.weight") else torch.zeros(shape)


def returned(output: Output, return_dict: bool | None, config: Seq2SeqConfig) -> Output | tuple[Any, ...]:
    """Return an output as it is, or as a tuple where the caller or else the config wants one."""
    as_dict = config.return_dict if return_dict is None else return_dict
    return output if as_dict else output.to_tuple()

"""The blocks of the encoder-decoder, in the form that trains and that returns every intermediate.

Tensors are padded here, [B, T, D]; the engine computes the same network packed. Parameter names are Hugging Face's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pegasus_batch.config import Seq2SeqConfig
from pegasus_batch.engine.weights import activation, residual_scale, sinusoids
from pegasus_batch.models.outputs import BaseModelOutput, DecoderOutput, LayerCache

_EPS = 1e-5  # of every layer norm of both families


class PositionEmbedding(nn.Module):
    """Positions 0, 1, ... of both families: learned rows behind an offset, or fixed sinusoids."""

    weight: Tensor

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.offset = config.position_offset
        if config.learned_positions:
            self.weight = nn.Parameter(torch.empty(config.max_position_embeddings + self.offset, config.d_model))
        else:
            self.register_buffer("weight", sinusoids(config.max_position_embeddings, config.d_model))

    def forward(self, start: int, length: int) -> Tensor:
        """Return rows [length, D] for positions start .. start + length - 1; ValueError beyond the table."""
        available = self.weight.shape[0] - self.offset
        if start + length > available:
            raise ValueError(
                f"position {start + length - 1} is beyond the model's {available} positions: truncate the text "
                "or use a model with more positions"
            )
        return self.weight[self.offset + start : self.offset + start + length]


class Attention(nn.Module):
    """Multi-head attention of T queries over their own or over the encoder's states."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.q_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Project states [B, S, D] to keys and values, each [B, H, S, D / H]."""
        return self._split(self.k_proj(states)), self._split(self.v_proj(states))

    def forward(
        self, hidden: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, head_mask: Tensor | None, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend hidden [B, T, D] to keys and values [B, H, S, D / H] under an additive mask [B, 1, T, S].

        Returns the attended values [B, T, D] before the output projection and, where ``weights`` asks for them, the
        probabilities [B, H, T, S].
        """
        query = self._split(self.q_proj(hidden))
        dropout = self.dropout if self.training else 0.0
        probabilities = None
        if weights or head_mask is not None:
            scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
            probabilities = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            if head_mask is not None:
                probabilities = probabilities * head_mask.view(1, -1, 1, 1)
            attended = F.dropout(probabilities, dropout) @ values if dropout else probabilities @ values
        else:
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2), probabilities if weights else None

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """What encoder and decoder layers share: norms before or after each branch, and a residual stream that may be scaled."""

    def __init__(self, config: Seq2SeqConfig, heads: int, ffn: int) -> None:
        super().__init__()
        self.config = config
        self.self_attn = Attention(config.d_model, heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, ffn)
        self.fc2 = nn.Linear(ffn, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def _branch(self, hidden: Tensor, norm: nn.LayerNorm, last: nn.Linear, body: Callable[[Tensor], Tensor]) -> Tensor:
        """Add ``last(body(hidden))`` to the residual stream, normalised where the family wants it."""
        scale = residual_scale(self.config, hidden.dtype)
        before = body(scaled_norm(norm, hidden, scale) if self.config.pre_norm else hidden)
        branch = last(before) if scale == 1.0 else F.linear(before * scale, last.weight, last.bias * scale)
        hidden = hidden + F.dropout(branch, self.config.dropout, self.training)
        return hidden if self.config.pre_norm else norm(hidden)

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        def body(states: Tensor) -> Tensor:
            inner = activation(self.config.activation_function, self.fc1(states))
            return F.dropout(inner, self.config.activation_dropout, self.training)

        return self._branch(hidden, self.final_layer_norm, self.fc2, body)


class EncoderLayer(Layer):
    """Self-attention and a feed-forward block."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config, config.encoder_attention_heads, config.encoder_ffn_dim)

    def forward(
        self, hidden: Tensor, mask: Tensor | None, head_mask: Tensor | None, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Map hidden [B, S, D] to the next layer's; also the attention probabilities where asked for."""
        probabilities: Tensor | None = None

        def attend(states: Tensor) -> Tensor:
            nonlocal probabilities
            keys, values = self.self_attn.keys_values(states)
            attended, probabilities = self.self_attn(states, keys, values, mask, head_mask, weights)
            return attended

        hidden = self._branch(hidden, self.self_attn_layer_norm, self.self_attn.out_proj, attend)
        return self._feed_forward(hidden), probabilities


class DecoderLayer(Layer):
    """Causal self-attention, attention to the encoder, and a feed-forward block."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config, config.decoder_attention_heads, config.decoder_ffn_dim)
        self.encoder_attn = Attention(config.d_model, config.decoder_attention_heads, config.attention_dropout)
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        encoder_states: Tensor | None,
        encoder_mask: Tensor | None,
        head_mask: Tensor | None,
        cross_head_mask: Tensor | None,
        past: LayerCache | None,
        weights: bool,
    ) -> tuple[Tensor, LayerCache, Tensor | None, Tensor | None]:
        """Map hidden [B, T, D] to the next layer's; also this layer's cache and the two kinds of probabilities."""
        self_weights: Tensor | None = None
        cross_weights: Tensor | None = None
        cache: LayerCache = ()

        def attend(states: Tensor) -> Tensor:
            nonlocal self_weights, cache
            keys, values = self.self_attn.keys_values(states)
            if past is not None:
                keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
            cache = (keys, values)
            attended, self_weights = self.self_attn(states, keys, values, mask, head_mask, weights)
            return attended

        def attend_encoder(states: Tensor) -> Tensor:
            nonlocal cross_weights, cache
            if past is not None and len(past) == 4:
                keys, values = past[2], past[3]
            else:
                assert encoder_states is not None
                keys, values = self.encoder_attn.keys_values(encoder_states)
            cache = (*cache, keys, values)
            attended, cross_weights = self.encoder_attn(states, keys, values, encoder_mask, cross_head_mask, weights)
            return attended

        hidden = self._branch(hidden, self.self_attn_layer_norm, self.self_attn.out_proj, attend)
        if encoder_states is not None or (past is not None and len(past) == 4):
            hidden = self._branch(hidden, self.encoder_attn_layer_norm, self.encoder_attn.out_proj, attend_encoder)
        return self._feed_forward(hidden), cache, self_weights, cross_weights


class Stack(nn.Module):
    """What encoder and decoder share: positions, embedding norm, LayerDrop, final norm."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_positions = PositionEmbedding(config)
        if config.embedding_norm:
            self.layernorm_embedding = nn.LayerNorm(config.d_model)
        if config.pre_norm:
            self.layer_norm = nn.LayerNorm(config.d_model)

    def _enter(self, embeds: Tensor, start: int) -> Tensor:
        """Turn token embeddings [B, T, D] into the residual stream's first state."""
        hidden = embeds + self.embed_positions(start, embeds.shape[1]).to(embeds.dtype)
        hidden = hidden * residual_scale(self.config, hidden.dtype)
        if self.config.embedding_norm:
            hidden = self.layernorm_embedding(hidden)
        return F.dropout(hidden, self.config.dropout, self.training)

    def _leave(self, hidden: Tensor) -> Tensor:
        if self.config.pre_norm:
            return scaled_norm(self.layer_norm, hidden, residual_scale(self.config, hidden.dtype))
        return hidden

    def _visible(self, hidden: Tensor) -> Tensor:
        """Return a state of the residual stream as callers know it, without the stream's internal scale."""
        scale = residual_scale(self.config, hidden.dtype)
        if scale == 1.0:
            return hidden
        limit = torch.finfo(hidden.dtype).max
        return (hidden.float() / scale).clamp(-limit, limit).to(hidden.dtype)

    def _dropped(self, probability: float) -> bool:
        return self.training and probability > 0.0 and torch.rand(()).item() < probability


class Encoder(Stack):
    """The bidirectional stack."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(
        self, embeds: Tensor, attention_mask: Tensor | None, head_mask: Tensor | None, states: bool, weights: bool
    ) -> BaseModelOutput:
        """Encode embeddings [B, S, D] under a 0/1 mask [B, S]; ``states`` and ``weights`` ask for every layer's."""
        hidden = self._enter(embeds, 0)
        mask = padding_mask(attention_mask, hidden.dtype)
        every: tuple[Tensor, ...] = (self._visible(hidden),)
        probabilities: tuple[Tensor, ...] = ()
        for index, layer in enumerate(self.layers):
            if self._dropped(self.config.encoder_layerdrop):
                continue
            hidden, one = layer(hidden, mask, head_mask[index] if head_mask is not None else None, weights)
            if states:
                every += (self._visible(hidden),)
            if one is not None:
                probabilities += (one,)
        hidden = self._leave(hidden)
        return BaseModelOutput(hidden, (*every[:-1], hidden) if states else None, probabilities if weights else None)


class Decoder(Stack):
    """The left-to-right stack."""

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))

    def forward(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        encoder_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        head_mask: Tensor | None,
        cross_head_mask: Tensor | None,
        past: tuple[LayerCache, ...] | None,
        use_cache: bool,
        states: bool,
        weights: bool,
    ) -> DecoderOutput:
        """Decode embeddings [B, T, D] that follow ``past``; masks are 0/1, the causal one is added here."""
        past_length = past[0][0].shape[2] if past else 0
        hidden = self._enter(embeds, past_length)
        mask = causal_mask(attention_mask, embeds.shape[1], past_length, hidden)
        encoder_mask = padding_mask(encoder_attention_mask, hidden.dtype)
        every: tuple[Tensor, ...] = (self._visible(hidden),)
        cache: tuple[LayerCache, ...] = ()
        self_weights: tuple[Tensor, ...] = ()
        cross_weights: tuple[Tensor, ...] = ()
        for index, layer in enumerate(self.layers):
            if self._dropped(self.config.decoder_layerdrop):
                continue
            hidden, layer_cache, own, cross = layer(
                hidden,
                mask,
                encoder_states,
                encoder_mask,
                head_mask[index] if head_mask is not None else None,
                cross_head_mask[index] if cross_head_mask is not None else None,
                past[index] if past else None,
                weights,
            )
            cache += (layer_cache,)
            if states:
                every += (self._visible(hidden),)
            self_weights += (own,) if own is not None else ()
            cross_weights += (cross,) if cross is not None else ()
        hidden = self._leave(hidden)
        return DecoderOutput(
            hidden,
            cache if use_cache else None,
            (*every[:-1], hidden) if states else None,
            self_weights if weights else None,
            cross_weights if weights and cross_weights else None,
        )


def scaled_norm(norm: nn.LayerNorm, hidden: Tensor, scale: float) -> Tensor:
    """Normalise a residual stream held at ``scale`` times its value: the same result, because eps shrinks with it."""
    return F.layer_norm(hidden, norm.normalized_shape, norm.weight, norm.bias, _EPS * scale * scale)


def padding_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Turn a 0/1 mask [B, S] into an additive one [B, 1, 1, S]; finite, so a fully masked row averages instead of NaN."""
    if attention_mask is None:
        return None
    return (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


def causal_mask(attention_mask: Tensor | None, length: int, past_length: int, like: Tensor) -> Tensor | None:
    """Hide later positions from earlier ones, and padding from all: additive [B or 1, 1, T, past + T], None for one query."""
    total = past_length + length
    if attention_mask is not None and attention_mask.shape[1] != total:
        raise ValueError(
            f"decoder_attention_mask covers {attention_mask.shape[1]} positions, expected {total} (cache included)"
        )
    if length == 1 and attention_mask is None:
        return None
    lowest = torch.finfo(like.dtype).min
    visible = torch.ones(length, total, dtype=torch.bool, device=like.device).tril(past_length)
    allowed = visible[None, None]
    if attention_mask is not None:
        allowed = allowed & attention_mask[:, None, None, :].bool()
    return torch.zeros((), dtype=like.dtype, device=like.device).masked_fill(~allowed, lowest)

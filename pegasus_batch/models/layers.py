"""The blocks of the encoder-decoder, in the form that trains and that returns every intermediate.

Tensors are padded here, [B, T, D]; the engine computes the same network packed. Parameter names are Hugging Face's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pegasus_batch.config import Seq2SeqConfig
from pegasus_batch.engine.numerics import activation, residual_scale, sinusoids
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

    def resize(self, positions: int) -> None:
        """Make sinusoids for this many positions."""
        self.weight = sinusoids(positions, self.weight.shape[1]).to(self.weight)

    def forward(self, start: int, length: int, mask: Tensor | None = None) -> Tensor:
        """Return rows [length, D] for positions start .. start + length - 1; ValueError beyond the table.

        Under a 0/1 ``mask`` [B, start + length] the positions are those among the tokens that it shows, and the rows
        [B, length, D].
        """
        available = self.weight.shape[0] - self.offset
        if start + length > available:
            raise ValueError(
                f"position {start + length - 1} is beyond the model's {available} positions: truncate the text "
                "or use a model with more positions"
            )
        if mask is None:
            return self.weight[self.offset + start : self.offset + start + length]
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, start:]
        return F.embedding(positions + self.offset, self.weight)


class Attention(nn.Module):
    """Multi-head attention of T queries over their own or over the encoder's states."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = list(range(heads))  # those that are left
        self.head_size = d_model // heads
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

        head_mask [H] counts pruned heads too. Returns the attended values [B, T, D] before the output projection and,
        where ``weights`` asks for them, the probabilities [B, H, T, S] that they were mixed by.
        """
        query = self._split(self.q_proj(hidden))
        dropout = self.dropout if self.training else 0.0
        probabilities = None
        if weights or head_mask is not None:
            scores = (query * self.head_size**-0.5) @ keys.transpose(-1, -2)
            probabilities = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            if head_mask is not None:
                probabilities = probabilities * head_mask[self.heads].view(1, -1, 1, 1)
            probabilities = F.dropout(probabilities, dropout)
            attended = probabilities @ values
        else:
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2), probabilities if weights else None

    def prune(self, heads: Iterable[int]) -> None:
        """Take heads out, by their numbers in the whole block; those that are gone already may be among them."""
        places = [place for place, head in enumerate(self.heads) if head not in set(heads)]
        rows = self._rows(places)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.weight = _same_kind(projection.weight, projection.weight.detach()[rows])
            projection.bias = _same_kind(projection.bias, projection.bias.detach()[rows])
            projection.out_features = len(rows)
        self.out_proj.weight = _same_kind(self.out_proj.weight, self.out_proj.weight.detach()[:, rows])
        self.out_proj.in_features = len(rows)
        self.heads = [self.heads[place] for place in places]

    def whole(self) -> dict[str, Tensor]:
        """Return the projections by name with zeros for pruned heads: what a network without pruning computes alike with."""
        rows = self._rows(self.heads)
        d_model = self.out_proj.out_features
        tensors = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        for name, tensor in tensors.items():
            if name != "out_proj.bias":
                axis = int(name == "out_proj.weight")
                tensors[name] = tensor.new_zeros((d_model,) * tensor.dim()).index_copy(axis, rows, tensor)
        return tensors

    def _rows(self, places: Sequence[int]) -> Tensor:
        """Return the outputs [len(places) * D / H] of the projections that belong to heads at these places."""
        first = torch.tensor(places, dtype=torch.int64, device=self.q_proj.weight.device) * self.head_size
        return (first[:, None] + torch.arange(self.head_size, device=first.device)).flatten()

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (len(self.heads), self.head_size)).transpose(1, 2)


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
    """What encoder and decoder share: positions, embedding norm, LayerDrop, gradient checkpointing, final norm."""

    side: ClassVar[str]
    checkpointing: Mapping[str, Any] | None = None  # options of torch's checkpoint(), where layers are computed again

    def __init__(self, config: Seq2SeqConfig, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.embed_positions = PositionEmbedding(config)
        if config.embedding_norm:
            self.layernorm_embedding = nn.LayerNorm(config.d_model)
        if config.pre_norm:
            self.layer_norm = nn.LayerNorm(config.d_model)
        self.layers = nn.ModuleList(layers)
        for name, heads in config.pruned_heads.items():
            if name.startswith(f"{self.side}."):
                attention = self.get_submodule(name.removeprefix(f"{self.side}."))
                assert isinstance(attention, Attention)
                attention.prune(heads)

    def _enter(self, embeds: Tensor, start: int, attention_mask: Tensor | None) -> Tensor:
        """Turn token embeddings [B, T, D] into the residual stream's first state."""
        mask = attention_mask if self.config.positions_from_mask else None
        hidden = embeds + self.embed_positions(start, embeds.shape[1], mask).to(embeds.dtype)
        hidden = hidden * residual_scale(self.config, hidden.dtype)
        if self.config.embedding_norm:
            hidden = self.layernorm_embedding(hidden)
        return F.dropout(hidden, self.config.dropout, self.training)

    def _run(self, layer: nn.Module, *inputs: Any) -> Any:
        if self.checkpointing is None or not self.training:
            return layer(*inputs)
        return checkpoint(layer, *inputs, **self.checkpointing)

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
        # Drawn at probability 0 too: then a seed drops the same numbers here and in Hugging Face's models.
        return self.training and torch.rand(()).item() < probability

    def _by_layer(self, mask: Tensor | None, name: str, heads: int) -> Sequence[Tensor | None]:
        """Split a head mask [layers, H]; ValueError for another shape."""
        if mask is None:
            return [None] * len(self.layers)
        if mask.shape != (len(self.layers), heads):
            raise ValueError(f"{name} is {list(mask.shape)}, expected {[len(self.layers), heads]} (layers, heads)")
        return mask.unbind()


class Encoder(Stack):
    """The bidirectional stack."""

    side = "encoder"

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config, (EncoderLayer(config) for _ in range(config.encoder_layers)))

    def forward(
        self, embeds: Tensor, attention_mask: Tensor | None, head_mask: Tensor | None, states: bool, weights: bool
    ) -> BaseModelOutput:
        """Encode embeddings [B, S, D] under a 0/1 mask [B, S]; ``states`` and ``weights`` ask for every layer's."""
        hidden = self._enter(embeds, 0, attention_mask)
        mask = padding_mask(attention_mask, hidden.dtype)
        head_masks = self._by_layer(head_mask, "head_mask", self.config.encoder_attention_heads)
        every: tuple[Tensor, ...] = ()
        probabilities: tuple[Tensor | None, ...] = ()  # None for a dropped layer
        for layer, heads in zip(self.layers, head_masks, strict=True):
            every += (self._visible(hidden),) if states else ()
            one = None
            if not self._dropped(self.config.encoder_layerdrop):
                hidden, one = self._run(layer, hidden, mask, heads, weights)
            probabilities += (one,)
        hidden = self._leave(hidden)
        return BaseModelOutput(hidden, (*every, hidden) if states else None, probabilities if weights else None)


class Decoder(Stack):
    """The left-to-right stack."""

    side = "decoder"

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__(config, (DecoderLayer(config) for _ in range(config.decoder_layers)))

    def forward(
        self,
        embeds: Tensor,
        attention_mask: Tensor | None,
        encoder_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        head_mask: Tensor | None,
        cross_head_mask: Tensor | None,
        past: Any,
        use_cache: bool,
        states: bool,
        weights: bool,
    ) -> DecoderOutput:
        """Decode embeddings [B, T, D] that follow ``past``; masks are 0/1, the causal one is added here.

        ``past`` is a Cache, or one of transformers', which is read, not written to.
        """
        if hasattr(past, "to_legacy_cache"):
            past = past.to_legacy_cache()
        if past and len(past) != len(self.layers):
            raise ValueError(f"past_key_values has {len(past)} layers, the decoder {len(self.layers)}")
        past_length = past[0][0].shape[2] if past else 0
        hidden = self._enter(embeds, past_length, attention_mask)
        mask = causal_mask(attention_mask, embeds.shape[1], past_length, hidden)
        encoder_mask = padding_mask(encoder_attention_mask, hidden.dtype)
        n_heads = self.config.decoder_attention_heads
        head_masks = self._by_layer(head_mask, "the decoder's head_mask", n_heads)
        cross_masks = self._by_layer(cross_head_mask, "cross_attn_head_mask", n_heads)
        every: tuple[Tensor, ...] = ()
        cache: tuple[LayerCache, ...] = ()
        self_weights: tuple[Tensor, ...] = ()
        cross_weights: tuple[Tensor, ...] = ()
        for index, layer in enumerate(self.layers):
            every += (self._visible(hidden),) if states else ()
            if self._dropped(self.config.decoder_layerdrop):
                continue
            hidden, layer_cache, own, cross = self._run(
                layer,
                hidden,
                mask,
                encoder_states,
                encoder_mask,
                head_masks[index],
                cross_masks[index],
                past[index] if past else None,
                weights,
            )
            cache += (layer_cache,)
            self_weights += (own,) if own is not None else ()
            cross_weights += (cross,) if cross is not None else ()
        hidden = self._leave(hidden)
        caches = (use_cache and not (self.training and self.checkpointing is not None)) or past is not None
        return DecoderOutput(
            hidden,
            cache if caches else None,
            (*every, hidden) if states else None,
            self_weights if weights else None,
            cross_weights if weights and (cross_weights or encoder_states is not None) else None,
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


def _same_kind(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)

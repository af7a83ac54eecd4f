"""The network as it runs at inference: documents packed without padding, one copy of a document's keys for all its beams.

The engine knows a config and tensors, no model class. It implements the search's ``Decoder``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.config import Seq2SeqConfig
from pegasus_batch.engine.cache import DecoderCache, SourceCache
from pegasus_batch.engine.linear import Linear, Norm, OwnLinear, WideHead, make_linear, quantize_linear
from pegasus_batch.engine.numerics import embedding_scale, residual_scale, row_activation
from pegasus_batch.engine.residual import Residual, WideResidual

_EPS = 1e-5
# Source tokens encoded at a time: enough for the matrix product, few enough that what passes between layers stays in a
# CPU's cache and in memory that the process has already.
ENCODED_TOKENS = {"cpu": 1024, "cuda": 16384}

Document = tuple[Tensor, Tensor] | Tensor  # ids and their positions, or states that need no encoding


@dataclass
class _Attention:
    """Projections of one attention block; self-attention has ``qkv`` fused, cross-attention ``query`` and ``key_value``."""

    norm: Norm
    out: Linear
    heads: int
    qkv: Linear | None = None
    query: Linear | None = None
    key_value: Linear | None = None

    def __post_init__(self) -> None:
        self.layers = _packed(self.qkv or self.query, self.out)  # as a whole block takes them


@dataclass
class _Layer:
    own: _Attention
    cross: _Attention | None
    norm: Norm
    expand: Linear
    contract: Linear

    def __post_init__(self) -> None:
        self.layers = _packed(self.expand, self.contract)


class Engine:
    """Weights laid out for inference, and the state of the documents being decoded."""

    def __init__(self, config: Seq2SeqConfig, weights: dict[str, Tensor], *, quantized: bool = False) -> None:
        """Lay out ``weights``, named as in a Hugging Face checkpoint without the leading ``model.``; one dtype, one device.

        The dictionary is empty afterwards, and nothing of it is held on to: where nobody else does, there is never more
        than one tensor in both forms.
        ``quantized``: the linear layers of float32 weights become 8-bit ones, and so do the keys and values of the
        source; what else attention reads is bfloat16. On the CPU only, else ValueError.
        """
        self.config = config
        tokens = weights.pop("shared.weight").detach()
        self.dtype, self.device = tokens.dtype, tokens.device
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_position_embeddings
        self._scale = residual_scale(config, self.dtype)
        if quantized and (self.device.type != "cpu" or self.dtype != torch.float32):
            raise ValueError(f"int8 is for the CPU, made from float32 weights, not for {self.dtype} on {self.device}")
        self._quantized = quantized
        # A GPU keeps the residual stream and the logits in float32, which costs it little.
        self._wide = kernels.on_gpu(tokens) and not quantized
        # What passes between layers inside a block.
        self._inner_dtype = torch.bfloat16 if quantized else self.dtype
        head = weights.pop("lm_head.weight").detach(), weights.pop("final_logits_bias").flatten()
        self._head = WideHead(*head) if self._wide else self._pack(*head, self.dtype)
        # A vocabulary's table is the largest tensor: where the head is made of it and can give its rows, it is not kept.
        self._token_rows: Callable[[Tensor], Tensor]
        tied = head[0].data_ptr() == tokens.data_ptr()
        if tied and isinstance(self._head, OwnLinear):
            self._token_rows = self._head.rows
        else:
            self._token_rows = tokens.clone().__getitem__
        del tokens, head
        self._positions = {
            side: weights.pop(f"{side}.embed_positions.weight").detach().to(self.dtype, copy=True)
            for side in ("encoder", "decoder")
        }
        self._embedding_norm = {
            side: self._norm(weights, f"{side}.layernorm_embedding", scaled=False) if config.embedding_norm else None
            for side in ("encoder", "decoder")
        }
        self._final_norm = {
            side: self._norm(weights, f"{side}.layer_norm") if config.pre_norm else None
            for side in ("encoder", "decoder")
        }
        self._encoder = [
            self._layer(weights, f"encoder.layers.{index}", config.encoder_attention_heads, cross=False)
            for index in range(config.encoder_layers)
        ]
        self._decoder = [
            self._layer(weights, f"decoder.layers.{index}", config.decoder_attention_heads, cross=True)
            for index in range(config.decoder_layers)
        ]
        self._documents: Sequence[Document] = []
        self._memory: tuple[SourceCache, DecoderCache] | None = None

    # ---- documents in

    @property
    def n_documents(self) -> int:
        """The number of documents that a search may admit."""
        return len(self._documents)

    def load(self, documents: Sequence[Sequence[int]]) -> None:
        """Make documents, given as token ids, those that a search may admit."""
        ids = [torch.tensor(document, dtype=torch.int64) for document in documents]
        self._documents = [(tokens, torch.arange(len(tokens))) for tokens in ids]

    def load_padded(self, ids: Tensor, mask: Tensor | None) -> None:
        """Load ids [B, S] under a 0/1 mask [B, S]; a token keeps the position of its column, as at Hugging Face."""
        visible = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        if visible.shape != ids.shape:
            raise ValueError(f"attention_mask {list(visible.shape)} does not match input_ids {list(ids.shape)}")
        columns = torch.arange(ids.shape[1], device=ids.device)
        self._documents = [(row[seen], columns[seen]) for row, seen in zip(ids, visible, strict=True)]

    def load_states(self, states: Tensor, mask: Tensor | None) -> None:
        """Load encoder states [B, S, D] under a 0/1 mask [B, S], of documents that need no encoding."""
        visible = torch.ones(states.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        visible = visible.to(states.device)
        self._documents = [row[seen].to(self.device, self.dtype) for row, seen in zip(states, visible, strict=True)]

    def release(self) -> None:
        """Forget the documents and all memory of them."""
        self._documents, self._memory = [], None

    def make_smaller(self) -> bool:
        """Take less memory for the same documents from now on; False where that is not possible."""
        return False

    # ---- the search's side

    def start(self, n_beams: int) -> None:
        """Begin decoding, without any document yet, ``n_beams`` rows for each later."""
        self._memory = None  # before the new one is made
        config = self.config
        heads, head_size = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
        layers, source_dtype = config.decoder_layers, torch.uint8 if self._quantized else self._inner_dtype
        self._memory = (
            SourceCache(layers, heads, head_size, source_dtype, self.device),
            DecoderCache(layers, n_beams, heads, head_size, self._inner_dtype, self.device),
        )

    def admit(self, documents: Sequence[int]) -> None:
        """Encode these loaded documents and add them to those that are decoded, a row each; ValueError on an empty one."""
        sources, past = self._started()
        chosen, lengths = self._chosen(documents)
        first = sources.admit(lengths)
        for part in groups(lengths, ENCODED_TOKENS[self.device.type]):
            both, begins = self._encode_for_decoder(chosen[part], lengths[part])
            for index, (keys, values) in enumerate(both):
                sources.write(index, keys, values, begins, first + part.start)
        past.admit(len(lengths))

    def step(self, tokens: Tensor, parents: Tensor, widths: Sequence[int]) -> Tensor:
        """Feed one token per row [R], row r continuing old row parents[r] [R]; returns next-token logits [R, V].

        ``widths``: the rows of each document from now on.
        """
        sources, past = self._started()
        if past.longest >= self.max_positions:
            raise ValueError(
                f"decoding needs position {past.longest}, the model has {self.max_positions}: lower max_length"
            )
        past.advance(parents, widths)
        residual = self._embed("decoder", tokens, past.positions)
        begins, _ = self._ranges(widths)
        for index, layer in enumerate(self._decoder):
            self._attend_past(layer.own, residual, *past.layer(index), begins, past.ancestry, past.lengths)
            assert layer.cross is not None
            self._attend_source(layer.cross, residual, *sources.layer(index), begins, sources.begin, sources.length)
            self._feed_forward(layer, residual)
        return self._logits(residual)[:, : self.vocab_size]

    def keep(self, documents: Sequence[int]) -> None:
        """Go on with these documents only, indices into the order in which they were admitted."""
        for memory in self._started():
            memory.keep(documents)

    def _started(self) -> tuple[SourceCache, DecoderCache]:
        assert self._memory is not None, "start() comes first"
        return self._memory

    # ---- blocks

    def _chosen(self, documents: Sequence[int]) -> tuple[list[Document], list[int]]:
        """Return loaded documents and how many tokens each has; ValueError on an empty one."""
        chosen = [self._documents[document] for document in documents]
        lengths = [len(document[0] if isinstance(document, tuple) else document) for document in chosen]
        if min(lengths) < 1:
            raise ValueError(f"every document needs at least one token, got lengths {lengths[:8]}")
        return chosen, lengths

    def _encode_for_decoder(
        self, documents: Sequence[Document], lengths: list[int]
    ) -> tuple[Iterator[tuple[Tensor, Tensor]], Tensor]:
        """Encode documents; returns keys and values [tokens, H, D] of each decoder layer, and the first row of each document."""
        begins, counts = self._ranges(lengths)
        states = self._encode(documents, begins, counts, max(lengths))

        def projected() -> Iterator[tuple[Tensor, Tensor]]:
            for layer in self._decoder:
                assert layer.cross is not None and layer.cross.key_value is not None
                both = layer.cross.key_value(states).unflatten(-1, (2, layer.cross.heads, -1))
                yield both[:, 0], both[:, 1]

        return projected(), begins[:-1]

    def _encode(self, documents: Sequence[Document], begins: Tensor, counts: Tensor, longest: int) -> Tensor:
        """Return the encoder's states [tokens, D] of documents, one after the other."""
        states = [document for document in documents if isinstance(document, Tensor)]
        if states:
            return torch.cat(states)
        ids, positions = (torch.cat(parts) for parts in zip(*documents, strict=True))
        self._check_source(ids, positions)
        ids, positions = (x.to(self.device, non_blocking=True) for x in (ids, positions))
        residual = self._embed("encoder", ids, positions)
        for layer in self._encoder:
            self._attend_own(layer.own, residual, begins, counts, longest)
            self._feed_forward(layer, residual)
        return residual.finish(self._final_norm["encoder"])

    def _embed(self, side: str, ids: Tensor, positions: Tensor) -> Residual:
        tokens = self._token_rows(ids)
        places = self._positions[side][positions + self.config.position_offset]
        if self._wide:
            tokens, places = tokens.float(), places.float()
        states = (tokens * embedding_scale(self.config) + places) * self._scale
        norm = self._embedding_norm[side]
        if norm is not None:
            states = norm(states)
        return (
            WideResidual(states, self.config.pre_norm, self.dtype)
            if self._wide
            else Residual(states, self.config.pre_norm)
        )

    def _attend_own(self, block: _Attention, residual: Residual, begins: Tensor, counts: Tensor, longest: int) -> None:
        rest = begins, begins[:-1], counts, self._score_scale(block)
        if residual.pass_block(block.norm, "attention", block.layers, block.heads, *rest):
            return
        query, key, value = self._qkv(block, residual)
        attended = kernels.attention(query, key, value, *rest, longest=longest)
        residual.leave(block.norm, block.out, attended.flatten(1))

    def _attend_past(
        self,
        block: _Attention,
        residual: Residual,
        keys: Tensor,
        values: Tensor,
        begins: Tensor,
        ancestry: Tensor,
        n_keys: Tensor,
    ) -> None:
        rest = keys, values, begins, ancestry, n_keys, self._score_scale(block)
        if residual.pass_block(block.norm, "cached_attention", block.layers, block.heads, *rest):
            return
        query, key, value = self._qkv(block, residual)
        attended = kernels.cached_attention(query, key, value, *rest)
        residual.leave(block.norm, block.out, attended.flatten(1))

    def _attend_source(
        self,
        block: _Attention,
        residual: Residual,
        keys: Tensor,
        values: Tensor,
        begins: Tensor,
        panel_begin: Tensor,
        n_keys: Tensor,
    ) -> None:
        rest = keys, values, begins, panel_begin, n_keys, self._score_scale(block)
        if residual.pass_block(block.norm, "source_attention", block.layers, block.heads, *rest):
            return
        assert block.query is not None
        query = residual.enter(block.norm, block.query).unflatten(-1, (block.heads, -1))
        attended = kernels.source_attention(query, *rest)
        residual.leave(block.norm, block.out, attended.flatten(1))

    def _score_scale(self, block: _Attention) -> float:
        return float((self.config.d_model // block.heads) ** -0.5)

    def _qkv(self, block: _Attention, residual: Residual) -> tuple[Tensor, Tensor, Tensor]:
        assert block.qkv is not None
        fused = residual.enter(block.norm, block.qkv).unflatten(-1, (3, block.heads, -1))
        return fused[:, 0], fused[:, 1], fused[:, 2]

    def _feed_forward(self, layer: _Layer, residual: Residual) -> None:
        relu = self.config.activation_function == "relu"
        if relu and residual.pass_block(layer.norm, "feed_forward", layer.layers):
            return
        inner = residual.enter(layer.norm, layer.expand, relu=relu)
        if not relu:
            inner = row_activation(self.config.activation_function, inner)
        residual.leave(layer.norm, layer.contract, inner)

    def _logits(self, residual: Residual) -> Tensor:
        """Return the logits [R, V or more] after the last decoder layer; the beam step takes no float16."""
        norm, head = self._final_norm["decoder"], self._head
        logits = head(residual.finish(norm)) if isinstance(head, WideHead) else residual.enter(norm, head)
        return logits.float() if self.dtype == torch.float16 else logits

    # ---- construction

    def _layer(self, weights: dict[str, Tensor], name: str, heads: int, cross: bool) -> _Layer:
        own = _Attention(
            self._norm(weights, f"{name}.self_attn_layer_norm"),
            self._linear(weights, [f"{name}.self_attn.out_proj"], to_stream=True),
            heads,
            qkv=self._linear(weights, [f"{name}.self_attn.{part}_proj" for part in "qkv"]),
        )
        other = None
        if cross:
            other = _Attention(
                self._norm(weights, f"{name}.encoder_attn_layer_norm"),
                self._linear(weights, [f"{name}.encoder_attn.out_proj"], to_stream=True),
                heads,
                query=self._linear(weights, [f"{name}.encoder_attn.q_proj"]),
                key_value=self._linear(weights, [f"{name}.encoder_attn.{part}_proj" for part in "kv"]),
            )
        return _Layer(
            own,
            other,
            self._norm(weights, f"{name}.final_layer_norm"),
            self._linear(weights, [f"{name}.fc1"]),
            self._linear(weights, [f"{name}.fc2"], to_stream=True),
        )

    def _linear(self, weights: dict[str, Tensor], names: list[str], to_stream: bool = False) -> Linear:
        """Fuse the named layers over their outputs; what ends in the residual stream is held at its scale."""
        weight = torch.cat([weights.pop(f"{name}.weight").detach() for name in names])
        bias = torch.cat([weights.pop(f"{name}.bias").detach() for name in names])
        if to_stream and self._scale != 1.0:
            weight, bias = weight * self._scale, bias * self._scale
        return self._pack(weight, bias, self.dtype if to_stream else self._inner_dtype)

    def _pack(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Linear:
        return quantize_linear(weight, bias, dtype) if self._quantized else make_linear(weight, bias)

    def _norm(self, weights: dict[str, Tensor], name: str, scaled: bool = True) -> Norm:
        scale = self._scale if scaled else 1.0
        weight, bias = (weights.pop(f"{name}.{part}").detach().clone() for part in ("weight", "bias"))
        if self._wide:
            weight, bias = weight.float(), bias.float()
        return Norm(weight, bias, _EPS * scale * scale)

    # ---- checks and indices

    def _ranges(self, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor(lengths, dtype=torch.int32)
        begins = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        begins[1:] = counts.cumsum(0)
        return begins.to(self.device, non_blocking=True), counts.to(self.device, non_blocking=True)

    def _check_source(self, ids: Tensor, positions: Tensor) -> None:
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(
                f"token ids must lie in [0, {self.vocab_size}), got {int(ids.min())} to {int(ids.max())}: does the "
                "tokenizer belong to this model?"
            )
        if positions.numel() and int(positions.max()) >= self.max_positions:
            raise ValueError(
                f"position {int(positions.max())} is beyond the model's {self.max_positions} positions: truncate the text"
            )


def _packed(first: Linear | None, last: Linear) -> kernels.PackedLayers | None:
    """Return two layers as a whole block takes them; None where it cannot."""
    if not isinstance(first, OwnLinear) or not isinstance(last, OwnLinear):
        return None
    return (first.packed, last.packed) if first.packed and last.packed else None


def groups(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Cut a sequence of lengths into runs whose sum is at most ``most``, or which are one length."""
    begin = total = 0
    for index, length in enumerate(lengths):
        if index > begin and total + length > most:
            yield slice(begin, index)
            begin, total = index, 0
        total += length
    if lengths:
        yield slice(begin, len(lengths))

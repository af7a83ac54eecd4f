"""The engine for devices that decide a step themselves: documents in slots, all memory in its place before the first step.

Shapes never change, so a step is recorded once as a CUDA graph; and a document's matrix products are computed by the same
kernels whatever else is in work, so its summary does not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pegasus_batch import kernels
from pegasus_batch.config import Seq2SeqConfig
from pegasus_batch.engine.cache import Panels, Stretch
from pegasus_batch.engine.engine import ENCODED_TOKENS, Document, Engine, groups

MOST_SLOTS = 256
_SLOT_TOKENS = 512  # of source, on average; more are made room for when they come
_MEMORY_SHARE = 0.85  # of what the device has beside the weights, so that the encoder has room
_WARM_UPS = 2  # before a step is recorded: libraries load their kernels, and pick them, when they are first called


class SlotEngine(Engine):
    """The network with S slots of K rows each. Implements the search's ``SlotDecoder``, and ``Decoder`` as before."""

    def __init__(self, config: Seq2SeqConfig, weights: dict[str, Tensor], *, most_slots: int | None = None) -> None:
        """Lay out weights as ``Engine`` does. ``most_slots``: if not as many as suit a GPU that the kernels are built for."""
        self._weight_bytes = sum(weight.nbytes for weight in weights.values())
        super().__init__(config, weights)
        if most_slots is None:
            most_slots = MOST_SLOTS if kernels.has_gpu_kernels(self._positions["decoder"]) else 0
        self._most_slots = most_slots
        # The encoder's products have one shape, too: what is missing from it is filled up.
        self.encoded_tokens = ENCODED_TOKENS["cuda"] if self.device.type == "cuda" else 0
        self.last_slots: object = None  # what a search leaves for the next one
        self._slots: _SlotMemory | None = None
        self._n_slots = 0  # that were last opened, or tried to be
        self._warm = False

    @property
    def has_slots(self) -> bool:
        """Whether a search may use slots."""
        return self._most_slots > 0

    @property
    def source_lengths(self) -> Tensor:
        """Return the tokens [S] int32 of the source in each slot; 0 hides it."""
        return self._opened().length

    @property
    def places(self) -> object:
        """Return what changes when the memory of the slots has moved: a recorded step is then out of date."""
        return self._opened().panels.keys[0].data_ptr()

    def open_slots(self, n_beams: int, n_times: int) -> int:
        """Make slots for documents of ``n_beams`` rows of up to ``n_times`` tokens; returns how many."""
        self._slots = None  # before new ones are made
        config = self.config
        head_size = config.d_model // config.decoder_attention_heads
        token_bytes = 2 * config.decoder_layers * config.d_model * self._inner_dtype.itemsize
        slot_bytes = (n_beams * n_times + _SLOT_TOKENS) * token_bytes + 3 * n_beams * self.vocab_size * 4
        n_slots = self._most_slots
        while n_slots > 1 and n_slots * slot_bytes > self._room():
            n_slots //= 2
        self._n_slots = n_slots
        kind = (config.decoder_attention_heads, head_size, self._inner_dtype, self.device)
        self._slots = _SlotMemory(config.decoder_layers, n_slots, n_beams, n_times, *kind)
        return n_slots

    def clear_slots(self) -> None:
        """Empty all slots."""
        slots = self._opened()
        self.leave_slots(list(slots.stretches))
        slots.length.zero_()

    def admit_to_slots(self, documents: Sequence[int], slots: Sequence[int]) -> None:
        """Encode these loaded documents, each into a free slot; ValueError on an empty one."""
        memory = self._opened()
        chosen, lengths = self._chosen(documents)
        stretches = memory.panels.take(lengths)
        memory.stretches.update(zip(slots, stretches, strict=True))
        begins = self._on_device([begin for begin, _ in stretches])
        counts = self._on_device(lengths)
        for part in groups(lengths, ENCODED_TOKENS[self.device.type]):
            both, rows = self._encode_for_decoder(chosen[part], lengths[part])
            for layer, (keys, values) in enumerate(both):
                memory.panels.write(layer, keys, values, rows, counts[part], begins[part])
        places = self._on_device(slots).long()
        memory.begin[places], memory.length[places] = begins, counts

    def leave_slots(self, slots: Sequence[int]) -> None:
        """Free the slots of documents that have finished."""
        memory = self._opened()
        memory.panels.give_back([memory.stretches.pop(slot) for slot in slots])

    def step_slots(self, tokens: Tensor, ancestry: Tensor, n_keys: Tensor) -> Tensor:
        """Feed one token per row [R] int32 and return the logits [R, V or more] float32 after it; see ``SlotDecoder``."""
        memory = self._opened()
        residual = self._embed("decoder", tokens.long(), (n_keys - 1).clamp(min=0).long())
        for index, layer in enumerate(self._decoder):
            keys, values = memory.keys[index], memory.values[index]
            self._attend_past(layer.own, residual, keys, values, memory.rows, ancestry, n_keys)
            assert layer.cross is not None
            panels = memory.panels.keys[index], memory.panels.values[index]
            self._attend_source(layer.cross, residual, *panels, memory.rows, memory.begin, memory.length)
            self._feed_forward(layer, residual)
        return self._logits(residual)

    def recorded(self, step: Callable[[], None]) -> Callable[[], None]:
        """Return what repeats ``step`` at the least cost; no slot may hold a document the first time."""
        if self.device.type != "cuda":
            return step
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(0 if self._warm else _WARM_UPS):
                step()
            self._warm = True
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return graph.replay

    def make_smaller(self) -> bool:
        """Make do with half of the slots from now on; False where there is but one."""
        self._slots, self.last_slots = None, None
        if self._n_slots < 2:
            return False
        self._most_slots = self._n_slots = self._n_slots // 2
        return True

    def release(self) -> None:
        """Forget the documents and all memory of them."""
        super().release()
        self._slots, self.last_slots = None, None

    def _encode_for_decoder(
        self, documents: Sequence[Document], lengths: list[int]
    ) -> tuple[Iterator[tuple[Tensor, Tensor]], Tensor]:
        missing, longest, fillers = self.encoded_tokens - sum(lengths), max(lengths), []
        while missing > 0 and not isinstance(documents[0], Tensor):
            fillers.append(torch.arange(min(missing, longest)))
            missing -= longest
        both, rows = super()._encode_for_decoder(
            [*documents, *((torch.zeros_like(places), places) for places in fillers)],
            [*lengths, *map(len, fillers)],
        )
        return both, rows[: len(documents)]

    def _opened(self) -> _SlotMemory:
        assert self._slots is not None, "open_slots() comes first"
        return self._slots

    def _room(self) -> float:
        """Return the bytes that slots may take; of the device as a whole, so that equal devices make equal slots."""
        if self.device.type != "cuda":
            return float("inf")
        properties = torch.cuda.get_device_properties(self.device)
        return _MEMORY_SHARE * (properties.total_memory - self._weight_bytes)

    def _on_device(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(self.device, non_blocking=True)


def make_engine(config: Seq2SeqConfig, weights: dict[str, Tensor], *, quantized: bool = False) -> Engine:
    """Return the engine for where the weights lie; arguments as those of ``Engine``."""
    if quantized or not kernels.on_gpu(weights["shared.weight"]):
        return Engine(config, weights, quantized=quantized)
    return SlotEngine(config, weights)


class _SlotMemory:
    """What S slots of K rows remember: tokens [S * K, T, H, D] per layer, and their documents' sources in panels.

    begin (in panels), length (in tokens) [S] int32: where a slot's source lies; rows [S+1] int32: which rows are whose.
    """

    def __init__(
        self,
        layers: int,
        n_slots: int,
        n_beams: int,
        n_times: int,
        heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (n_slots * n_beams, n_times, heads, head_size)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)] for _ in range(2)
        )
        self.panels = Panels(layers, heads, head_size, dtype, device)
        self.panels.grow(-(-n_slots * _SLOT_TOKENS // kernels.PANEL))
        self.stretches: dict[int, Stretch] = {}
        self.begin, self.length = (torch.zeros(n_slots, dtype=torch.int32, device=device) for _ in range(2))
        self.rows = torch.arange(n_slots + 1, dtype=torch.int32, device=device) * n_beams

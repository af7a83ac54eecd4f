"""``generate`` around a search: what it is given, who decodes, and what is returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pegasus_batch.config import GenerationConfig, Seq2SeqConfig
from pegasus_batch.generation.callbacks import Callbacks
from pegasus_batch.generation.recording import Recorder, beam_indices, laid_out
from pegasus_batch.generation.search import generate, pad_sequences
from pegasus_batch.generation.stepwise import Decoder
from pegasus_batch.models.outputs import BaseModelOutput, Cache, GenerateOutput, ModelOutput

_INTERMEDIATES = ("decoder_attentions", "cross_attentions", "decoder_hidden_states", "attentions", "hidden_states")

Forward = Callable[
    [int, Tensor, Cache | None], ModelOutput
]  # (document, ids [n, T], cache of n rows) to logits and cache


@dataclass
class _Running:
    document: int
    prompt: Tensor  # what has been fed of it, [1, T]
    cache: Cache | None = None
    width: int = 1  # rows


class ModuleDecoder:
    """A network in the form that trains as a search's ``Decoder``: one document after the other, in plain PyTorch.

    ``steps``: by the name of an output, what a document's steps returned under it, a tuple of layers [K, ...] each.
    """

    def __init__(self, forward: Forward, config: Seq2SeqConfig, device: torch.device, prompt_length: int) -> None:
        """``forward`` runs the network; the ``prompt_length`` first tokens of a document go through it together."""
        self._forward, self._prompt_length = forward, prompt_length
        self.vocab_size, self.max_positions, self.device = config.vocab_size, config.max_position_embeddings, device
        self.steps: dict[str, dict[int, list[tuple[Tensor, ...]]]] = {}

    def start(self, n_beams: int) -> None:
        """Begin without any document."""
        self._n_beams = n_beams
        self._running: list[_Running] = []

    def admit(self, documents: Sequence[int]) -> None:
        """Add documents, a row each."""
        empty = torch.zeros(1, 0, dtype=torch.int64, device=self.device)
        self._running += [_Running(document, empty) for document in documents]

    def step(self, tokens: Tensor, parents: Tensor, widths: Sequence[int]) -> Tensor:
        """Feed a token per row; returns logits [R, V], which inside of a prompt are 0."""
        logits, old, new = [], 0, 0
        for running, width in zip(self._running, widths, strict=True):
            own = slice(new, new + width)
            logits.append(self._step(running, tokens[own, None], parents[own] - old))
            old, new, running.width = old + running.width, new + width, width
        return torch.cat(logits)

    def _step(self, running: _Running, ids: Tensor, parents: Tensor) -> Tensor:
        cache = running.cache
        if cache is None:
            running.prompt = ids = torch.cat((running.prompt, ids), dim=1)
            if ids.shape[1] < self._prompt_length:
                return torch.zeros(1, self.vocab_size, device=self.device)
        else:
            cache = tuple(tuple(tensor[parents] for tensor in layer) for layer in cache)
        output = self._forward(running.document, ids, cache)
        running.cache = output["past_key_values"]
        for name in _INTERMEDIATES:
            if name in output:
                # Beams that differ in nothing yet are one row here.
                layers = tuple(layer.expand(self._n_beams, *layer.shape[1:]) for layer in output[name])
                self.steps.setdefault(name, {}).setdefault(running.document, []).append(layers)
        last: Tensor = output["logits"][:, -1]
        return last.float()

    def keep(self, documents: Sequence[int]) -> None:
        """Drop all documents but these, indices into the current order."""
        self._running = [self._running[index] for index in documents]

    def intermediates(self, n_documents: int) -> dict[str, tuple[tuple[Tensor, ...], ...]]:
        """Return what the network said, by name: for every step a tuple of layers [documents * K, ...]."""
        found = {}
        for name, steps in self.steps.items():
            n_layers = len(next(iter(steps.values()))[0])
            layers = [
                laid_out({document: [step[layer] for step in own] for document, own in steps.items()}, n_documents)
                for layer in range(n_layers)
            ]
            found[name] = tuple(zip(*layers, strict=True))
        return found


def requested(base: GenerationConfig, options: dict[str, Any]) -> tuple[GenerationConfig, Callbacks]:
    """Return a call's options and callbacks; ValueError on unknown names and contradictions."""
    callbacks, own = Callbacks.taken_from(options)
    return base.updated(**own), callbacks


def wants_intermediates(settings: GenerationConfig) -> bool:
    """Tell whether a call asks for what only the network in its training form tells."""
    return settings.return_dict_in_generate and (settings.output_attentions or settings.output_hidden_states)


def search(
    decoder: Decoder,
    settings: GenerationConfig,
    callbacks: Callbacks,
    sources: Sequence[Sequence[int]],
    prompts: Tensor,
    max_positions: int,
) -> Tensor | GenerateOutput:
    """Search, and return sequences or, with return_dict_in_generate, all that was asked for.

    sources: ids of each document. prompts [B, P]: what each of its sequences begins with.
    """
    recorder = Recorder(settings) if settings.return_dict_in_generate else None
    if callbacks.streamer is not None:
        callbacks.streamer.put(prompts.repeat_interleave(settings.num_return_sequences, 0).cpu())
    found = generate(
        decoder,
        settings,
        sources,
        prompts.tolist(),
        max_positions=max_positions,
        callbacks=callbacks,
        recorder=recorder,
    )
    if callbacks.streamer is not None:
        callbacks.streamer.end()
    device, n_documents = prompts.device, len(prompts)
    sequences = pad_sequences(found, settings, callbacks).to(device)
    if recorder is None:
        return sequences
    output = GenerateOutput(sequences)
    if recorder.scores is not None:
        scores = [hypothesis.score for document in found for hypothesis in document]
        output.sequences_scores = torch.tensor(scores, device=device)
        output.scores = laid_out(recorder.scores, n_documents)
    if recorder.logits is not None:
        output.logits = laid_out(recorder.logits, n_documents)
    if settings.num_beams > 1:
        paths = [recorder.paths[document] for document in range(n_documents)]
        width = sequences.shape[1] - prompts.shape[1]
        output.beam_indices = beam_indices(paths, settings.num_beams, width).to(device)
    if isinstance(decoder, ModuleDecoder):
        for name, value in decoder.intermediates(n_documents).items():
            setattr(output, name, value)
    return output


def default_mask(ids: Tensor, settings: GenerationConfig) -> Tensor:
    """Mask the padding, unless the padding token ends sequences too; a row of padding alone stays visible."""
    pad = settings.pad_token_id
    if pad is None or pad in settings.eos_ids or not bool((ids == pad).any()):
        return torch.ones_like(ids)
    return (ids != pad).long()


def source_rows(ids: Tensor | None, mask: Tensor | None, documents: int) -> list[list[int]]:
    """Return the visible ids of each document; none where only its states are known."""
    if ids is None:
        return [[] for _ in range(documents)]
    if mask is None:
        return ids.tolist()
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Let a model compute without dropout inside a ``with`` block, as it does in the engine."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def encode_each(model: Any, ids: Tensor, mask: Tensor | None, settings: GenerationConfig) -> BaseModelOutput:
    """Encode ids [B, S] under a mask [B, S] one document at a time, with all that the settings want to know."""
    parts = [
        model.encode(
            ids[row : row + 1],
            None if mask is None else mask[row : row + 1],
            output_attentions=settings.output_attentions,
            output_hidden_states=settings.output_hidden_states,
        )
        for row in range(len(ids))
    ]

    def every(values: Sequence[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...] | None:
        known = [value for value in values if value is not None]
        return tuple(torch.cat(layer) for layer in zip(*known, strict=True)) if known else None

    return BaseModelOutput(
        torch.cat([part.last_hidden_state for part in parts]),
        every([part.hidden_states for part in parts]),
        every([part.attentions for part in parts]),
    )


def search_openly(
    model: Any,
    encoded: BaseModelOutput,
    mask: Tensor | None,
    prompts: Tensor,
    sources: Sequence[Sequence[int]],
    settings: GenerationConfig,
    callbacks: Callbacks,
) -> Tensor | GenerateOutput:
    """Search with an encoder-decoder in the form that trains, which tells its attentions and states."""

    def forward(document: int, ids: Tensor, past: Cache | None) -> ModelOutput:
        output: ModelOutput = model(
            encoder_outputs=BaseModelOutput(encoded.last_hidden_state[document].expand(len(ids), -1, -1)),
            attention_mask=None if mask is None else mask[document].expand(len(ids), -1),
            decoder_input_ids=ids,
            past_key_values=past,
            use_cache=True,
            output_attentions=settings.output_attentions,
            output_hidden_states=settings.output_hidden_states,
            return_dict=True,
        )
        return output

    decoder = ModuleDecoder(forward, model.config, prompts.device, prompts.shape[1])
    output = search(decoder, settings, callbacks, sources, prompts, decoder.max_positions)
    assert isinstance(output, GenerateOutput)
    output.encoder_attentions = encoded.attentions if settings.output_attentions else None
    output.encoder_hidden_states = encoded.hidden_states if settings.output_hidden_states else None
    return output

"""A tiny transformers model as the oracle, and decoders that need no engine of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartForConditionalGeneration, PegasusConfig, PegasusForConditionalGeneration
from transformers import GenerationConfig as OracleConfig
from transformers.generation.logits_process import EncoderRepetitionPenaltyLogitsProcessor, LogitsProcessorList

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
    "init_std": 0.5,  # wide, so that logits are far apart and rounding decides nothing
    "attn_implementation": "eager",
}


@dataclass
class Oracle:
    """One transformers model and what its ``generate`` makes of a document alone in its batch."""

    name: str
    model: Any
    tokens: dict[str, int]

    def configure(self, options: dict[str, Any]) -> OracleConfig:
        config = OracleConfig(**{**self.tokens, **options}, use_cache=False)
        # generate() fills what a passed configuration leaves at its default from the model's own, so there is but one.
        self.model.generation_config = config
        return config

    def generate(self, options: dict[str, Any], source: list[int], prompt: list[int]) -> tuple[Tensor, list[float]]:
        """Return transformers' output rows and their scores; a greedy score follows our definition."""
        self.configure(options)
        ids = torch.tensor([source])
        custom = LogitsProcessorList()
        if (penalty := options.get("encoder_repetition_penalty", 1.0)) != 1.0:
            # Release 4.57 penalises the first rows only; release 5 repeats the source for every beam.
            rows = ids.repeat(options.get("num_beams", 1), 1)
            custom.append(EncoderRepetitionPenaltyLogitsProcessor(penalty, rows))
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=torch.tensor([prompt]),
            logits_processor=custom,
            output_scores=True,
            return_dict_in_generate=True,
        )
        if options.get("num_beams", 1) > 1:
            return output.sequences, output.sequences_scores.tolist()
        new = output.sequences[0, len(prompt) :]
        steps = [scores[0].log_softmax(-1)[token] for scores, token in zip(output.scores, new, strict=True)]
        return output.sequences, [float(sum(steps)) / len(steps) ** options.get("length_penalty", 1.0)]


@dataclass
class OracleDecoder:
    """Drives a transformers model without a cache: every step decodes each row's history anew."""

    model: Any
    sources: list[list[int]]
    vocab_size: int = VOCABULARY
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def start(self, n_beams: int) -> None:
        self.encoded: list[Tensor] = []
        self.histories: list[list[list[int]]] = []

    def admit(self, documents: Sequence[int]) -> None:
        encoder = self.model.get_encoder()
        self.encoded += [encoder(torch.tensor([self.sources[document]])).last_hidden_state for document in documents]
        self.histories += [[[]] for _ in documents]

    def step(self, tokens: Tensor, parents: Tensor, widths: Sequence[int]) -> Tensor:
        self.histories = continued(self.histories, tokens, parents, widths)
        # One document at a time, so that no sum depends on how long the others are.
        logits = [
            self.model(
                encoder_outputs=(states.expand(len(rows), -1, -1),),
                decoder_input_ids=torch.tensor(rows),
                use_cache=False,
            ).logits[:, -1]
            for states, rows in zip(self.encoded, self.histories, strict=True)
        ]
        return torch.cat(logits)

    def keep(self, documents: Sequence[int]) -> None:
        self.encoded = [self.encoded[document] for document in documents]
        self.histories = [self.histories[document] for document in documents]


def continued(
    histories: list[list[list[int]]], tokens: Tensor, parents: Tensor, widths: Sequence[int]
) -> list[list[list[int]]]:
    """Return each document's rows after a step: old row ``parents[r]`` of them all, and ``tokens[r]``."""
    assert tokens.dtype == parents.dtype == torch.int64
    assert tokens.shape == parents.shape == (sum(widths),)
    old = [row for rows in histories for row in rows]
    owner = [document for document, rows in enumerate(histories) for _ in rows]
    new = [[*old[parent], token] for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)]
    assert [owner[parent] for parent in parents.tolist()] == [d for d, width in enumerate(widths) for _ in range(width)]
    ends = list(accumulate(widths))
    return [new[end - width : end] for end, width in zip(ends, widths, strict=True)]


def _oracle(name: str) -> Oracle:
    torch.manual_seed(len(name))
    model: Any
    if name == "pegasus":
        config = PegasusConfig(**SIZES, scale_embedding=True, activation_function="relu")
        model = PegasusForConditionalGeneration(config)
    else:
        config = BartConfig(**SIZES)
        model = BartForConditionalGeneration(config)
    model.eval()
    model.final_logits_bias.normal_()
    model.final_logits_bias[0, config.eos_token_id] += 2.0  # or else a random model seldom ends
    tokens = {name: getattr(config, name) for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    return Oracle(name, model, tokens)


@pytest.fixture(scope="package", params=["pegasus", "bart"])
def oracle(request: pytest.FixtureRequest) -> Oracle:
    """A tiny Pegasus (starts from padding 0, ends with 1) or BART (padding 1, starts and ends with 2)."""
    return _oracle(request.param)


@pytest.fixture(scope="package")
def oracle_decoder() -> Callable[[Oracle, list[list[int]]], OracleDecoder]:
    """Make a decoder over the oracle's own network."""
    return lambda oracle, sources: OracleDecoder(oracle.model, sources)


class TableDecoder:
    """Logits from a hash of each row's own tokens and its document; remembers which documents it was asked to keep.

    ``broken`` names a document and the number of fed tokens from which its logits are NaN.
    """

    def __init__(self, n_documents: int, vocab_size: int = 23, broken: tuple[int, int] | None = None) -> None:
        self.vocab_size, self.device, self.broken = vocab_size, torch.device("cpu"), broken
        self.loaded = list(range(n_documents))
        self.rows_seen: list[int] = []

    def start(self, n_beams: int) -> None:
        self.documents: list[int] = []
        self.histories: list[list[list[int]]] = []

    def admit(self, documents: Sequence[int]) -> None:
        self.documents += [self.loaded[document] for document in documents]
        self.histories += [[[]] for _ in documents]

    def step(self, tokens: Tensor, parents: Tensor, widths: Sequence[int]) -> Tensor:
        self.rows_seen.append(len(tokens))
        self.histories = continued(self.histories, tokens, parents, widths)
        logits = []
        for document, rows in zip(self.documents, self.histories, strict=True):
            for history in rows:
                seed = hash((document, *history)) % 2**31  # hashes of integers do not change between runs
                logits.append(torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(seed)) * 2)
                if self.broken and document == self.broken[0] and len(history) >= self.broken[1]:
                    logits[-1][:] = torch.nan
        return torch.stack(logits)

    def keep(self, documents: Sequence[int]) -> None:
        self.documents = [self.documents[document] for document in documents]
        self.histories = [self.histories[document] for document in documents]


@pytest.fixture(scope="package")
def table_decoder() -> type[TableDecoder]:
    """A deterministic decoder without a model."""
    return TableDecoder

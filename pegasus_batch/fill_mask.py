"""Texts with masks in, the likeliest tokens for them out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pegasus_batch.checkpoints.location import resolve
from pegasus_batch.forward import Failure, load_model, run_windows
from pegasus_batch.models.pretrained import shift_right
from pegasus_batch.models.seq2seq import (
    BartForConditionalGeneration,
    ConditionalGeneration,
    PegasusForConditionalGeneration,
)
from pegasus_batch.tokenization import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Filling:
    """One token for one mask: its probability there, its id and text, and the text with it in place of the mask."""

    score: float
    token: int
    token_str: str
    sequence: str


class FillMask:
    """A BART or Pegasus that reads masked texts, with its tokenizer, ready on one device.

    Results are those of transformers' fill-mask pipeline: the decoder reads the masked text shifted by one, and the
    probabilities are those at the masks' places, each mask for itself.

    BART (``<mask>``) was trained to write the text out in full, so its tokens at a mask are guesses at what stood there,
    best where a mask stands for a single token; after one that stood for several, the places no longer correspond. Pegasus
    has two: ``<mask_2>`` for a token and ``<mask_1>`` for a whole sentence. Its decoder was trained to write the masked
    sentences, not to repeat the text, so what it says at a mask's place is meaningful only for checkpoints trained to
    restore the text (``jobs/pretrain.py`` has such a corruption); for ``<mask_1>`` let ``Summarizer`` or ``generate`` write
    the sentence.
    """

    def __init__(
        self,
        model_dir: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_tokens: int = 4096,
    ) -> None:
        """Load ``model_dir``.

        device and dtype are those of ``Summarizer``, without int8; batch_tokens counts the ids of a GPU's batch, each of
        which takes the probabilities of a whole vocabulary. Raises ValueError for a checkpoint whose tokenizer has no mask token.
        """
        path = resolve(model_dir)
        self.tokenizer = load_tokenizer(path)
        self.mask_ids = find_masks(self.tokenizer)
        if not self.mask_ids:
            raise ValueError(f"the tokenizer of {path} has no mask token: its model was not trained to fill masks")
        self.batch_tokens = batch_tokens
        classes: tuple[type[ConditionalGeneration], ...] = (
            PegasusForConditionalGeneration,
            BartForConditionalGeneration,
        )
        self._model = load_model(path, classes, device, dtype)

    def fill(
        self, texts: Sequence[str], *, top_k: int = 5, targets: str | Sequence[str] | None = None
    ) -> list[list[list[Filling]]]:
        """Return, for every text and each of its masks in order, the ``top_k`` likeliest tokens, best first.

        ``targets`` are the only tokens to choose from; one that is no token stands for its first, with a warning.
        Probabilities stay those among all tokens. In ``sequence`` the other masks of a text remain. Raises ValueError,
        naming the text's position, for a text without a mask or longer than the model reads.
        """
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: must be positive")
        chosen = None if targets is None else self._target_ids([targets] if isinstance(targets, str) else targets)
        windows = [self._encode(index, text) for index, text in enumerate(texts)]
        n_found = min(top_k, self._model.config.vocab_size if chosen is None else len(chosen))

        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            """Return the best [B, S, 2, k]: probabilities and ids, for the whole vocabulary's would not fit for long texts."""
            decoder_ids = shift_right(ids, self._model.config)
            output = self._model(ids, mask, decoder_input_ids=decoder_ids, use_cache=False, return_dict=True)
            assert not isinstance(output, tuple) and output.logits is not None
            probabilities = output.logits.float().softmax(-1)
            if chosen is not None:
                probabilities = probabilities[..., torch.tensor(chosen, device=ids.device)]
            best = probabilities.topk(n_found)
            return torch.stack((best.values, best.indices.float()), dim=-2)

        model = self._model
        found = run_windows(windows, forward, model.config, model.device, self.batch_tokens)
        return [
            self._fillings(index, ids, best, chosen)
            for index, (ids, best) in enumerate(zip(windows, found, strict=True))
        ]

    def _encode(self, index: int, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text)
        limit = self._model.config.max_position_embeddings
        if not any(token in self.mask_ids for token in ids):
            names = " or ".join(self.tokenizer.convert_ids_to_tokens(self.mask_ids))
            raise ValueError(f"text {index} has no mask: write {names} where a token is to be found")
        if len(ids) > limit:
            raise ValueError(f"text {index} has {len(ids)} tokens, and the model reads {limit}: shorten it")
        return ids

    def _target_ids(self, targets: Sequence[str]) -> list[int]:
        vocabulary = self.tokenizer.get_vocab()
        ids = {}
        for target in targets:
            found = [vocabulary[target]] if target in vocabulary else self._first_token(target)
            ids.update(dict.fromkeys(found))
        if not ids:
            raise ValueError(f"targets {list(targets)!r}: name at least one token")
        return list(ids)

    def _first_token(self, target: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(target, add_special_tokens=False)
        if ids:
            token = self.tokenizer.convert_ids_to_tokens(ids[0])
            warnings.warn(f"target {target!r} is no token of this vocabulary; {token!r} stands for it", stacklevel=4)
        return ids[:1]

    def _fillings(
        self, index: int, ids: list[int], best: Tensor | Failure, chosen: list[int] | None
    ) -> list[list[Filling]]:
        if isinstance(best, Failure):
            raise RuntimeError(f"text {index}: {best}")
        places = [place for place, token in enumerate(ids) if token in self.mask_ids]
        found = []
        for place in places:
            scores, indices = best[place].tolist()
            tokens = [int(each) if chosen is None else chosen[int(each)] for each in indices]
            found.append(
                [
                    self._filling(ids, place, token, score, alone=len(places) == 1)
                    for token, score in zip(tokens, scores, strict=True)
                ]
            )
        return found

    def _filling(self, ids: list[int], place: int, token: int, score: float, alone: bool) -> Filling:
        filled = [*ids[:place], token, *ids[place + 1 :]]
        kept = [each for each in filled if each != self.tokenizer.pad_token_id]
        # Skipping special tokens would take the other masks away too.
        sequence = self.tokenizer.decode(kept, skip_special_tokens=alone)
        return Filling(score, token, self.tokenizer.decode([token]), sequence)


def find_masks(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the tokens that stand for something to be found: that for a token, and Pegasus' for a sentence."""
    sentence = getattr(tokenizer, "mask_token_sent", None)
    ids = [] if tokenizer.mask_token_id is None else [tokenizer.mask_token_id]
    return ids if sentence is None else [*ids, tokenizer.convert_tokens_to_ids(sentence)]

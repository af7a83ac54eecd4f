"""Drawing tokens: which of them may be drawn, and random numbers that belong to a document and not to its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.processors import BANNED

Warper = Callable[[Tensor], Tensor]  # scores [R, V] to scores [R, V]


def warpers(options: GenerationConfig) -> list[Warper]:
    """Return what narrows and flattens the scores [R, V] before a token is drawn, in Hugging Face's order."""
    # Beams need a token that goes on, whatever ends them.
    least = 1 if options.num_beams == 1 else 1 + max(1, len(options.eos_ids))
    temperature, top_k, top_p = options.temperature, options.top_k, options.top_p
    min_p, typical_p, epsilon, eta = options.min_p, options.typical_p, options.epsilon_cutoff, options.eta_cutoff
    found: list[Warper] = []
    if temperature not in (None, 1.0):
        found.append(lambda scores: scores / temperature)
    if top_k:
        found.append(lambda scores: keep_top_k(scores, max(top_k, least)))
    if top_p is not None and top_p < 1:
        found.append(lambda scores: keep_top_p(scores, top_p, least))
    if min_p is not None:
        found.append(lambda scores: keep_min_p(scores, min_p, least))
    if typical_p is not None and typical_p < 1:
        found.append(lambda scores: keep_typical(scores, typical_p, least))
    if epsilon:
        found.append(lambda scores: keep_above(scores, torch.full_like(scores[:, :1], epsilon), least))
    if eta:
        found.append(lambda scores: keep_above(scores, _entropy_threshold(scores, eta), least))
    return found


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Ban all but the k best tokens of every row, and those as good as the last of them."""
    return scores.masked_fill(scores < _nth_best(scores, k), BANNED)


def keep_top_p(scores: Tensor, mass: float, least: int) -> Tensor:
    """Ban the least probable tokens whose probabilities sum to at most 1 - ``mass`` (Holtzman et al. 2019, arXiv 1904.09751)."""
    ordered, tokens = scores.sort(-1)
    removed = ordered.softmax(-1).cumsum(-1) <= 1 - mass
    removed[:, -least:] = False
    return _ban(scores, tokens, removed)


def keep_min_p(scores: Tensor, share: float, least: int) -> Tensor:
    """Ban tokens less probable than ``share`` of the most probable one (Nguyen et al. 2024, arXiv 2407.01082)."""
    probabilities = scores.softmax(-1)
    tokens = scores.argsort(-1, descending=True)
    removed = (probabilities < share * probabilities.amax(-1, keepdim=True)).gather(-1, tokens)
    removed[:, :least] = False
    return _ban(scores, tokens, removed)


def keep_typical(scores: Tensor, mass: float, least: int) -> Tensor:
    """Keep the tokens whose surprise is closest to the entropy, up to ``mass`` (Meister et al. 2022, arXiv 2202.00666)."""
    surprise = -scores.log_softmax(-1)
    entropy = (surprise * surprise.neg().exp()).nansum(-1, keepdim=True)
    distance, tokens = (surprise - entropy).abs().sort(-1)
    before = scores.gather(-1, tokens).softmax(-1).cumsum(-1) < mass
    last = before.sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    removed = distance > distance.gather(-1, last)
    removed[:, :least] = False
    return _ban(scores, tokens, removed)


def keep_above(scores: Tensor, threshold: Tensor, least: int) -> Tensor:
    """Ban tokens less probable than their row's ``threshold`` [R, 1], but none as good as the best ``least``."""
    removed = (scores.softmax(-1) < threshold) & (scores < _nth_best(scores, least))
    return scores.masked_fill(removed, BANNED)


def _entropy_threshold(scores: Tensor, eta: float) -> Tensor:
    """Return the lower of eta and sqrt(eta) * exp(-entropy), [R, 1] (Hewitt et al. 2022, arXiv 2210.15191)."""
    logs = scores.log_softmax(-1)
    entropy = -(logs.clamp(min=torch.finfo(logs.dtype).min) * logs.exp()).sum(-1, keepdim=True)
    return (eta**0.5 * (-entropy).exp()).clamp(max=eta)


def _nth_best(scores: Tensor, n: int) -> Tensor:
    return scores.topk(min(n, scores.shape[-1])).values[:, -1:]


def _ban(scores: Tensor, tokens: Tensor, removed: Tensor) -> Tensor:
    """Ban ``tokens`` [R, V], an order of the vocabulary, where ``removed`` [R, V] says so."""
    return scores.masked_fill(removed.scatter(-1, tokens, removed), BANNED)


class RandomStreams:
    """Uniform random numbers that depend on the seed, the document, the sequence, and how long that is; on nothing else.

    They are the output of NumPy's Philox 4x64 (Salmon et al. 2011). Its key is the 16-byte BLAKE2b hash of the seed and the
    document's source ids, 8 bytes each, little-endian; a document without source ids is known by its number instead. Its
    counter starts at (0, 0, generated tokens, sequence): the third word numbers the step, the fourth is 0 or, where every
    returned sequence is drawn for itself, that sequence's number.
    """

    def __init__(self, seed: int, source_ids: Sequence[Sequence[int]]) -> None:
        self._keys = []
        for number, ids in enumerate(source_ids):
            content = np.array([seed, *(ids or [number])], dtype="<u8").tobytes()
            digest = hashlib.blake2b(content, digest_size=16).digest()
            self._keys.append(np.frombuffer(digest, dtype="<u8"))

    def uniform(self, document: int, sequence: int, step: int, n: int) -> NDArray[np.float64]:
        """Return n numbers, each strictly between 0 and 1, of which number i is the i-th token's (or candidate's)."""
        counter = np.array([0, 0, step, sequence], dtype=np.uint64)
        raw = np.random.Philox(key=self._keys[document], counter=counter).random_raw(n)
        return ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def draw(log_weights: Tensor, uniform: NDArray[np.float64], n: int) -> Tensor:
    """Draw n of the candidates [N] without replacement, in proportion to exp(log_weights); returns them in the order drawn.

    The n largest of log_weights + Gumbel noise are such a draw (Kool et al. 2019, arXiv 1903.06059). Where fewer candidates
    than n have a weight, the first of the others follow; NaN counts as the largest weight, as it does to argmax.
    """
    weights = log_weights.double().cpu().numpy()
    broken, usable = np.flatnonzero(np.isnan(weights)), np.flatnonzero(weights > BANNED)
    perturbed = weights[usable] - np.log(-np.log(uniform[usable]))
    top = np.argpartition(-perturbed, n - 1)[:n] if len(usable) > n else np.arange(len(usable))
    found = np.concatenate((broken, usable[top[np.argsort(-perturbed[top], kind="stable")]]))
    if len(found) < n:
        found = np.concatenate((found, np.setdiff1d(np.arange(len(weights)), found)))
    return torch.from_numpy(found[:n]).to(log_weights.device)

"""The training loss."""

from __future__ import annotations

import torch
from torch import Tensor

from pegasus_batch.training.pairs import IGNORED


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the label-smoothed loss and the plain negative log-likelihood, both means over the active positions.

    logits [B, T, V], labels [B, T] with -100 where nothing counts. The smoothed target keeps 1 - smoothing on the label
    and spreads the rest evenly over all V tokens, the label included (Szegedy et al. 2016, section 7). Computed in
    float32 whatever the logits' type. Only active rows reach the softmax. Returns (loss, nll), scalars; both NaN if no
    label is active.
    """
    active = labels != IGNORED
    scores = logits[active].float()
    normaliser = torch.logsumexp(scores, dim=-1)
    nll = (normaliser - scores.gather(1, labels[active].unsqueeze(1)).squeeze(1)).mean()
    if not smoothing:
        return nll, nll.detach()
    uniform = (normaliser - scores.mean(dim=-1)).mean()
    return (1 - smoothing) * nll + smoothing * uniform, nll.detach()

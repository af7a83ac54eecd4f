"""The specification of the ops that keep a search on the device, in plain PyTorch: before a step and after it.

As in ``reference``: the signatures of the native twins, and what runs where there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pegasus_batch.kernels.reference import PENALIZE, SET


def plan_edits(
    sequences: Tensor,
    lengths: Tensor,
    phase_begin: Tensor,
    phase_token: Tensor,
    phase_kind: Tensor,
    phase_value: Tensor,
    phase_forced: Tensor,
    repetition_penalty: float,
    ngram_size: int,
    begin: Tensor,
    end: Tensor,
    token: Tensor,
    kind: Tensor,
    value: Tensor,
    forced: Tensor,
) -> None:
    """Write the edits of the step that chooses a token after the first lengths[s] tokens of document s's beams.

    sequences [S, K, L] int32, tokens at least 0; lengths [S] int32, 0 to L. Phases are edits that the length alone
    decides: those after n tokens are phase_begin[n]:phase_begin[n+1] ([L+2] int32) of phase_token, phase_kind int32 and
    phase_value float32 [P]; phase_forced [L+1] int32, the token to force or -1.

    Each of the R = S*K rows owns a stretch of N // R of the N places of token, kind int32 and value float32 [N], and
    places begin[r]:end[r] of it [R] int32 are written: where nothing is forced, a PENALIZE of every distinct token of the
    history, first occurrences first, unless ``repetition_penalty`` is 1, and a SET to -inf for every earlier place, in
    order, at which the last ``ngram_size`` - 1 tokens stand, of the token that follows there, unless ``ngram_size`` is 0;
    then, always, the phase's edits. forced [R] int32 is written in full. Raises ValueError if a stretch is too short.
    """
    n_documents, n_beams, width = sequences.shape
    n_rows = n_documents * n_beams
    stretch = len(token) // max(n_rows, 1)
    history = sequences.reshape(n_rows, width).long()
    n = lengths.long().repeat_interleave(n_beams)
    time = torch.arange(width, device=token.device)
    free = (phase_forced[n] < 0)[:, None]
    seen = (time < n[:, None]) & free
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # (whether it applies, token, kind, value), each [R, some]

    def append(applies: Tensor, tokens: Tensor, every_kind: int, every_value: float) -> None:
        kinds = torch.full_like(tokens, every_kind)
        parts.append((applies, tokens, kinds, torch.full_like(tokens, every_value, dtype=torch.float32)))

    if repetition_penalty != 1:
        ordered, order = torch.where(seen, history, -1).sort(dim=1, stable=True)
        first = torch.ones_like(seen)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        append(seen & torch.empty_like(seen).scatter_(1, order, first), history, PENALIZE, repetition_penalty)
    if ngram_size:
        last = n[:, None] - ngram_size + 1  # where the tokens begin that the next one would complete
        repeats = (time < last) & free
        for offset in range(min(ngram_size, width) - 1):
            current = history.gather(1, (last + offset).clamp(0, width - 1))
            repeats &= history[:, (time + offset).clamp(max=width - 1)] == current
        append(repeats, history[:, (time + ngram_size - 1).clamp(max=width - 1)], SET, -torch.inf)
    counts = (phase_begin[n + 1] - phase_begin[n])[:, None]
    index = torch.arange(int(counts.max()) if n_rows else 0, device=token.device)
    source = (phase_begin[n][:, None] + index).clamp(max=max(len(phase_token) - 1, 0))
    parts.append((index < counts, phase_token[source], phase_kind[source], phase_value[source]))

    applies, *columns = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    needed = applies.sum(1).int()
    if n_rows and int(needed.max()) > stretch:
        raise ValueError(
            f"plan_edits: a row needs {int(needed.max())} edits, but a stretch has {stretch}: make N larger"
        )
    begin.copy_(torch.arange(n_rows, device=token.device) * stretch)
    end.copy_(begin + needed)
    forced.copy_(phase_forced[n])
    place = (begin[:, None] + applies.cumsum(1) - 1)[applies]
    for out, column in zip((token, kind, value), columns, strict=True):
        out[place] = column[applies].to(out.dtype)


def extend_beams(
    scores: Tensor,
    parents: Tensor,
    tokens: Tensor,
    pool_scores: Tensor,
    pool_finished: Tensor,
    pool_source: Tensor,
    pool_tokens: Tensor,
    open_: Tensor,
    done: Tensor,
    active: Tensor,
    lengths: Tensor,
    kept_scores: Tensor,
    kept_pool_scores: Tensor,
    kept_pool_finished: Tensor,
    kept_open: Tensor,
    sequences: Tensor,
    pool_sequences: Tensor,
    pool_lengths: Tensor,
    next_tokens: Tensor,
    ancestry: Tensor,
    n_keys: Tensor,
    source_length: Tensor,
) -> None:
    """Carry what ``beam_step`` chose into the state of the active documents; the others keep theirs bit for bit.

    The first nine are the outputs of ``beam_step``; what follows is the state and changes in place: active [S] bool;
    lengths [S] int32, the tokens of each document's beams, below L where active; kept_* take the new scores, pool_scores
    and pool_finished [S, K] and open [S]; sequences, pool_sequences [S, K, L] int32, of which columns up to the new
    token's change and later ones never; pool_lengths [S, K] int32; next_tokens [S*K] int32, the new tokens; ancestry
    [S*K, T] int32 and n_keys [S*K] int32, the same for all beams of a document: the past of ``cached_attention``, in which
    row r writes its next key to slot r (columns beyond T are dropped); source_length [S] int32. A document that is done
    leaves: its active becomes False, its n_keys and source_length 0.
    """
    n_documents, n_beams, width = sequences.shape
    n, before = lengths.long(), active.clone()
    alive = before[:, None, None]
    rows = torch.arange(n_documents, device=n.device)[:, None] * n_beams + torch.arange(n_beams, device=n.device)
    # A document that is not active may hold any numbers: they are replaced before they are used as indices.
    parent = torch.where(alive[:, 0], parents, 0).long()[:, :, None]
    source = torch.where(alive[:, 0], pool_source, 0).long()
    column = torch.arange(width, device=n.device)
    new, old = column == n[:, None, None], column < n[:, None, None]

    pool = torch.cat([pool_sequences, sequences], dim=1).take_along_dim(source[:, :, None], 1)
    added = torch.where((pool_tokens >= 0)[:, :, None] & new, pool_tokens[:, :, None], pool_sequences)
    pool_sequences.copy_(torch.where(alive, torch.where(old, pool, added), pool_sequences))
    moved = torch.where(old, sequences.take_along_dim(parent, 1), sequences)
    sequences.copy_(torch.where(alive, torch.where(new, tokens[:, :, None], moved), sequences))
    every_length = torch.cat([pool_lengths, (lengths + 1)[:, None].expand(-1, n_beams)], dim=1)
    pool_lengths.copy_(torch.where(before[:, None], every_length.gather(1, source), pool_lengths))

    past, keys = ancestry.view(n_documents, n_beams, -1), n_keys.view(n_documents, n_beams, 1)
    time = torch.arange(past.shape[2], device=n.device)
    past_moved = torch.where(time < keys, past.take_along_dim(parent, 1), past)
    past.copy_(torch.where(alive, torch.where(time == keys, rows[:, :, None].int(), past_moved), past))
    n_keys.copy_(torch.where(alive, torch.where(done[:, None, None], 0, keys + 1), keys).flatten())

    next_tokens.copy_(torch.where(before[:, None], tokens, next_tokens.view(n_documents, n_beams)).flatten())
    for kept, chosen in (
        (kept_scores, scores), (kept_pool_scores, pool_scores), (kept_pool_finished, pool_finished), (kept_open, open_),
    ):  # fmt: skip
        kept.copy_(torch.where(before.view(-1, *[1] * (kept.dim() - 1)), chosen, kept))
    lengths.add_(before.int())
    source_length.masked_fill_(before & done, 0)
    active.logical_and_(~done)

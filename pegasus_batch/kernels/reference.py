"""The specification of every kernel, in plain PyTorch.

Each function here has the signature of its native twin and defines what the twin must return. It is also what runs
where no native kernel exists: float16, float64, accelerators, autograd, or a missing extension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# What each edit kind does to a log-probability s, given the edit's value v. -inf stays -inf under all but SET.
SET, PENALIZE, ADD, DECAY = range(4)  # s = v;  s*v if s < 0 else s/v;  s + v;  s + |s|*v

PANEL = 16  # keys that are laid out together
_OUTPUT_PANEL = 64  # outputs of a linear layer that are laid out together

# Added to a candidate that must not be chosen. Large and finite, as in the search that we follow: such candidates keep
# their order among themselves and still fill a beam when nothing better is left.
BANISHED = -1.0e9


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_begin: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    """Attend the query rows of each document to that document's keys.

    query [Nq, H, D]; key, value [Nk, H, D]; query_begin [B+1] int32: document b owns the query rows
    query_begin[b]:query_begin[b+1]; key_begin, n_keys [B] int32: its keys are the n_keys[b] rows from key_begin[b] on.
    No mask. Returns [Nq, H, D]; a document without keys yields zeros. Half types are computed in float32 and rounded
    once.
    """
    wide = _compute_dtype(query)
    out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
    begins, key_begins, key_counts = query_begin.tolist(), key_begin.tolist(), n_keys.tolist()
    pieces = []
    for document, n in enumerate(key_counts):
        rows = slice(begins[document], begins[document + 1])
        if n == 0 or rows.start == rows.stop:
            pieces.append(out[rows])
            continue
        keys = slice(key_begins[document], key_begins[document] + n)
        q, k, v = (x.to(wide).transpose(0, 1) for x in (query[rows], key[keys], value[keys]))  # [H, rows, D]
        weights = torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1)
        pieces.append((weights @ v).transpose(0, 1).to(query.dtype))
    # Query rows that no document owns stay zero; concatenation (not assignment) keeps autograd simple.
    first, last = (begins[0], begins[-1]) if begins else (0, 0)
    return torch.cat([out[:first], *pieces, out[last:]]) if pieces else out


def panel_elements(head_size: int, dtype: torch.dtype) -> int:
    """Return how many elements a panel of one head has in memory of ``dtype``; in uint8 there is a row more, for the scale."""
    return PANEL * (-(-head_size // PANEL) * PANEL + (dtype == torch.uint8))


def pack_source(
    key: Tensor,
    value: Tensor,
    key_begin: Tensor,
    n_keys: Tensor,
    panel_begin: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
) -> None:
    """Lay the keys and values of documents out for ``source_attention``, which reads them at every step.

    key, value [Nk, H, D]; key_begin, n_keys [B] int32: document b's keys are the n_keys[b] rows from key_begin[b] on. They
    go to the ceil(n_keys[b] / PANEL) panels from panel_begin[b] [B] int32 on of key_panels and value_panels
    [P, H, panel_elements(D, dtype)] of the keys' type, or, for bfloat16, uint8: then elements become signed codes of 8 bits,
    round(x * 127 / largest), where largest is the largest magnitude in that panel of that head. How they lie there is the
    implementation's own affair: who packs must attend. Here a head's panels come one after the other, then the next head's,
    rows of D' as they are; of codes, a panel ends with largest / 127 in float32.
    """
    heads, size = key.shape[1:]
    in_panel = panel_elements(size, key.dtype)
    for memory, rows in ((key_panels, key), (value_panels, value)):
        for begin, n, panel in zip(key_begin.tolist(), n_keys.tolist(), panel_begin.tolist(), strict=True):
            own = memory[panel : panel - (-n // PANEL)]
            padded = rows.new_zeros(heads, PANEL * len(own), in_panel // PANEL)
            padded[:, :n, :size] = rows[begin : begin + n].transpose(0, 1)
            if memory.dtype == torch.uint8:
                wide = padded.float().view(*own.shape[:2], in_panel)
                scales = wide.abs().amax(-1, keepdim=True) / 127
                codes = torch.where(scales > 0, wide / scales, 0.0).round().to(torch.int8).view(torch.uint8)
                ends = F.pad(scales.view(torch.uint8), (0, PANEL - 4))
                own.copy_(torch.cat((codes, ends), -1))
            else:
                own.copy_(padded.view(own.shape))


def source_attention(
    query: Tensor,
    key_panels: Tensor,
    value_panels: Tensor,
    query_begin: Tensor,
    panel_begin: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    """Attend the query rows of each document to its keys as ``pack_source`` has laid them out.

    query, query_begin and the result as in ``attention``, to which it is equal; the rest as in ``pack_source``. Codes
    count as what they stand for, rounded to bfloat16.
    """
    heads, size = query.shape[1:]
    in_panel = panel_elements(size, query.dtype)
    parts: list[list[Tensor]] = [[query.new_zeros(0, heads, size)], [query.new_zeros(0, heads, size)]]
    for n, panel in zip(n_keys.tolist(), panel_begin.tolist(), strict=True):
        for memory, rows in zip((key_panels, value_panels), parts, strict=True):
            own = memory[panel : panel - (-n // PANEL)]
            if memory.dtype == torch.uint8:
                scales = own[..., in_panel : in_panel + 4].contiguous().view(torch.float32)
                own = (own[..., :in_panel].view(torch.int8) * scales).to(query.dtype)
            flat = own.reshape(heads, PANEL * len(own), in_panel // PANEL)
            rows.append(flat[:, :n, :size].transpose(0, 1))
    key, value = (torch.cat(rows) for rows in parts)
    return attention(query, key, value, query_begin, n_keys.cumsum(0).int() - n_keys, n_keys, scale)


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_begin: Tensor,
    ancestry: Tensor,
    n_keys: Tensor,
    scale: float,
) -> Tensor:
    """Write each decoder row's newest key and value to the cache, and attend the row to its own past, wherever it lies.

    query, key, value [R, H, D]; key_cache, value_cache [slots, T, H, D], written to; ancestry [R, T] int32: row r's key at
    time t is key_cache[ancestry[r, t], t], so reordering beams permutes ancestry rows and moves no key; n_keys [R] int32.
    In caches of one time a slot holds one token, of whatever time: the key is key_cache[ancestry[r, t], 0].
    Row r's newest ones go to time n_keys[r] - 1 before any row looks; nothing is written for a row without keys. Entries at
    t >= n_keys[r] are never looked at. query_begin [B+1] int32: document b owns the rows query_begin[b]:query_begin[b+1],
    whose ancestries name slots that no other document has; no two rows have the same newest place. Returns [R, H, D]; a
    row without keys yields zeros.
    """
    times = key_cache.shape[1]
    fed = (n_keys > 0).nonzero().squeeze(1)
    newest = n_keys[fed].long() - 1
    places = ancestry[fed, newest].long(), newest if times > 1 else 0 * newest
    key_cache[places], value_cache[places] = key[fed], value[fed]
    wide = _compute_dtype(query)
    longest = int(n_keys.max()) if n_keys.numel() else 0
    if longest == 0:
        return torch.zeros_like(query, memory_format=torch.contiguous_format)
    time = torch.arange(longest, device=query.device)
    seen = time < n_keys[:, None]  # [R, t]
    slots = torch.where(seen, ancestry[:, :longest], 0).long()
    # Unused cache memory may hold anything, NaN included, and 0 * NaN is NaN: replace it rather than weigh it by zero.
    hidden = ~seen[:, :, None, None]
    time = time if times > 1 else 0 * time
    keys = key_cache[slots, time].to(wide).masked_fill(hidden, 0.0)  # [R, t, H, D]
    values = value_cache[slots, time].to(wide).masked_fill(hidden, 0.0)
    scores = torch.einsum("rhd,rthd->rht", query.to(wide), keys) * scale
    weights = torch.softmax(scores.masked_fill(~seen[:, None, :], -torch.inf), dim=-1)
    weights = weights.masked_fill((n_keys == 0)[:, None, None], 0.0)  # softmax over nothing is NaN
    return torch.einsum("rht,rthd->rhd", weights, values).to(query.dtype)


def apply_edits(
    scores: Tensor,
    edit_begin: Tensor,
    edit_end: Tensor,
    edit_token: Tensor,
    edit_kind: Tensor,
    edit_value: Tensor,
    forced: Tensor,
) -> Tensor:
    """Return a copy of ``scores`` with every row's forced token and edits applied.

    scores [R, V]; edit_begin, edit_end [R] int32: row r owns edits edit_begin[r]:edit_end[r], applied in order; the rows'
    ranges ascend and do not overlap, and what lies between them is never looked at; edit_token, edit_kind int32 and
    edit_value float32, all [n_edits]; forced [R] int32, a token or -1. A forced row starts as -inf everywhere but 0.0 at
    the forced token, then its edits apply.
    """
    out = scores.clone()
    is_forced = forced >= 0
    if bool(is_forced.any()):
        one_hot = torch.full_like(out, -torch.inf)
        one_hot.scatter_(1, forced.clamp(min=0).long()[:, None], 0.0)
        out = torch.where(is_forced[:, None], one_hot, out)
    counts = (edit_end - edit_begin).long()
    rows = torch.repeat_interleave(torch.arange(len(counts), device=out.device), counts)
    if len(rows) == 0:
        return out
    used = torch.arange(len(rows), device=out.device) + (edit_end - counts.cumsum(0))[rows]
    edit_token, edit_kind, edit_value = edit_token[used], edit_kind[used], edit_value[used]
    where = rows * out.shape[1] + edit_token.long()
    flat = out.view(-1)
    # The n-th edit of one place must see the result of the (n-1)-th: edits are applied in waves of unique places.
    for wave in _waves(where):
        place, kind, value = where[wave], edit_kind[wave], edit_value[wave].to(out.dtype)
        old = flat[place]
        new = torch.where(kind == PENALIZE, torch.where(old < 0, old * value, old / value), old)
        new = torch.where(kind == ADD, old + value, new)
        new = torch.where(kind == DECAY, old + old.abs() * value, new)
        new = torch.where(old == -torch.inf, old, new)
        flat[place] = torch.where(kind == SET, value, new)
    return out


def greedy_step(
    logits: Tensor,
    edit_begin: Tensor,
    edit_end: Tensor,
    edit_token: Tensor,
    edit_kind: Tensor,
    edit_value: Tensor,
    forced: Tensor,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best token of every row.

    logits [R, V]; edits and forced as in ``apply_edits``, here of the logits themselves, in float32; renormalize: choose
    by log-probabilities after the edits, in float32 too. The first of equal maxima is chosen, and NaN counts as the largest.

    Returns tokens [R] int32, gains [R] float64, the chosen token's log-probability after the edits, and broken [R] bool:
    the model's own logit of that token is NaN. (A row whose every token is banned gains NaN as well, but is not broken.)
    """
    scores = apply_edits(logits.float(), edit_begin, edit_end, edit_token, edit_kind, edit_value, forced)
    if renormalize:
        scores = scores.log_softmax(-1)
    tokens = scores.argmax(-1)
    chosen, own = (x.gather(1, tokens[:, None])[:, 0] for x in (scores, logits))
    return tokens.int(), chosen.double() - scores.logsumexp(-1).double(), own.isnan()


def beam_step(
    logits: Tensor,
    scores: Tensor,
    pool_scores: Tensor,
    pool_finished: Tensor,
    open_: Tensor,
    edit_begin: Tensor,
    edit_end: Tensor,
    edit_token: Tensor,
    edit_kind: Tensor,
    edit_value: Tensor,
    forced: Tensor,
    n_new: Tensor,
    max_new: Tensor,
    eos_ids: Tensor,
    length_penalty: float,
    early_stopping: int,
    renormalize: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Choose the K best continuations of every document and update its pool of finished hypotheses.

    logits [B*K, V]; scores [B, K] float32, running sums of log-probabilities; pool_scores [B, K] float32 and
    pool_finished [B, K] bool, the K best hypotheses so far (-1e9 and False at first); open_ [B] bool, whether running
    beams may still improve the pool (True at first); edits and forced as in ``apply_edits``; n_new [B] int32, generated
    tokens including the one chosen now; max_new [B] int32; eos_ids [E] int32; early_stopping 0 (heuristic), 1 (stop at
    K hypotheses) or 2 ("never"); renormalize: normalise again after the edits.

    The C = max(2, 1+E)*K best candidates are ranked by (score desc, beam asc, token asc) in float64; NaN counts as
    -inf. Those that end (end-of-sequence, or no token left) cannot continue; those that end at rank < K enter the pool,
    scored sum / n_new**length_penalty. Documents never influence each other.

    Returns scores [B, K] float32, parents [B, K] int32 (which beam each new one extends), tokens [B, K] int32,
    pool_scores [B, K] float32, pool_finished [B, K] bool, pool_source [B, K] int32 (i < K: old entry i; else K + parent
    beam), pool_tokens [B, K] int32 (last token of a new entry, else -1), open [B] bool, done [B] bool.
    """
    n_documents, n_beams = scores.shape
    vocabulary = logits.shape[1]
    n_candidates = max(2, 1 + eos_ids.numel()) * n_beams

    log_probs = _log_softmax(_nan_to_minus_inf(logits.double()))
    log_probs = _nan_to_minus_inf(
        apply_edits(log_probs, edit_begin, edit_end, edit_token, edit_kind, edit_value, forced)
    )
    if renormalize:
        log_probs = _log_softmax(log_probs)
    sums = _nan_to_minus_inf(log_probs.view(n_documents, n_beams, vocabulary) + scores.double()[:, :, None])
    ranked, index = _best(sums.view(n_documents, n_beams * vocabulary), n_candidates)  # [B, C]
    parents, tokens = index // vocabulary, index % vocabulary

    hit = torch.isin(tokens, eos_ids.long()) | (n_new >= max_new)[:, None]
    return advance_beams(
        ranked, parents, tokens, hit, pool_scores, pool_finished, open_, n_new, max_new, length_penalty, early_stopping
    )


def advance_beams(
    ranked: Tensor,
    parents: Tensor,
    tokens: Tensor,
    hit: Tensor,
    pool_scores: Tensor,
    pool_finished: Tensor,
    open_: Tensor,
    n_new: Tensor,
    max_new: Tensor,
    length_penalty: float,
    early_stopping: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Continue beams and update pools by given candidates: the second half of ``beam_step``, for any that come in an order.

    ranked [B, C] float64, without NaN, parents, tokens [B, C] int64, hit [B, C] bool: each candidate's sum of
    log-probabilities, the beam that it continues, with what, and whether that ends it. All else, and the result, as there.
    """
    n_beams, n_candidates = pool_scores.shape[1], ranked.shape[1]
    running = ranked + torch.where(hit, BANISHED, 0.0)
    new_scores, chosen = (x[:, :n_beams] for x in torch.sort(running, dim=1, descending=True, stable=True))

    rank = torch.arange(n_candidates, device=ranked.device)
    ends = hit & (rank < n_beams)
    pool_full = pool_finished.all(dim=1)
    final = ranked / (n_new.double() ** length_penalty)[:, None]
    final = final + torch.where(pool_full & (early_stopping == 1), BANISHED, 0.0)[:, None]
    final = final + torch.where(open_, 0.0, BANISHED)[:, None]
    final = final + torch.where(ends, 0.0, BANISHED)
    merged = torch.cat([pool_scores.double(), _nan_to_minus_inf(final)], dim=1)
    merged, source = (x[:, :n_beams] for x in torch.sort(merged, dim=1, descending=True, stable=True))
    old_token = torch.full_like(pool_scores, -1, dtype=torch.long)
    old_source = torch.arange(n_beams, device=ranked.device).expand(*pool_scores.shape)
    new_finished = torch.cat([pool_finished, ends], dim=1).gather(1, source)
    new_pool_scores = merged.float()

    length = (max_new if early_stopping == 2 and length_penalty > 0.0 else n_new).double()
    # Rounded like the pool, so that a running beam which ties with a hypothesis of the same length is no improvement.
    best = (new_scores[:, :1] / (length**length_penalty)[:, None]).float()
    worst = torch.where(new_finished, new_pool_scores.amin(dim=1, keepdim=True), BANISHED)
    still_open = open_ & (best > worst).any(dim=1)
    complete = new_finished.all(dim=1) if early_stopping == 1 else torch.zeros_like(open_)
    done = ~still_open | complete | hit.all(dim=1)

    return (
        new_scores.float(),
        parents.gather(1, chosen).int(),
        tokens.gather(1, chosen).int(),
        new_pool_scores,
        new_finished,
        torch.cat([old_source, n_beams + parents], dim=1).gather(1, source).int(),
        torch.cat([old_token, tokens], dim=1).gather(1, source).int(),
        still_open,
        done,
    )


def add_norm(
    stream: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, post_norm: bool, dtype: torch.dtype
) -> Tensor:
    """Add a branch to the residual stream, in place, and return the layer norm of the sum.

    stream [N, D] float32; branch [N, D] ``dtype``, or None for nothing to add; weight, bias [D] float32. The sum, its mean
    and its variance are float32, and the result [N, D] is rounded to ``dtype`` once. The stream becomes the sum or, with
    ``post_norm``, its norm before that rounding: in networks that normalise after the addition that is what goes on.
    """
    if branch is not None:
        stream += branch
    normed = torch.nn.functional.layer_norm(stream, stream.shape[1:], weight, bias, eps)
    if post_norm:
        stream.copy_(normed)
    return normed.to(dtype)


def quantize_rows(states: Tensor) -> tuple[Tensor, Tensor]:
    """Write every row in 8 bits, at a scale of its own.

    states [N, K]. Returns codes [N, K] int8 and scales [N] float32: x is about scale * code, the largest of a row exactly
    127 steps from zero. A row of (almost) zeros has the scale 0, one that is not finite NaN; both have codes of 0.
    """
    wide = states.float()
    largest = wide.abs().amax(1) if states.shape[1] else wide.new_zeros(len(wide))
    finite = largest.isfinite()
    usable = finite & (largest >= 2.0**-100)
    inverse = torch.full_like(largest, 127.0) / largest  # a number over a tensor would be rounded twice
    steps = (wide * inverse[:, None]).round()
    scales = torch.where(usable, largest / 127.0, torch.where(finite, 0.0, torch.nan))
    return torch.where(usable[:, None], steps, 0.0).to(torch.int8), scales


def pack_weights(weights: Tensor) -> Tensor:
    """Lay weights [M, K], float32, bfloat16 or int8, out for ``linear``: [ceil(M / 64), ceil(K / n), 64 * n].

    A panel holds 64 outputs; in it, the n inputs of every output that make 32 bits lie together. Of 8 bits, all are 128 more
    than they were, as uint8. What is padding stands for zero. Raises ValueError for other types and shapes.
    """
    if weights.ndim != 2 or weights.dtype not in (torch.float32, torch.bfloat16, torch.int8):
        raise ValueError(
            f"linear takes weights [M, K] of float32, bfloat16 or int8, got {weights.dtype} {list(weights.shape)}"
        )
    outputs, inputs = weights.shape
    in_word = 4 // weights.itemsize
    panels, words = -(-outputs // _OUTPUT_PANEL), -(-inputs // in_word)
    packed = torch.zeros(panels, words, _OUTPUT_PANEL, in_word, dtype=weights.dtype, device=weights.device)
    for panel, rows in enumerate(weights.split(_OUTPUT_PANEL)):
        padded = F.pad(rows, (0, -inputs % in_word)).unflatten(1, (words, in_word))
        packed[panel, :, : len(rows)] = padded.transpose(0, 1)
    return (packed if weights.dtype != torch.int8 else packed.view(torch.uint8).bitwise_xor_(128)).flatten(2)


def weight_rows(packed: Tensor, rows: Tensor, inputs: int) -> Tensor:
    """Return the weights [N, inputs] of the outputs ``rows`` [N] int64, as they were before ``pack_weights``."""
    panels = packed.unflatten(2, (_OUTPUT_PANEL, -1))
    found = panels[rows // _OUTPUT_PANEL, :, rows % _OUTPUT_PANEL].flatten(1)[:, :inputs]
    return found if packed.dtype != torch.uint8 else (found ^ 128).view(torch.int8)


def linear(
    states: Tensor,
    weights: Tensor,
    weight_scales: Tensor | None,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    dtype: torch.dtype,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 0.0,
) -> Tensor:
    """Compute a linear layer: states times weights, plus bias, after ReLU if ``relu``, plus the residual, as ``dtype`` [N, M].

    states [N, K]; weights as ``pack_weights`` returns them for [M, K]; bias [M] float32; residual [N, M] or None. Weights of
    float32 or bfloat16 take states of their own type, products are added in float32. Those of 8 bits have weight_scales [M]
    float32, of each output, and rows are quantized on the way: sum * weight_scale * row scale + bias. Such a sum is exact,
    and rounded once to float32; the rest is computed in float32. With norm_weight and norm_bias [K] float32, both or none,
    the layer's rows are the layer norm of the states, computed in float32 and rounded to the weights' type unless that has
    8 bits.
    """
    plain = weight_rows(weights, torch.arange(len(bias), device=weights.device), states.shape[1])
    if norm_weight is not None:
        normed = F.layer_norm(states.float(), norm_weight.shape, norm_weight, norm_bias, norm_eps)
        states = normed if weight_scales is not None else normed.to(states.dtype)
    if weight_scales is None:
        result = states.float() @ plain.float().T + bias
    else:
        codes, scales = quantize_rows(states)
        sums = codes.double() @ plain.double().T  # whole numbers far below 2^53
        result = sums.float() * weight_scales * scales[:, None] + bias
    result = torch.relu(result) if relu else result
    return (result if residual is None else result + residual.float()).to(dtype)


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _nan_to_minus_inf(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), -torch.inf, x)


def _log_softmax(x: Tensor) -> Tensor:
    # A row of -inf, or one with +inf, has no distribution: inf - inf is NaN, and NaN counts as -inf.
    return _nan_to_minus_inf(x - torch.logsumexp(x, dim=-1, keepdim=True))


def _waves(where: Tensor) -> list[Tensor]:
    # Splits positions 0..n-1 of `where` into lists without repeated places, n-th occurrences in the n-th list.
    _, order = torch.sort(where, stable=True)
    ordered = where[order]
    position = torch.arange(len(where), device=where.device)
    starts_run = torch.ones_like(ordered, dtype=torch.bool)
    starts_run[1:] = ordered[1:] != ordered[:-1]
    occurrence = position - torch.cummax(torch.where(starts_run, position, 0), dim=0).values
    return [order[occurrence == n] for n in range(int(occurrence.max()) + 1)]


def _best(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    # The n largest of every row with their columns, by (value desc, column asc). topk alone leaves the choice among
    # equal values open, so everything equal to the n-th value is taken again by lowest column, and the union is sorted.
    if n > x.shape[1]:
        raise ValueError(f"beam_step: {n} candidates wanted but beams * vocabulary is only {x.shape[1]}")
    values, columns = torch.topk(x, n, dim=1)
    nth = values[:, -1:]
    beyond = x.shape[1]  # a column that no entry has
    above = torch.where(values > nth, columns, beyond)
    tied = torch.where(x == nth, torch.arange(beyond, device=x.device), beyond)
    columns = torch.cat([above, torch.topk(tied, n, dim=1, largest=False).values], dim=1)
    columns = torch.sort(columns, dim=1).values
    values = x.gather(1, columns.clamp(max=beyond - 1))
    # Columns ascend, so padding (column `beyond`) comes last and is exactly what exceeds a row's own count; give it a
    # value below every real one, -inf included, by sorting on (is padding, value).
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    columns = columns.gather(1, order)
    order = torch.sort((columns == beyond).int(), dim=1, stable=True).indices[:, :n]
    columns = columns.gather(1, order)
    return x.gather(1, columns), columns

"""Which values of the generation options are sound, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pegasus_batch.config import GenerationConfig

_Require = Callable[[bool, str, str], None]  # condition, the option's name, what is wanted of it

# Options that say how tokens are drawn, with the interval that each must lie in and the remedy; None turns one off.
_INTERVALS: dict[str, tuple[str, str]] = {
    "temperature": ("(0, inf)", "must be a positive number; for the most probable tokens set do_sample=False"),
    "top_p": ("[0, 1]", "must lie between 0 and 1, which turns it off"),
    "typical_p": ("(0, 1]", "must be above 0 and at most 1, which turns it off"),
    "min_p": ("[0, 1]", "must lie between 0 and 1"),
    "epsilon_cutoff": ("[0, 1)", "must be at least 0, which turns it off, and below 1"),
    "eta_cutoff": ("[0, 1)", "must be at least 0, which turns it off, and below 1"),
}
SAMPLING_OPTIONS = ("top_k", *_INTERVALS)  # which mean nothing without do_sample


def check_options(options: GenerationConfig) -> None:
    """Raise ValueError, naming value and remedy, on generation options that are wrong alone or together."""

    def require(condition: bool, name: str, wanted: str) -> None:
        if not condition:
            raise ValueError(f"{name}={getattr(options, name)!r}: {wanted}")

    for name in ("num_beams", "num_return_sequences"):
        require(_is_int(getattr(options, name), least=1), name, "must be a positive integer")
    require(
        options.num_return_sequences <= options.num_beams or (options.do_sample is True and options.num_beams == 1),
        "num_return_sequences",
        f"cannot exceed num_beams ({options.num_beams}), unless do_sample=True draws every sequence for itself",
    )
    _check_sampling(options, require)
    _check_beams(options, require)
    for name in ("max_length", "max_new_tokens"):
        require(
            getattr(options, name) is None or _is_int(getattr(options, name), 1), name, "must be a positive integer"
        )
    for name in ("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"):
        require(_is_int(getattr(options, name)), name, "must be a non-negative integer")
    require(
        options.min_new_tokens is None or _is_int(options.min_new_tokens),
        "min_new_tokens",
        "must be a non-negative integer",
    )
    require(
        options.max_new_tokens is not None or options.max_length is None or options.min_length <= options.max_length,
        "min_length",
        f"exceeds max_length ({options.max_length})",
    )
    require(
        options.max_new_tokens is None
        or options.min_new_tokens is None
        or options.min_new_tokens <= options.max_new_tokens,
        "min_new_tokens",
        f"exceeds max_new_tokens ({options.max_new_tokens})",
    )
    require(_is_real(options.length_penalty), "length_penalty", "must be a finite number")
    require(
        options.early_stopping in (True, False) or options.early_stopping == "never",
        "early_stopping",
        'must be True, False or "never"',
    )
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        value = getattr(options, name)
        require(_is_real(value) and value > 0, name, "must be a positive number")
    for name in ("forced_bos_token_id", "decoder_start_token_id", "bos_token_id", "pad_token_id"):
        require(getattr(options, name) is None or _is_int(getattr(options, name)), name, "must be a token id")
    for name in ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        require(all(_is_int(token) for token in as_tuple(getattr(options, name))), name, "must hold token ids")
    require(
        options.bad_words_ids is None
        or (
            bool(options.bad_words_ids)
            and all(len(word) and all(_is_int(t) for t in word) for word in options.bad_words_ids)
        ),
        "bad_words_ids",
        "must be a non-empty list of non-empty lists of token ids",
    )
    require(
        options.sequence_bias is None
        or (
            all(len(ids) and all(_is_int(t) for t in ids) for ids in options.sequence_bias)
            and bool(options.sequence_bias)
        ),
        "sequence_bias",
        "must map non-empty tuples of token ids to a bias",
    )
    decay = options.exponential_decay_length_penalty
    require(
        decay is None or (len(decay) == 2 and _is_int(decay[0]) and _is_real(decay[1]) and decay[1] > 0),
        "exponential_decay_length_penalty",
        "must be (start index, positive factor)",
    )
    limit = options.max_time
    require(limit is None or (_is_real(limit) and limit > 0), "max_time", "must be a positive number of seconds")
    strings = [options.stop_strings] if isinstance(options.stop_strings, str) else options.stop_strings
    require(
        strings is None or (bool(strings) and all(isinstance(text, str) and text for text in strings)),
        "stop_strings",
        "must be a text or a list of texts, none of them empty",
    )


def _check_sampling(options: GenerationConfig, require: _Require) -> None:
    require(isinstance(options.do_sample, bool), "do_sample", "must be True or False")
    require(_is_int(options.seed) and options.seed < 2**64, "seed", "must be a non-negative integer below 2 ** 64")
    require(options.top_k is None or _is_int(options.top_k), "top_k", "must be a non-negative integer; 0 turns it off")
    for name, (interval, wanted) in _INTERVALS.items():
        value, (least, most) = getattr(options, name), (float(end) for end in interval[1:-1].split(","))
        inside = value is None or (
            _is_real(value)
            and (least <= value if interval[0] == "[" else least < value)
            and (value <= most if interval[-1] == "]" else value < most)
        )
        require(inside, name, wanted)


def _check_beams(options: GenerationConfig, require: _Require) -> None:
    groups, words = options.num_beam_groups, options.force_words_ids
    require(
        _is_int(groups, 1) and options.num_beams % groups == 0,
        "num_beam_groups",
        f"must be a divisor of num_beams ({options.num_beams})",
    )
    require(
        _is_real(options.diversity_penalty)
        and (options.diversity_penalty > 0 if groups > 1 else options.diversity_penalty == 0),
        "diversity_penalty",
        "must be positive, or the groups would be identical" if groups > 1 else "needs num_beam_groups above 1",
    )
    require(
        groups == 1 or not options.do_sample, "num_beam_groups", "groups are searched, not drawn: set do_sample=False"
    )
    require(
        words is None or (bool(words) and all(_is_words(entry) for entry in words)),
        "force_words_ids",
        "must be a list of words (lists of token ids) or of lists of alternative words, none of them empty",
    )
    require(
        words is None or (options.num_beams > 1 and groups == 1 and not options.do_sample),
        "force_words_ids",
        "needs num_beams above 1, and neither num_beam_groups nor do_sample",
    )


def as_tuple(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return one token id, several or none as a tuple."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _is_words(entry: Any) -> bool:
    words = [entry] if entry and _is_int(entry[0]) else entry
    return bool(words) and all(bool(word) and all(_is_int(token) for token in word) for word in words)


def _is_int(value: Any, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

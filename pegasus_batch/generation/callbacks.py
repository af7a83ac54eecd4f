"""What a caller may hand to a search beside its options: functions and objects, which no JSON file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

from torch import Tensor

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]  # (ids [R, T], scores [R, V]) to scores [R, V]
StoppingCriterion = Callable[[Tensor, Any], "Tensor | bool"]  # (ids [R, T], scores so far or None) to stop [R]


class Streamer(Protocol):
    """Is told what is generated, as it is generated."""

    def put(self, value: Tensor) -> None:
        """Take the prompts [R, P] first, and then the newest token of every row [R]."""

    def end(self) -> None:
        """Learn that nothing follows."""


class Constraint(Protocol):
    """Something that a sequence must contain; transformers' own constraint objects are such."""

    seqlen: int  # the most tokens that fulfil it

    def advance(self) -> int | list[int] | None:
        """Return the token or tokens that would bring it closer to being fulfilled, None where it is."""

    def does_advance(self, token_id: int) -> bool:
        """Tell whether a token would."""

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take a token; returns whether it brought progress, whether all is fulfilled, and whether progress was lost."""

    def remaining(self) -> int:
        """Return how many tokens are still missing."""

    def copy(self, stateful: bool = False) -> Constraint:
        """Return the same constraint, at its beginning or, ``stateful``, as far as this one is."""


@dataclass(frozen=True)
class Callbacks:
    """The functions and objects of one call; all are optional, and a document's rows are passed to them by themselves.

    prefix_allowed_tokens_fn(document, ids [T]) lists the tokens that may follow. logits_processor: called in order, after
    the options' own processors and before what narrows a draw. stopping_criteria: a row for which any is true ends with its
    newest token; ``scores`` are those of all steps so far, [R, V] each, if output_scores and return_dict_in_generate are
    set. tokenizer: with ``get_vocab`` and ``convert_tokens_to_string``, for ``stop_strings``.
    """

    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None
    logits_processor: Sequence[LogitsProcessor] = ()
    stopping_criteria: Sequence[StoppingCriterion] = ()
    constraints: Sequence[Constraint] = ()
    streamer: Streamer | None = None
    tokenizer: Any = None

    @classmethod
    def taken_from(cls, options: Mapping[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Split the keywords of a call into callbacks, those that are not None, and the rest."""
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in options.items() if name in names and value is not None}
        for name in ("logits_processor", "stopping_criteria"):
            if not all(callable(entry) for entry in own.get(name, ())):
                raise ValueError(f"{name}={own[name]!r}: must be a list of callables")
        return cls(**own), {name: value for name, value in options.items() if name not in names}

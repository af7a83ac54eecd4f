"""Beam search for sequences that contain given words (``force_words_ids``, ``constraints``), as transformers had it until 4.56.

Beams are sorted into banks by how much of the constraints they fulfil, and the best of every bank go on (Post and Vilar 2018,
arXiv 1804.06609).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pegasus_batch.config import GenerationConfig
from pegasus_batch.generation.callbacks import Constraint
from pegasus_batch.generation.groups import Chosen, GroupBeamChoice, Pool
from pegasus_batch.generation.steering import Steering


class PhrasalConstraint:
    """Tokens that a sequence must contain, one after the other."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = list(token_ids)
        self.seqlen = len(self.token_ids)
        self._done = 0

    def advance(self) -> int | None:
        """Return the next token, None at the end."""
        return self.token_ids[self._done] if self._done < self.seqlen else None

    def does_advance(self, token_id: int) -> bool:
        """Tell whether a token is the next one."""
        return token_id == self.advance()

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take a token; returns (stepped, completed, reset)."""
        stepped = self.does_advance(token_id)
        self._done = self._done + 1 if stepped else 0
        return stepped, self._done == self.seqlen, not stepped

    def remaining(self) -> int:
        """Return how many tokens are missing."""
        return self.seqlen - self._done

    def copy(self, stateful: bool = False) -> PhrasalConstraint:
        """Return the constraint at its beginning or, ``stateful``, as far as this one is."""
        new = PhrasalConstraint(self.token_ids)
        new._done = self._done if stateful else 0
        return new


class DisjunctiveConstraint:
    """Words one of which a sequence must contain; none may begin with another."""

    def __init__(self, nested_token_ids: Sequence[Sequence[int]]) -> None:
        self.token_ids = [list(word) for word in nested_token_ids]
        self.seqlen = max(map(len, self.token_ids))
        for word in self.token_ids:
            if sum(other[: len(word)] == word for other in self.token_ids) > 1:
                raise ValueError(
                    f"of the alternatives {self.token_ids}, {word} is the beginning of another: keep one of them"
                )
        self._tokens: list[int] = []

    def advance(self) -> list[int] | None:
        """Return the tokens that continue a word, in the words' order, None at the end."""
        done = len(self._tokens)
        following = [word[done] for word in self.token_ids if len(word) > done and word[:done] == self._tokens]
        return list(dict.fromkeys(following)) or None

    def does_advance(self, token_id: int) -> bool:
        """Tell whether a token continues a word."""
        return token_id in (self.advance() or ())

    def update(self, token_id: int) -> tuple[bool, bool, bool]:
        """Take a token; returns (stepped, completed, reset)."""
        stepped = self.does_advance(token_id)
        if stepped:
            self._tokens.append(token_id)
        else:
            self._tokens = []
        return stepped, self.advance() is None, not stepped

    def remaining(self) -> int:
        """Return how many tokens are missing of the longest word, 0 where a word is complete."""
        return 0 if self.advance() is None else self.seqlen - len(self._tokens)

    def copy(self, stateful: bool = False) -> DisjunctiveConstraint:
        """Return the constraint at its beginning or, ``stateful``, as far as this one is.

        As in transformers, a stateful copy shares its progress with the original until either loses it.
        """
        new = DisjunctiveConstraint(self.token_ids)
        if stateful:
            new._tokens = self._tokens
        return new


class Progress:
    """How far a sequence has come through a list of constraints, each of them begun and fulfilled in turn."""

    def __init__(self, constraints: Sequence[Constraint], tokens: Sequence[int] = ()) -> None:
        """Read ``tokens``; what follows the fulfilment of all constraints no longer matters."""
        self._constraints = constraints
        self._longest = max(constraint.seqlen for constraint in constraints)
        self._pending = [constraint.copy() for constraint in constraints]
        self._begun: Constraint | None = None
        self._fulfilled = 0
        for token in tokens:
            self.add(token)

    @property
    def complete(self) -> bool:
        """Tell whether all is fulfilled."""
        return self._fulfilled == len(self._constraints)

    @property
    def bank(self) -> int:
        """Return the progress in tokens, constraints counted as if all were as long as the longest."""
        begun = 0 if self._begun is None else self._longest - self._begun.remaining()
        return self._fulfilled * self._longest + begun

    def advance(self) -> list[int]:
        """Return the tokens that bring progress: of the begun constraint or, where none is, of all the pending ones."""
        found: list[int] = []
        for constraint in self._pending if self._begun is None else [self._begun]:
            tokens = constraint.advance()
            found += [] if tokens is None else [tokens] if isinstance(tokens, int) else tokens
        return found

    def add(self, token: int) -> None:
        """Take a token, which moves one constraint at most."""
        if self.complete:
            return
        if self._begun is None:
            self._begun = next((constraint for constraint in self._pending if constraint.does_advance(token)), None)
            if self._begun is None:
                return
            self._pending = [constraint for constraint in self._pending if constraint is not self._begun]
        _, completed, lost = self._begun.update(token)
        if lost:
            self._pending.append(self._begun.copy())
            self._begun = None
        elif completed:
            self._fulfilled += 1
            self._begun = None

    def continued(self, token: int) -> Progress:
        """Return the progress of the sequence that a token makes of this one."""
        new = Progress(self._constraints)
        new._fulfilled, new._pending = self._fulfilled, [constraint.copy() for constraint in self._pending]
        new._begun = None if self._begun is None else self._begun.copy(stateful=True)
        new.add(token)
        return new


def _constraint(words: Sequence[Any]) -> Constraint:
    """Return the constraint of a word or, where they are several, of alternative words."""
    return PhrasalConstraint(words) if isinstance(words[0], int) else DisjunctiveConstraint(words)


class ConstrainedBeamChoice(GroupBeamChoice):
    """The continuations of every beam, some of them those that bring a constraint closer."""

    recorded_sums = True

    def __init__(
        self, options: GenerationConfig, prompt_length: int, max_length: int, device: torch.device, steering: Steering
    ) -> None:
        super().__init__(options, prompt_length, max_length, device, steering)
        self._constraints = [*steering.constraints, *map(_constraint, options.force_words_ids or ())]

    def _may_end(self, tokens: list[int]) -> bool:
        return Progress(self._constraints, tokens).complete

    def _revised(self, row: int, chosen: Chosen, totals: Tensor, length: int) -> Chosen:
        before = self.sequences[row, :, :length].tolist()
        sequences = [[*before[parent], token] for parent, token in zip(chosen.parents, chosen.tokens, strict=True)]
        banks = [Progress(self._constraints, tokens).bank for tokens in sequences]
        scores, parents, tokens = list(chosen.scores), list(chosen.parents), list(chosen.tokens)
        for parent, sequence in enumerate(before):
            progress = Progress(self._constraints, sequence)
            for token in [] if progress.complete else progress.advance():
                following = progress.continued(token)
                if [*sequence, token] not in sequences:
                    sequences.append([*sequence, token])
                    banks.append(following.bank)
                    scores.append(float(totals[parent, token]))
                    parents.append(parent)
                    tokens.append(token)
        if len(scores) == self._size:
            return chosen
        # The best of each bank, then the second of each, and so on; within a turn the fullest bank first.
        ranks = (torch.tensor(banks) * 100 + torch.tensor(scores)).sort(descending=True, stable=True).indices.tolist()
        turns, last, turn = [], None, 0
        for index in ranks:
            turn = turn + 1 if banks[index] == last else 0
            last = banks[index]
            turns.append(turn)
        order = [ranks[place] for place in sorted(range(len(ranks)), key=turns.__getitem__)][: self._size]
        return Chosen(*([values[index] for index in order] for values in (scores, parents, tokens)))

    def _complete(self, pool: Pool, row: int, first: int, length: int) -> None:
        fulfilled = [self._may_end(tokens) for tokens in self.sequences[row, :, :length].tolist()]
        for wanted in (True, False):
            # Where the constraints could not be fulfilled often enough, the best sequences without them are returned.
            if wanted or sum(fulfilled) < self._options.num_return_sequences:
                for beam in range(self.n_beams):
                    if fulfilled[beam] is wanted:
                        self._add_running(pool, row, beam, length)

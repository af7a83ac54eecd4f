"""What can befall a job, drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.chaos.driver import LATE_STEPS, STEPS
from tests.chaos.model import PLACES

# How often each kind is drawn. Those with END end the job's own process, and the same command is run again.
WEIGHTS = {
    "actor killed": 4,
    "writer killed": 3,
    "reader killed": 2,
    "guard killed": 1,
    "node lost": 3,
    "second driver started": 1,
    "writer killed at a place": 3,
    "driver killed": 4,
    "driver terminated": 2,
    "driver killed, writer lives on": 2,
    "driver and writer killed at a place": 3,
    "driver killed at a step": 4,
}
KINDS = tuple(WEIGHTS)
END = frozenset(kind for kind in KINDS if kind.startswith("driver"))
ARMED = frozenset(kind for kind in KINDS if " at a " in kind)  # the process is told beforehand where to kill itself
EARLY = frozenset(STEPS) - set(LATE_STEPS)
_MOST_ENDS = 3  # in an episode; each costs a start of the job


@dataclass(frozen=True)
class Fault:
    """One fault. ``where`` is one of STEPS or PLACES for those that strike at an exact point.

    The others strike once their attempt has added ``after`` data files, ``delay`` seconds later, the first process of
    their kind that is seen then; ``choice`` says which node is lost, and for how many seconds it is missing.
    """

    kind: str
    where: str = ""
    after: int = 0
    delay: float = 0.0
    choice: int = 0
    task: int = 0  # the number of the first write task that it may strike, for those at a place

    @property
    def name(self) -> str:
        """What is printed."""
        return f"{self.kind} ({self.where})" if self.where else self.kind

    @property
    def is_late(self) -> bool:
        """Whether it strikes when no work is left that others could disturb."""
        return self.where in LATE_STEPS


Attempt = tuple[Fault, ...]


def draw_attempts(rng: random.Random, count: int) -> list[Attempt]:
    """Draw ``count`` faults and lay them out: each attempt ends with a fault that ends the driver, but the last."""
    kinds: list[str] = []
    while len(kinds) < count:
        (kind,) = rng.choices(KINDS, list(WEIGHTS.values()))
        if kind not in END or sum(known in END for known in kinds) < _MOST_ENDS:
            kinds.append(kind)
    faults = [_draw(rng, kind) for kind in kinds]
    late = {fault.where: fault for fault in faults if fault.is_late}
    others = [fault for fault in faults if not fault.is_late]
    spare = count - len(others) - len(late)  # a late step drawn twice: the second one would find no work
    others += [_draw(rng, "actor killed") for _ in range(spare)]
    return lay_out([*others, *(late[step] for step in LATE_STEPS if step in late)])


def lay_out(faults: Sequence[Fault]) -> list[Attempt]:
    """Cut faults into attempts of the job."""
    attempts: list[Attempt] = []
    current: list[Fault] = []
    for fault in faults:
        if fault.where in EARLY:  # nothing else can strike before it
            attempts.append((fault,))
            continue
        files = max((before.after for before in current), default=0)
        current.append(replace(fault, after=files + fault.after))
        if fault.kind in END:
            attempts.append(tuple(current))
            current = []
    if current:
        attempts.append(tuple(current))
    return attempts


def _draw(rng: random.Random, kind: str) -> Fault:
    where = ""
    if kind.endswith("at a step"):
        where = rng.choice(list(STEPS))
    elif kind.endswith("at a place"):
        where = rng.choice(PLACES)
    from_start = kind == "reader killed" or rng.random() < 0.2  # readers are done before most files are written
    return Fault(
        kind,
        where,
        after=0 if from_start else rng.randint(1, 5),
        delay=rng.uniform(0, 4) if from_start else rng.uniform(0, 0.6),
        choice=rng.randrange(100),
        task=rng.randint(0, 6),
    )

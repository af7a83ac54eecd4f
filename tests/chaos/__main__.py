"""``python -m tests.chaos``: strike a job with many faults, and count the rows that it loses or doubles."""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.driver import LATE_STEPS, STEPS
from tests.chaos.faults import KINDS, Attempt, Fault, lay_out
from tests.chaos.harness import Episode, Workplace, play, run_episode
from tests.chaos.model import PLACES

FAULTS_PER_EPISODE = (3, 6)


def short_episodes() -> list[list[Attempt]]:
    """Return few faults: each kind once at least, and each step of the driver."""
    early = [Fault("driver killed at a step", step) for step in STEPS if step not in LATE_STEPS]
    late = [Fault("driver killed at a step", step) for step in LATE_STEPS]
    first = [
        *early,
        Fault("reader killed"),
        Fault("writer killed at a place", PLACES[1]),
        Fault("writer killed at a place", PLACES[2], task=3),
        Fault("driver killed, writer lives on", after=6),
        Fault("node lost", after=2),
        Fault("driver and writer killed at a place", PLACES[1], task=5),
        *late,
    ]
    second = [
        Fault("actor killed", after=1, delay=0.1),
        Fault("writer killed at a place", PLACES[3], task=1),
        Fault("driver killed, writer lives on", after=5),
        Fault("guard killed", after=1),
        Fault("second driver started", after=1),
        Fault("writer killed", after=1),
        Fault("driver terminated", after=3),
        Fault("driver killed", delay=2),
        Fault("driver and writer killed at a place", PLACES[0], task=1),
    ]
    return [lay_out(first), lay_out(second)]


def short(place: Workplace, seed: str) -> Iterator[Episode]:
    """Run the fixed episodes."""
    for number, attempts in enumerate(short_episodes()):
        episode = Episode(number, renames=number == 0)
        yield play(place, episode, random.Random(f"{seed}/{number}"), attempts, n_rows=700, arrival=5 - 4 * number)


def drawn(place: Workplace, seed: str, n_faults: int, only: int | None) -> Iterator[Episode]:
    """Draw episodes until enough faults have struck."""
    if only is not None:
        yield run_episode(place, seed, only, episode_size(seed, only))
        return
    struck = number = 0
    while struck < n_faults:
        episode = run_episode(place, seed, number, episode_size(seed, number))
        struck, number = struck + episode.struck.total(), number + 1
        yield episode


def episode_size(seed: str, number: int) -> int:
    """Return how many faults an episode has."""
    return random.Random(f"size {seed}/{number}").randint(*FAULTS_PER_EPISODE)


def table(episodes: list[Episode]) -> str:
    """Return what struck how often, and what became of the rows."""
    by_kind: Counter[str] = Counter()
    late: Counter[str] = Counter()
    for episode in episodes:
        for name, count in episode.struck.items():
            by_kind[name.split(" (")[0]] += count
        late.update(episode.late)
    lines = [f"{'fault':<38}{'struck':>8}{'too late':>10}"]
    lines += [f"{kind:<38}{by_kind[kind]:>8}{late[kind]:>10}" for kind in KINDS]
    lines += [f"{'all':<38}{by_kind.total():>8}{late.total():>10}", ""]
    lines += [
        f"{name:<38}{count:>8,}"
        for name, count in (
            ("jobs", len(episodes)),
            ("attempts", sum(episode.attempts for episode in episodes)),
            ("of these, the job gave up itself", sum(len(episode.gave_up) for episode in episodes)),
            ("rows", sum(episode.rows for episode in episodes)),
            ("rows lost", sum(episode.lost for episode in episodes)),
            ("rows doubled", sum(episode.doubled for episode in episodes)),
            ("jobs with anything wrong", sum(bool(episode.wrong) for episode in episodes)),
        )
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="go on until so many have struck")
    parser.add_argument("--seed", default=None, help="draws the same faults again; their moments vary a little")
    parser.add_argument("--only-episode", type=int, default=None, metavar="K", help="run one of the seed's episodes")
    parser.add_argument("--short", action="store_true", help="two fixed episodes with every kind of fault")
    parser.add_argument("--report", type=Path, default=None, help="write the episodes to this file, as JSON")
    options = parser.parse_args()
    seed = options.seed or secrets.token_hex(3)
    print(f"seed {seed}", flush=True)
    begun, episodes = time.monotonic(), []
    directory = Path(tempfile.mkdtemp(prefix="pegasus-chaos-"))
    with Workplace(directory) as place:
        made = short(place, seed) if options.short else drawn(place, seed, options.faults, options.only_episode)
        for episode in made:
            episodes.append(episode)
            print(episode.line(), flush=True)
    print(f"\n{table(episodes)}\n{'minutes':<38}{(time.monotonic() - begun) / 60:>8.1f}")
    if options.report:
        options.report.write_text(json.dumps([vars(episode) for episode in episodes]))
    wrong = [episode.number for episode in episodes if episode.wrong]
    if wrong:
        again = "--short" if options.short else f"--only-episode {wrong[0]}"
        print(
            f"\nepisodes {wrong} went wrong; see {directory}, or run again: python -m tests.chaos --seed {seed} {again}"
        )
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Benchmarks of making pre-training examples: speed by processes, and memory against the size of the corpus."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from chart import markdown_table
from pipeline import RESULTS, ROOT, Results, save, scratch
from sampling import MB, Sampler, machine, ray_on_this_machine

from pegasus_batch.training.gap_sentences import STRATEGIES, GapSentences, Strategy
from pegasus_batch.training.pretrain_data import make_pretrain_data
from pegasus_batch.training.pretrain_settings import build_settings

CORPUS = ROOT / "data" / "debian_synopses" / "train.parquet"
_GROUP_ROWS = 5_000

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def write_corpus(path: Path, rows: int, sentences: int) -> Path:
    """Write ``rows`` different documents of sentences whose words are as unevenly frequent as those of a language."""
    rng = np.random.default_rng(1)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnoprstuvw"), n)) for n in rng.integers(2, 10, 20_000)])
    share = 1 / np.arange(1, len(words) + 1)
    pool = [
        " ".join(line).capitalize() + "."
        for line in np.split(rng.choice(words, 20 * 5_000, p=share / share.sum()), 5_000)
    ]
    schema = pa.schema([("id", pa.int64()), ("document", pa.string())])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for start in range(0, rows, _GROUP_ROWS):
            ids = range(start, min(rows, start + _GROUP_ROWS))
            texts = [" ".join([f"Number {i}.", *(pool[j] for j in rng.integers(0, 5_000, sentences))]) for i in ids]
            writer.write_table(pa.table({"id": list(ids), "document": texts}, schema))
    return path


def make_many(texts: Sequence[str], strategy: Strategy, repeats: int) -> tuple[int, float]:
    """Make the examples of texts; return how many, and the seconds that it took."""
    make = GapSentences(strategy)
    make(texts[0], 0)
    started = time.perf_counter()
    made = sum(make(text, seed) is not None for seed in range(repeats) for text in texts)
    return made, time.perf_counter() - started


def measure_speed(texts: Sequence[str], strategy: Strategy, processes: int, repeats: int) -> float:
    """Return examples per second of so many processes, each with its share of the texts, all at once."""
    with get_context("spawn").Pool(processes) as pool:
        parts = [(list(texts[i::processes]), strategy, repeats) for i in range(processes)]
        pool.starmap(make_many, [(part[:1], strategy, 1) for part, _, _ in parts], chunksize=1)  # imports
        return sum(made / seconds for made, seconds in pool.starmap(make_many, parts, chunksize=1))


def measure_job(directory: str, rows: int, sentences: int, store_mb: float) -> dict[str, Any]:
    """Run a job on a corpus made for it; return its speed and the peaks of its processes."""
    source, output = Path(directory) / f"in-{rows}.parquet", Path(directory) / f"out-{rows}"
    subprocess.run([sys.executable, __file__, "corpus", str(source), str(rows), str(sentences)], check=True)
    settings = build_settings({"input": str(source), "output": str(output), "columns": "id"})
    with Sampler(0.5) as sampler, ray_on_this_machine(int(store_mb * MB)):
        started = time.perf_counter()
        counts = make_pretrain_data(settings)
        seconds = time.perf_counter() - started
    assert counts is not None and counts.examples == rows, counts
    size = round(source.stat().st_size / MB, 1)
    source.unlink()
    return {"rows": rows, "input_mb": size, "seconds": round(seconds, 2), **sampler.record()}


@app.command(hidden=True)
def corpus(path: Path, rows: int, sentences: int) -> None:
    """Write a corpus, in a process whose memory nobody measures."""
    write_corpus(path, rows, sentences)


@app.command(hidden=True)
def child(options: str) -> None:
    """Measure one job in this process and print what it found."""
    print(json.dumps(measure_job(**json.loads(options))))


@app.command()
def speed(
    documents: Annotated[int, typer.Option(help="Documents of the corpus, from the first on.")] = 10_000,
    repeats: Annotated[int, typer.Option(help="Passes over them.")] = 2,
    processes: Annotated[list[int], typer.Option(help="Numbers of processes.")] = [1, 2],  # noqa: B006
    data: Annotated[Path, typer.Option(help="Parquet file with a column document.")] = CORPUS,
    results: Results = RESULTS,
) -> None:
    """Examples per second of the gap-sentence objective alone, by strategy and number of processes."""
    at = machine()
    texts = pq.read_table(data, columns=["document"])["document"].to_pylist()[:documents]
    rates = {name: [measure_speed(texts, name, n, repeats) for n in processes] for name in STRATEGIES}
    characters = round(float(np.mean([len(text) for text in texts])))
    headers = [f"examples/s, documents of {characters} characters", *(f"{n} processes" for n in processes)]
    print(markdown_table(headers, [[name, *(f"{rate:,.0f}" for rate in row)] for name, row in rates.items()]))
    options = {"documents": len(texts), "characters": characters, "repeats": repeats, "processes": processes}
    _save(results, "speed", at, options=options, examples_per_second=rates)


@app.command()
def memory(
    rows: Annotated[list[int], typer.Option(help="Sizes of the corpora.")] = [1_000, 10_000, 100_000],  # noqa: B006
    sentences: Annotated[int, typer.Option(help="Of a document, 20 words each.")] = 20,
    store_mb: Annotated[float, typer.Option(help="Size of Ray's object store.")] = 200,
    work: Annotated[Path | None, typer.Option(help="Where the corpora and outputs go meanwhile.")] = None,
    results: Results = RESULTS,
) -> None:
    """Seconds and peak memory of the whole job against the number of documents."""
    at = machine()
    options = {"sentences": sentences, "store_mb": store_mb}
    with scratch(work) as directory:
        runs = []
        for n in rows:
            command = [
                sys.executable,
                __file__,
                "child",
                json.dumps({"directory": str(directory), "rows": n, **options}),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    headers = [
        "documents",
        "input MB",
        "seconds",
        "examples/s",
        "driver MB",
        "largest task MB",
        "object store MB",
        "all MB",
    ]
    cells = [
        [
            f"{run['rows']:,}",
            f"{run['input_mb']:,.0f}",
            f"{run['seconds']:.1f}",
            f"{run['rows'] / run['seconds']:,.0f}",
            *(f"{run['peak_mb'][kind]:,.0f}" for kind in ("driver", "task")),
            f"{run['store_touched_mb']:,.0f}",
            f"{run['peak_total_mb']:,.0f}",
        ]
        for run in runs
    ]
    print(markdown_table(headers, cells))
    _save(results, "memory", at, options=options, runs=runs)


def _save(results: Path, part: str, at: dict[str, Any], **values: Any) -> None:
    """Write one part of ``pretraining.json``; the other stays as it was, with the machine that it was measured on."""
    path = results / "pretraining.json"
    parts = json.loads(path.read_text(encoding="utf-8")).get("parts", {}) if path.exists() else {}
    measured = {**at, "load_after": [round(load, 1) for load in os.getloadavg()]}
    save(results, "pretraining", at, parts={**parts, part: {"machine": measured, **values}})


if __name__ == "__main__":
    app()

"""Benchmarks of the CPU engine alone: how it scales, what joining a running search saves, what the dtypes change."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from chart import markdown_table
from matplotlib.figure import Figure
from pipeline import DOCS, RESULTS, ROOT, Docs, Results, save, scratch
from sampling import Sampler, machine, ray_on_this_machine
from summarization import SHAPES, Shape, make_documents
from torch import Tensor

from pegasus_batch import GenerationConfig, PegasusForConditionalGeneration, Summarizer
from pegasus_batch.documents import DocumentTokenizer
from pegasus_batch.engine.allocator import keep_freed_memory
from pegasus_batch.engine.engine import Engine
from pegasus_batch.evaluation.rouge import score_summaries
from pegasus_batch.generation import Search, generate
from pegasus_batch.summarizer import load_engine
from pegasus_batch.tokenization.loading import load_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
TEST = ROOT / "data" / "debian_synopses" / "test.parquet"

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ShapeName = Annotated[str, typer.Option(help="tiny, small or large.")]
Rounds = Annotated[int, typer.Option(help="Times that everything is measured, in turn; medians are kept.")]


def make_engine(shape: Shape, dtype: str) -> Engine:
    """Return an engine of random weights, in a process that treats memory as one that has loaded a checkpoint does."""
    keep_freed_memory()
    torch.manual_seed(0)
    model = PegasusForConditionalGeneration(shape.config())
    quantized = dtype == "int8"
    return Engine(
        model.config, model.to(torch.float32 if quantized else DTYPES[dtype]).engine_weights(), quantized=quantized
    )


class Ending:
    """An engine whose documents end after as many tokens as they are told to."""

    def __init__(self, engine: Engine, lengths: Sequence[int]) -> None:
        self._engine, self._wanted = engine, lengths
        self.vocab_size, self.device = engine.vocab_size, engine.device

    def start(self, n_beams: int) -> None:
        """Begin."""
        self._left: list[int] = []
        self._engine.start(n_beams)

    def admit(self, documents: Sequence[int]) -> None:
        """Add documents."""
        self._left += [self._wanted[document] for document in documents]
        self._engine.admit(documents)

    def step(self, tokens: Tensor, parents: Tensor, widths: Sequence[int]) -> Tensor:
        """Decode a token; the end token is certain where it is wanted, and impossible elsewhere."""
        logits = self._engine.step(tokens, parents, widths)
        self._left = [left - 1 for left in self._left]
        ends = torch.tensor(self._left).repeat_interleave(torch.tensor(widths)) == 0
        logits[:, 1] = torch.where(ends, 1e4, -1e4).to(logits.dtype)
        return logits

    def keep(self, documents: Sequence[int]) -> None:
        """Drop the others."""
        self._left = [self._left[document] for document in documents]
        self._engine.keep(documents)


def seconds_of(
    engine: Engine, documents: Sequence[Sequence[int]], lengths: Sequence[int], beams: int, budget: int | None = None
) -> float:
    """Return the seconds of a search whose documents end after ``lengths`` tokens."""
    options = GenerationConfig(
        num_beams=beams,
        early_stopping=True,
        max_length=max(lengths) + 1,
        eos_token_id=1,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    engine.load(documents)
    prompts = [[0]] * len(documents)
    begun = time.perf_counter()
    search = Search(Ending(engine, lengths), options, documents, prompts, budget=budget)
    tokens = sum(len(found[0].tokens) - 1 for _, found in search)
    seconds = time.perf_counter() - begun
    assert tokens == sum(lengths), (tokens, sum(lengths))
    return seconds


def medians(measurements: Sequence[tuple[str, Any]], rounds: int) -> dict[str, float]:
    """Call everything in turn, ``rounds`` times; return the median of each one's results."""
    found: dict[str, list[float]] = {name: [] for name, _ in measurements}
    for _ in range(rounds):
        for name, measure in measurements:
            found[name].append(measure())
    return {name: statistics.median(values) for name, values in found.items()}


@app.command()
def refill(
    shape: ShapeName = "small",
    dtype: str = "fp32",
    documents: Annotated[int, typer.Option(help="In all.")] = 64,
    at_once: Annotated[int, typer.Option(help="Documents in work at a time.")] = 8,
    source: Annotated[int, typer.Option(help="Tokens of a document.")] = 200,
    beams: int = 4,
    rounds: Rounds = 3,
    results: Results = RESULTS,
) -> None:
    """Cost of summaries whose lengths spread from 8 to 64 tokens, against equal ones with as many tokens in all."""
    at = machine()
    engine = make_engine(SHAPES[shape], dtype)
    sources = make_documents(SHAPES[shape], documents, source, 0.0)
    rng = np.random.default_rng(1)
    spread = rng.permutation(np.linspace(8, 64, documents).round().astype(int)).tolist()
    equal = [sum(spread) // documents + (i < sum(spread) % documents) for i in range(documents)]
    budget = at_once * source

    def one_after_the_other() -> float:
        parts = [slice(begin, begin + at_once) for begin in range(0, documents, at_once)]
        return sum(seconds_of(engine, sources[part], spread[part], beams) for part in parts)

    seconds_of(engine, sources[:2], [4, 4], beams)
    found = medians(
        [
            ("equal lengths", lambda: seconds_of(engine, sources, equal, beams, budget)),
            ("spread, others join", lambda: seconds_of(engine, sources, spread, beams, budget)),
            ("spread, batch after batch", one_after_the_other),
        ],
        rounds,
    )
    base = found["equal lengths"]
    rows = [[name, f"{1000 * value / sum(spread):.2f}", f"{value / base - 1:+.0%}"] for name, value in found.items()]
    print(markdown_table([f"{shape}, {dtype}, {beams} beams", "ms a token", "against equal"], rows))
    options = {"shape": shape, "dtype": dtype, "documents": documents, "at_once": at_once, "source": source}
    save(results, f"refill_{shape}_{dtype}", at, options={**options, "beams": beams}, seconds=found)


@app.command()
def scaling(
    shape: ShapeName = "small",
    dtypes: Annotated[str, typer.Option(help="Commas between them.")] = "fp32,bf16,int8",
    rounds: Rounds = 3,
    results: Results = RESULTS,
    docs: Docs = DOCS,
) -> None:
    """Milliseconds a document by threads, documents at a time, beams and source tokens; draws docs/scaling.svg."""
    at = machine()
    usual = {"threads": torch.get_num_threads(), "documents": 8, "beams": 4, "source": 256}
    swept = {
        "threads": sorted({1, *(n for n in (2, 4, 8, 16, 32) if n <= usual["threads"])}),
        "documents": [1, 2, 4, 8, 16, 32],
        "beams": [1, 2, 4, 8, 16],
        "source": [64, 128, 256, 512, 1024],
    }
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = dict(zip(swept, figure.subplots(2, 2).flatten(), strict=True))
    found: dict[str, dict[str, dict[int, float]]] = {}
    for dtype in dtypes.split(","):
        engine = make_engine(SHAPES[shape], dtype)
        found[dtype] = {}
        for name, values in swept.items():
            measurements = [
                (str(value), partial(measure_case, engine, SHAPES[shape], **{**usual, name: value})) for value in values
            ]
            line = {int(value): 1000 * seconds for value, seconds in medians(measurements, rounds).items()}
            found[dtype][name] = line
            panels[name].plot(list(line), list(line.values()), marker="o", label=dtype)
    titles = {"threads": "threads", "documents": "documents at a time", "beams": "beams", "source": "source tokens"}
    for name, axes in panels.items():
        axes.set(title=titles[name], xscale="log", xticks=swept[name], xticklabels=swept[name], ylim=(0, None))
        axes.set_ylabel("ms a document")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels["threads"].legend(frameon=False)
    usually = ", ".join(f"{value} {titles[name]}" for name, value in usual.items())
    figure.suptitle(f"{shape} shape, 24 new tokens; unless swept {usually}", fontsize="medium")
    docs.mkdir(parents=True, exist_ok=True)
    figure.savefig(docs / "scaling.svg")
    for dtype, lines in found.items():
        for name, line in lines.items():
            print(f"{dtype} by {titles[name]}: " + ", ".join(f"{x}: {y:.0f}" for x, y in line.items()))
    save(results, f"scaling_{shape}", at, options={"shape": shape, "usual": usual}, ms_per_document=found)


def measure_case(engine: Engine, shape: Shape, threads: int, documents: int, beams: int, source: int) -> float:
    """Return the seconds of a document in one batch of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sources = make_documents(shape, documents, source, 0.0)
        return seconds_of(engine, sources, [24] * documents, beams) / documents
    finally:
        torch.set_num_threads(before)


@app.command()
def agreement(
    dtypes: Annotated[str, typer.Option(help="Commas between them; the first is what the others are held against.")] = (
        "float32,bfloat16,int8"
    ),
    data: Annotated[Path, typer.Option(help="Parquet file with columns document and summary.")] = TEST,
    model: Annotated[str, typer.Option(help="Model directory; the embedded one by default.")] = str(
        ROOT / "pegasus_batch" / "demo" / "model"
    ),
    rows: Annotated[int | None, typer.Option(help="Only the first rows.")] = None,
    transformers: Annotated[int, typer.Option(help="Documents that transformers searches too, in float32.")] = 200,
    results: Results = RESULTS,
) -> None:
    """What a dtype changes in summaries of real documents: how many, by how much their scores, and their ROUGE."""
    at = machine()
    table = pq.read_table(data, columns=["document", "summary"]).slice(0, rows)
    texts, references = table["document"].to_pylist(), table["summary"].to_pylist()
    found, base = {}, None
    for dtype in dtypes.split(","):
        begun = time.perf_counter()
        summaries = Summarizer(model, device="cpu", dtype=dtype).summarize(texts)
        seconds = time.perf_counter() - begun
        base = base or summaries
        differences = [abs(a.score - b.score) for a, b in zip(summaries, base, strict=True) if a.text == b.text]
        scores = score_summaries([made.text for made in summaries], references)
        found[dtype] = {
            "identical": sum(a.text == b.text for a, b in zip(summaries, base, strict=True)) / len(texts),
            "score_difference": {"mean": float(np.mean(differences)), "most": max(differences)},
            "rouge": {name: float(scores[name].mean()) for name in ("rouge1", "rouge2", "rougeL")},
            "seconds": seconds,
        }
    table_rows = [
        [
            dtype,
            f"{values['identical']:.1%}",
            f"{values['score_difference']['mean']:.4f} ({values['score_difference']['most']:.3f})",
            " / ".join(f"{value:.2f}" for value in values["rouge"].values()),
        ]
        for dtype, values in found.items()
    ]
    headers = [f"{len(texts):,} documents", "same summary", "score differs by (at most)", "ROUGE-1 / 2 / L"]
    print(markdown_table(headers, table_rows))
    same = count_equal_to_transformers(Path(model), texts[:transformers])
    print(f"float32 tokens equal to transformers': {same} of {len(texts[:transformers])} documents")
    options = {"data": data.name, "rows": len(texts), "transformers": transformers}
    save(results, "agreement", at, options=options, dtypes=found, equal_to_transformers=same)


def count_equal_to_transformers(model: Path, texts: Sequence[str]) -> int:
    """Return for how many documents transformers' own search, one at a time, finds the same tokens as ours together."""
    import transformers

    engine, options = load_engine(model, torch.float32, torch.device("cpu"))
    sources = [document.token_ids for document in DocumentTokenizer(model, None).tokenize(texts)]
    engine.load(sources)
    prompts = [[options.start_token]] * len(sources)
    ours = generate(engine, options, sources, prompts, budget=4096, max_positions=engine.max_positions)
    theirs = transformers.PegasusForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    found = [theirs.generate(torch.tensor([list(source)]))[0].tolist() for source in sources]
    return sum(a[0].tokens == b for a, b in zip(ours, found, strict=True))


def write_model(directory: Path, shape: str, new_tokens: int) -> Path:
    """Write a model of random weights that generates exactly ``new_tokens``, with the embedded model's tokenizer."""
    torch.manual_seed(0)
    model = PegasusForConditionalGeneration(SHAPES[shape].config())
    model.generation_config = model.generation_config.updated(
        num_beams=4, max_length=None, min_new_tokens=new_tokens, max_new_tokens=new_tokens
    )
    tokenizer = ROOT / "pegasus_batch" / "demo" / "model"
    model.final_logits_bias[0, load_tokenizer(tokenizer).vocab_size :] = -1e4  # what the tokenizer could not read
    model.save_pretrained(directory)
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tokenizer / name, directory)
    return directory


def run_alone(model: str, data: str, dtype: str) -> dict[str, float]:
    """Summarize a file's documents without Ray, on all cores; the model is loaded before the clock starts."""
    summarizer = Summarizer(model, device="cpu", dtype=dtype)
    texts = pq.read_table(data)["document"].to_pylist()
    begun = time.perf_counter()
    summaries = summarizer.summarize(texts)
    seconds = time.perf_counter() - begun
    assert {summary.status for summary in summaries} == {"ok"}
    return {"seconds": seconds}


def run_in_job(model: str, data: str, dtype: str, output: str, sample: bool) -> dict[str, Any]:
    """Summarize the same with one worker of the job on all cores, loading the model included.

    ``sample``: look at the memory of all processes, which stops them for a moment each time.
    """
    from pegasus_batch.pipeline.config import build_config
    from pegasus_batch.pipeline.run import run_job

    values = {"input": data, "output": output, "model": model, "dtype": dtype, "device": "cpu", "num_workers": 1}
    sampler = Sampler()
    with sampler if sample else nullcontext(), ray_on_this_machine():
        outcome = run_job(build_config(values))
    assert set(outcome.by_status) == {"ok"}, outcome
    return {"seconds": outcome.seconds, **(sampler.record() if sample else {})}


@app.command(hidden=True)
def child(kind: str, options: str) -> None:
    """Measure in this process and print what was found."""
    print(json.dumps({"alone": run_alone, "job": run_in_job}[kind](**json.loads(options))))


@app.command()
def job(
    shape: ShapeName = "small",
    dtype: Annotated[str, typer.Option(help="As --dtype of the job.")] = "float32",
    rows: Annotated[list[int], typer.Option(help="Documents of a short run and of a long one.")] = [64, 192],  # noqa: B006
    rounds: Rounds = 1,
    results: Results = RESULTS,
) -> None:
    """What the job adds to the engine: the time of a further document, and the peak memory of its processes."""
    at = machine()
    texts = pq.read_table(TEST, columns=["document"])["document"].to_pylist()
    texts = [" ".join(texts[(4 * i + j) % len(texts)] for j in range(4)) for i in range(max(rows))]
    seconds: dict[str, list[float]] = {}
    with scratch(None) as directory:
        model = write_model(directory / "model", shape, 24)
        options = {"model": str(model), "dtype": dtype}
        for n in rows:
            pq.write_table(pa.table({"id": range(n), "document": texts[:n]}), directory / f"{n}.parquet")

        def run(kind: str, n: int, **more: Any) -> dict[str, Any]:
            asked = json.dumps({**options, "data": str(directory / f"{n}.parquet"), **more})
            done = subprocess.run([sys.executable, __file__, "child", kind, asked], stdout=subprocess.PIPE, check=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        for turn in range(rounds):
            for n in rows:
                alone = run("alone", n)
                inside = run("job", n, output=str(directory / f"out-{n}-{turn}"), sample=False)
                seconds.setdefault(f"alone {n}", []).append(alone["seconds"])
                seconds.setdefault(f"job {n}", []).append(inside["seconds"])
        peaks = run("job", rows[0], output=str(directory / "out"), sample=True)["peak_mb"]
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    further = {
        kind: (middle[f"{kind} {rows[1]}"] - middle[f"{kind} {rows[0]}"]) / (rows[1] - rows[0])
        for kind in ("alone", "job")
    }
    table = [[name, f"{1000 * value:.1f}", f"{value / further['alone'] - 1:+.1%}"] for name, value in further.items()]
    print(markdown_table([f"{shape}, {dtype}", "ms a further document", "against the engine alone"], table))
    print("peak MB:", ", ".join(f"{name} {value:,.0f}" for name, value in peaks.items()))
    options = {"shape": shape, "dtype": dtype, "rows": rows, "rounds": rounds}
    save(results, f"job_{shape}_{dtype}", at, options=options, seconds=seconds, further=further, peak_mb=peaks)


if __name__ == "__main__":
    app()

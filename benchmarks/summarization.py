"""Beam search of the same documents by this project and its peers, side by side in one run; README.md says more."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from chart import markdown_table
from matplotlib.figure import Figure
from peers import convert
from pipeline import DOCS, RESULTS, Docs, Results
from sampling import machine

from pegasus_batch import PegasusConfig, PegasusForConditionalGeneration, kernels
from pegasus_batch.engine.slots import MOST_SLOTS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Shape:
    """The size of a model with random weights: as many layers in the encoder as in the decoder."""

    d_model: int
    layers: int
    ffn: int
    heads: int
    vocabulary: int
    documents: int  # at a time

    def config(self) -> PegasusConfig:
        """Return the model's config."""
        return PegasusConfig(
            d_model=self.d_model,
            encoder_layers=self.layers,
            decoder_layers=self.layers,
            encoder_ffn_dim=self.ffn,
            decoder_ffn_dim=self.ffn,
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=1024,
            scale_embedding=True,
            activation_function="relu",
            forced_eos_token_id=None,  # CTranslate2 forces none
            init_std=0.05,
            extra={
                "normalize_before": True,
                "normalize_embedding": False,
                "add_final_layer_norm": True,
            },  # what CTranslate2 looks for
        )

    def operations(self, source: float, new: int, beams: int) -> dict[str, float]:
        """Return the multiply-add operations (two each) of a document by kind: what a machine cannot avoid."""
        d, f, layers = self.d_model, self.ffn, self.layers
        rows = beams * new
        return {
            "encoder": 2 * layers * (4 * d * d + 2 * d * f + 2 * d * d) * source,  # and the keys that the decoder reads
            "encoder attention": 2 * layers * 2 * d * source**2,
            "decoder": 2 * rows * layers * (6 * d * d + 2 * d * f),
            "head": 2 * rows * d * self.vocabulary,
            "source attention": 2 * rows * layers * 2 * d * source,
            "own attention": 2 * rows * layers * 2 * d * new / 2,
        }

    def traffic(self, source: float, new: int, beams: int, in_work: int) -> dict[str, float]:
        """Return the bytes of GPU memory that a document's share of decoding moves, in bfloat16 with float32 logits."""
        d, f, layers = self.d_model, self.ffn, self.layers
        logits = 4 * beams * new * self.vocabulary
        return {
            "decoder": 2 * new * layers * (6 * d * d + 2 * d * f) / in_work,
            "head": 2 * new * d * self.vocabulary / in_work + logits,
            "beam step": logits,
            "source attention": 2 * new * layers * 2 * d * source,
            "own attention": 2 * new * layers * 2 * d * new,  # about two live keys for each token so far
        }


SHAPES = {
    "tiny": Shape(64, 2, 128, 4, 1000, 4),
    "small": Shape(512, 6, 2048, 8, 32000, 16),
    "large": Shape(1024, 16, 4096, 16, 96103, 8),
}
TORCH_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
PEERS = {"ours": ("fp32", "bf16", "int8"), "transformers": ("fp32", "bf16"), "ctranslate2": ("fp32", "int8")}


def make_documents(shape: Shape, count: int, source: int, spread: float) -> list[list[int]]:
    """Return token ids of ``count`` documents, their lengths drawn within ``spread`` of ``source``."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(round(source * (1 - spread)), round(source * (1 + spread)) + 1, count)
    return [[*rng.integers(110, shape.vocabulary, length - 1).tolist(), 1] for length in lengths]


def measure_rate(kind: str, threads: int) -> float:
    """Return the operations a second of a large packed matrix product of a type on this machine now, the best of several."""
    from pegasus_batch.engine.linear import make_linear, quantize_linear

    torch.set_num_threads(threads)
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    weight, rows = torch.randn(4096, 1024).to(dtype), torch.randn(512, 1024).to(dtype)
    layer = quantize_linear(weight, torch.zeros(4096), dtype) if kind == "int8" else make_linear(weight, None)
    best = 1e9
    for _ in range(30):
        begun = time.perf_counter()
        layer(rows)
        best = min(best, time.perf_counter() - begun)
    return 2 * 4096 * 1024 * 512 / best


def measure_gpu() -> dict[str, float]:
    """Return the operations a second of a large bfloat16 product, and the bytes a second of a large copy, of this GPU now."""
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    source, target = torch.empty(2, 1 << 30, dtype=torch.uint8, device="cuda")

    def best_of(call: Callable[[], object]) -> float:
        times = []
        for _ in range(20):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        return min(times)

    return {
        "bf16": 2 * 8192**3 / best_of(lambda: a @ b),
        "bytes": 2 * (1 << 30) / best_of(lambda: target.copy_(source)),
    }


def parse_peer(pair: str) -> tuple[str, str]:
    """Return the engine and the type that ``ENGINE:TYPE`` names."""
    engine, _, kind = pair.strip().partition(":")
    if kind not in PEERS.get(engine, ()):
        choices = ", ".join(f"{name}:{one}" for name, types in PEERS.items() for one in types)
        raise typer.BadParameter(f"{pair!r} is no engine with a type of its; choose from {choices}")
    return engine, kind


def in_process(engine: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run an engine in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(Path(__file__).parent / "peers.py"), engine, json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def draw_shares(shares: dict[str, dict[str, float]], count: int, path: Path, title: str) -> None:
    """Draw a bar for each engine, stacked by kind of operator, in milliseconds a document."""
    figure = Figure(figsize=(9, 1.2 + 0.5 * len(shares)), layout="constrained")
    axes = figure.subplots()
    begins = [0.0] * len(shares)
    for kind in next(iter(shares.values())):
        widths = [1000 * parts[kind] / count for parts in shares.values()]
        axes.barh(list(shares), widths, left=begins, label=kind)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.set(title=title, xlabel="ms a document, under the profiler")
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


@app.command()
def main(
    peers: Annotated[str, typer.Option(help="Engine:dtype pairs, commas between them.")] = (
        "ours:fp32,ours:bf16,transformers:fp32,transformers:bf16,ctranslate2:fp32,ctranslate2:int8"
    ),
    shape: Annotated[str, typer.Option(help="tiny, small or large.")] = "small",
    documents: Annotated[int | None, typer.Option(help="In a batch; the shape's own by default.")] = None,
    source: Annotated[int, typer.Option(help="Tokens of a document.")] = 430,
    spread: Annotated[float, typer.Option(help="Share by which documents are shorter or longer.")] = 0.0,
    new_tokens: Annotated[int, typer.Option(help="Generated for each.")] = 24,
    beams: int = 8,
    threads: int = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch: Annotated[int, typer.Option(help="Documents that transformers takes at a time; 0 for all.")] = 0,
    rounds: Annotated[int, typer.Option(help="Of all peers, one after the other.")] = 3,
    repeats: Annotated[int, typer.Option(help="Timed runs in each process.")] = 1,
    results: Results = RESULTS,
    docs: Docs = DOCS,
) -> None:
    """Print and keep the median time of a document, the share of the floor and the peak memory of every peer."""
    size = SHAPES[shape]
    at = {**machine(), "kernels": kernels.backend()}
    names = [parse_peer(pair) for pair in peers.split(",")]
    job: dict[str, Any] = {
        "documents": make_documents(size, documents or size.documents, source, spread),
        "new_tokens": new_tokens, "beams": beams, "threads": threads, "repeats": repeats, "device": device, "batch": batch,
    }  # fmt: skip
    count = len(job["documents"])
    kept = shape if device == "cpu" else f"{shape}_{device}_{source}_{new_tokens}"
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="pegasus-bench-") as directory:
        torch.manual_seed(0)
        PegasusForConditionalGeneration(size.config()).save_pretrained(f"{directory}/model")
        if any(engine == "ctranslate2" for engine, _ in names):
            convert(f"{directory}/model", f"{directory}/converted")
        paths = {"model": f"{directory}/model", "converted": f"{directory}/converted"}
        for turn in range(rounds):
            for engine, dtype in names:
                asked = {
                    **job,
                    **paths,
                    "dtype": TORCH_TYPES[dtype],
                    "profile": engine == "ours" and turn == rounds - 1,
                }
                run = in_process(engine, asked)
                found[engine, dtype].append(run)
                seconds = statistics.median(run["seconds"]) / count
                print(f"{engine} {dtype}: {1000 * seconds:.1f} ms a document", file=sys.stderr, flush=True)
    mean = statistics.mean(map(len, job["documents"]))
    operations = size.operations(mean, new_tokens, beams)
    if device == "cuda":
        rates = measure_gpu()
        traffic = size.traffic(mean, new_tokens, beams, min(count, MOST_SLOTS))
        floors = {kind: max(operations.get(kind, 0) / rates["bf16"], traffic.get(kind, 0) / rates["bytes"])
                  for kind in {**operations, **traffic}}  # fmt: skip
        at["gpu"] = torch.cuda.get_device_name()
    else:
        rates = {kind: measure_rate(kind, threads) for kind in TORCH_TYPES}
        floors = {}
    rows, reference = [], {}
    for engine, dtype in names:
        runs = found[engine, dtype]
        seconds = statistics.median(s for run in runs for s in run["seconds"]) / count
        floor = sum(floors.values()) if floors else sum(operations.values()) / rates[dtype]
        reference[f"{engine}:{dtype}"] = {
            "ms_per_document": 1000 * seconds, "floor_ms": 1000 * floor, "peak_mb": max(run["peak_mb"] for run in runs),
            "seconds": [s for run in runs for s in run["seconds"]], "shares": runs[-1]["shares"],
            "loading": statistics.median(run["loading"] for run in runs),
        }  # fmt: skip
        same = sum(a == b for a, b in zip(runs[0]["ids"], found[names[0]][0]["ids"], strict=True))
        rows.append(
            [f"{engine} {dtype}", f"{1000 * seconds:,.0f}", f"{floor / seconds:.0%}", f"{max(r['peak_mb'] for r in runs):,.0f}",
             f"{same}/{count}"]
        )  # fmt: skip
    headers = [
        f"{shape}, {count} documents",
        "ms a document",
        "of the floor",
        "peak MB",
        f"same as {names[0][0]} {names[0][1]}",
    ]
    print(markdown_table(headers, rows))
    shares = {name: record["shares"] for name, record in reference.items() if record["shares"]}
    for name, parts in shares.items():
        total = sum(parts.values())
        print(name, ", ".join(f"{kind} {value / total:.0%}" for kind, value in parts.items()))
    if floors:
        print("floor, ms a document:", ", ".join(f"{kind} {1000 * floor:.3f}" for kind, floor in floors.items()))
    if shares:
        draw_shares(
            shares, count, docs / f"summarization_{kept}.svg", f"{shape} shape: where the time of a document goes"
        )
    for package in ("transformers", "ctranslate2"):
        try:
            at["versions"][package] = version(package)
        except PackageNotFoundError:
            continue
    at["load_after"] = [round(load, 1) for load in os.getloadavg()]
    options = {key: value for key, value in job.items() if key != "documents"} | {
        "shape": shape, "documents": count, "source": source, "spread": spread, "rounds": rounds,
    }  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": "summarization", "machine": at, "options": options, "rates": rates, "peers": reference}
    record["floors_ms"] = {kind: 1000 * floor for kind, floor in floors.items()}
    (results / f"summarization_{kept}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()

"""What is compared: each engine summarizes the same token ids in a process of its own, told by JSON what to do.

``python benchmarks/peers.py ENGINE '{...}'`` prints one line of JSON with its times, its peak memory and its token ids.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[[], list[list[int]]]  # summarizes all documents once; their best sequences, without prompt and end


def load_ours(job: dict[str, Any]) -> Run:
    """Prepare this project's engine and search, as the job does."""
    import torch

    from pegasus_batch.checkpoints.huggingface import parse_dtype
    from pegasus_batch.generation import generate
    from pegasus_batch.summarizer import load_engine

    torch.set_num_threads(job["threads"])
    engine, defaults = load_engine(Path(job["model"]), parse_dtype(job["dtype"]), torch.device("cpu"))
    options = defaults.updated(
        num_beams=job["beams"], min_new_tokens=job["new_tokens"], max_new_tokens=job["new_tokens"], length_penalty=1.0
    )
    documents = job["documents"]

    def run() -> list[list[int]]:
        engine.load(documents)
        found = generate(engine, options, documents, [[0]] * len(documents), max_positions=engine.max_positions)
        return [best.tokens[1:] for best, *_ in found]

    return run


def load_transformers(job: dict[str, Any]) -> Run:
    """Prepare transformers' ``model.generate``."""
    import torch
    from transformers import PegasusForConditionalGeneration

    torch.set_num_threads(job["threads"])
    model = PegasusForConditionalGeneration.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"])).eval()
    documents = job["documents"]
    width = max(map(len, documents))
    ids = torch.tensor([document + [0] * (width - len(document)) for document in documents])
    mask = torch.tensor([[1] * len(document) + [0] * (width - len(document)) for document in documents])

    @torch.no_grad()
    def run() -> list[list[int]]:
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            num_beams=job["beams"],
            min_new_tokens=job["new_tokens"],
            max_new_tokens=job["new_tokens"],
            length_penalty=1.0,
        )
        return [row[1:] for row in found.tolist()]

    return run


def load_ctranslate2(job: dict[str, Any]) -> Run:
    """Prepare CTranslate2, which reads a conversion of the model that is made first."""
    import ctranslate2

    translator = ctranslate2.Translator(
        job["converted"], compute_type=job["dtype"], intra_threads=job["threads"], inter_threads=1
    )
    documents = [[f"t{token}" for token in document] for document in job["documents"]]

    def run() -> list[list[int]]:
        results = translator.translate_batch(
            documents,
            beam_size=job["beams"],
            max_batch_size=0,
            min_decoding_length=job["new_tokens"],
            max_decoding_length=job["new_tokens"],
            max_input_length=0,
            length_penalty=1.0,
        )
        return [[int(re.sub(r"\D", "", token) or -1) for token in result.hypotheses[0]] for result in results]

    return run


def convert(model: str, target: str) -> None:
    """Convert a model for CTranslate2, keeping float32. Its vocabulary is the ids themselves: no text is involved."""
    from ctranslate2.converters import TransformersConverter

    config = json.loads((Path(model) / "config.json").read_text())

    class Ids:
        unk_token, bos_token, eos_token, pad_token = "t2", "t0", "t1", "t0"
        additional_special_tokens: tuple[str, ...] = ()

        @staticmethod
        def get_vocab() -> dict[str, int]:
            return {f"t{i}": i for i in range(config["vocab_size"])}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *args: Any, **options: Any) -> type[Ids]:
            return Ids

    Converter(model).convert(target, force=True)


ENGINES: dict[str, Callable[[dict[str, Any]], Run]] = {
    "ours": load_ours,
    "transformers": load_transformers,
    "ctranslate2": load_ctranslate2,
}


def peak_mb() -> float:
    """Return the largest resident set that this process has had."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1000


def main() -> None:
    """Do what the command line says."""
    name, job = sys.argv[1], json.loads(sys.argv[2])
    begun = time.perf_counter()
    run = ENGINES[name](job)
    loading = time.perf_counter() - begun
    ids = run()  # also the warm-up
    seconds = []
    for _ in range(job["repeats"]):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    peak = peak_mb()  # before the profiler adds its own
    shares = profile(run) if job["profile"] else None
    print(json.dumps({"seconds": seconds, "loading": loading, "peak_mb": peak, "ids": ids, "shares": shares}))


KINDS = (  # of operators, the first that matches
    ("matrix products", r"mkldnn|linear|addmm|mm$|bmm|onednn"),
    ("attention", r"pegasus_batch::.*attention"),
    ("beam step", r"pegasus_batch::beam_step"),
    ("norms and activations", r"layer_norm|relu|gelu|add|mul"),
)


def profile(run: Run) -> dict[str, float]:
    """Return the seconds of one run by kind of operator; what no operator takes is the interpreter's."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    begun = time.perf_counter()
    with torch_profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    total = time.perf_counter() - begun
    shares = {kind: 0.0 for kind, _ in KINDS} | {"other operators": 0.0}
    for event in profiler.key_averages():
        kind = next((kind for kind, pattern in KINDS if re.search(pattern, event.key)), "other operators")
        shares[kind] += event.self_cpu_time_total / 1e6
    return shares | {"between operators": max(0.0, total - sum(shares.values()))}


if __name__ == "__main__":
    main()

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
    from pegasus_batch.documents import BATCH_TOKENS
    from pegasus_batch.generation import generate
    from pegasus_batch.summarizer import load_engine

    torch.set_num_threads(job["threads"])
    engine, defaults = load_engine(Path(job["model"]), parse_dtype(job["dtype"]), torch.device(job["device"]))
    options = defaults.updated(
        num_beams=job["beams"], min_new_tokens=job["new_tokens"], max_new_tokens=job["new_tokens"], length_penalty=1.0
    )
    documents, limit = job["documents"], engine.max_positions
    budget = BATCH_TOKENS["cuda"] if job["device"] == "cuda" else None

    def run() -> list[list[int]]:
        engine.load(documents)
        found = generate(engine, options, documents, [[0]] * len(documents), budget=budget, max_positions=limit)
        return [best.tokens[1:] for best, *_ in found]

    return run


def load_transformers(job: dict[str, Any]) -> Run:
    """Prepare transformers' ``model.generate``, on batches of documents of similar lengths."""
    import torch
    from transformers import PegasusForConditionalGeneration

    torch.set_num_threads(job["threads"])
    model = PegasusForConditionalGeneration.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model.eval().to(job["device"])
    documents = job["documents"]
    order = sorted(range(len(documents)), key=lambda index: len(documents[index]), reverse=True)
    size = job["batch"] or len(order)
    batches = [order[begin : begin + size] for begin in range(0, len(order), size)]

    @torch.no_grad()
    def run() -> list[list[int]]:
        rows: dict[int, list[int]] = {}
        for batch in batches:
            width = max(len(documents[index]) for index in batch)
            ids = [documents[index] + [0] * (width - len(documents[index])) for index in batch]
            mask = [[1] * len(documents[index]) + [0] * (width - len(documents[index])) for index in batch]
            found = model.generate(
                input_ids=torch.tensor(ids, device=job["device"]),
                attention_mask=torch.tensor(mask, device=job["device"]),
                num_beams=job["beams"],
                min_new_tokens=job["new_tokens"],
                max_new_tokens=job["new_tokens"],
                length_penalty=1.0,
            )
            rows.update(zip(batch, [row[1:] for row in found.tolist()], strict=True))
        return [rows[index] for index in range(len(documents))]

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


def peak_mb(device: str) -> float:
    """Return the largest resident set that this process has had, or the most that torch has held on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
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
    peak = peak_mb(job["device"])  # before the profiler adds its own
    shares = profile(run, job["device"]) if job["profile"] else None
    print(json.dumps({"seconds": seconds, "loading": loading, "peak_mb": peak, "ids": ids, "shares": shares}))


KINDS = {  # of operators on the CPU, of kernels on a GPU; the first that matches
    "cpu": {
        "matrix products": r"mkldnn|linear|addmm|mm$|bmm|onednn",
        "attention": r"pegasus_batch::.*attention",
        "beam step": r"pegasus_batch::beam_step",
        "norms and activations": r"layer_norm|relu|gelu|add|mul",
    },
    "cuda": {
        "source attention": r"source_attention",
        "own attention": r"cached_attention",
        "beam step": r"beam|greedy|plan_edits|scan_row|pick",
        "norms": r"add_norm|layer_norm",
        "encoder attention": r"flash|fmha",
        "matrix products": r"gemm|nvjet|cutlass|cublas|splitK",
    },
}


def profile(run: Run, device: str) -> dict[str, float]:
    """Return the seconds of one run by kind; what nothing takes is the interpreter's, or the GPU's own idling."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    kinds = KINDS[device]
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with torch_profile(activities=[activity]):  # the first start imports a second's worth of modules
        pass
    begun = time.perf_counter()
    with torch_profile(activities=[activity]) as profiler:
        run()
    total = time.perf_counter() - begun
    shares = dict.fromkeys(kinds, 0.0) | {"other operators": 0.0}
    for event in profiler.key_averages():
        kind = next((kind for kind, pattern in kinds.items() if re.search(pattern, event.key)), "other operators")
        shares[kind] += (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e6
    return shares | {"between operators": max(0.0, total - sum(shares.values()))}


if __name__ == "__main__":
    main()
